"""Train a small image classifier, which evaluate.py and the alignment in training use.

    python scripts/train_classifier.py --dataset_name shapes --resolution 16 \\
        --output_dir runs/shapes-classifier
    python scripts/train_classifier.py --architecture resnet9 --dataset_name uoft-cs/cifar10 \\
        --resolution 32 --epochs 11 --output_dir runs/cifar10-classifier

The classifier that measures a model must be another one than any that trained the model: give it
another architecture and seed.

The output folder is a `transformers` image classifier, and metrics.json with its accuracy on the
test split. What is in the folder already is overwritten.
"""

import argparse
import json
import math
import shlex
import sys
import time


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset_name", required=True, help='"shapes", a dataset on the Hub, or a local folder')
    add("--dataset_config_name", help="the configuration, where the dataset has several")
    add("--train_split", default="train", help='what to learn from, such as "train[:90%%]"')
    add("--test_split", default="test", help="what metrics.json is measured on")
    add("--image_column", help="default: the one column of images")
    add("--label_column", help="default: the one column of classes")
    add("--resolution", type=int, required=True, help="side of the images in pixels")
    add("--output_dir", required=True, help="where the classifier is written")
    add(
        "--architecture",
        default="regnet",
        choices=["resnet9", "regnet"],
        help="resnet9 is more accurate, for figures that are reported (default: regnet)",
    )
    add("--epochs", type=int, default=10, help="passes over the train split (default: 10)")
    add("--batch_size", type=int, default=128, help="samples a step (default: 128)")
    add("--learning_rate", type=float, help="at its peak (default: the architecture's own)")
    add("--width", type=int, default=32, help="channels of the first layer (default: 32)")
    add("--depth", type=int, default=1, help="residual blocks in each stage of regnet (default: 1)")
    add("--seed", type=int, default=0, help="keys all that is random (default: 0)")
    add(
        "--mixed_precision",
        default="no",
        choices=["no", "bf16"],
        help="bf16 is faster on GPUs, and on CPUs with AMX or AVX512_BF16 (default: no)",
    )
    add("--device", help="default: cuda where there is one, else cpu")
    return parser.parse_args()


def main() -> None:
    args = parse()

    import torch  # after --help and after mistakes in the flags, because it takes seconds

    from mtl_diffusion.classifiers.classifier import train_classifier
    from mtl_diffusion.data.images import load_splits

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    started = time.monotonic()
    try:
        train, test = load_splits(args, args.resolution, ("train_split", "test_split"))
        if not train.class_names:
            raise ValueError(
                "label_column: the images have no labels; name the column, or give another dataset"
            )
        if train.class_names != test.class_names:
            raise ValueError(
                f"test_split: its classes are {list(test.class_names)}, and train_split's are"
                f" {list(train.class_names)}; the splits must name the same ones."
            )
        classifier = train_classifier(
            train,
            args.architecture,
            args.epochs,
            args.batch_size,
            args.learning_rate,
            args.width,
            args.depth,
            args.seed,
            device,
            args.mixed_precision,
        )
    except ValueError as error:
        sys.exit(f"train_classifier.py: {error}")
    accuracy = classifier.accuracy(test)
    metrics = {
        "accuracy": accuracy,
        "accuracy_standard_error": math.sqrt(accuracy * (1 - accuracy) / len(test)),
        "n": len(test),
        "split": args.test_split,
        "dataset_name": args.dataset_name,
        "fingerprint": test.fingerprint,
        "train_fingerprint": train.fingerprint,
        "command": shlex.join(["python", *sys.argv]),
        "seconds": round(time.monotonic() - started, 1),
    }
    classifier.save(args.output_dir, metrics)
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
