"""Small datasets on disk, for tests of what reads them."""

import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from mtl_diffusion.config import TrainConfig
from mtl_diffusion.data.images import ImageDataset, load_split
from mtl_diffusion.pipeline.format import ImageFormat

IMAGE = datasets.Image()
NAMED = datasets.ClassLabel(names=["a", "b"])


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(array: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(count: int = 4, side: int = 8, first: int = 0) -> list[dict]:
    """Images of noise; those of other seeds, from `first` on, are other images."""
    seeds = range(first, first + count)
    return [{"bytes": png(noise(side, side, 3, seed=i)), "path": None} for i in seeds]


def write_parquet(
    folder: Path, columns: dict, features: dict, split: str = "train", part: int = 0, of: int = 1
) -> str:
    """A folder that `load_dataset` takes; feature types travel in the file, as on the Hub."""
    folder.mkdir(exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.to_parquet(folder / f"{split}-{part:05d}-of-{of:05d}.parquet")
    return str(folder)


def write_table(
    folder: Path, labels: list, feature=NAMED, split: str = "train", images: list | None = None
) -> str:
    """A folder of parquet with the columns image and label."""
    columns = {"image": encoded(len(labels)) if images is None else images, "label": labels}
    return write_parquet(folder, columns, {"image": IMAGE, "label": feature}, split)


def write_images(folder: Path, *names: str) -> Path:
    """PNG files of these names, with folders in them, each of other pixels."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(noise(8, 8, 3, seed=number)))
    return folder


def load(
    name: str | Path, split="train", resolution=8, form: ImageFormat | None = None, **fields
) -> ImageDataset:
    config = TrainConfig(dataset_name=str(name), train_split=split, **fields)
    return load_split(config, "train_split", form or ImageFormat.square(resolution))
