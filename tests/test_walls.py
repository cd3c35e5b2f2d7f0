"""Who may import whom: read from the source, so that nothing has to be run."""

import ast
import sys
from pathlib import Path

import pytest

from mtl_diffusion.pipeline.pipeline import TASKS
from mtl_diffusion.pipeline.source import source

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mtl_diffusion"
PIPELINE = PACKAGE / "pipeline"
OURS = sorted(PACKAGE.rglob("*.py"))
EVERYWHERE = sorted([*OURS, *(ROOT / "scripts").glob("*.py")])
SHIPPED = sorted(path for path in PIPELINE.glob("*.py") if path.name != "__init__.py")

MAY_SHIP = {"torch", "diffusers", "transformers", "safetensors", "PIL", "numpy"}
# No network, no process, no pickle.
STANDARD_LIBRARY_TO_SHIP = {"abc", "collections", "copy", "dataclasses", "functools", "hashlib"}
STANDARD_LIBRARY_TO_SHIP |= {"io", "itertools", "json", "math", "numbers", "pathlib", "re", "time"}
STANDARD_LIBRARY_TO_SHIP |= {"contextlib", "tempfile", "typing", "warnings"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "open", "input", "breakpoint"}


def folder(name: str) -> list[Path]:
    return sorted((PACKAGE / name).rglob("*.py"))


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, nodes=None) -> set[str]:
    """Every module that a file imports, in full: `mtl_diffusion.data.loader` for `.loader`."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(tree(path)) if nodes is None else nodes:
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


def at_import(path: Path) -> set[str]:
    """What importing a file imports: not what its functions do, nor what only a checker reads."""
    todo, found = list(tree(path).body), []
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        found.append(node)
        todo += ast.iter_child_nodes(node)
    return imports(path, found)


def reached(path: Path, of=at_import) -> set[str]:
    """Every module that importing a file imports, through ours; with `of` imports, ever.

    What the package exports at its top is not followed: that is for users.
    """
    todo, found = [path], set()
    while todo:
        for name in of(todo.pop()) - found:
            found.add(name)
            if name == "mtl_diffusion":
                continue
            for file in (
                PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py"),
                PACKAGE.parent.joinpath(*name.split("."), "__init__.py"),
            ):
                if name.startswith("mtl_diffusion") and file.exists():
                    todo.append(file)
    return found


def calls(path: Path) -> set[str]:
    return {ast.unparse(n.func) for n in ast.walk(tree(path)) if isinstance(n, ast.Call)}


def test_the_reader_of_imports_sees_them(tmp_path, monkeypatch):
    code = "import a.b\nfrom .c import d\nfrom ..pipeline import edit\ndef f():\n    import late\n"
    monkeypatch.setitem(globals(), "tree", lambda path: ast.parse(code))
    path = PIPELINE / "any.py"
    assert imports(path) == {
        "a.b",
        "mtl_diffusion.pipeline.c",
        "mtl_diffusion.pipeline",
        "mtl_diffusion.pipeline.edit",
        "late",
    }
    assert at_import(path) == imports(path) - {"late"}


@pytest.mark.parametrize("path", SHIPPED, ids=ids)
def test_what_ships_imports_nothing_of_ours_outside(path):
    own = {name for name in imports(path) if name.startswith("mtl_diffusion")}
    assert own <= {f"mtl_diffusion.pipeline.{other.stem}" for other in SHIPPED}


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


@pytest.mark.parametrize("path", [PACKAGE / "__init__.py", *folder("config")], ids=ids)
def test_settings_do_not_wait_for_torch(path):
    tops = {module.partition(".")[0] for module in reached(path)}
    assert not tops & {"torch", "diffusers", "transformers", "datasets", "accelerate", "numpy"}


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
        own = (n for n in reached(path, imports) if n.startswith("mtl_diffusion."))
        folders = {name.split(".")[1] for name in own}
        assert not folders & outer, path


@pytest.mark.parametrize("name", WALLS)
def test_a_folder_knows_nothing_of(name):
    for path in folder(name):
        folders = {
            n.split(".")[1] for n in reached(path, imports) if n.startswith("mtl_diffusion.")
        }
        assert not folders & WALLS[name], path


def test_the_root_holds_the_loop_and_folders():
    files = {path.name for path in PACKAGE.glob("*.py")}
    assert files == {"__init__.py", "__main__.py", "loop.py"}


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


def test_the_package_takes_nothing_from_its_own_top_but_the_version():
    taken = {
        alias.name
        for path in OURS
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom)
        and (node.module == "mtl_diffusion" or (node.level == 2 and node.module is None))
        for alias in node.names
    }
    assert taken == {"__version__", "loop"}


def test_only_scripts_and_the_command_line_import_commands():
    assert not [path for path in OURS if any("diffusion.commands." in n for n in imports(path))]


@pytest.mark.parametrize("path", EVERYWHERE, ids=ids)
def test_nothing_is_pickled(path):
    tops = {name.partition(".")[0] for name in imports(path)}
    assert not tops & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    found = calls(path)
    assert not found & {"torch.load", "torch.save", "eval", "exec"}
    text = {ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.keyword)}
    assert "allow_pickle=True" not in text


def test_files_of_tensors_are_as_readable_as_others():
    """Those of `save_file` have the mode 0600, whatever the umask is (safetensors 0.8)."""
    assert not [ids(path) for path in OURS if any("save_file" in name for name in calls(path))]


def test_nothing_is_imported_that_windows_lacks():
    posix = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
    for path in OURS:
        assert not {name.partition(".")[0] for name in at_import(path)} & posix, path


@pytest.mark.parametrize("folder", ["mtl_diffusion", "scripts", "tests"])
def test_a_file_has_one_subject(folder):
    lengths = {
        ids(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / folder).rglob("*.py")
    }
    assert not {path for path, length in lengths.items() if length > 400}
