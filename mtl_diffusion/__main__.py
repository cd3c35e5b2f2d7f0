"""`mtl-diffusion NAME [flags]`, or `python -m mtl_diffusion NAME [flags]`."""

import argparse
import sys
from importlib import import_module

from mtl_diffusion import __version__

COMMANDS = {
    "train": "train a model, or continue a run",
    "sample": "draw images with a trained model",
    "evaluate": "measure a trained model",
    "train_classifier": "train the classifier that evaluate needs",
    "publish": "export a checkpoint, and put it on the Hub",
    "export": "write a model for other runtimes (ONNX)",
    "demo": "open a page to try a model on",
}


def main() -> None:
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        "mtl-diffusion",
        usage="%(prog)s COMMAND [--flag value ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items()),
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "command",
        metavar="COMMAND",
        choices=COMMANDS,
        help="one of those below; its own flags: mtl-diffusion COMMAND --help",
    )
    parser.add_argument("flags", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.argv = [f"mtl-diffusion {args.command}", *args.flags]
    import_module(f"mtl_diffusion.commands.{args.command}").main()


if __name__ == "__main__":
    main()
