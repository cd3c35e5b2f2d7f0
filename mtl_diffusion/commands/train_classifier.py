"""Train a small image classifier, which evaluate.py and the alignment in training use.

    mtl-diffusion train_classifier --dataset_name shapes --resolution 16 \\
        --output_dir runs/shapes-classifier
    mtl-diffusion train_classifier --architecture resnet9 --dataset_name uoft-cs/cifar10 \\
        --resolution 32 --epochs 11 --output_dir runs/cifar10-classifier

The classifier that measures a model must be another one than any that trained the model: give it
another architecture and seed.

The output folder is a `transformers` image classifier, and metrics.json with its accuracy on the
test split. Files that are in the folder already are overwritten.
"""

import json
from argparse import Namespace

from mtl_diffusion.tools import flags
from mtl_diffusion.tools.memory import keep_freed_memory

# Fields of the configuration of the model that is measured.
FORMAT = ("image_mode", "image_dtype", "value_range", "shown_bands", "image_fit")


def parse() -> Namespace:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    flags.add(parser, "dataset_name", "dataset_config_name", dataset_name={"required": True})
    flags.add(parser, "train_split", "image_column", "label_column", "output_dir")
    add("--test_split", default="test", help="split that metrics.json is measured on")
    sides = "side of the images in pixels, or '[height, width]'"
    add("--resolution", type=flags.value, required=True, help=sides)
    for name in FORMAT:
        add(f"--{name}", type=flags.value, help="as the model that is measured has it")
    kinds = ["resnet9", "regnet"]
    add("--architecture", default="regnet", choices=kinds, help="resnet9 is more accurate")
    add("--epochs", type=int, default=10, help="passes over the train split")
    add("--batch_size", type=int, default=128, help="samples a step")
    add("--width", type=int, default=32, help="channels of the first layer")
    add("--depth", type=int, default=1, help="residual blocks in each stage of regnet")
    noise = "largest standard deviation of noise added to images in [-1, 1]: 0.25 for judging edits"
    add("--noise", type=float, default=0.0, help=noise)
    precision = "bf16 is faster on GPUs, and on CPUs with AMX or AVX512_BF16"
    add("--mixed_precision", default="no", choices=["no", "bf16"], help=precision)
    flags.add(parser, "seed", "device")
    return parser.parse_args()


def main() -> None:
    args = parse()
    keep_freed_memory()

    import torch  # after --help and after mistakes in the flags, because it takes seconds

    from mtl_diffusion.classifiers.training import train_to_folder
    from mtl_diffusion.config import from_dict
    from mtl_diffusion.training.model import image_format

    names = ("architecture", "epochs", "batch_size", "width", "depth", "noise")
    options = {name: getattr(args, name) for name in (*names, "seed", "mixed_precision")}
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with flags.refusals():
        given = {name: getattr(args, name) for name in FORMAT if getattr(args, name) is not None}
        form = image_format(from_dict({"resolution": args.resolution} | given))
        metrics = train_to_folder(
            args, form, args.output_dir, flags.command(), device=device, **options
        )
    print(json.dumps(metrics, indent=2))
