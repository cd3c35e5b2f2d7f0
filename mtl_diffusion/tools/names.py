"""Names that may be those of repositories on the Hub, or paths."""

import re
from pathlib import Path

_ON_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def on_hub(name: str) -> bool:
    """Whether a name is that of a repository on the Hub: no path, and nothing on this disk.

    A relative path that is not there, such as data/flowers, can't be told apart from a repository:
    ask where the name is used, and note the answer.
    """
    is_path = name.startswith((".", "/", "~")) or Path(name).expanduser().exists()
    return not is_path and _ON_HUB.fullmatch(name) is not None


def public(name: str) -> str:
    """A name on the Hub as it is, and the last part of a path: where it lies is not published."""
    return name if on_hub(name) else Path(name).name
