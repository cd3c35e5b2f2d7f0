"""A Space of the Hub: the page of demo/ and an exported pipeline, as files that run alone."""

import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import SpaceCardData

from .export import UPLOADED
from .upload import upload

PAGE = Path(__file__).parents[1] / "demo"
GRADIO = "6.31.0"  # that the Hub installs; the page is tested with it
# Packages of the page and of a pipeline; a Space gets the versions that are installed here.
REQUIREMENTS = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
APP = '''"""The page that `mtl-diffusion demo --pipeline pipeline` opens too."""

from pathlib import Path

import torch
from demo.serve import serve
from diffusers import DiffusionPipeline

folder = Path(__file__).parent / "pipeline"
pipe = DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True)
serve(pipe.to("cuda" if torch.cuda.is_available() else "cpu"), {name!r})
'''


def write_space(pipeline: Path, target: Path, name: str, model: str | None = None) -> None:
    """Writes the files of a Space into an empty folder.

    Args:
        pipeline: an exported folder, which the Space gets a copy of.
        name: of the Space, as user/name; the page's heading.
        model: the model's repository on the Hub, for the Space's header. None: it has none.

    Raises:
        ValueError: `pipeline` is no exported folder.
    """
    if not (pipeline / "model_index.json").is_file():
        raise ValueError(f"pipeline: {pipeline} is no exported pipeline; give the folder of one")
    card = SpaceCardData(
        title=name.rpartition("/")[2],
        sdk="gradio",
        sdk_version=GRADIO,
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        license="apache-2.0",
        models=[model] if model else None,
    )
    (target / "README.md").write_text(f"---\n{card.to_yaml()}\n---\n", encoding="utf-8")
    (target / "app.py").write_text(APP.format(name=name), encoding="utf-8")
    # Without the local part: +cpu is of this machine.
    pins = [f"{package}=={version(package).partition('+')[0]}" for package in REQUIREMENTS]
    (target / "requirements.txt").write_text("\n".join(pins) + "\n")
    kinds = {"demo": (PAGE, ("*.py",)), "pipeline": (pipeline, (*UPLOADED, "*.py"))}
    for folder, (source, patterns) in kinds.items():
        for file in (file for pattern in patterns for file in source.rglob(pattern)):
            copy = target / folder / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def push_space(
    pipeline: Path, repository: str, *, model: str | None = None, private: bool = False
) -> str:
    """Makes the Space, or brings it up to date; returns the commit's address.

    Raises:
        ValueError: `pipeline` is no exported folder.
        UploadError: the Hub refuses, or can't be reached.
    """
    with TemporaryDirectory() as folder:
        write_space(pipeline, Path(folder), repository, model)
        files = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }
        message = f"The page and {model or 'its model'}"
        return upload(files, repository, kind="space", message=message, private=private)
