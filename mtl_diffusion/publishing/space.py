"""Spaces of the Hub: the page of demo/ with a pipeline, or the page that runs in the browser."""

import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import SpaceCardData

from ..pipeline.pipeline import MultiTaskPipeline
from .upload import README, signed, upload

PACKAGE = Path(__file__).parents[1]
# The files of the page, which import one another as they do here.
PAGE = [PACKAGE / "pipeline/rgb.py", *(PACKAGE / "demo").glob("*.py")]
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


def write_space(pipe: MultiTaskPipeline, folder: Path, *, name: str) -> None:
    """Writes a copy of the page and of a pipeline to a new folder; `name` is the page's heading."""
    pipe.save_pretrained(folder / "pipeline")
    for file in PAGE:
        copy = folder / "page" / file.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    (folder / "app.py").write_text(APP.format(name=name), encoding="utf-8")
    # Without the local part: +cpu is of this machine.
    versions = {package: version(package).partition("+")[0] for package in REQUIREMENTS}
    needed = "".join(f"{package}=={number}\n" for package, number in versions.items())
    (folder / "requirements.txt").write_text(needed, encoding="utf-8")


def push_space(folder: Path, repository: str, *, model: str | None, private: bool) -> str:
    """Makes a Space of a folder, or brings it up to date; returns the commit's address.

    Args:
        folder: of `write_space`, or of `static.write_page`.
        repository: of the Space, as user/name.
        model: the model's repository on the Hub, for the Space's header. None: it has none.

    Raises:
        UploadError: the Hub refuses, or can't be reached.
    """
    header = {"sdk": "static", "app_file": "index.html"}
    if (folder / "app.py").is_file():
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        header = {"sdk": "gradio", "sdk_version": GRADIO, "python_version": python}
        header["app_file"] = "app.py"
    card = SpaceCardData(
        title=repository.rpartition("/")[2],
        license="apache-2.0",
        models=[model] if model else None,
        **header,
    )
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    files[README] = signed(f"---\n{card.to_yaml()}\n---\n").encode()
    message = f"The page and {model or 'its model'}"
    return upload(files, repository, message=message, space=header["sdk"], private=private)
