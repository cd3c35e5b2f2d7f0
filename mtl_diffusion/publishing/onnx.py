"""A pipeline's tasks as ONNX graphs: from noise to finished pixels, in any runtime.

The graphs are traced through the pipeline's own functions, so a new task needs no code here. The
UNet is traced once, and becomes a function that each step of each graph calls.
"""

import copy
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from diffusers import EDMEulerScheduler
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from .. import __version__
from ..pipeline.chains import karras_levels
from ..pipeline.denoiser import Guidance, build_conditioning
from ..pipeline.outputs import to_output
from ..pipeline.parts import plain_unet
from ..pipeline.pipeline import MultiTaskPipeline
from ..pipeline.solver import from_level, initial, step_down
from ..tools.files import replaced_folder

OPSET = 20
WEIGHTS, FACTS = "weights.bin", "model.json"
LICENCE = "apache-2.0"  # that of a model card
DOMAIN, UNET = "mtl_diffusion", "UNet"  # the function
ALIGNED = 64  # bytes, of the weights in their file
# Argument of a task -> name of the graph's input, and what it takes.
INPUTS = {
    "image": ("image", "(B, C, H, W) float32 in [0, 1]"),
    "mask_image": ("mask", "(B, 1, H, W) float32 in {0, 1}: 1 is painted, 0 is kept"),
    "class_label": ("class", "(B,) int64, a place in class_names; -1 is the null class"),
    "strength": ("strength", "(B,) float32 in [0, 1]"),
}
NOISE = "(B, C, H, W) float32, standard normal"
GUIDANCE = ("guidance_scale", "image_guidance_scale", "guidance_interval")


