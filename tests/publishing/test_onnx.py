"""Graphs for other runtimes: onnxruntime draws what the pipeline draws, pixel by pixel."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from drawing import randn

from mtl_diffusion.pipeline.noise import own_generators
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

onnxruntime = pytest.importorskip("onnxruntime", reason="it is in mtl_diffusion[onnx]")
pytest.importorskip("onnxscript", reason="it is in mtl_diffusion[onnx]")

from mtl_diffusion.commands import export  # noqa: E402
from mtl_diffusion.publishing import onnx  # noqa: E402
from mtl_diffusion.publishing.onnx import FACTS, WEIGHTS, export_onnx  # noqa: E402

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CHAINS = [[80.0], [40.0, 0.8]]
N, STEPS = 3, 3
# Tracing takes a time that goes with the number of operations.
SMALL = {"block_out_channels": [8], "attention_resolutions": [8]}


def few_steps(pipe, **marks) -> MultiTaskPipeline:
    """The pipeline as one of few steps."""
    pipe.unet.register_to_config(_chains=CHAINS, _class_frequencies={"cat": 3, "dog": 1}, **marks)
    pipe.scheduler = EDMEulerScheduler.from_config(pipe.scheduler.config)
    return pipe


# Kind of model -> the fields of its configuration, and what it is exported with.
TASKS = {"tasks": ("generate", "inpaint", "edit")}
DEEP = {"image_mode": "RGBA", "image_dtype": "uint16", "value_range": [0, 4095]}
DEEP |= {"resolution": [8, 16], "tasks": ("inpaint",)}
KINDS = {
    "few": (TASKS, {}),
    "at once": (TASKS, {}),
    "many": (TASKS, {"tasks": ["generate", "edit"], "num_inference_steps": STEPS}),
    "deep and wide": (DEEP, {}),
}


@pytest.fixture(scope="module")
def exported(build_pipe, tmp_path_factory):
    """Kind of model -> pipeline and folder."""
    folder, found, traced = tmp_path_factory.mktemp("onnx"), {}, {}
    trace = onnx._trace_unet

    def trace_once(unet):  # three have the same one, and tracing takes most of the time
        channels = unet.config.in_channels
        traced[channels] = traced.get(channels) or trace(unet)
        return traced[channels]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "_trace_unet", trace_once)
        for kind, (fields, options) in KINDS.items():
            pipe = build_pipe(**SMALL | fields)
            if kind != "many":
                few_steps(pipe, **({"_edits_at_once": True} if kind == "at once" else {}))
            found[kind] = (pipe, folder / kind)
            if kind == "at once":  # by the command
                pipe.save_pretrained(folder / "saved")
                flags = ["--pipeline", folder / "saved", "--output_dir", folder / kind]
                patch.setattr("sys.argv", ["export", *map(str, flags), "--tasks", "edit"])
                export.main()
            else:
                export_onnx(pipe, folder / kind, name="tiny", **options)
    return found


def session(path: Path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "kind, task",
    [
        *(("few", task) for task in TASKS["tasks"]),
        ("at once", "edit"),
        *(("many", task) for task in ("generate", "edit")),
        ("deep and wide", "inpaint"),
    ],
)
def test_the_same_pictures(exported, kind, task):
    pipe, folder = exported[kind]
    graph = session(folder / f"{task}.onnx")
    form = pipe.format
    noise = randn(N, *form.shape)
    own = torch.cat([torch.randn(noise[:1].shape, generator=g) for g in own_generators(noise)])
    image = form.stored_as_array(form.to_stored(randn(*noise.shape, seed=1)))
    mask = torch.zeros(N, 1, *form.size)
    mask[:, :, 2:6, 1:5] = 1
    # Without an effect; from the source with noise, at the first or second of few levels; alone.
    strength, label = [0.0, 0.4, 1.0], [0, 2, 1]
    feeds = {"noise": noise, "image": image, "mask": mask, "condition_noise": own}
    feeds |= {"class": torch.tensor(label), "strength": torch.tensor(strength)}
    names = [given.name for given in graph.get_inputs()]
    options = {"image": image, "mask": mask, "strength": strength}
    options = {name: value for name, value in options.items() if name in names}
    if "mask" in options:
        options["mask_image"] = options.pop("mask")
    if kind == "many":
        options["num_inference_steps"] = STEPS
    elif kind == "at once":  # its graph is one evaluation
        options["num_inference_steps"] = 1
    expected = pipe(task, latents=noise, class_label=label, output_type="pt", **options).images
    (found,) = graph.run(["images"], {name: feeds[name].numpy() for name in names})
    low, high = form.array_range
    assert np.abs(found - expected.numpy()).max() < (high - low) / 255
    if "mask" in names:
        kept = mask.expand_as(image).numpy() == 0
        assert (found[kept] == image.numpy()[kept]).all()
    one = {name: feeds[name][:1].numpy() for name in names}  # the size of a batch is free
    np.testing.assert_allclose(graph.run(None, one)[0], found[:1], atol=(high - low) / 1000)
    assert ("condition_noise" in names) == (task == "edit" and kind != "at once")


def test_what_is_said_of_the_files(exported):
    pipe, folder = exported["few"]
    facts = json.loads((folder / FACTS).read_text())
    assert set(facts["tasks"]) == set(pipe.tasks)
    assert facts["class_names"] == list(pipe.class_names)
    assert facts["class_frequencies"] == {"cat": 0.75, "dog": 0.25}
    assert facts["tasks"]["edit"]["required"] == ["class", "image"]
    parameters = sum(weight.numel() for weight in pipe.unet.parameters())
    assert (folder / WEIGHTS).stat().st_size < 4.5 * parameters  # once for all tasks
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert facts["bytes"] == sum(sizes.values()) - sizes[FACTS]


SDE = (EDMDPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"})
EULER = (EDMEulerScheduler, {})


@pytest.mark.parametrize(
    "scheduler, given, words",
    [
        (None, {"tasks": ["paint"]}, "tasks has paint; this model knows generate"),
        (None, {"num_inference_steps": 0}, "num_inference_steps is 0"),
        (SDE, {"tasks": ["generate"]}, r"'sde-dpmsolver\+\+', which draws noise"),
        (EULER, {"tasks": ["edit"]}, "EDMEulerScheduler with the schedule 'karras'"),
    ],
)
def test_what_cannot_be_exported(pipe, tmp_path, scheduler, given, words):
    if scheduler is not None:
        kind, options = scheduler
        pipe = MultiTaskPipeline(
            pipe.unet, pipe.tokenizer, kind.from_config(pipe.scheduler.config, **options)
        )
    with pytest.raises(ValueError, match=words):
        export_onnx(pipe, tmp_path / "onnx", **{"num_inference_steps": 2, **given})
    assert not (tmp_path / "onnx").exists()


def test_the_ten_lines_of_python_in_the_docs(exported, tmp_path):
    page = (ROOT / "docs/publishing.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```python\n(import numpy.*?)^```", page, re.M | re.S)
    assert len(re.findall(r"^.", lines, re.M)) <= 10
    lines = lines.replace('"onnx/', f'"{exported["few"][1]}/').replace("32, 32", "8, 8")
    imported = "import sys\nsys.modules.update(dict.fromkeys(['torch', 'mtl_diffusion']))\n"
    command = [sys.executable, "-c", imported + lines]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(4, 3, 8, 8)")
