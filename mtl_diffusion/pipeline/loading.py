"""Saves a pipeline as a folder that loads without this package, and checks what was loaded."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .components import plain_module
from .source import source

TOKENIZER_CLASS = "PreTrainedTokenizerFast"
# Local paths and options that the libraries note in a configuration when they load it.
LOADING_TRACES = ("_name_or_path", "is_local", "local_files_only")
WORDS = "_vocabulary"  # in unet/config.json: the words the weights were trained with
CARD = "README.md"
AGAIN = "download or save the model again"
SHARD = re.compile(r"-\d{5}-of-\d{5}")  # in the name of a part of the weights
FUSED = re.compile(r"\.to_q?kv\.(weight|bias)$")  # copies that fuse_qkv_projections() adds
FINITE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class SelfContained:
    """A pipeline whose folders and repositories load where its package is not installed.

    It goes before `DiffusionPipeline` among the bases of the pipeline's class.
    """

    @classmethod
    def module_name(cls) -> str:
        """The name of the file with the code. A digest keeps those of two versions apart."""
        return f"pipeline_{hashlib.sha256(source().encode()).hexdigest()[:8]}"

    @classmethod
    def code_files(cls) -> dict[str, str]:
        """File name -> text of the code in an exported folder.

        All code is in the first file. pipeline.py is where diffusers looks for the class that
        `custom_pipeline="user/model"` asks for.
        """
        module = cls.module_name()
        entry = (
            f'"""The code is in {module}.py."""\n\nfrom .{module} import {cls.__name__}  # noqa\n'
        )
        return {f"{module}.py": source(), "pipeline.py": entry}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in diffusers, with an error that names the file where diffusers' own does not."""
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (ValueError, RuntimeError):
            folder = Path(pretrained_model_name_or_path, "unet")
            if folder.is_dir() and "unet" not in kwargs:
                check_files(folder)
            raise

    def save_pretrained(self, save_directory, safe_serialization: bool = True, *args, **kwargs):
        """As in diffusers, in safetensors only. The files are read again and compared.

        Raises:
            ValueError: safe_serialization is False, or a component can't be saved so that it loads.
        """
        if not safe_serialization:
            raise ValueError(
                "safe_serialization is False; weights are saved as safetensors only, because a "
                "pickle can run code where it is loaded"
            )
        if (unet := plain_unet(self.unet)) is not self.unet:
            plain = type(self)(unet, self.tokenizer, self.scheduler)
            return plain.save_pretrained(save_directory, safe_serialization, *args, **kwargs)
        # A string: diffusers splits it for the name of a repository.
        return super().save_pretrained(str(save_directory), True, *args, **kwargs)

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Writes model_index.json and the source files; `save_pretrained` calls it last."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob(f"pipeline_{'[0-9a-f]' * 8}.py"):  # of another version
            file.unlink()
        for name, text in self.code_files().items():
            (folder / name).write_text(text, encoding="utf-8")
        changes = {
            # transformers 5 writes a class name that 4.x doesn't know.
            "tokenizer": {"tokenizer_class": TOKENIZER_CLASS},
            "unet": {WORDS: self.tokenizer.get_vocab()},
        }
        for name in self.components:
            for file in (folder / name).glob("*config.json"):
                text = tidy(file.read_text(encoding="utf-8"), changes.get(name, {}))
                file.write_text(text, encoding="utf-8")
        # transformers 4 repeats the configuration here, differently after a loading.
        (folder / "tokenizer" / "special_tokens_map.json").unlink(missing_ok=True)
        check_files(folder / "unet")  # before the index and an upload, which make it count
        # diffusers writes another card over this one before it uploads.
        card = folder / CARD
        self._card = card.read_text(encoding="utf-8") if card.is_file() else None
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _upload_folder(self, working_dir, *args, **kwargs):
        if self._card is not None:
            Path(working_dir, CARD).write_text(self._card, encoding="utf-8")
        return super()._upload_folder(working_dir, *args, **kwargs)

    def to_json_string(self) -> str:
        """The text of model_index.json, with the class named as a file of the folder has it."""
        changes = {
            "_class_name": [self.module_name(), type(self).__name__],
            "tokenizer": ["transformers", TOKENIZER_CLASS],
        }
        return tidy(super().to_json_string(), changes)

    @classmethod
    def _dict_from_json_file(cls, json_file, **kwargs):
        # The installed class runs instead of the folder's code, which needs no trust.
        index = super()._dict_from_json_file(json_file, **kwargs)
        if isinstance(index.get("_class_name"), list):
            index["_class_name"] = index["_class_name"][-1]
        return index

    def register_to_config(self, **kwargs):
        # `from_pretrained` notes the name of the pipeline when all components are loaded.
        if "_name_or_path" in kwargs:
            check_loaded(kwargs["_name_or_path"], self.unet, self.tokenizer)
        super().register_to_config(**kwargs)


def tidy(text: str, changes: dict) -> str:
    """A configuration in JSON with some entries changed, and without the traces of a loading."""
    table = {key: value for key, value in json.loads(text).items() if key not in LOADING_TRACES}
    return json.dumps(table | changes, indent=2, sort_keys=True) + "\n"


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


def check_files(folder: Path) -> None:
    """Compares the files of weights in a UNet's folder with its configuration.

    Raises:
        ValueError: it names the file and the tensor.
    """
    found: dict[Path, dict[str, list[int]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        whole = file.with_name(SHARD.sub("", file.name))  # the parts of a file count as one
        found.setdefault(whole, {}).update(_shapes_in(file))
    if not found:
        others = sorted(file.name for file in folder.glob("*.bin"))
        raise ValueError(
            f"{folder} has no weights as safetensors, only {', '.join(others) or 'other files'}; "
            "save them again with `save_pretrained`"
        )
    expected = _shapes_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
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
