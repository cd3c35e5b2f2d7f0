"""Who may import whom: read from the source, so that nothing has to be run."""

import ast
import sys
from pathlib import Path

import pytest

from mtl_diffusion.hub.pipeline import TASKS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mtl_diffusion"
HUB = PACKAGE / "hub"
OURS = sorted(PACKAGE.rglob("*.py"))
EVERYWHERE = sorted([*OURS, *(ROOT / "scripts").glob("*.py")])
SHIPPED = sorted(path for path in HUB.glob("*.py") if path.name != "__init__.py")

MAY_SHIP = {"torch", "diffusers", "transformers", "PIL", "numpy"}
# No network, no process, no pickle.
STANDARD_LIBRARY_TO_SHIP = {"abc", "collections", "dataclasses", "functools", "json", "math"}
STANDARD_LIBRARY_TO_SHIP |= {"numbers", "pathlib", "re", "sys", "typing"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "open", "input", "breakpoint"}


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, nodes=None) -> set[str]:
    """Every module that a file imports, in full: `mtl_diffusion.hub.edit` for `.edit` in hub."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(tree(path)) if nodes is None else nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.add(module)
            # `from .hub import edit` imports a module too.
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


def reached(path: Path) -> set[str]:
    """Every module that importing a file imports, through ours."""
    todo, found = [path], set()
    while todo:
        for name in at_import(todo.pop()) - found:
            found.add(name)
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
    code = "import a.b\nfrom .c import d\nfrom ..hub import edit\ndef f():\n    import late\n"
    monkeypatch.setitem(globals(), "tree", lambda path: ast.parse(code))
    path = HUB / "any.py"
    assert imports(path) == {
        "a.b",
        "mtl_diffusion.hub.c",
        "mtl_diffusion.hub",
        "mtl_diffusion.hub.edit",
        "late",
    }
    assert at_import(path) == imports(path) - {"late"}


@pytest.mark.parametrize("path", SHIPPED, ids=ids)
def test_what_ships_imports_little_and_nothing_of_ours_outside(path):
    for name in imports(path):
        top = name.partition(".")[0]
        if top == "mtl_diffusion":
            assert name in {f"mtl_diffusion.hub.{other.stem}" for other in SHIPPED}, name
        else:
            assert top in MAY_SHIP | STANDARD_LIBRARY_TO_SHIP, name
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module, "`from .file import name`, as the loader reads"
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("mtl_diffusion") for alias in node.names)


def test_the_list_of_the_standard_library_is_of_it():
    assert sys.stdlib_module_names >= STANDARD_LIBRARY_TO_SHIP


@pytest.mark.parametrize("path", SHIPPED, ids=ids)
def test_what_ships_evaluates_nothing_and_opens_nothing(path):
    found = calls(path)
    assert not found & FORBIDDEN_CALLS
    assert not {name for name in found if name.startswith(("os.", "subprocess.", "importlib."))}


def test_the_pipeline_imports_every_sibling_itself():
    """The loader copies what pipeline.py imports, and no more."""
    siblings = {f"mtl_diffusion.hub.{p.stem}" for p in SHIPPED if p.stem != "pipeline"}
    found = at_import(HUB / "pipeline.py")
    assert {name for name in found if name.startswith("mtl_diffusion")} == siblings


def test_hub_is_flat():
    assert not [path for path in HUB.iterdir() if path.is_dir() and path.name != "__pycache__"]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_knows_nothing_of_noise_denoiser_or_loop(task):
    own = {name for name in imports(HUB / f"{task}.py") if name.startswith("mtl_diffusion")}
    helpers = {f"mtl_diffusion.hub.{name}" for name in ("task", "masks", "degradation")}
    assert own <= helpers
    for name in own:
        file = PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py")
        assert not {n for n in imports(file) if n.startswith("mtl_diffusion")}, name


@pytest.mark.parametrize("name", ["config.py", "__init__.py"])
def test_settings_do_not_wait_for_torch(name):
    tops = {module.partition(".")[0] for module in reached(PACKAGE / name)}
    assert not tops & {"torch", "diffusers", "transformers", "datasets", "accelerate", "numpy"}


def test_evaluation_knows_nothing_of_training():
    own = {name.removeprefix("mtl_diffusion.") for name in reached(PACKAGE / "evaluate.py")}
    assert {"scorecard.bulk", "hub.pipeline", "classifier"} <= own
    assert not own & {"train", "run", "losses", "ema", "checkpoint", "resume", "publish", "config"}


def test_only_its_script_and_the_benchmark_import_the_loop():
    importers = [ids(path) for path in EVERYWHERE if "mtl_diffusion.train" in imports(path)]
    assert importers == ["mtl_diffusion/benchmark/steps.py", "scripts/train.py"]


def test_nothing_of_the_package_imports_a_script_or_a_test():
    for path in OURS:
        assert not {n for n in imports(path) if n.partition(".")[0] in ("scripts", "tests")}, path


@pytest.mark.parametrize("path", EVERYWHERE, ids=ids)
def test_nothing_is_pickled(path):
    tops = {name.partition(".")[0] for name in imports(path)}
    assert not tops & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    found = calls(path)
    assert not found & {"torch.load", "torch.save", "eval", "exec"}
    text = {ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.keyword)}
    assert "allow_pickle=True" not in text


def test_nothing_is_imported_that_windows_lacks():
    posix = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
    for path in EVERYWHERE:
        assert not {name.partition(".")[0] for name in imports(path)} & posix, path


@pytest.mark.parametrize("path", OURS, ids=ids)
def test_a_file_has_one_subject(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
