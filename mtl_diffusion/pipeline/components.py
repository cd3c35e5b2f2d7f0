"""The components of a pipeline: which are taken, and whether they belong together."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .format import ImageFormat

SCHEDULERS = (EDMDPMSolverMultistepScheduler, EDMEulerScheduler)
INDEX = "model_index.json"
WORDS = "_vocabulary"  # in unet/config.json: the words the weights were trained with
MODEL_ID = "_model_id"  # in the index and the configurations: the parts of one model have the same
AGAIN = "download or save the model again"
SHARD = re.compile(r"-\d{5}-of-\d{5}")  # in the name of a part of the weights


def plain_module(unet) -> nn.Module:
    """The module that `torch.compile` wrapped, or the module itself."""
    return getattr(unet, "_orig_mod", unet)


def check_component(name: str, value) -> None:
    """Checks the type of a component; other names are ignored.

    Raises:
        ValueError: the pipeline can't work with it.
    """
    value, wanted = plain_module(value), None
    if name == "unet" and not isinstance(value, UNet2DConditionModel):
        wanted = (
            "a UNet2DConditionModel, compiled or not: of a wrapper give its .module, or its "
            ".get_base_model(), which keeps the adapters"
        )
    elif name == "tokenizer" and not isinstance(value, PreTrainedTokenizerBase):
        wanted = (
            "the tokenizer that was saved with the unet, such as "
            "PreTrainedTokenizerFast.from_pretrained(folder, subfolder='tokenizer')"
        )
    elif name == "scheduler" and not isinstance(value, SCHEDULERS):
        wanted = (
            f"{' or '.join(one.__name__ for one in SCHEDULERS)}, such as "
            "EDMEulerScheduler.from_config(pipe.scheduler.config)"
        )
    if wanted:
        raise ValueError(f"{name} is of the type {type(value).__name__}; it must be {wanted}")
    if name == "unet":
        images, config = ImageFormat.of(value.config), value.config
        if (config.in_channels, config.out_channels) != (images.input_channels, images.channels):
            raise ValueError(
                f"unet takes {config.in_channels} channels and gives {config.out_channels}; a unet "
                f"for images of {images.words} takes {images.input_channels} and gives "
                f"{images.channels}"
            )


def id_of(component) -> str | None:
    """What says which model a UNet or a scheduler is of; None if it was saved before there was."""
    return plain_module(component).config.get(MODEL_ID)


def stamp(unet, scheduler, model_id: str) -> None:
    """Notes that both are of a model."""
    for part in (plain_module(unet), scheduler):
        part.register_to_config(**{MODEL_ID: model_id})


def digest_of(unet: nn.Module) -> str:
    """12 hex digits of the sha256 of the weights: the id of a model that has none yet."""
    digest = hashlib.sha256()
    for name, tensor in sorted(plain_module(unet).state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def read_json(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def check_loaded(pipeline: str, unet, tokenizer) -> None:
    """Checks the UNet and the tokenizer of a pipeline that was loaded.

    diffusers only warns of a tensor that is missing, and initializes it at random.

    Args:
        pipeline: folder or name on the Hub, as it was given for loading.
        unet: loaded now, or given by the user; only the files that were loaded now are checked.

    Raises:
        ValueError: a tensor is missing, unexpected or not finite; the weights aren't safetensors;
            or they are of another model than another part.
    """
    module = plain_module(unet)
    folder = Path(module.config.get("_name_or_path") or "unet")
    cache = "models--" + str(pipeline).replace("/", "--")  # where the Hub's client keeps it
    if folder.name == "unet" and (folder.parent == Path(pipeline) or cache in folder.parts):
        _check_files(folder, module.config)
        _check_ids(folder.parent)
    _check_values(module.state_dict(), f"{folder}: ", f" after loading; {AGAIN}")
    trained, words = module.config.get(WORDS), tokenizer.get_vocab()
    if trained is not None and trained != words:
        moved = sorted(w for w in {*trained, *words} if trained.get(w) != words.get(w))
        raise ValueError(
            f"{folder.with_name('tokenizer') / 'tokenizer.json'} is of another model than "
            f"{folder}: they differ in the ids of {', '.join(moved[:8])}; {AGAIN}"
        )


def plain_unet(unet) -> UNet2DConditionModel:
    """The UNet, not compiled, for saving.

    Raises:
        ValueError: it has an adapter, or was changed in a way that its files couldn't describe.
    """
    module = plain_module(unet)
    state = module.state_dict()
    _check_values(state, "unet: ", "; it is not saved")
    if names := _undescribed({name: tensor.shape for name, tensor in state.items()}, module.config):
        raise ValueError(
            f"unet has layers that its configuration does not describe ({names}): save adapters "
            "with pipe.unet.save_lora_adapter(folder), or merge them into the weights with "
            "pipe.unet.fuse_lora() and pipe.unet.unload_lora(), and save the pipeline before other "
            "changes"
        )
    return module


def _check_values(state: Mapping[str, Tensor], where: str, advice: str) -> None:
    """Refuses tensors without values, and those of 16 bits and more that are not finite."""
    for name, tensor in state.items():
        if tensor.is_meta:
            raise ValueError(f"{where}{name} has no value{advice}")
        if tensor.element_size() > 1 and not tensor.isfinite().all():
            raise ValueError(f"{where}{name} has NaN or infinite values{advice}")


def _check_ids(folder: Path) -> None:
    """Refuses a folder with parts of two models. The scheduler may be one without an id."""
    unet, scheduler, index = (
        read_json(folder / name).get(MODEL_ID) if (folder / name).is_file() else None
        for name in ("unet/config.json", "scheduler/scheduler_config.json", INDEX)
    )
    if index != unet or scheduler not in (unet, None):
        raise ValueError(
            f"{folder / 'unet'} is of another model than its scheduler or {INDEX}: their "
            f"{MODEL_ID} is {unet}, {scheduler} and {index}; {AGAIN}"
        )


def _check_files(folder: Path, config: Mapping) -> None:
    """Compares the tensors in the files of a UNet's folder with those that it has."""
    found: dict[str, dict] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        found.setdefault(SHARD.sub("", file.name), {}).update(shapes)  # parts count as one file
    if not found:
        raise ValueError(f"{folder} has no weights as safetensors; save them with save_pretrained")
    for file, shapes in found.items():
        if names := _undescribed(shapes, config):
            raise ValueError(
                f"{folder / file} does not have the tensors of its config.json; missing, "
                f"unexpected or of another shape: {names}; {AGAIN}"
            )


def _undescribed(shapes: Mapping[str, Sequence[int]], config: Mapping) -> str:
    """Names of tensors that a UNet's configuration describes otherwise; "" if there are none."""
    with torch.device("meta"):
        described = UNet2DConditionModel.from_config(config).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in described.items()}
    given = {name: tuple(shape) for name, shape in shapes.items()}
    return ", ".join(sorted(n for n in {*expected, *given} if expected.get(n) != given.get(n))[:8])
