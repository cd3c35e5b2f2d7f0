"""The parts of the benchmark: measurements, and their tables.

A part returns nested dicts whose leaves are numbers and `Measured`.
"""

import itertools
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..data.images import load_splits
from ..launch.preflight import begin
from ..pipeline.pipeline import MultiTaskPipeline
from ..tools.flops import flops_of_unet
from ..training.model import build_unet
from ..training.run import build
from ..training.vocabulary import build_tokenizer
from . import programs
from .sampling import Sampler, evaluations_for
from .steps import break_down
from .timing import Measured, interleaved, matmul_rate
from .twin import build_twin

STEP_COUNTS = (4, 6, 8, 12, 18, 24, 36, 50, 72, 100, 150)
DEFAULT_STEPS = 18  # of the pipeline


def measure(args: Namespace, config: TrainConfig, folder: Path) -> dict[str, Any]:
    """All parts that `args` names; see scripts/benchmark.py for its attributes.

    Args:
        folder: an empty folder for the programs' files.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = config.mixed_precision == "bf16"
    matmul = matmul_rate(device, torch.bfloat16 if half else torch.float32)
    found: dict[str, Any] = {
        "machine": {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "precision": config.mixed_precision,
            "matmul_gflops_per_second": matmul.times(1e-9),
        }
    }
    for part in args.parts:
        of_part = {"training": training, "steps": steps, "sampling": sampling}[part]
        found[part] = of_part(args, config, folder, matmul.median)
    return found


def training(args: Namespace, config: TrainConfig, folder: Path, matmul: float) -> dict[str, Any]:
    """Both programs as their READMEs launch them, and diffusers' with as many threads as ours."""
    data, _ = load_splits(config, config.resolution)
    extra = (config.strength_levels, config.reserved_tokens)
    words = build_tokenizer(list(config.shares), data.class_names, *extra).get_vocab()
    twin = build_twin(build_unet(config, len(words)))
    batch = config.total_batch_size
    if (images := args.steps * batch) > len(data):
        raise ValueError(
            f"--steps: found {args.steps}, which need {images} images; the dataset has {len(data)}"
        )
    (folder / "images").mkdir()
    programs.write_images(data, images, folder / "images")
    twin.unet.save_config(folder / "twin")

    places = (folder / f"run-{number}" for number in itertools.count())

    def ours() -> programs.Timed:
        place = next(places)
        command = programs.our_command(config, args.steps, place)
        return programs.program(command, place, batch, args.warm)

    def theirs(threads: int | None) -> programs.Timed:
        place = next(places)
        command = programs.their_command(
            args.diffusers, args.twin_python, config, folder / "twin", folder / "images", place
        )
        return programs.program(command, place, batch, args.warm, threads)

    contestants = {"ours": ours}
    if args.diffusers:
        contestants["diffusers"] = partial(theirs, threads=None)
        if not torch.cuda.is_available():  # the launcher gives a process on a CPU one thread
            contestants["diffusers_all_threads"] = partial(theirs, threads=torch.get_num_threads())
    found: dict[str, Any] = {}
    for name, runs in interleaved(contestants, args.rounds, "training").items():
        flops = twin.our_flops if name == "ours" else twin.flops
        rate = Measured.of([run.rate for run in runs])
        found[name] = {
            "images_per_second": rate,
            "gflops_per_second": rate.times(flops / 1e9),
            "share_of_matmul": rate.median * flops / matmul,
            "first_log_entry_seconds": Measured.of([run.first_entry for run in runs]),
            "host_megabytes": max(run.host_bytes for run in runs) / 1e6,
        }
        if name != "ours":
            ratio = found["ours"]["images_per_second"].median / rate.median
            found[name]["ours_is_faster"] = ratio
            found[name]["ours_is_faster_per_flop"] = ratio * twin.our_flops / twin.flops
    return found


def steps(args: Namespace, config: TrainConfig, folder: Path, matmul: float) -> dict[str, Any]:
    """The parts of our step, in this process."""
    config = replace(
        config,
        max_train_steps=1000,
        max_train_minutes=None,
        output_dir=str(folder / "steps"),
        report_to="none",
        push_to_hub=False,
    )
    with begin(config) as accelerator:
        run = build(config, accelerator)
        _, flops = flops_of_unet(run.unet)
        step = break_down(run, max(args.rounds, args.steps - args.warm), args.warm)
        accelerator.end_training()
    rate = config.total_batch_size / step.whole.median
    return {
        "milliseconds": step.whole.times(1e3),
        "images_per_second": rate,
        "share_of_matmul": rate * flops / matmul,
        "parts_in_milliseconds": {name: part.times(1e3) for name, part in step.parts.items()},
        "share_that_is_not_forward_or_backward": step.overhead,
        "device_megabytes": step.device_bytes and step.device_bytes / 1e6,
    }


def sampling(args: Namespace, config: TrainConfig, folder: Path, matmul: float) -> dict[str, Any]:
    """Our solver, and Euler's and Heun's methods, with the same weights."""
    pipe = MultiTaskPipeline.from_pretrained(args.pipeline)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    sampler = Sampler(pipe, args.sample_batch)
    curves = sampler.curve(STEP_COUNTS)
    same = {"ours": DEFAULT_STEPS, "euler": DEFAULT_STEPS, "heun": (DEFAULT_STEPS + 1) // 2}
    times = sampler.times(same, args.rounds)
    each = {name: times[name].median / sampler.evaluations(name, n) for name, n in same.items()}
    equal = {}
    for point in curves["ours"]:
        equal[f"{point.steps}_steps"] = entry = {"distance": point.distance}
        for other in ("euler", "heun"):
            needed = evaluations_for(curves[other], point.distance)
            entry[f"evaluations_of_{other}"] = needed
            ours = point.evaluations * each["ours"]
            entry[f"ours_is_faster_than_{other}"] = needed and needed * each[other] / ours
    return {
        "seconds_an_image": {
            f"{name}_{sampler.evaluations(name, n)}_evaluations": times[name]
            for name, n in same.items()
        },
        "share_of_matmul": flops_of_unet(pipe.unet)[0] / each["ours"] / matmul,
        "at_equal_quality": equal,
        "curves": {name: [asdict(point) for point in points] for name, points in curves.items()},
    }


def rows(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, value) of every leaf; lists are left out."""
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from rows(value, f"{prefix}{name}, ")
        elif not isinstance(value, list):
            yield prefix + name, f"{value:.4g}" if isinstance(value, float) else str(value)
