"""Compare methods of editing by one model of many steps, with local weights and without.

    python scripts/compare_edits.py --pipeline pretrained/mtl-cifar10 \\
        --classifier pretrained/cifar10-classifier-noise --classifier runs/judge \\
        --dataset_name uoft-cs/cifar10 --image_column img --label_column label \\
        --tune_images 5000:5200 --images 6000:6450 --output_dir runs/compare_edits

Each image is edited into one other class. A method has the scale with the highest SSIM where 90 %
of the edits of tune_images reach their class (or else 70 %), by the first classifier. The same
command continues. Writes compare_edits.json, .md and .png; ± is the standard error.
"""

import argparse
import json
import os
from dataclasses import replace

from mtl_diffusion.evaluation.settings import Settings, among
from mtl_diffusion.tools import flags
from mtl_diffusion.tools.memory import keep_freed_memory


def rows(text: str) -> range:
    first, _, end = text.partition(":")
    if not (first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:END, such as 6000:6450")
    return range(int(first), int(end))


def main() -> None:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    flags.add(parser, "pipeline", "dataset_name", dataset_name={"required": True})
    flags.add(parser, "dataset_config_name", "validation_split", "image_column", "label_column")
    flags.add(parser, "output_dir")
    trained = "output_dir of train_classifier; give the flag again for another one"
    add("--classifier", type=os.path.expanduser, action="append", required=True, help=trained)
    add("--tune_images", type=rows, required=True, help="rows of the split that choose the scales")
    add("--images", type=rows, required=True, help="rows of the split that are reported")
    scales = [2.0, 4.0, 6.0, 8.0]
    add("--guidance_scales", type=float, nargs="+", default=scales, help="to choose from")
    for name in ("num_strengths", "num_inference_steps", "batch_size", "dtype"):
        text = Settings.model_fields[name].description
        add(f"--{name}", type=flags.value, default=Settings.model_fields[name].default, help=text)
    args = parser.parse_args()
    keep_freed_memory()

    # After parsing: torch takes seconds to import, and --help needs none of it.
    import torch

    from mtl_diffusion.classifiers.classifier import Classifier
    from mtl_diffusion.comparison.edits import compare_edits, table
    from mtl_diffusion.data.images import load_split
    from mtl_diffusion.evaluation.evaluate import context
    from mtl_diffusion.evaluation.features import feature_space
    from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

    with flags.refusals():
        settings = among(vars(args), Settings())
        pipe = MultiTaskPipeline.from_pretrained(args.pipeline)
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        pipe.set_progress_bar_config(disable=True)
        pipe.unet.to(getattr(torch, settings.dtype))
        data = load_split(args, "validation_split", replace(pipe.format, fit="crop"))
        contexts = []
        for folder in args.classifier:
            judge, space = Classifier.load(folder, pipe.device), feature_space(folder, pipe.device)
            contexts.append(context(pipe, judge, space, data, data, settings))
        given = (args.tune_images, args.images, args.guidance_scales, args.output_dir)
        *results, tuning = compare_edits(contexts, *given)
    by = dict(zip(args.classifier, results, strict=True))
    report = {"command": flags.command(), "fingerprint": data.fingerprint, "n": len(args.images)}
    text = json.dumps({**report, "results": by, "tuning": tuning}, indent=2)
    (args.output_dir / "compare_edits.json").write_text(text + "\n", encoding="utf-8")
    text = "\n".join(f"By {name}:\n\n{table(found)}" for name, found in by.items())
    (args.output_dir / "compare_edits.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{len(args.images)} images. Written to {args.output_dir}")


if __name__ == "__main__":
    main()
