"""Measure an exported pipeline: python scripts/evaluate.py --pipeline DIR --classifier DIR ..."""

import json
import shlex
import sys
from argparse import ArgumentParser
from pathlib import Path


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition(":")[0])
    add = parser.add_argument
    add("--pipeline", required=True, help="exported folder or name on the Hub")
    add("--classifier", required=True, help="output_dir of scripts/train_classifier.py")
    add("--dataset_name", default="shapes", help="default: %(default)s")
    add("--validation_split", default="test", help="held-out split; default: %(default)s")
    add("--num_images", type=int, default=200, help="images a task; default: %(default)s")
    add("--num_inference_steps", type=int, default=18, help="default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--output_dir", required=True, help="folder for metrics.json")
    add("--at_least", type=float, help="fail if a task's class accuracy is below this share")
    args = parser.parse_args()

    # After parsing: torch takes seconds to import, and --help needs none of it.
    import torch

    from mtl_diffusion.classifier import Classifier
    from mtl_diffusion.data import load_images
    from mtl_diffusion.evaluate import below, class_accuracy
    from mtl_diffusion.hub.pipeline import TASKS, MultiTaskPipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = MultiTaskPipeline.from_pretrained(args.pipeline).to(device)
    pipe.set_progress_bar_config(disable=True)
    judge = Classifier.load(args.classifier, device)
    data = load_images(
        args.dataset_name,
        split=args.validation_split,
        resolution=pipe.size,
        split_field="validation_split",
    )
    accuracy = class_accuracy(
        pipe,
        judge,
        data,
        args.num_images,
        args.seed,
        num_inference_steps=args.num_inference_steps,
    )
    for task, entry in accuracy.items():
        entry["guidance_scale"] = TASKS[task].default_guidance_scale
    metrics = {
        "class_accuracy": accuracy,
        "classifier": json.loads(Path(args.classifier, "metrics.json").read_text()),
        "sampler": type(pipe.scheduler).__name__,
        "num_inference_steps": args.num_inference_steps,
        "edit_strength": TASKS["edit"].default_strength,
        "dataset_name": args.dataset_name,
        "split": args.validation_split,
        "fingerprint": data.fingerprint,
        "command": shlex.join(["python", *sys.argv]),
    }
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics, indent=2))
    if args.at_least is not None and (poor := below(accuracy, args.at_least)):
        sys.exit(f"class accuracy is below {args.at_least} in {', '.join(poor)}")


if __name__ == "__main__":
    main()
