"""Links between the pages lead somewhere, and what docs/design.md names is there."""

import ast
import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mtl_diffusion

ROOT = Path(__file__).parents[1]
PACKAGE, DESIGN = ROOT / "mtl_diffusion", ROOT / "docs/design.md"
PAGES = sorted(p for folder in (".", "docs", "pretrained/*") for p in ROOT.glob(f"{folder}/*.md"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]*)\)", page.read_text(encoding="utf-8"))
    for link in links:
        path, _, anchor = link.partition("#")
        if "://" in path or path.startswith("$"):
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def purpose(path: Path) -> str:
    """The first line of a file's docstring."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).partition("\n")[0]


def test_the_tree_of_the_design_is_that_of_the_package():
    tree = re.search(r"^    mtl_diffusion/\n((?: {6}.+\n)+)", DESIGN.read_text("utf-8"), re.M)[1]
    there = {path.parent.name + "/": purpose(path) for path in PACKAGE.glob("*/__init__.py")}
    there["loop.py"] = purpose(PACKAGE / "loop.py")
    assert dict(re.findall(r"^ +([\w.]+/?) +(.+)$", tree, re.M)) == there


def test_the_files_that_the_pages_name_are_there():
    named = set(re.findall(r"`([\w/]+\.py)`", DESIGN.read_text("utf-8"))) - {"scripts/NAME.py"}
    table = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    named |= set(re.findall(r"`(test_\w+\.py)`", table))
    assert len(named) > 22
    there = [f"/{path.relative_to(ROOT).as_posix()}" for path in PACKAGE.rglob("*.py")]
    there += [f"/tests/{path.name}" for path in (ROOT / "tests").rglob("*.py")]
    assert not {name for name in named if not any(path.endswith(f"/{name}") for path in there)}
    tools = purpose(PACKAGE / "tools/__init__.py").rstrip(".").partition(": ")[2].split(", ")
    assert tools == sorted(path.stem for path in (PACKAGE / "tools").glob("[a-z]*.py"))


def class_in(code: str) -> str:
    """The first class of the code without comments and annotations."""
    found = next(node for node in ast.parse(code).body if isinstance(node, ast.ClassDef))
    for node in ast.walk(found):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.unparse(found)


def test_the_task_that_contributing_shows_is_that_of_the_package():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    file = (ROOT / "mtl_diffusion/pipeline/upscale.py").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    assert class_in(shown) == class_in(file)


@pytest.mark.parametrize("code, said", [(0, ""), (2, ""), (75, "requeue 7\n")])
def test_the_lines_for_slurm(code, said):
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```bash\n(#SBATCH.*?)^```", page, re.M | re.S)
    stand_ins = f'srun() {{ return {code}; }}\nscontrol() {{ echo "$@"; }}\nSLURM_JOB_ID=7\n'
    done = subprocess.run(["bash", "-c", stand_ins + lines], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, said, "")


@pytest.mark.slow
def test_the_site_has_the_pages_and_the_api(tmp_path):
    pytest.importorskip("mkdocstrings_handlers.python", reason="mkdocstrings is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "api/mtl_diffusion/index.html").read_text(encoding="utf-8")
    for name in mtl_diffusion.__all__:
        assert f'id="mtl_diffusion.{name}"' in text
    assert "Peak learning rate" in text and "degradation of the source" in text
    for path in PACKAGE.glob("*/__init__.py"):
        page = (tmp_path / f"api/{path.parent.name}/index.html").read_text(encoding="utf-8")
        words = html.unescape(re.sub(r"<[^>]+>", "", page))
        assert purpose(path).replace("`", "") in words
    # Nothing is fetched from another machine.
    pages = [page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")]
    assert not [page for page in pages if re.search(r'<(script|link|img)[^>]*="https?:', page)]
