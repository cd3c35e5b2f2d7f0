"""The site has the tree of the repository, so that links between files are the same in both."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mtl_diffusion"
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md")
LINKED = ("docs/images/*.png", "pretrained/*/*.png", "configs/**/*.yaml", "mtl_diffusion/**/*.py")
LINKED += ("notebooks/*.ipynb",)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    theirs = [file for file in files if not file.src_uri.endswith((".md", ".png", ".py"))]
    site = Files(theirs)
    for path in (path for pattern in PAGES + LINKED for path in sorted(ROOT.glob(pattern))):
        name = path.relative_to(ROOT).as_posix()
        site.append(File.generated(config, name, abs_src_path=str(path)))
    for name, text in reference().items():
        site.append(File.generated(config, name, content=text))
    return site


def reference() -> dict[str, str]:
    """Pages of the API: what the package exports at its top, and a page for each folder."""
    import mtl_diffusion

    exported = "\n".join(f"::: mtl_diffusion.{name}\n" for name in mtl_diffusion.__all__)
    pages = {"api/mtl_diffusion.md": f"# mtl_diffusion\n\n{exported}"}
    for folder in sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")):
        pages[f"api/{folder}.md"] = f"# {folder}\n\n::: mtl_diffusion.{folder}\n"
    return pages
