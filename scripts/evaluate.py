"""The scorecard of an exported pipeline: metrics.json, plots and pictures.

    python scripts/evaluate.py --preset smoke --pipeline runs/quickstart/pipeline \\
        --classifier runs/quickstart/classifier --output_dir runs/quickstart/scores

Run again, it goes on where it was interrupted. Under `accelerate launch` all processes draw. The
presets are smoke (minutes on two cores), standard (10,000 samples) and full (50,000); every flag
below beats the preset. Some of the pictures show images of the dataset.
"""

import argparse
import json
import shlex
import sys
from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentParser, set_parsing_settings

from mtl_diffusion.evaluation.settings import PRESETS, Settings


def parse():
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, print_config=None
    )
    add = parser.add_argument
    add("--pipeline", required=True, help="exported folder or name on the Hub")
    add("--revision", help="branch, tag or commit of a pipeline on the Hub")
    add("--classifier", required=True, help="output_dir of scripts/train_classifier.py")
    add(
        "--feature_space",
        help='where distances are taken: "inception", an image model of transformers such as'
        " facebook/dinov2-base, or a folder of scripts/train_classifier.py; default: --classifier",
    )
    add("--dataset_name", default="shapes", help="default: %(default)s")
    add("--dataset_config_name", help="configuration of the dataset")
    add("--train_split", default="train", help="what the model saw; default: %(default)s")
    add("--validation_split", default="test", help="held-out split; default: %(default)s")
    add("--image_column", help="default: the one column of images")
    add("--label_column", help="default: the one column of classes")
    add("--parts", nargs="+", help="generate, likelihood, inpaint, edit; default: all that apply")
    add("--output_dir", required=True, help="folder for metrics.json, plots and pictures")
    add("--at_least", type=float, help="fail if a task's class accuracy is below this share")
    add("--device", help="default: cuda where there is one, else cpu")
    add("--preset", choices=sorted(PRESETS), default="standard", help="default: %(default)s")
    parser.add_class_arguments(Settings, as_group=True)
    # The preset sets the defaults of the flags, so it is read before them.
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default="standard")
    preset = early.parse_known_args()[0].preset
    if preset in PRESETS:  # if not, the parser itself says what is allowed
        parser.set_defaults(vars(PRESETS[preset]))
    return parser.parse_args()


def main() -> None:
    args = parse()

    # After parsing: torch takes seconds to import, and --help needs none of it.
    from accelerate import Accelerator

    from mtl_diffusion.classifiers.classifier import Classifier
    from mtl_diffusion.data.images import load_splits
    from mtl_diffusion.evaluation.evaluate import below, context, evaluate, parts_for
    from mtl_diffusion.evaluation.features import classifier_space, feature_space
    from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

    accelerator = Accelerator(cpu=args.device == "cpu")
    device = args.device or accelerator.device
    folder = Path(args.output_dir)
    pipe = MultiTaskPipeline.from_pretrained(args.pipeline, revision=args.revision).to(device)
    pipe.set_progress_bar_config(disable=True)

    try:
        settings = Settings(**{f.name: args[f.name] for f in fields(Settings)})
        classifier = Classifier.load(args.classifier, device)
        space = (
            feature_space(args.feature_space, device)
            if args.feature_space
            else classifier_space(classifier, args.classifier)
        )
        with accelerator.main_process_first():  # the first one decodes, the others read its cache
            train, test = load_splits(args, pipe.size)
        given = context(pipe, classifier, space, train, test, settings, folder / "features")
        possible = parts_for(pipe)
        parts = args.parts or possible
        if strangers := set(parts) - set(possible):
            raise ValueError(
                f"parts has {', '.join(sorted(strangers))}; this pipeline can have "
                f"{', '.join(possible)}"
            )
    except ValueError as error:
        sys.exit(f"evaluate.py: {error}")
    results = evaluate(given, parts, folder)
    if results is None:
        return
    metrics = {
        **results,
        "pipeline": args.pipeline,
        "weights": given.model,
        "dataset": {
            "name": args.dataset_name,
            "train_split": args.train_split,
            "train_fingerprint": train.fingerprint,
            "validation_split": args.validation_split,
            "validation_fingerprint": test.fingerprint,
        },
        "feature_space": {"name": space.name, "weights": space.digest, **space.about},
        "classifier": classifier.metrics,
        "sampler": type(pipe.scheduler).__name__,
        "settings": vars(settings),
        "device": str(pipe.device),
        "processes": accelerator.num_processes,
        "command": shlex.join(["python", *sys.argv]),
    }
    path = folder / "metrics.json"
    path.write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics["summary"], indent=2))
    print(f"All of it is in {path}, plots and pictures beside it")
    if args.at_least is not None and (poor := below(metrics, args.at_least)):
        sys.exit(f"class accuracy is below {args.at_least} in {', '.join(poor)}")


if __name__ == "__main__":
    main()
