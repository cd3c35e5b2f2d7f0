"""Spaces of the Hub: the page of demo/ with a pipeline, or the page that runs in the browser."""

import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import SpaceCardData

from ..pipeline.components import INDEX
from .export import files_to_upload
from .upload import README, signed, upload

PACKAGE = Path(__file__).parents[1]
# The files of the page, which import one another as they do here.
PAGE = [PACKAGE / "pipeline/rgb.py", *(PACKAGE / "demo").glob("*.py")]
# The page of an earlier version; that of 0.1.0 was in demo/.
OLD_PAGE = ["page/*.py", *(f"demo/{name}.py" for name in ("__init__", "page", "serve", "studio"))]
GRADIO = "6.31.0"  # that the Hub installs; the page is tested with it
# Packages of the page and of a pipeline; a Space gets the versions that are installed here.
REQUIREMENTS = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
APP = '''"""The page that `mtl-diffusion demo --pipeline pipeline` opens too."""

from pathlib import Path

import torch
from page.demo.serve import serve
from diffusers import DiffusionPipeline

folder = Path(__file__).parent / "pipeline"
pipe = DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True)
serve(pipe.to("cuda" if torch.cuda.is_available() else "cpu"), {name!r})
'''


def push_space(pipeline: Path, repository: str, *, model: str | None, private: bool) -> str:
    """Makes a Space of an exported folder, or brings it up to date; returns the commit's address.

    Args:
        repository: of the Space, as user/name; the page's heading.
        model: the model's repository on the Hub, for the Space's header. None: it has none.

    Raises:
        ValueError: `pipeline` is no exported folder.
        UploadError: the Hub refuses, or can't be reached.
    """
    if not (pipeline / INDEX).is_file():
        raise ValueError(f"pipeline: {pipeline} is no exported pipeline; give the folder of one")
    files = {f"page/{file.relative_to(PACKAGE).as_posix()}": file for file in PAGE}
    files |= {f"pipeline/{name}": file for name, file in files_to_upload(pipeline).items()}
    files["app.py"] = APP.format(name=repository).encode()
    # Without the local part: +cpu is of this machine.
    versions = {package: version(package).partition("+")[0] for package in REQUIREMENTS}
    needed = "".join(f"{package}=={number}\n" for package, number in versions.items())
    files["requirements.txt"] = needed.encode()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    header = {"sdk": "gradio", "sdk_version": GRADIO, "python_version": python}
    header["app_file"] = "app.py"
    return _push(files, repository, header, model, private)


def push_page(folder: Path, repository: str, *, model: str | None, private: bool) -> str:
    """Makes a static Space of a page of `static.write_page`; as `push_space`."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    header = {"sdk": "static", "app_file": "index.html"}
    return _push(files, repository, header, model, private)


def _push(
    files: Mapping[str, Path | bytes],
    repository: str,
    header: Mapping[str, str],
    model: str | None,
    private: bool,
) -> str:
    card = SpaceCardData(
        title=repository.rpartition("/")[2],
        license="apache-2.0",
        models=[model] if model else None,
        **header,
    )
    return upload(
        {**files, README: signed(f"---\n{card.to_yaml()}\n---\n").encode()},
        repository,
        message=f"The page and {model or 'its model'}",
        space=header["sdk"],
        private=private,
        replaces=OLD_PAGE,
    )
