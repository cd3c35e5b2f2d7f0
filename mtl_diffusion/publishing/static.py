"""A page that runs a model in the browser: a folder of files, which any server can hand out."""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import SpaceCardData

from ..pipeline.pipeline import MultiTaskPipeline
from ..tools.files import replaced_folder
from .onnx import check_target, write_graphs
from .upload import README, signed, upload

PAGE = Path(__file__).with_name("page")
PACKAGE, VERSION = "onnxruntime-web", "1.30.0"  # that the page is tested with
# Of that package: for WebAssembly, and for WebGPU. A visitor downloads one of them.
RUNTIMES = {"wasm": "ort-wasm-simd-threaded", "webgpu": "ort-wasm-simd-threaded.asyncify"}
RUNTIME = [f"ort.{kind}.min.mjs" for kind in RUNTIMES]
RUNTIME += [f"{name}.{end}" for name in RUNTIMES.values() for end in ("mjs", "wasm")]


def write_page(
    pipe: MultiTaskPipeline,
    target: Path,
    *,
    name: str,
    onnxruntime_web: Path | None = None,
    **options,
) -> Path:
    """Writes the page and the model, in float16, to a folder, which replaces an earlier page.

    Args:
        name: of the model, the page's heading.
        onnxruntime_web: the unpacked npm package. None: npm downloads it.
        options: those of `write_graphs`.

    Raises:
        ValueError: the model's images are not RGB; the package can't be had, or is of another
            version; the target is a folder of something else; or as `write_graphs`.
    """
    check_target(target)
    if (pipe.format.mode, pipe.format.dtype) != ("RGB", "uint8"):
        raise ValueError(
            f"this model draws {pipe.format.words}; the page shows RGB of 8 bits: take the graphs "
            "alone, mtl-diffusion export --format onnx"
        )
    with TemporaryDirectory() as temporary:
        package = onnxruntime_web or _download(Path(temporary))
        _check_package(package)
        with replaced_folder(target) as folder:
            write_graphs(pipe, folder, name=name, half=True, **options)
            for file in PAGE.iterdir():
                shutil.copyfile(file, folder / file.name)
            (folder / "ort").mkdir()
            for file in RUNTIME:
                shutil.copyfile(package / "dist" / file, folder / "ort" / file)
    return target


def push_page(folder: Path, repository: str, *, model: str | None, private: bool) -> str:
    """Makes a static Space of a page, or brings it up to date; returns the commit's address.

    Args:
        repository: of the Space, as user/name.
        model: the model's repository on the Hub, for the Space's header. None: it has none.
    """
    card = SpaceCardData(
        title=repository.rpartition("/")[2],
        sdk="static",
        app_file="index.html",
        license="apache-2.0",
        models=[model] if model else None,
    )
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    with TemporaryDirectory() as temporary:
        files[README] = Path(temporary, README)
        files[README].write_text(signed(f"---\n{card.to_yaml()}\n---\n"), encoding="utf-8")
        message = f"The page and {model or 'its model'}"
        of_kind = {"kind": "space", "sdk": "static"}
        return upload(files, repository, message=message, private=private, **of_kind)


def _download(folder: Path) -> Path:
    """The npm package, unpacked in a folder."""
    command = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--silent"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        raise ValueError(
            f"{PACKAGE} {VERSION} is needed, and `{' '.join(command)}` fails: {str(said).strip()}. "
            "Install npm, or run that command where it works, unpack the file, and give "
            "--onnxruntime_web FOLDER"
        ) from error
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    return folder / "package"


def _check_package(package: Path) -> None:
    found = package / "package.json"
    version = json.loads(found.read_text())["version"] if found.is_file() else None
    if version != VERSION:
        raise ValueError(
            f"--onnxruntime_web {package} is {f'version {version}' if version else 'no package'}; "
            f"give the folder of {PACKAGE} {VERSION}, which has package.json and dist/"
        )
