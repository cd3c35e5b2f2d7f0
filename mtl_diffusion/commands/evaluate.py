"""The scorecard of an exported pipeline: metrics.json, plots and pictures.

    mtl-diffusion evaluate --preset smoke --pipeline runs/quickstart/pipeline \\
        --classifier runs/quickstart/classifier --output_dir runs/quickstart/scores

An interrupted evaluation continues when it is run again. Under `accelerate launch` all processes
draw. The presets are smoke (six minutes on two cores for a model of 8 million parameters, without
other methods) and standard (10,000 samples); every flag of the last group beats the preset. Some
of the pictures show images of the dataset.
"""

import argparse
import json
import os
import sys
from dataclasses import replace

from mtl_diffusion.evaluation.settings import PRESETS, Settings, among
from mtl_diffusion.tools import flags
from mtl_diffusion.tools.memory import keep_freed_memory


def parse() -> tuple[argparse.Namespace, Settings]:
    """The flags, and the settings among them."""
    parser = flags.parser(__doc__)
    add, home = parser.add_argument, os.path.expanduser
    flags.add(parser, "pipeline", "revision")
    trained = "output_dir of mtl-diffusion train_classifier"
    add("--classifier", required=True, type=home, help=trained)
    space = 'where distances are taken: "inception", or another classifier; default: --classifier'
    add("--feature_space", type=home, help=space)
    flags.add(parser, "dataset_name", "dataset_config_name", dataset_name={"default": "shapes"})
    flags.add(parser, "train_split", "validation_split", "image_column", "label_column")
    add("--mask_column", help="masks of the images: one more kind of hole, dataset")
    pairs = "the columns that a model makes images of, each as from_map=map"
    add("--condition_columns", nargs="+", type=_pair, default=[], help=pairs)
    parts = "generate, inpaint, edit, translate; default: all that apply"
    add("--parts", nargs="+", help=parts)
    add("--at_least", type=float, help="fail if a task's class accuracy is below this share")
    add("--preset", choices=list(PRESETS), default="standard", help="how much is measured")
    flags.add(parser, "output_dir", "device")
    group = parser.add_argument_group("In place of the preset's, whose standard is in brackets")
    for name, field in Settings.model_fields.items():
        text = f"{field.description} ({json.dumps(field.default)})".replace("%", "%%")
        group.add_argument(f"--{name}", type=flags.value, default=argparse.SUPPRESS, help=text)
    args = parser.parse_args()
    args.condition_columns = dict(args.condition_columns)
    with flags.refusals():
        return args, among(vars(args), PRESETS[args.preset])


def _pair(text: str) -> tuple[str, str]:
    task, equals, column = text.partition("=")
    if not (task and equals and column):
        raise argparse.ArgumentTypeError(f"{text!r} is not TASK=COLUMN")
    return task, column


def main() -> None:
    args, settings = parse()
    keep_freed_memory()

    # After parsing: torch takes seconds to import, and --help needs none of it.
    import torch
    from accelerate import Accelerator

    from mtl_diffusion.classifiers.classifier import Classifier
    from mtl_diffusion.data.images import load_splits
    from mtl_diffusion.evaluation.evaluate import below, context, write_scorecard
    from mtl_diffusion.evaluation.features import feature_space
    from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

    with flags.refusals():
        accelerator = Accelerator(cpu=args.device == "cpu")
        device = args.device or accelerator.device
        pipe = MultiTaskPipeline.from_pretrained(args.pipeline, revision=args.revision).to(device)
        pipe.set_progress_bar_config(disable=True)
        pipe.unet.to(getattr(torch, settings.dtype))
        if settings.compile:
            pipe.unet.to(memory_format=torch.channels_last)
            # Not the module, whose hooks count evaluations.
            pipe.unet.forward = torch.compile(pipe.unet.forward)
        classifier = Classifier.load(args.classifier, device)
        space = feature_space(args.feature_space or args.classifier, device)
        # Images of other shapes are cropped, so that nothing is measured in padding.
        train, test = load_splits(args, replace(pipe.format, fit="crop"))
        given = context(pipe, classifier, space, train, test, settings)
        metrics = write_scorecard(given, args.parts, args.output_dir, args, flags.command())
    if metrics is None:
        return
    print(json.dumps(metrics["summary"], indent=2))
    print(f"All of it is in {args.output_dir}: metrics.json, plots and pictures")
    if args.at_least is not None and (low := below(metrics, args.at_least)):
        sys.exit(f"class accuracy is below {args.at_least} in {', '.join(low)}")
