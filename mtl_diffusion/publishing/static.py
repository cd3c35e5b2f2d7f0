"""A page that runs a model in the browser: a folder of files, which any server can hand out."""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from ..pipeline.pipeline import MultiTaskPipeline
from ..tools.files import replaced_folder
from .export import check_target
from .onnx import FACTS, export_onnx

PAGE = Path(__file__).with_name("page")
PACKAGE, VERSION = "onnxruntime-web", "1.30.0"  # that the page is tested with
# Of that package: for WebAssembly, and for WebGPU. A visitor downloads one of them.
RUNTIMES = {"wasm": "ort-wasm-simd-threaded", "webgpu": "ort-wasm-simd-threaded.asyncify"}
RUNTIME = [f"ort.{kind}.min.mjs" for kind in RUNTIMES]
RUNTIME += [f"{name}.{end}" for name in RUNTIMES.values() for end in ("mjs", "wasm")]


def write_page(
    pipe: MultiTaskPipeline, target: Path, *, name: str, package: Path | None = None
) -> None:
    """Writes the page and the model, in float16, to a folder, which replaces an earlier page.

    Args:
        name: of the model, the page's heading.
        package: the unpacked npm package onnxruntime-web. None: npm downloads it.

    Raises:
        ValueError: the model's images are not RGB; the package can't be had, or is of another
            version; the target is a folder of something else; or as `export_onnx`.
    """
    check_target(target, FACTS, "--static")
    if (pipe.format.mode, pipe.format.dtype) != ("RGB", "uint8"):
        raise ValueError(
            f"--static: this model draws {pipe.format.words}; the page shows RGB of 8 bits: take "
            "the graphs alone, mtl-diffusion export --format onnx"
        )
    with TemporaryDirectory() as temporary:
        package = package or _download(Path(temporary))
        found = package / "package.json"
        version = json.loads(found.read_text())["version"] if found.is_file() else None
        if version != VERSION:
            kind = f"version {version}" if version else "no package"
            raise ValueError(
                f"--onnxruntime_web: {package} is {kind}; give the folder of {PACKAGE} {VERSION}, "
                "which has package.json and dist/"
            )
        with replaced_folder(target) as folder:
            export_onnx(pipe, folder, name=name, half=True)
            shutil.copytree(PAGE, folder, dirs_exist_ok=True)
            (folder / "ort").mkdir()
            for file in RUNTIME:
                shutil.copyfile(package / "dist" / file, folder / "ort" / file)


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
