"""What each kind of benchmark measures, as the command scripts/benchmark.py asks for it."""

import sys
from argparse import Namespace
from pathlib import Path

import torch

from ..config import TrainConfig
from ..pipeline.pipeline import MultiTaskPipeline
from .programs import race
from .sampling import time_sampling
from .steps import time_steps


def measure(args: Namespace, config: TrainConfig | None, folder: Path) -> dict[str, object]:
    """Name -> figure, of the kind that `args` names.

    Args:
        args: the flags of scripts/benchmark.py.
        config: of the training step; None for the other kinds.
        folder: an empty folder for files of the runs.

    Raises:
        ValueError, OSError: an argument can't be used.
        SystemExit: a script failed.
    """
    if args.kind == "step":
        return time_steps(config, folder, args.steps, args.rounds, args.warm)
    if args.kind == "scripts":
        try:
            return race(args.commands, folder, args.rounds, args.warm)
        except RuntimeError as error:
            sys.exit(f"benchmark: {error}")
    pipe = MultiTaskPipeline.from_pretrained(args.pipeline)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    return time_sampling(pipe, args.batch_size, args.num_inference_steps, args.rounds)
