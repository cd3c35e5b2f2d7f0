"""Training programs as users start them, timed by the clock in their own TensorBoard files."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import datasets
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ..config import TrainConfig, to_dict
from ..data.images import ImageDataset

SCRIPTS = Path(__file__).parents[2] / "scripts"
THEIRS = Path("examples/unconditional_image_generation/train_unconditional.py")
_LAUNCH = ("-m", "accelerate.commands.accelerate_cli", "launch")


@dataclass(frozen=True)
class Timed:
    """A program that has trained a few steps.

    Attributes:
        rate: images a second, from the log entry at `warm` steps to the last one.
        first_entry: seconds from its start to its first log entry.
        host_bytes: peak resident memory of its largest process.
    """

    rate: float
    first_entry: float
    host_bytes: int


def write_images(data: ImageDataset, count: int, folder: Path) -> None:
    """The first `count` images as diffusers' script reads them: PNGs in a column called image."""
    pixels = data.images[:count].permute(0, 2, 3, 1).numpy()
    rows = {"image": [Image.fromarray(array) for array in pixels]}
    features = datasets.Features(image=datasets.Image())
    datasets.Dataset.from_dict(rows, features).to_parquet(folder / "train.parquet")


def our_command(config: TrainConfig, steps: int, folder: Path) -> list[str]:
    """`accelerate launch scripts/train.py`, as in the README. It validates once, at its end."""
    values = to_dict(config) | {
        "max_train_steps": steps,
        "max_train_minutes": None,
        "validation_steps": steps,
        "validation_images": 1,
        "checkpointing_steps": steps,
        "logging_steps": min(config.logging_steps, max(1, steps // 3)),
        "report_to": "tensorboard",
        "output_dir": str(folder),
        "push_to_hub": False,
    }
    flags = [
        f"--{name}={json.dumps(value) if isinstance(value, list | dict) else value}"
        for name, value in values.items()
        if value is not None
    ]
    precision = f"--mixed_precision={config.mixed_precision}"
    launch = [*_LAUNCH, "--num_processes=1", "--num_machines=1", precision, "--dynamo_backend=no"]
    return [sys.executable, *launch, str(SCRIPTS / "train.py"), *flags]


def their_command(
    checkout: Path, python: Path, config: TrainConfig, twin: Path, images: Path, folder: Path
) -> list[str]:
    """`accelerate launch train_unconditional.py` with the flags of its README.

    It samples at the end of an epoch: one image in one step, after the timed part.

    Args:
        twin: folder with the config.json of the UNet.
        images: folder of `write_images`.
    """
    return [
        *(str(python), *_LAUNCH),
        str(checkout / THEIRS),
        f"--dataset_name={images}",
        f"--model_config_name_or_path={twin}",
        f"--resolution={config.resolution}",
        *("--center_crop", "--random_flip", "--use_ema"),
        f"--output_dir={folder}",
        f"--train_batch_size={config.total_batch_size}",
        "--num_epochs=1",
        "--gradient_accumulation_steps=1",
        "--learning_rate=1e-4",
        "--lr_warmup_steps=500",
        f"--mixed_precision={config.mixed_precision}",
        *("--eval_batch_size=1", "--ddpm_num_inference_steps=1", "--checkpointing_steps=1000000"),
    ]


def program(
    command: list[str], folder: Path, batch_size: int, warm: int, threads: int | None = None
) -> Timed:
    """Runs a training program to its end.

    Args:
        folder: its output_dir, which must not exist yet.
        batch_size: images a step.
        warm: first steps, which are not timed.
        threads: on a CPU; None leaves the number to the program and to its launcher.

    Raises:
        RuntimeError: it failed; the message has the end of its output.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    environment |= {"HF_HUB_OFFLINE": "1"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    log = folder.with_suffix(".log")
    started = time.time()
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        end = log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}:\n{end}")
    times = step_times(folder)
    first = min(step for step in times if step >= warm)
    last = max(times)
    if last == first:
        raise RuntimeError(f"no step was logged after the first {warm}: train for more steps")
    return Timed(
        rate=(last - first) * batch_size / (times[last] - times[first]),
        first_entry=times[min(times)] - started,
        host_bytes=usage.ru_maxrss * 1024,
    )


def step_times(folder: Path) -> dict[int, float]:
    """Step -> when its learning rate was logged, seconds since 1970, from TensorBoard's files."""
    times = {}
    for file in folder.glob("**/events.out.tfevents.*"):
        log = EventAccumulator(str(file.parent)).Reload()
        for tag in set(log.Tags()["scalars"]) & {"lr", "learning_rate"}:
            times |= {event.step: event.wall_time for event in log.Scalars(tag)}
    return times
