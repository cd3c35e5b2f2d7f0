"""A Space of the Hub: the page of demo/ and an exported pipeline, as files that run alone."""

import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import SpaceCardData

from ..pipeline.components import INDEX
from .export import files_to_upload
from .upload import README, signed, upload

PACKAGE = Path(__file__).parents[1]
# The files of the page, which import one another as they do here.
PAGE = [PACKAGE / "pipeline/rgb.py", *(PACKAGE / "demo").glob("*.py")]
GRADIO = "6.31.0"  # that the Hub installs; the page is tested with it
MODEL = "pipeline/"  # the folder of the model in a Space
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


def push_space(
    pipeline: Path, repository: str, *, model: str | None = None, private: bool = False
) -> str:
    """Makes the Space, or brings it up to date; returns the commit's address.

    Args:
        pipeline: an exported folder, which the Space gets a copy of.
        repository: of the Space, as user/name; the page's heading.
        model: the model's repository on the Hub, for the Space's header. None: it has none.

    Raises:
        ValueError: `pipeline` is no exported folder.
        UploadError: the Hub refuses, or can't be reached.
    """
    if not (pipeline / INDEX).is_file():
        raise ValueError(f"pipeline: {pipeline} is no exported pipeline; give the folder of one")
    card = SpaceCardData(
        title=repository.rpartition("/")[2],
        sdk="gradio",
        sdk_version=GRADIO,
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        license="apache-2.0",
        models=[model] if model else None,
    )
    texts = {
        README: signed(f"---\n{card.to_yaml()}\n---\n"),
        "app.py": APP.format(name=repository),
        # Without the local part: +cpu is of this machine.
        "requirements.txt": "".join(
            f"{package}=={version(package).partition('+')[0]}\n" for package in REQUIREMENTS
        ),
    }
    files = {f"page/{file.relative_to(PACKAGE).as_posix()}": file for file in PAGE}
    # With the code of whatever version exported it.
    files |= {f"{MODEL}{name}": file for name, file in files_to_upload(pipeline, ["*.py"]).items()}
    with TemporaryDirectory() as folder:
        for name, text in texts.items():
            files[name] = Path(folder, name)
            files[name].write_text(text, encoding="utf-8")
        message = f"The page and {model or 'its model'}"
        of_kind = {"kind": "space", "under": MODEL}
        return upload(files, repository, message=message, private=private, **of_kind)
