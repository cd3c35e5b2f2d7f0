"""Sampling: the rate of a pipeline, and its tasks by PyTorch and by onnxruntime."""

from functools import partial
from pathlib import Path

import torch

from ..pipeline.pipeline import MultiTaskPipeline
from ..publishing.graph import INPUTS
from .timing import machine, measured, seconds

CPU = torch.device("cpu")


def time_sampling(pipe: MultiTaskPipeline, batch_size: int, rounds: int, steps: int | None) -> dict:
    """The rate of the generate task without guidance."""
    options = {"guidance_scale": 1.0, "num_inference_steps": steps, "output_type": "pt"}
    draw = partial(pipe, num_images_per_prompt=batch_size, **options)
    draw()  # to fill caches
    times = [seconds(draw, pipe.device) for _ in range(rounds)]
    rate = measured(batch_size / took for took in times)
    facts = {"batch_size": batch_size, "steps": pipe.num_timesteps, **machine(pipe.device)}
    return {"images_per_second": rate, **facts}


def race_graphs(pipe: MultiTaskPipeline, folder: Path, batch_size: int, rounds: int) -> dict:
    """Seconds for an image of each task, by PyTorch and by onnxruntime, which take turns.

    Args:
        pipe: that of the graphs, on the CPU, at the defaults with which they were exported. Both
            have as many threads as torch has.
        folder: of mtl-diffusion export.

    Raises:
        ValueError: onnxruntime is not installed, or the folder has no graphs.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError("onnx: run pip install 'mtl_diffusion[onnx]'") from error
    if not (files := sorted(folder.glob("*.onnx"))):
        raise ValueError(f"onnx: {folder} has no graphs; give a folder of mtl-diffusion export")
    settings, found = onnxruntime.SessionOptions(), {}
    settings.intra_op_num_threads = torch.get_num_threads()
    noise = torch.randn(batch_size, *pipe.format.shape)
    values = {
        "noise": noise,
        "condition_noise": torch.randn_like(noise),
        "image": pipe.format.to_array(torch.randn_like(noise)),
        "mask": (torch.rand_like(noise[:, :1]) < 0.5).float(),
        "class": torch.zeros(batch_size, dtype=torch.int64),
    }
    for file in files:
        task, providers = file.stem, ["CPUExecutionProvider"]
        strength = pipe.spec(task).default_strength or 0.0
        values["strength"] = torch.full((batch_size,), strength)
        session = onnxruntime.InferenceSession(file, settings, providers=providers)
        names = [one.name for one in session.get_inputs()]
        call = {name: values[of] for name, (of, _) in INPUTS.items() if of in names}
        call |= {k: call[k].tolist() for k in ("class_label", "strength") if k in call}
        ways = {
            "PyTorch": partial(pipe, task, latents=noise, output_type="pt", **call),
            "onnxruntime": partial(session.run, None, {k: values[k].numpy() for k in names}),
        }
        for way in ways.values():
            way()  # to fill caches
        times = [[seconds(way, CPU) for way in ways.values()] for _ in range(rounds)]
        for name, column in zip(ways, zip(*times, strict=True), strict=True):
            found[f"{task}, {name}, seconds"] = measured(took / batch_size for took in column)
        found[f"{task}, onnxruntime is faster, times"] = measured(a / b for a, b in times)
    return {**found, "batch_size": batch_size, **machine(CPU)}
