"""Names that may be those of repositories on the Hub, or paths."""

import re
from pathlib import Path

_ON_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def on_hub(name: str) -> bool:
    """Whether a name is that of a repository on the Hub: no path, and nothing on this disk.

    A relative path that does not exist, such as data/flowers, looks like a repository. So call this
    where the name is used, and save the answer.
    """
    is_path = name.startswith((".", "/", "~")) or Path(name).expanduser().exists()
    return not is_path and _ON_HUB.fullmatch(name) is not None


def public(name: str) -> str:
    """A name on the Hub unchanged, or the last part of a path: local folders are not published."""
    return name if on_hub(name) else Path(name).name
