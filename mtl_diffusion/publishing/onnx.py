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

from ..pipeline.format import ImageFormat
from ..pipeline.loading import plain_unet
from ..pipeline.pipeline import MultiTaskPipeline
from ..tools.files import replaced_folder
from .export import check_target
from .graph import DOMAIN, INPUTS, UNET, Graph

OPSET = 20
WEIGHTS, FACTS = "weights.bin", "model.json"
logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision isn't there


def export_onnx(
    pipe: MultiTaskPipeline,
    target: Path,
    *,
    name: str = "",
    tasks: Sequence[str] | None = None,
    half: bool = False,
    num_inference_steps: int | None = None,
) -> dict[str, Any]:
    """Writes TASK.onnx of each task, their weights, and what is true of them; returns the last.

    The steps are unrolled: a graph is as long as they are many. Guidance is a call's default.

    Args:
        target: a folder, which replaces an earlier one only when complete.
        name: of the model, for the page.
        tasks: their names. None: all that the model has learned.
        half: store the weights as float16. Those that float16 holds exactly are stored so in any
            case; a graph computes in float32.

    Raises:
        ValueError: an argument that a graph can't have, or a scheduler that draws noise; or the
            target is a folder of something else.
    """
    check_target(target, FACTS)
    tasks = tasks or pipe.tasks
    if unknown := sorted({*tasks} - {*pipe.tasks}):
        raise ValueError(
            f"tasks has {', '.join(unknown)}; this model knows {', '.join(pipe.tasks)}"
        )
    # Of its own, in float32 on the CPU.
    unet = copy.deepcopy(plain_unet(pipe.unet)).cpu().float().eval().requires_grad_(False)
    pipe = MultiTaskPipeline(unet, pipe.tokenizer, pipe.scheduler, pipe.config.get("chains"))
    facts = {
        "name": name,
        "shape": pipe.format.shape,
        "class_names": list(pipe.class_names),
        "class_frequencies": pipe.class_frequencies,
        "parameters": sum(weight.numel() for weight in pipe.unet.parameters()),
        "output": "images: (B, C, H, W) float32 in value_range",
        "value_range": pipe.format.array_range,
        "mode": pipe.format.mode,
        "tasks": {},
    }
    models = {}
    for task in tasks:
        graph = Graph(pipe, task, num_inference_steps).eval()
        models[task] = _trace_task(graph)
        facts["tasks"][task] = {
            "inputs": graph.inputs,
            "steps": len(graph.sigmas) - 1,
            "required": [INPUTS[argument][0] for argument in sorted(graph.spec.required)],
            "strength": graph.spec.default_strength,
            "draws_class": graph.spec.draws_class,
        }
    function, weights = _trace_unet(pipe.unet)
    with replaced_folder(target) as folder:
        stored = _store(weights, folder / WEIGHTS, half)
        for task, model in models.items():
            _link(model, function, stored)
            ir.save(model, folder / f"{task}.onnx")
        facts["weights_bytes"] = (folder / WEIGHTS).stat().st_size
        facts["bytes"] = sum(path.stat().st_size for path in folder.iterdir())
        (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


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
    config, size = unet.config, ImageFormat.of(unet.config).size
    tokens = torch.zeros(2, 3, config.encoder_hid_dim)
    example = (torch.zeros(2, config.in_channels, *size), torch.zeros(2))
    example += (tokens, tokens.flatten(1))
    names = ["channels", "timestep", "tokens", "labels"]
    graph = _trace(unet, example, names, ["F"]).graph
    weights, first = {}, graph[0]
    for name, value in [*graph.initializers.items()]:
        del graph.initializers[name]
        if value.dtype == ir.DataType.FLOAT and value.const_value.size > 1:
            weights[name] = value.const_value.numpy()
            graph.inputs.append(value)
        else:  # a shape or a scale, which a runtime reads before it computes
            constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", value.const_value)])
            constant.outputs[0].name = name
            value.replace_all_uses_with(constant.outputs[0])
            graph.insert_before(first, constant)
    return ir.Function(DOMAIN, UNET, graph=graph, attributes=[]), weights


def _trace(module: nn.Module, example: tuple, inputs: list[str], outputs: list[str]) -> ir.Model:
    shapes = tuple({0: torch.export.Dim("batch")} for _ in example)
    if isinstance(module, Graph):
        shapes = (shapes,)  # of its *tensors
    names = {"input_names": inputs, "output_names": outputs, "dynamic_shapes": shapes}
    options = {"dynamo": True, "opset_version": OPSET, "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.onnx.export(module, example, **names, **options).model
    ClearMetadataAndDocStringPass()(model)  # it has a stack trace of each node
    return model


def _store(weights: Mapping[str, np.ndarray], path: Path, half: bool) -> list[ir.ExternalTensor]:
    """Writes the file of weights, and returns where each of them lies."""
    tensors = []
    for name, array in weights.items():
        if half or (array == array.astype(np.float16)).all():
            array = array.astype(np.float16)
        tensors.append(ir.tensor(array, name=name))
    return ir.external_data.convert_tensors_to_external(tensors, path.parent, path.name)


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