class Graph(nn.Module):
    """A task of a pipeline as a function of tensors alone, for tracing.

    Attributes:
        inputs: name -> what it takes, in the order of `forward`.
        steps: their number, or the noise levels that they start at.
    """

    def __init__(self, pipe: MultiTaskPipeline, task: str, arguments: Mapping[str, Any]):
        """arguments: those of a call that are no input of the graph."""
        super().__init__()
        call = pipe._copy_for_call()
        call._check_task(task, **{name: True for name in pipe.spec(task).required})
        call._set_guidance(task, *map(arguments.get, GUIDANCE))
        self.scales = call.guidance_scale, call.image_guidance_scale, call.guidance_interval
        self.steps = call._read_steps(task, arguments.get("num_inference_steps"))
        self.vocabulary, self.spec = pipe.vocabulary, pipe.spec(task)
        self.scheduler = from_level(torch.inf, pipe.scheduler, self.steps, torch.device("cpu"))
        self.sigmas = self.scheduler.sigmas.tolist()
        if isinstance(self.scheduler, EDMEulerScheduler):
            self.scheduler.sigmas = self.sigmas  # numbers: it compares them
        self.shape = (pipe.unet.config.out_channels, pipe.size, pipe.size)
        takes = self.spec.required | self.spec.optional
        self.inputs = {"noise": NOISE} | {
            name: what for argument, (name, what) in INPUTS.items() if argument in takes
        }
        if self._degrades():
            self.inputs["condition_noise"] = f"{NOISE}; it degrades the image"

    def _degrades(self) -> bool:
        """Whether the task's condition depends on its noise."""
        zeros, strength = torch.zeros(1, *self.shape), torch.full((1,), 0.5)
        noise = torch.full_like(zeros, torch.nan)
        hint = self.spec.condition(zeros, torch.ones_like(zeros[:, :1]), strength, noise)
        return bool(hint.image.isnan().any())

    def example(self) -> tuple[Tensor, ...]:
        """Inputs of two samples, in their order."""
        given = {"mask": torch.ones(2, 1, *self.shape[1:]), "strength": torch.full((2,), 0.5)}
        given["class"] = torch.full((2,), -1)
        return tuple(given.get(name, torch.full((2, *self.shape), 0.5)) for name in self.inputs)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1], as those of `MultiTaskPipeline.__call__`."""
        given = dict(zip(self.inputs, tensors, strict=True))
        noise = given["noise"]
        image = given.get("image", torch.zeros_like(noise))
        mask = (given.get("mask", torch.ones_like(noise[:, :1])) >= 0.5).float()
        label = given.get("class", torch.full_like(noise[:, 0, 0, 0], -1, dtype=torch.int64))
        own_noise = given.get("condition_noise", torch.zeros_like(noise))
        source = 2 * image - 1
        hint = self.spec.condition(source, mask, given.get("strength"), own_noise)
        conditioning = build_conditioning(hint, self.spec, label, self.vocabulary)
        guidance = Guidance.of(
            _Call(self.shape[0]), self.scheduler, conditioning, self.vocabulary.null
        )
        # The state of a call: a graph is traced several times.
        scheduler, sigmas = copy.copy(self.scheduler), self.sigmas
        vars(scheduler).update({k: [*v] for k, v in vars(scheduler).items() if isinstance(v, list)})
        few, hole, first = isinstance(self.steps, list), hint.mask > 0, None
        start = self.spec.start(given.get("strength"))
        if isinstance(start, Tensor):  # each sample has its own
            start = start[:, None, None, None]
            hole = hole & (start >= scheduler.config.sigma_max)
            if few:  # it is one of the levels, where the sample joins the others
                first = sum((level >= start).long() for level in self.steps[1:])
            else:
                low, high = scheduler.config.sigma_min, scheduler.config.sigma_max
                levels = karras_levels(start.clamp(2 * low, high), self.steps, scheduler.config)
                last = torch.full_like(levels[:1], sigmas[-1])
                scheduler.sigmas = sigmas = torch.cat([levels, last])
        denoiser, parts = guidance.denoiser(*self.scales), (source, noise, hint.image, hole)
        x = initial(*parts, sigmas[0], few)
        for i in range(len(self.sigmas) - 1):
            if first is not None and i:
                x = torch.where(first == i, initial(*parts, sigmas[i], few), x)
            x = step_down(denoiser, scheduler, i, sigmas, x, source, noise, hint.mask)
        return to_output(x, hint.mask, image, "pt")


class _Call:
    """Stands for the UNet in the graph of a task."""

    dtype = torch.float32

    def __init__(self, channels: int):
        self.channels = channels

    def __call__(self, channels, timestep, encoder_hidden_states, class_labels, return_dict):
        given = (channels, timestep, encoder_hidden_states, class_labels)
        shape = (channels.shape[0], self.channels, *channels.shape[2:])
        call = torch.onnx.ops.symbolic
        return (call(f"{DOMAIN}::{UNET}", given, dtype=torch.float32, shape=shape, version=1),)


class _Network(nn.Module):
    """The UNet with its inputs by position."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, channels, timestep, tokens, labels):
        given = {"encoder_hidden_states": tokens, "class_labels": labels}
        return self.unet(channels, timestep, **given, return_dict=False)[0]


def export_onnx(pipe: MultiTaskPipeline, target: Path, **options) -> dict[str, Any]:
    """Writes a folder of graphs, which replaces an earlier one only when complete.

    Args:
        options: those of `write_graphs`.

    Raises:
        ValueError: as `write_graphs`; or the target is a folder of something else.
    """
    check_target(target)
    with replaced_folder(target) as folder:
        return write_graphs(pipe, folder, **options)


