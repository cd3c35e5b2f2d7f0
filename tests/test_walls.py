"""Who may import whom: read from the source, so that nothing has to be run."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

from mtl_diffusion.pipeline.pipeline import TASKS
from mtl_diffusion.pipeline.source import source

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mtl_diffusion"
PIPELINE = PACKAGE / "pipeline"
OURS = sorted(PACKAGE.rglob("*.py"))
EVERYWHERE = sorted([*OURS, *(ROOT / "scripts").glob("*.py")])

MAY_SHIP = {"torch", "diffusers", "transformers", "safetensors", "PIL", "numpy"}
# No network, no process, no pickle.
STANDARD_LIBRARY_TO_SHIP = {"abc", "collections", "copy", "dataclasses", "functools", "hashlib"}
STANDARD_LIBRARY_TO_SHIP |= {"io", "itertools", "json", "math", "numbers", "pathlib", "re", "time"}
STANDARD_LIBRARY_TO_SHIP |= {"contextlib", "tempfile", "typing", "warnings"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "open", "input", "breakpoint"}


def folder(name: str) -> list[Path]:
    return sorted((PACKAGE / name).rglob("*.py"))


def ours(path: Path) -> set[str]:
    """The folders of the package, and its modules at the top, that a file reaches."""
    return {name.split(".")[1] for name in reached(path) if name.startswith("mtl_diffusion.")}


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> set[str]:
    """Every module that a file imports, in full: `mtl_diffusion.data.loader` for `.loader`."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.add(module)
            # `from .pipeline import edit` imports a module too.
            names = (PACKAGE.parent.joinpath(*module.split("."), a.name) for a in node.names)
            found |= {f"{module}.{name.name}" for name in names if name.with_suffix(".py").exists()}
    return found


def reached(path: Path) -> set[str]:
    """Every module that a file imports, itself or through ours, at once or later.

    What the package exports at its top is not followed: that is for users.
    """
    todo, found = [path], set()
    while todo:
        for name in imports(todo.pop()) - found:
            found.add(name)
            if name == "mtl_diffusion":
                continue
            module = ROOT.joinpath(*name.split("."))
            files = (module.with_suffix(".py"), module / "__init__.py")
            todo += [file for file in files if name.startswith("mtl_diffusion") and file.exists()]
    return found


def calls(path: Path) -> set[str]:
    return {ast.unparse(n.func) for n in ast.walk(tree(path)) if isinstance(n, ast.Call)}


def test_what_ships_imports_little_evaluates_nothing_and_opens_nothing():
    code = ast.parse(source())
    nodes = list(ast.walk(code))
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes)
    names = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= MAY_SHIP | STANDARD_LIBRARY_TO_SHIP
    found = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    assert not found & FORBIDDEN_CALLS
    assert not {name for name in found if name.startswith(("os.", "subprocess.", "importlib."))}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_knows_nothing_of_noise_denoiser_or_loop(task):
    own = {name for name in imports(PIPELINE / f"{task}.py") if name.startswith("mtl_diffusion")}
    helpers = {f"mtl_diffusion.pipeline.{name}" for name in ("task", "masks", "degradation")}
    assert own <= helpers
    for name in own:
        file = PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py")
        assert not {n for n in imports(file) if n.startswith("mtl_diffusion")}, name


# Folder: what none of its files may reach, when it is imported or later.
WALLS = {
    "classifiers": {"training", "loop", "checkpoints", "launch", "publishing", "evaluation"},
    "data": {"training", "loop", "checkpoints", "launch", "publishing", "config"},
    "pipeline": {"config", "data", "editing", "training", "loop", "tools"},
    "editing": {"config", "data", "training", "loop", "tools", "classifiers", "pictures"},
    "training": {"loop", "checkpoints", "launch", "publishing", "evaluation"},
    "checkpoints": {"loop", "launch", "publishing", "evaluation"},
    "launch": {"loop", "evaluation"},
    "publishing": {"loop", "launch", "evaluation"},
    "evaluation": {"training", "loop", "checkpoints", "launch", "publishing", "config"},
    "pictures": {"config", "training", "loop", "checkpoints", "launch", "publishing"},
    "tools": {"config", "data", "pipeline", "training", "loop", "launch", "pictures"},
}


# Three circles; the rest of the folders are the core. An inner one never reaches an outer one. The
# commands are the front doors of all three.
SCORECARD, LABORATORY = {"evaluation"}, {"comparison", "benchmark"}
CORE = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
CORE -= {*SCORECARD, *LABORATORY, "commands"}


@pytest.mark.parametrize("circle, outer", [(CORE, SCORECARD | LABORATORY), (SCORECARD, LABORATORY)])
def test_an_inner_circle_knows_nothing_of_an_outer_one(circle, outer):
    for path in [path for name in circle for path in folder(name)]:
        assert not ours(path) & outer, path


@pytest.mark.parametrize("name", WALLS)
def test_a_folder_knows_nothing_of(name):
    for path in folder(name):
        assert not ours(path) & WALLS[name], path


def test_only_its_command_and_the_benchmark_import_the_loop():
    importers = [ids(path) for path in EVERYWHERE if "mtl_diffusion.loop" in imports(path)]
    importers.remove("mtl_diffusion/__init__.py")
    assert importers == ["mtl_diffusion/benchmark/steps.py", "mtl_diffusion/commands/train.py"]


@pytest.mark.parametrize("path", folder("demo"), ids=ids)
def test_the_page_imports_nothing_of_ours_outside_itself(path):
    """A Space carries copies of these files, of the one that reads images, and a pipeline."""
    own = ("mtl_diffusion.demo.", "mtl_diffusion.pipeline.rgb")
    others = {name for name in imports(path) if not name.startswith(own)}
    tops = {name.partition(".")[0] for name in others} - sys.stdlib_module_names
    assert tops <= {"torch", "PIL", "numpy", "gradio", "starlette"}


def test_only_scripts_and_the_command_line_import_commands():
    assert not [path for path in OURS if any("diffusion.commands." in n for n in imports(path))]


def test_nothing_is_pickled():
    picklers = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for path in EVERYWHERE:
        assert not {name.partition(".")[0] for name in imports(path)} & picklers, path
        assert not calls(path) & {"torch.load", "torch.save", "eval", "exec"}, path
        assert "allow_pickle=True" not in path.read_text(encoding="utf-8"), path


def test_files_of_tensors_are_as_readable_as_others():
    """Those of `save_file` have the mode 0600, whatever the umask is (safetensors 0.8)."""
    assert not [ids(path) for path in OURS if any("save_file" in name for name in calls(path))]


@pytest.mark.parametrize("folder", ["mtl_diffusion", "scripts", "tests"])
def test_a_file_has_one_subject(folder):
    lengths = {
        ids(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / folder).rglob("*.py")
    }
    assert not {path for path, length in lengths.items() if length > 400}
