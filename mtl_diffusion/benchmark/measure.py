"""What each kind of benchmark measures, as the command scripts/benchmark.py asks for it."""

from argparse import Namespace
from pathlib import Path

import torch

from ..config import TrainConfig
from ..pipeline.pipeline import MultiTaskPipeline
from .programs import race
from .steps import time_steps
from .timing import Measured, machine, seconds


def measure(args: Namespace, config: TrainConfig | None, folder: Path) -> dict:
    """Name -> figure, of the kind that `args` names.

    Args:
        args: the flags of scripts/benchmark.py.
        config: of the training step; None for the other kinds.
        folder: an empty folder for files of the runs.

    Raises:
        ValueError, OSError: an argument can't be used, or a script failed.
    """
    if args.kind == "step":
        return time_steps(config, folder, args.steps, args.rounds, args.warm)
    if args.kind == "scripts":
        return race(args.commands, folder, args.rounds, args.warm)
    pipe = MultiTaskPipeline.from_pretrained(args.pipeline)
    pipe.set_progress_bar_config(disable=True)
    if args.onnx is not None:
        from .graphs import race_graphs  # its packages are an extra

        return race_graphs(pipe, args.onnx, args.batch_size, args.rounds)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    options = {"guidance_scale": 1.0, "num_inference_steps": args.num_inference_steps}

    def draw() -> None:
        pipe(num_images_per_prompt=args.batch_size, output_type="pt", **options)

    draw()  # to fill caches
    times = [seconds(draw, pipe.device) for _ in range(args.rounds)]
    return {
        "images_per_second": Measured.of(args.batch_size / took for took in times),
        "batch_size": args.batch_size,
        "steps": pipe.num_timesteps,
        **machine(pipe.device),
    }