def write_graphs(
    pipe: MultiTaskPipeline,
    folder: Path,
    *,
    name: str = "",
    tasks: Sequence[str] | None = None,
    half: bool = False,
    **arguments,
) -> dict[str, Any]:
    """Writes TASK.onnx of each task, their weights, and what is true of them; returns the last.

    The steps are unrolled: a graph is as long as they are many.

    Args:
        folder: it exists.
        name: of the model, for the metadata.
        tasks: their names. None: all that the model has learned.
        half: store the weights as float16. Those that float16 holds exactly are stored so in any
            case; a graph computes in float32.
        arguments: `num_inference_steps` and the guidance of a call; the defaults are a call's.

    Raises:
        ValueError: an argument that a graph can't have, or a scheduler that draws noise.
    """
    for given in set(arguments) - {*GUIDANCE, "num_inference_steps"}:
        raise ValueError(
            f"{given} is no setting of a graph; it has num_inference_steps, {', '.join(GUIDANCE)}, "
            "and inputs for what differs from sample to sample: leave it out"
        )
    pipe = _for_tracing(pipe)
    facts = {
        "name": name,
        "licence": LICENCE,
        "made_by": f"mtl_diffusion {__version__}",
        "opset": OPSET,
        "shape": [pipe.unet.config.out_channels, pipe.size, pipe.size],
        "class_names": list(pipe.class_names),
        "class_frequencies": pipe.class_frequencies,
        "parameters": sum(weight.numel() for weight in pipe.unet.parameters()),
        "output": "images: (B, C, H, W) float32 in [0, 1]",
        "tasks": {},
    }
    graphs = {task: Graph(pipe, task, arguments).eval() for task in tasks or pipe.tasks}
    for task, graph in graphs.items():
        facts["tasks"][task] = {
            "inputs": graph.inputs,
            "steps": len(graph.sigmas) - 1,
            "required": [INPUTS[argument][0] for argument in sorted(graph.spec.required)],
            "strength": graph.spec.default_strength,
            "draws_class": graph.spec.draws_class,
        }
    function, weights = _trace_unet(pipe.unet)
    stored = _store(weights, folder / WEIGHTS, half)
    for task, graph in graphs.items():
        model = _trace_task(graph)
        _link(model, function, stored)
        own = facts | facts["tasks"][task] | {"task": task}
        for key, value in own.items():
            if key != "tasks":
                model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
        ir.save(model, folder / f"{task}.onnx")
    facts["weights_bytes"] = (folder / WEIGHTS).stat().st_size
    facts["bytes"] = sum(path.stat().st_size for path in folder.iterdir())
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


def _for_tracing(pipe: MultiTaskPipeline) -> MultiTaskPipeline:
    """The pipeline with a UNet of its own, in float32 on the CPU; the tokenizer is shared."""
    unet = copy.deepcopy(plain_unet(pipe.unet)).cpu().float()
    unet.requires_grad_(False)
    return MultiTaskPipeline(unet.eval(), pipe.tokenizer, pipe.scheduler, pipe.config.get("chains"))


def _trace_task(graph: Graph) -> ir.Model:
    """The graph of a task, which calls a UNet that it does not have.

    Raises:
        ValueError: the scheduler is one that a graph can't have.
    """
    config, kind = graph.scheduler.config, type(graph.scheduler).__name__
    own_levels = isinstance(graph.spec.start(torch.full((1,), 0.5)), Tensor)
    karras = config.sigma_schedule == "karras" and not isinstance(
        graph.scheduler, EDMEulerScheduler
    )
    if own_levels and isinstance(graph.steps, int) and not karras:
        raise ValueError(
            f"scheduler is {kind} with the schedule {config.sigma_schedule!r}; the graph of "
            f"{graph.spec.name}, whose noise levels depend on the strength, needs "
            "EDMDPMSolverMultistepScheduler with 'karras'"
        )
    example, before = graph.example(), torch.get_rng_state()
    graph(*example)  # before tracing: what the pipeline caches must be real tensors
    if not torch.equal(before, torch.get_rng_state()):
        raise ValueError(
            f"scheduler is {kind} with {config.get('algorithm_type')!r}, which draws noise in its "
            "steps, and a graph has no generator: take algorithm_type='dpmsolver++'"
        )
    return _trace(graph, example, list(graph.inputs), ["images"])


