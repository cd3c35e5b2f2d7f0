"""The code that an exported model carries: the files of this folder as one module.

diffusers copies the code of every model to one folder before it runs it. Files that import one
another would be read there while another load writes them; a single file is not.
"""

import ast
from collections.abc import Iterator, Mapping
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

import time
from pathlib import Path


def _own_text() -> str:
    """Reads this file, which another load may be copying at this moment, up to its last line."""
    for _ in range(100):
        text = Path(__file__).read_text(encoding="utf-8")
        if text.endswith("# The end.\\n"):
            break
        time.sleep(0.01)
    return text


SOURCE = _own_text()


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
# The end.
"""


@cache
def source() -> str:
    """The text of the exported module: pipeline.py and all that it imports from this folder."""
    return join(FILES | {Path(__file__).name: EXPORTED}, "pipeline.py")


def join(files: Mapping[str, str], entry: str) -> str:
    """Joins `entry`, of files by name, and all that it imports into one module.

    Raises:
        ValueError: a sibling is imported in another way than `from .file import name` at the top,
            or two files define the same name.
    """
    parts: dict[str, str] = {}
    owners: dict[str, str] = {}

    def add(name: str) -> None:
        tree, lines = ast.parse(files[name]), files[name].splitlines()
        siblings = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
        for node in siblings:
            plain = node.level == 1 and node.module and not any(one.asname for one in node.names)
            if node not in tree.body or not plain:
                raise ValueError(
                    f"{name} has `{ast.unparse(node)}`; write `from .file import name` at the top"
                )
            if f"{node.module}.py" not in parts:
                add(f"{node.module}.py")
        for defined, owner in _defined(tree, name):
            if owners.setdefault(defined, owner) != owner:
                raise ValueError(
                    f"{defined} is defined by {owners[defined]} and by {owner}; an exported model "
                    "has all files in one: rename one of them"
                )
        for node in reversed(siblings):
            del lines[node.lineno - 1 : node.end_lineno]
        rule = "# " + "-" * 98
        parts[name] = "\n".join([rule, f"# {name}", rule, *lines, "", ""])

    add(entry)
    return "\n".join([INTRODUCTION, *parts.values(), TAIL])


def _defined(tree: ast.Module, file: str) -> Iterator[tuple[str, str]]:
    """The names at the top of a file, and what defines each: the file, or an import of its own."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, file
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names if not getattr(node, "level", 0) else ():
                origin = f"the import of {ast.unparse(alias)} {getattr(node, 'module', '')}"
                yield alias.asname or alias.name, origin.rstrip()
        else:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", 0)]
            names = [n for target in targets if target for n in ast.walk(target)]
            yield from ((n.id, file) for n in names if isinstance(n, ast.Name))
