"""What a checkpoint costs: size, how long the loop waits for it, how long writing and reading take.

python scripts/checkpoint_cost.py --config configs/cifar10.yaml --dataset_name shapes \
    --image_column image --mixed_precision no --compile false --output_dir DIR

Takes the flags of train.py, builds that run, and saves it nine times without training it.
"""

import shutil
import statistics
import time
from pathlib import Path

import torch

from mtl_diffusion.checkpoints.resume import folder_of, restore
from mtl_diffusion.checkpoints.saver import Saver
from mtl_diffusion.config.command_line import parse
from mtl_diffusion.launch.preflight import begin
from mtl_diffusion.training.run import build

REPEATS = 9


def main() -> None:
    config = parse()
    if (Path(config.output_dir) / "checkpoints").exists():
        raise SystemExit(f"{config.output_dir} holds a run; choose another output_dir")
    with begin(config) as accelerator:
        run = build(config, accelerator)
        for parameter in run.optimizer.param_groups[0]["params"]:
            parameter.grad = torch.zeros_like(parameter)
        run.optimizer.step()  # AdamW has its moments from its first step on
        waited, written = [], []
        with Saver(run) as saver:
            for step in range(1, REPEATS + 1):
                waited.append(seconds(saver.save, step, needed=False))
                written.append(waited[-1] + seconds(saver.wait))
        newest = folder_of(run) / f"step-{REPEATS}"
        size = sum(file.stat().st_size for file in newest.iterdir())
        read = [seconds(restore, run) for _ in range(3)]
        shutil.rmtree(folder_of(run))
    millions = sum(p.numel() for p in run.unet.parameters()) / 1e6
    print(f"{millions:.1f}M parameters, {size / 1e6:.0f} MB a checkpoint")
    print(f"the loop waits, n = {REPEATS}: {spread(waited)}")
    print(f"it is on the disk after, n = {REPEATS}: {spread(written)}")
    print(f"reading it back, n = 3: {spread(read)}")


def seconds(work, *arguments, **options) -> float:
    started = time.perf_counter()
    work(*arguments, **options)
    return time.perf_counter() - started


def spread(values: list[float]) -> str:
    middle = statistics.median(values)
    return f"median {middle:.2f} s, from {min(values):.2f} to {max(values):.2f} s"


if __name__ == "__main__":
    main()
