"""Saves a pipeline as a folder that loads without this package, and checks what is loaded."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, UNet2DConditionModel
from diffusers.utils.hub_utils import upload_folder
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .source import source

INDEX = "model_index.json"
# Patterns of what a model replaces in a folder or a repository; pipeline.py is of earlier exports.
REPLACED = (f"pipeline_{'[0-9a-f]' * 8}.py", "pipeline.py", "unet/diffusion_pytorch_model*")
TOKENIZER_CLASS = "PreTrainedTokenizerFast"
# Local paths and options that the libraries note in a configuration when they load it; and an
# entry of earlier exports.
LOADING_TRACES = ("_name_or_path", "is_local", "local_files_only", "_model_id")

WORDS = "_vocabulary"  # in unet/config.json: the words the weights were trained with
AGAIN = "download or save the model again"
# Of each component the types, and what to give.
WANTED = {
    "unet": (
        (UNet2DConditionModel,),
        "compiled or not: of a wrapper give its .module, or its .get_base_model(), which keeps the "
        "adapters",
    ),
    "tokenizer": ((PreTrainedTokenizerBase,), "the one that was saved with the unet"),
    "scheduler": (
        (EDMDPMSolverMultistepScheduler, EDMEulerScheduler),
        "such as EDMEulerScheduler.from_config(pipe.scheduler.config)",
    ),
}


class SelfContained:
    """A pipeline whose folders and repositories load where its package is not installed.

    It goes before `DiffusionPipeline` among the bases of the pipeline's class.
    """

    @classmethod
    def module_name(cls) -> str:
        """The name of the file with the code. A digest keeps those of two versions apart."""
        return f"pipeline_{hashlib.sha256(source().encode()).hexdigest()[:8]}"

    def save_pretrained(
        self,
        save_directory,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ):
        """As in diffusers, but always in safetensors: a pickle can run code where it is loaded.

        A model that is there is replaced as a whole, once this one is written; by a variant
        all but its other weights. Files that belong to no model stay.

        Args:
            variant: a part of the weights' name. Other weights should be of the same model.
            push_to_hub: then calls the method of this name, with the further arguments. `repo_id`
                is by default the name of the folder.

        Raises:
            ValueError: a component can't be saved so that it loads.
            OSError: a full disk, for example; what is there is unchanged.
        """
        target = Path(save_directory).expanduser()
        plain_unet(self.unet)
        target.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".saving-", dir=target) as folder:
            super().save_pretrained(folder, True, variant, max_shard_size)
            _move(Path(folder), target)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", target.name), variant=variant, **kwargs)

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Writes model_index.json and the code; `save_pretrained` calls it last."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.module_name()}.py").write_text(source(), encoding="utf-8")
        changes = {
            # transformers 5 writes a class name that 4.x doesn't know.
            "tokenizer": {"tokenizer_class": TOKENIZER_CLASS},
            "unet": {WORDS: self.tokenizer.get_vocab()},
        }
        for name in self.components:
            for file in (folder / name).glob("*config.json"):
                text = tidy(file.read_text(encoding="utf-8"), changes.get(name, {}))
                file.write_text(text, encoding="utf-8")
                for weights in file.parent.glob("*.safetensors"):  # safetensors writes them 0600
                    weights.chmod(file.stat().st_mode)
        # transformers 4 repeats the configuration here, differently after a loading.
        (folder / "tokenizer" / "special_tokens_map.json").unlink(missing_ok=True)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _upload_folder(self, working_dir, repo_id, *, subfolder=None, **kwargs):
        """Uploads the model in one commit, and deletes what it replaces."""
        kwargs |= {"path_in_repo": subfolder, "delete_patterns": _replaced(Path(working_dir))}
        return upload_folder(repo_id=repo_id, folder_path=working_dir, **kwargs)

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


def _replaced(model: Path) -> list[str]:
    """Patterns of the files that a saved model replaces; a variant leaves other weights alone."""
    *code, weights = REPLACED
    variant = min(model.glob(f"{weights}.safetensors")).name.split(".")[1].partition("-0")[0]
    return [*code, weights if variant == "safetensors" else f"{weights}.{variant}*"]


def _move(new: Path, target: Path) -> None:
    """Moves a model that was saved to its place; what it replaces goes."""
    files = {path.relative_to(new): path for path in new.rglob("*.*")}
    # The index goes first and comes last: a mixture of two models can't be loaded.
    (target / INDEX).unlink(missing_ok=True)
    for part in {(target / name).parent for name in files} - {target}:
        if part.is_symlink():  # to the folder of another model, which stays as it is
            part.unlink()
        part.mkdir(exist_ok=True)
    for old in (path for pattern in _replaced(new) for path in target.glob(pattern)):
        old.unlink()
    for name in sorted(files, key=lambda name: name.name == INDEX):
        files[name].replace(target / name)


def plain_module(unet) -> nn.Module:
    """The module that `torch.compile` wrapped, or the module itself."""
    return getattr(unet, "_orig_mod", unet)


def check_component(name: str, value) -> None:
    """Refuses, by a ValueError, a component of another type than `WANTED` has."""
    value, (types, advice) = plain_module(value), WANTED[name]
    if not isinstance(value, types):
        names = " or ".join(one.__name__ for one in types)
        raise ValueError(
            f"{name} is of the type {type(value).__name__}; it must be {names}, {advice}"
        )


def check_loaded(pipeline: str, unet, tokenizer) -> None:
    """Checks the UNet and the tokenizer of a pipeline that was loaded.

    diffusers only warns of a tensor that is missing, and initializes it at random.

    Args:
        pipeline: folder or name on the Hub, as it was given for loading.
        unet: loaded now, or given by the user; only the files that were loaded now are checked.

    Raises:
        ValueError: a tensor is missing, unexpected or not finite; the weights aren't safetensors;
            or the tokenizer is of another model.
    """
    module = plain_module(unet)
    folder = Path(module.config.get("_name_or_path") or "unet")
    cache = "models--" + str(pipeline).replace("/", "--")  # where the Hub's client keeps it
    if folder.name == "unet" and (folder.parent == Path(pipeline) or cache in folder.parts):
        _check_files(folder, module.config)
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


def _check_files(folder: Path, config: Mapping) -> None:
    """Compares the tensors in the files of a UNet's folder with those that it has."""
    shapes: dict[str, list[int]] = {}
    for file in folder.glob("*.safetensors"):  # more than one where the weights are in parts
        with safe_open(file, "pt") as tensors:
            shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    if not shapes:
        raise ValueError(f"{folder} has no weights as safetensors; save them with save_pretrained")
    if names := _undescribed(shapes, config):
        raise ValueError(
            f"{folder} does not have the tensors of its config.json; missing, unexpected or of "
            f"another shape: {names}; {AGAIN}"
        )


def _undescribed(shapes: Mapping[str, Sequence[int]], config: Mapping) -> str:
    """Names of tensors that a UNet's configuration describes otherwise; "" if there are none."""
    with torch.device("meta"):
        described = UNet2DConditionModel.from_config(config).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in described.items()}
    given = {name: tuple(shape) for name, shape in shapes.items()}
    return ", ".join(sorted(n for n in {*expected, *given} if expected.get(n) != given.get(n))[:8])
