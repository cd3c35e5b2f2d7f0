"""What the command lines of several scripts share. No torch is imported: --help has to be fast."""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def script_parser(description: str) -> ArgumentParser:
    """A parser that shows a script's docstring as it is; flags can't be abbreviated."""
    return ArgumentParser(
        description=description,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_dataset_flags(parser: ArgumentParser, required: bool = True) -> None:
    """Flags for a held-out split: what `data.images.load_split` reads, under its names."""
    add = parser.add_argument
    add(
        "--dataset_name",
        required=required,
        help='"shapes", a dataset on the Hub, or a local folder',
    )
    add("--dataset_config_name", help="configuration of a dataset that has several")
    add("--validation_split", default="test", help="held-out split; default: %(default)s")
    add("--image_column", help="default: the only column of images")
    add("--label_column", help="default: the only column of classes")


@contextmanager
def refusing(*errors: type[Exception]) -> Iterator[None]:
    """Ends the script with exit code 2 and the message of such an error, without a traceback."""
    try:
        yield
    except errors as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
