"""A pipeline's tasks by PyTorch and by onnxruntime, which take turns."""

import json
from pathlib import Path

import torch

from ..pipeline.pipeline import MultiTaskPipeline
from ..publishing.graph import INPUTS
from ..publishing.onnx import FACTS
from .timing import Measured, machine, seconds

CPU = torch.device("cpu")


def race_graphs(pipe: MultiTaskPipeline, folder: Path, batch_size: int, rounds: int) -> dict:
    """Seconds for an image of each task, on the CPU, with as many threads as torch has.

    Args:
        pipe: that of the graphs, on the CPU, at the defaults with which they were exported.
        folder: of mtl-diffusion export.

    Raises:
        ValueError, OSError: onnxruntime is not installed, or the folder has no graphs.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError("onnx: run pip install 'mtl_diffusion[onnx]'") from error
    settings, found = onnxruntime.SessionOptions(), {}
    settings.intra_op_num_threads = torch.get_num_threads()
    tasks = json.loads((folder / FACTS).read_text(encoding="utf-8"))["tasks"]
    for task, facts in tasks.items():
        form = pipe.format
        noise = torch.randn(batch_size, *form.shape)
        given = {
            "image": form.to_array(torch.randn(noise.shape)),
            "mask_image": (torch.rand(batch_size, 1, *form.size) < 0.5).float(),
            "class_label": torch.zeros(batch_size, dtype=torch.int64),
            "strength": torch.full((batch_size,), facts["strength"] or 0.0),
        }
        given = {name: value for name, value in given.items() if INPUTS[name][0] in facts["inputs"]}
        feeds = {INPUTS[name][0]: value for name, value in given.items()} | {"noise": noise}
        if "condition_noise" in facts["inputs"]:
            feeds["condition_noise"] = torch.randn(noise.shape)
        feeds = {name: value.numpy() for name, value in feeds.items()}
        session = onnxruntime.InferenceSession(
            folder / f"{task}.onnx", settings, providers=["CPUExecutionProvider"]
        )
        call = {"latents": noise, "output_type": "pt", **given}
        for name in {"class_label", "strength"} & given.keys():
            call[name] = given[name].tolist()

        def by_torch(task=task, call=call) -> None:
            pipe(task, **call)

        def by_onnxruntime(session=session, feeds=feeds) -> None:
            session.run(None, feeds)

        by_torch(), by_onnxruntime()  # to fill caches
        times = [(seconds(by_torch, CPU), seconds(by_onnxruntime, CPU)) for _ in range(rounds)]
        for name, column in zip(("PyTorch", "onnxruntime"), zip(*times, strict=True), strict=True):
            found[f"{task}, {name}, seconds"] = Measured.of(took / batch_size for took in column)
        found[f"{task}, onnxruntime is faster, times"] = Measured.of(a / b for a, b in times)
    return {**found, "batch_size": batch_size, **machine(CPU)}
