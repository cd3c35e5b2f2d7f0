"""Command lines: the flags that several commands have, and how a command refuses."""

import argparse
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REFUSED = 2  # exit code, argparse's own


def path(text: str) -> Path:
    """The type of a flag with a path; expands ~, which a shell does not do in `--flag=~/x`."""
    return Path(text).expanduser()


def value(text: str) -> Any:
    """A value as JSON has it, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


COMMON: dict[str, dict[str, Any]] = {
    "pipeline": {
        "required": True,
        "type": os.path.expanduser,
        "help": "exported folder, or a name on the Hub",
    },
    "revision": {"help": "branch, tag or commit of a pipeline on the Hub"},
    "dataset_name": {
        "type": os.path.expanduser,
        "help": '"shapes", a dataset on the Hub, or a local folder',
    },
    "dataset_config_name": {"help": "the configuration, where the dataset has several"},
    "train_split": {"default": "train", "help": 'images to learn from, such as "train[:90%%]"'},
    "validation_split": {"default": "test", "help": "held-out images"},
    "image_column": {"help": "default: the one column of images"},
    "label_column": {"help": "default: the one column of classes"},
    "num_inference_steps": {"type": int, "help": "steps of the sampler; default: the model's"},
    "seed": {"type": int, "default": 0, "help": "of everything random"},
    "device": {"help": "default: cuda where there is one, else cpu"},
    "output_dir": {"type": path, "required": True, "help": "folder for the output"},
}


class Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description, and shows the defaults of flags that have one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        hidden = (None, False, argparse.SUPPRESS)
        if any(action.default is value for value in hidden):
            return action.help
        return f"{action.help} (default: %(default)s)"


def parser(description: str, kind: type = argparse.ArgumentParser, **options) -> Any:
    """An `ArgumentParser` of `argparse`, or of another kind."""
    return kind(description=description, formatter_class=Help, allow_abbrev=False, **options)


def add(parser: Any, *names: str, **changes: Mapping[str, Any]) -> None:
    """Adds flags of `COMMON`; `changes` has other options of some of them."""
    for name in names:
        parser.add_argument(f"--{name}", **COMMON[name] | changes.get(name, {}))


def check_installed(extra: str, *packages: str) -> None:
    """Ends the command where a package of an extra of this package is missing."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        names = ", ".join(missing)
        sys.exit(f"{_name()}: {names} is not installed; pip install 'mtl_diffusion[{extra}]'")


@contextmanager
def refusals() -> Iterator[None]:
    """Ends the command with one message, and exit code 2, where an argument is refused."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"{_name()}: {error}", file=sys.stderr)
        sys.exit(REFUSED)


def command() -> str:
    """The command that is running, without the paths of this machine to here and to home."""
    script = sys.argv[0].endswith(".py")
    program = ["python", f"scripts/{_name()}.py"] if script else ["mtl-diffusion", _name()]
    text = shlex.join([*program, *sys.argv[1:]])
    return text.replace(f"{Path.cwd()}{os.sep}", "").replace(str(Path.home()), "~")


def _name() -> str:
    """evaluate, of scripts/evaluate.py and of `mtl-diffusion evaluate` alike."""
    return Path(sys.argv[0]).stem.rpartition(" ")[2]