def _trace_unet(unet: nn.Module) -> tuple[ir.Function, dict[str, np.ndarray]]:
    """The UNet as a function of its four inputs and its weights, and these by name."""
    config, size = unet.config, unet.config.sample_size
    tokens = torch.zeros(2, 3, config.encoder_hid_dim)
    example = (torch.zeros(2, config.in_channels, size, size), torch.zeros(2))
    example += (tokens, tokens.flatten(1))
    graph = _trace(
        _Network(unet), example, ["channels", "timestep", "tokens", "labels"], ["F"]
    ).graph
    weights, first = {}, graph[0]
    for name, value in [*graph.initializers.items()]:
        del graph.initializers[name]
        if value.dtype == ir.DataType.FLOAT:
            weights[name] = value.const_value.numpy()
            graph.inputs.append(value)
        else:  # a shape, which a runtime must know before it computes
            constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", value.const_value)])
            constant.outputs[0].name = name
            value.replace_all_uses_with(constant.outputs[0])
            graph.insert_before(first, constant)
    return ir.Function(DOMAIN, UNET, graph=graph, attributes=[]), weights


def _trace(module: nn.Module, example: tuple, inputs: list[str], outputs: list[str]) -> ir.Model:
    shapes = tuple({0: torch.export.Dim("batch")} for _ in example)
    if isinstance(module, Graph):
        shapes = (shapes,)  # of its *tensors
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns that torchvision isn't there
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = {"input_names": inputs, "output_names": outputs, "dynamic_shapes": shapes}
            options = {"dynamo": True, "opset_version": OPSET, "verbose": False}
            model = torch.onnx.export(module, example, **names, **options).model
    finally:
        log.setLevel(level)
    ClearMetadataAndDocStringPass()(model)  # it has a stack trace of each node
    return model


def _store(weights: Mapping[str, np.ndarray], path: Path, half: bool) -> list[ir.ExternalTensor]:
    """Writes the file of weights, each content once, and returns where each weight lies."""
    stored, places = [], {}
    with open(path, "wb") as file:
        for name, array in weights.items():
            if array.dtype == np.float32 and (half or (array == array.astype(np.float16)).all()):
                array = array.astype(np.float16)
            content = array.tobytes()
            if content not in places:
                file.write(bytes(-file.tell() % ALIGNED))
                places[content] = file.tell()
                file.write(content)
            place = (path.name, places[content], len(content), ir.DataType.from_numpy(array.dtype))
            shape = ir.Shape(array.shape)
            tensor = ir.ExternalTensor(*place, shape=shape, name=name, base_dir=path.parent)
            stored.append(tensor)
    return stored


def _link(model: ir.Model, function: ir.Function, stored: Sequence[ir.ExternalTensor]) -> None:
    """Gives a graph the function and the weights that it calls."""
    weights, first = [], model.graph[0]
    for i, tensor in enumerate(stored):
        weight = ir.Value(name=f"w{i}", shape=tensor.shape, const_value=tensor)
        weight.dtype = tensor.dtype
        model.graph.register_initializer(weight)
        if tensor.dtype == ir.DataType.FLOAT16:  # computed in float32
            to = [ir.AttrInt64("to", ir.DataType.FLOAT)]
            cast = ir.Node("", "Cast", [weight], to, name=f"w{i}_float")
            cast.outputs[0].name = f"w{i}_float"
            model.graph.insert_before(first, cast)
            weight = cast.outputs[0]
        weights.append(weight)
    for node in model.graph:
        if node.domain == DOMAIN:
            given = len(node.inputs)
            node.resize_inputs(given + len(weights))
            for i, weight in enumerate(weights, given):
                node.replace_input_with(i, weight)
    model.functions[function.identifier()] = function
    model.opset_imports[DOMAIN] = 1


def check_target(target: Path) -> None:
    """Refuses a target that is neither new, nor empty, nor an earlier export to ONNX.

    Raises:
        ValueError: it is left alone.
    """
    is_empty = target.is_dir() and not any(target.iterdir())
    if target.is_symlink() or (target.exists() and not is_empty and not (target / FACTS).is_file()):
        raise ValueError(
            f"{target} is no folder of an export to ONNX, and is left alone; give a new folder"
        )
