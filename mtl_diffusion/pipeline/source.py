"""The code that an exported model carries: the files of this folder as one module.

diffusers copies the code of every model to one folder before it runs it. Files that import one
another would be read there while another load writes them; a single file is not.
"""

import ast
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

# Read at import, so that an export holds the code that ran, and no later edits.
FILES = {
    path.name: path.read_text(encoding="utf-8")
    for path in sorted(Path(__file__).parent.glob("*.py"))
}

INTRODUCTION = """
Generated from the files of mtl_diffusion that are named below. It needs torch, diffusers,
transformers, safetensors, PIL and numpy. Its name ends in a digest of its text: diffusers copies
the code of all models to one folder, where another version of the same name would replace it."""

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
    """Joins files that import one another into one module.

    Imports from elsewhere come first, each once. Then come the files, each after those that it
    imports, with its name and docstring as a heading.

    Args:
        files: name -> text. Siblings are imported as `from .file import name`, at the top.
        entry: the file that is wanted; its docstring becomes the module's.

    Raises:
        ValueError: a sibling is imported in another way, or two files define the same name.
    """
    parts = _in_order(files, entry)
    owners: dict[str, str] = {}
    for part in parts:
        for name, owner in part.defines.items():
            if owners.setdefault(name, owner) != owner:
                raise ValueError(
                    f"{name} is defined by {owners[name]} and by {owner}; an exported model has "
                    "all files in one: rename one of them"
                )
    docstring = f'"""{parts[-1].docstring}\n{INTRODUCTION}\n"""\n'
    bodies = [f"{part.heading(part.name != entry)}\n\n\n{part.code}\n\n" for part in parts]
    imports = {pair for part in parts for pair in part.imports}
    return "\n".join([docstring, _import_block(imports), "", *bodies]).rstrip("\n") + "\n\n" + TAIL


@dataclass(frozen=True)
class File:
    """One file, taken apart.

    Attributes:
        code: its text without docstring and imports.
        siblings: names of the files that it imports.
        imports: (module, name) of what it imports from elsewhere; the name is "" for a module.
        defines: name -> the file that defines it, or the import that does.
    """

    name: str
    docstring: str
    code: str
    siblings: tuple[str, ...]
    imports: frozenset[tuple[str, str]]
    defines: Mapping[str, str]

    def heading(self, with_docstring: bool) -> str:
        rule = "# " + "-" * 98
        about = ["", *self.docstring.splitlines()] if with_docstring else []
        return "\n".join([rule, *(f"# {line}".rstrip() for line in [self.name, *about]), rule])


def _in_order(files: Mapping[str, str], name: str, done: tuple[File, ...] = ()) -> tuple[File, ...]:
    """The file and all that it imports, each after what it imports itself."""
    part = _read(name, files[name])
    for sibling in part.siblings:
        if sibling not in {other.name for other in done}:
            done = _in_order(files, sibling, done)
    return (*done, part)


def _read(name: str, text: str) -> File:
    tree, lines = ast.parse(text), text.splitlines()
    nested = {node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
    siblings, imports, defines = [], set(), {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level > 1 or not node.module or any(alias.asname for alias in node.names):
                raise ValueError(
                    f"{name} has `{ast.unparse(node)}`; write `from .file import name`"
                )
            siblings.append(f"{node.module}.py")
            nested.remove(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                clause = ast.unparse(alias)
                imports.add((module, clause) if module else (clause, ""))
                defines[alias.asname or alias.name] = f"the import of {clause} {module}".rstrip()
        else:
            defines |= dict.fromkeys(_names(node), name)
    if nested:
        raise ValueError(f"{name} imports a sibling inside a function; import it at the top")
    docstring = ast.get_docstring(tree) or ""
    dropped = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in [*dropped, *(tree.body[:1] if docstring else [])]:
        lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    code = "\n".join(lines).strip("\n")
    return File(name, docstring, code, tuple(siblings), frozenset(imports), defines)


def _names(node: ast.stmt) -> set[str]:
    """The names that a statement at the top of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
    found = [child for target in targets for child in ast.walk(target)]
    return {n.id for n in found if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _import_block(imports: set[tuple[str, str]]) -> str:
    """The imports of all files, in the order that `ruff` gives them."""
    sections: dict[bool, list[str]] = {True: [], False: []}  # of the standard library, and others
    ordered = sorted(imports, key=lambda pair: (pair[1] != "", pair[0].lower(), pair[1]))
    for module, group in groupby(ordered, lambda pair: pair[0]):
        names = [name for _, name in group]
        line = f"from {module} import {', '.join(names)}" if names[0] else f"import {module}"
        if len(line) > 100:
            line = f"from {module} import (\n" + "".join(f"    {n},\n" for n in names) + ")"
        sections[module.partition(".")[0].split()[0] in sys.stdlib_module_names].append(line)
    return "\n\n".join("\n".join(lines) for lines in sections.values() if lines) + "\n"
