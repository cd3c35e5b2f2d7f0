"""What data costs: rate, start-up and memory of a split in memory, and of the same split streamed.

python scripts/benchmark_data.py --rows 50000 1200000 --batch_size 512 --output data.json
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

FILES = 12
DISTINCT = 4096  # pictures, of which files repeat each in turn: noise, which PNG can't compress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 1_200_000])
    parser.add_argument("--resolution", type=int, default=8, help="side of the images in pixels")
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=15, help="of batches, for each rate")
    parser.add_argument("--shuffle_buffer_size", type=int, default=10_000)
    parser.add_argument("--output", type=Path, help="JSON file for the table")
    arguments = parser.parse_args()

    table = []
    with tempfile.TemporaryDirectory(prefix="benchmark-data-") as folder:
        os.environ["HF_DATASETS_CACHE"] = f"{folder}/cache"  # so that nothing is decoded before
        # Each case in a process of its own: the peak of a process's memory is that of its life.
        apart = partial(ProcessPoolExecutor, 1, multiprocessing.get_context("spawn"))
        for rows in arguments.rows:
            name = f"{folder}/{rows}"
            with apart() as pool:
                size = pool.submit(draw, name, rows, arguments.resolution).result()
            for way in (nothing, memory, stream):
                with apart() as pool:
                    row = pool.submit(way, name, arguments).result()
                table.append({"rows": rows, "MB on disk": round(size / 1e6), **row})
                print(json.dumps(table[-1]), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps({"command": sys.argv, "table": table}, indent=1))


def draw(folder: str, rows: int, resolution: int) -> int:
    """Parquet files of so many images of noise in ten classes; returns their size in bytes."""
    import io

    import datasets
    import numpy as np
    from PIL import Image

    datasets.disable_progress_bars()
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(DISTINCT):
        buffer = io.BytesIO()
        pixels = random.integers(0, 256, (resolution, resolution, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        pictures.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(num_classes=10))
    Path(folder).mkdir()
    for i in range(FILES):
        numbers = range(rows * i // FILES, rows * (i + 1) // FILES)
        part = {
            "image": [pictures[n % DISTINCT] for n in numbers],
            "label": [n % 10 for n in numbers],
        }
        file = Path(folder) / f"train-{i:05d}-of-{FILES:05d}.parquet"
        datasets.Dataset.from_dict(part, features=features).to_parquet(file)
    return sum(file.stat().st_size for file in Path(folder).iterdir())


def nothing(name: str, arguments: argparse.Namespace) -> dict:
    """The memory of the imports alone."""
    import mtl_diffusion.data.streaming_loader  # noqa: F401

    return {"way": "imports alone", "peak MB": peak()}


def memory(name: str, arguments: argparse.Namespace) -> dict:
    import datasets

    from mtl_diffusion.data.images import load_images
    from mtl_diffusion.data.loader import Loader

    datasets.disable_progress_bars()
    start = time.perf_counter()
    data = load_images(name, resolution=arguments.resolution)
    first = time.perf_counter() - start
    del data
    again = time.perf_counter()
    data = load_images(name, resolution=arguments.resolution)
    again = time.perf_counter() - again
    loader = Loader(data, arguments.batch_size, seed=0, random_flip=True)
    return {
        "way": "in memory",
        "first start s": round(first, 2),
        "later starts s": round(again, 2),
        **rate(loader, arguments),
    }


def stream(name: str, arguments: argparse.Namespace) -> dict:
    from mtl_diffusion.config import TrainConfig
    from mtl_diffusion.data.decode import Decoder
    from mtl_diffusion.data.stream import open_streams
    from mtl_diffusion.data.streaming_loader import Position, StreamingLoader

    size = arguments.batch_size
    start = time.perf_counter()
    config = TrainConfig(dataset_name=name, resolution=arguments.resolution)
    (rows,) = open_streams(config, ["train_split"])
    loader = StreamingLoader(
        rows,
        total_batch_size=size,
        mine=range(size),
        rank=0,
        world=1,
        buffer_size=arguments.shuffle_buffer_size,
        seed=0,
        random_flip=True,
        decoder=Decoder(arguments.resolution, threads=1),
    )
    loader.batch(0)
    first = time.perf_counter() - start
    row = {"way": "streamed", "first start s": round(first, 2), **rate(loader, arguments)}
    # The dearest resume: at the end of an epoch, of which all is read and nothing decoded.
    rows = int(Path(name).name) - size
    start = time.perf_counter()
    loader.go_to(0, Position(0, rows))
    loader.batch(0)
    return {**row, "resume at an epoch's end s": round(time.perf_counter() - start, 2)}


def rate(loader, arguments: argparse.Namespace) -> dict:
    """Batches as fast as they come: nothing is trained on them."""
    start, step = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < arguments.seconds:
        step += 1
        loader.batch(step)
    images = step * arguments.batch_size
    return {
        "images/s": round(images / seconds),
        "us/image": round(1e6 * seconds / images, 2),
        "peak MB": peak(),
    }


def peak() -> int:
    """Of this process, in MB: pages of files that it has mapped count."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


if __name__ == "__main__":
    main()
