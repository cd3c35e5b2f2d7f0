"""What a saved model is made of, and whether its parts belong together."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .components import plain_module

INDEX = "model_index.json"
WORDS = "_vocabulary"  # in unet/config.json: the words the weights were trained with
MODEL_ID = "_model_id"  # in the index and the configurations: the parts of one model have the same
AGAIN = "download or save the model again"
SHARD = re.compile(r"-\d{5}-of-\d{5}")  # in the name of a part of the weights
FUSED = re.compile(r"\.to_q?kv\.(weight|bias)$")  # copies that fuse_qkv_projections() adds
FINITE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def replaced_by(names: Sequence[str], index: Mapping, model_id: str | None) -> list[str]:
    """Patterns of the files of a folder or a repository that a model replaces.

    Args:
        names: the files of the new model, with the weights of one variant.
        index: model_index.json that is there; empty if there is none.
        model_id: that of the new model. Other variants of the same model stay.
    """
    weights, code = "unet/diffusion_pytorch_model", f"pipeline_{'[0-9a-f]' * 8}.py"
    stem = next(Path(name).stem for name in names if name.endswith(".safetensors"))
    variant = SHARD.sub("", stem).partition(".")[2]
    there = index.get(MODEL_ID)
    if there != model_id and (there or not variant):  # of an older index the model is not known
        return [code, f"{weights}*"]
    if variant:
        ends = (f".{variant}.*", f".{variant}-*", f".*.index.{variant}.json")
    else:
        ends = ("-*", ".safetensors", ".bin", ".safetensors.index.json", ".bin.index.json")
    return [code, *(weights + end for end in ends)]


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
    for name, tensor in sorted(unet.state_dict().items()):
        digest.update(name.encode())
        if type(tensor) in (Tensor, nn.Parameter):
            plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(plain.numpy())
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
        ValueError: a tensor is missing, unexpected, of another shape or not finite; the weights
            aren't safetensors; or they were trained with another vocabulary.
    """
    module = plain_module(unet)
    folder = Path(module.config.get("_name_or_path") or "unet")
    cache = "models--" + str(pipeline).replace("/", "--")  # where the Hub's client keeps it
    if folder.name == "unet" and (folder.parent == Path(pipeline) or cache in folder.parts):
        check_files(folder)
        check_ids(folder.parent)
    check_values(module.state_dict(), f"{folder}: ", f" after loading; {AGAIN}")
    trained, words = module.config.get(WORDS), tokenizer.get_vocab()
    if trained is not None and trained != words:
        moved = sorted(w for w in {*trained, *words} if trained.get(w) != words.get(w))
        raise ValueError(
            f"{folder.with_name('tokenizer') / 'tokenizer.json'} is of another model than "
            f"{folder}: they differ in the ids of {', '.join(moved[:8])}; {AGAIN}"
        )


def check_values(state: Mapping[str, Tensor], where: str, advice: str) -> None:
    """Refuses tensors without values, and plain ones that are not finite."""
    for name, tensor in state.items():
        if tensor.is_meta:
            raise ValueError(f"{where}{name} has no value{advice}")
        is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.dtype in FINITE_DTYPES
        if is_plain and not tensor.isfinite().all():
            raise ValueError(f"{where}{name} has NaN or infinite values{advice}")


def check_ids(folder: Path) -> None:
    """Refuses a folder with parts of two models. The scheduler may be one without an id.

    Raises:
        ValueError: it names the files.
    """
    unet, scheduler, index = (
        read_json(folder / name).get(MODEL_ID) if (folder / name).is_file() else None
        for name in ("unet/config.json", "scheduler/scheduler_config.json", INDEX)
    )
    other = INDEX if index != unet else "scheduler" if scheduler not in (unet, None) else None
    if other:
        raise ValueError(
            f"{folder / 'unet'} is of another model than {folder / other}: their {MODEL_ID} is "
            f"{unet} and {index if other == INDEX else scheduler}; {AGAIN}"
        )


def check_variant(folder: Path, variant: str | None) -> None:
    """Refuses a UNet's folder that has weights of other variants only.

    Raises:
        ValueError: it names those.
    """
    stems = {SHARD.sub("", file.stem) for file in folder.glob("*.safetensors")}
    variants = sorted(stem.partition(".")[2] for stem in stems)
    if variants and (variant or "") not in variants:
        asked = f"of the variant {variant!r}" if variant else "without a variant"
        choice = f"variant={variants[0]!r}" if variants[0] else "no variant"
        raise ValueError(f"{folder} has no weights {asked}; load it with {choice}")


def check_files(folder: Path) -> None:
    """Compares the files of weights in a UNet's folder with its configuration.

    Raises:
        ValueError: it names the file and the tensor.
    """
    found: dict[Path, dict[str, list[int]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        whole = file.with_name(SHARD.sub("", file.name))  # the parts of a file count as one
        if whole != file and whole.exists():
            raise ValueError(f"{whole} and {file.name} are of two models; delete the older one")
        found.setdefault(whole, {}).update(_shapes_in(file))
    if not found:
        others = sorted(file.name for file in folder.glob("*.bin"))
        raise ValueError(
            f"{folder} has no weights as safetensors, only {', '.join(others) or 'other files'}; "
            "save them again with `save_pretrained`"
        )
    expected = _shapes_of(read_json(folder / "config.json"))
    for file, shapes in found.items():
        _compare(str(file), shapes, expected, AGAIN)


def plain_unet(unet) -> UNet2DConditionModel:
    """The UNet as its configuration describes it, for saving; its tensors are shared.

    It differs from the one given if that is compiled or has fused projections.

    Raises:
        ValueError: it has an adapter, or was changed in a way that its files couldn't describe.
    """
    module = plain_module(unet)
    if adapters := getattr(module, "peft_config", None):
        raise ValueError(
            f"unet has the adapters {', '.join(adapters)}, which save_pretrained can't save: save "
            "them with pipe.unet.save_lora_adapter(folder), or merge them into the weights with "
            "pipe.unet.fuse_lora() and pipe.unet.unload_lora()"
        )
    state, expected = module.state_dict(), _shapes_of(module.config)
    if any(".base_layer." in name for name in state):
        raise ValueError(
            "unet has the layers of an adapter that was deleted: call pipe.unet.unload_lora() too"
        )
    kept = {name: tensor for name, tensor in state.items() if not FUSED.search(name)}
    advice = "save the pipeline before its unet is changed"
    _compare("unet", {name: list(t.shape) for name, t in kept.items()}, expected, advice)
    check_values(kept, "unet: ", "; it is not saved")
    if len(kept) == len(state):
        return module
    with torch.device("meta"):
        plain = UNet2DConditionModel.from_config(module.config)
    plain.load_state_dict(kept, assign=True)
    return plain


def _shapes_of(config: Mapping) -> dict[str, list[int]]:
    """Tensor -> shape of a UNet with this configuration."""
    with torch.device("meta"):
        state = UNet2DConditionModel.from_config(dict(config)).state_dict()
    return {name: list(tensor.shape) for name, tensor in state.items()}


def _shapes_in(file: Path) -> dict[str, list[int]]:
    """Tensor -> shape of a safetensors file."""
    try:
        with safe_open(file, "pt") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is not a whole safetensors file ({error}); {AGAIN}") from error


def _compare(where: str, found: Mapping, expected: Mapping, advice: str) -> None:
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected)
    for kind, names in (("lacks", missing), ("has the unexpected", unexpected)):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise ValueError(f"{where} {kind} {', '.join(names[:4])}{more}; {advice}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(
                f"{where} has {name} of shape {found[name]}; the configuration says {shape}; "
                f"{advice}"
            )
