"""The code that an exported model carries: the files of this folder as one module.

diffusers copies the code of every model to one folder before it runs it. Files that import one
another would be read there while another load writes them; a single file is not.
"""

import re
import symtable
from collections.abc import Mapping
from functools import cache
from pathlib import Path

# Read at import, so that an export holds the code that ran, and no later edits.
FILES = {
    path.name: path.read_text(encoding="utf-8")
    for path in sorted(Path(__file__).parent.glob("*.py"))
}

INTRODUCTION = '''"""The pipeline of this model, MultiTaskPipeline, and its tasks.

Generated from the files of mtl_diffusion that are named below. It needs torch, diffusers,
transformers, safetensors, PIL and numpy. Its name ends in a digest of its text: diffusers copies
the code of all models to one folder, where another version of the same name would replace it.
"""
'''

# The text that replaces this file in an export.
EXPORTED = '''"""The text of this file, for saving the model again."""

from pathlib import Path

SOURCE = Path(__file__).read_text(encoding="utf-8")


def source() -> str:
    """The text of this file."""
    return SOURCE
'''

TAIL = """
# diffusers runs this file again, in the same module, for each pipeline that it loads. What the
# first run defined stays, so that pipelines that were loaded earlier can still be pickled.
_first = globals().get("_FIRST_RUN")
if _first is not None and _first["SOURCE"] == SOURCE:
    globals().update(_first)
else:
    _FIRST_RUN = dict(globals())
"""


SIBLING = re.compile(r"^from \.(\w+) import (?:\(.*?\)|.*?)\n", re.MULTILINE | re.DOTALL)


@cache
def source() -> str:
    """The text of the exported module: pipeline.py and all that it imports from this folder."""
    return join(FILES | {Path(__file__).name: EXPORTED}, "pipeline.py")


def join(files: Mapping[str, str], entry: str) -> str:
    """Joins `entry`, of files by name, and all that it imports by `from .file import name`.

    Raises:
        ValueError: two files define the same name.
    """
    parts: dict[str, str] = {}
    owners: dict[str, str] = {}

    def add(name: str) -> None:
        for sibling in SIBLING.findall(files[name]):
            if f"{sibling}.py" not in parts:
                add(f"{sibling}.py")
        text = SIBLING.sub("", files[name])
        for symbol in symtable.symtable(text, name, "exec").get_symbols():
            # Files may import the same name, from one place.
            owner = "an import" if symbol.is_imported() else name
            bound = symbol.is_imported() or symbol.is_assigned()
            if bound and owners.setdefault(symbol.get_name(), owner) != owner:
                raise ValueError(
                    f"{symbol.get_name()} is defined by {owners[symbol.get_name()]} and by {owner};"
                    " an exported model has all files in one: rename one of them"
                )
        rule = "# " + "-" * 98
        parts[name] = "\n".join([rule, f"# {name}", rule, text, ""])

    add(entry)
    return "\n".join([INTRODUCTION, *parts.values(), TAIL])
