"""Saves a pipeline as a folder that loads without this package."""

import hashlib
import json
import warnings
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers.utils.hub_utils import upload_folder

from .parts import (
    INDEX,
    MODEL_ID,
    WORDS,
    check_files,
    check_loaded,
    check_variant,
    digest_of,
    id_of,
    plain_unet,
    read_json,
    replaced_by,
    stamp,
)
from .source import source

TOKENIZER_CLASS = "PreTrainedTokenizerFast"
# Local paths and options that the libraries note in a configuration when they load it.
LOADING_TRACES = ("_name_or_path", "is_local", "local_files_only")
CARD = "README.md"
SAVING = ".saving-"  # prefix of a folder in the target where a model is written first


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

    def __setattr__(self, name: str, value):
        super().__setattr__(name, value)
        if name in ("unet", "scheduler"):
            parts = (self.__dict__.get("unet"), self.__dict__.get("scheduler"))
            ids = [id_of(part) for part in parts if part is not None]
            if len(ids) == 2 and None not in ids and ids[0] != ids[1]:
                warnings.warn(
                    f"unet is of the model {ids[0]} and scheduler of {ids[1]}: its noise levels "
                    "may not be those that the unet was trained with",
                    stacklevel=3,
                )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in diffusers, with an error that names the file where diffusers' own does not."""
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (ValueError, RuntimeError, OSError):
            folder = Path(pretrained_model_name_or_path, "unet")
            if folder.is_dir() and "unet" not in kwargs:
                check_variant(folder, kwargs.get("variant"))
                check_files(folder)
            raise

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """As in diffusers, but the components, which both share, keep their type."""
        if not {"torch_dtype", "dtype"} & kwargs.keys():
            kwargs["torch_dtype"] = pipeline.dtype
        return super().from_pipe(pipeline, **kwargs)

    def to(self, *args, **kwargs):
        """As in diffusers.

        Raises:
            ValueError: there is no such device, or it is "meta", which would drop the weights.
        """
        for value in (*args, *kwargs.values()):
            if isinstance(value, str | torch.device):
                check_device(value)
        return super().to(*args, **kwargs)

    def save_pretrained(
        self,
        save_directory,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ):
        """As in diffusers, in safetensors only. The files are read again and compared.

        A model that is there is replaced as a whole, once this one is written; of the same model
        other variants stay. Files that belong to no model stay too.

        Raises:
            ValueError: safe_serialization is False, or a component can't be saved so that it loads.
            OSError: a full disk, for example; what is there is unchanged.
        """
        if not safe_serialization:
            raise ValueError(
                "safe_serialization is False; weights are saved as safetensors only, because a "
                "pickle can run code where it is loaded"
            )
        target = Path(save_directory)
        if target.parts[:1] and target.parts[0].startswith("~"):
            raise ValueError(
                f"save_directory is {str(target)!r}; Python does not expand ~: give "
                "Path(save_directory).expanduser()"
            )
        options = {"variant": variant, "max_shard_size": max_shard_size, **kwargs}
        if (unet := plain_unet(self.unet)) is not self.unet:
            plain = type(self)(unet, self.tokenizer, self.scheduler)
            return plain.save_pretrained(target, True, push_to_hub=push_to_hub, **options)
        stamp(unet, self.scheduler, id_of(unet) or digest_of(unet))
        if push_to_hub:
            options.setdefault("repo_id", target.name)
        target.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=SAVING, dir=target) as folder:
            super().save_pretrained(folder, True, push_to_hub=push_to_hub, **options)
            self._move(Path(folder), target)

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Writes model_index.json and the source files; `save_pretrained` calls it last."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
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
                for weights in file.parent.glob("*.safetensors"):  # safetensors writes them 0600
                    weights.chmod(file.stat().st_mode)
        # transformers 4 repeats the configuration here, differently after a loading.
        (folder / "tokenizer" / "special_tokens_map.json").unlink(missing_ok=True)
        check_files(folder / "unet")  # before the index and an upload, which make it count
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _upload_folder(
        self,
        working_dir,
        repo_id,
        token=None,
        commit_message=None,
        create_pr=False,
        subfolder=None,
    ):
        """Uploads the model in one commit, and deletes what it replaces.

        diffusers has written a card: that of the repository, with its own tags. One that lies
        where the model is saved goes before it.
        """
        folder = Path(working_dir)
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.*")]
        if folder.name.startswith(SAVING):
            folder = self._move(folder, folder.parent)
        index = {}
        with suppress(OSError, ValueError):  # no model is there
            index = type(self).load_config(repo_id, token=token, subfolder=subfolder)
        return upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            token=token,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            create_pr=create_pr,
            path_in_repo=subfolder,
            allow_patterns=names,
            delete_patterns=replaced_by(names, index, id_of(self.unet)),
        )

    def _move(self, new: Path, target: Path) -> Path:
        """Moves a model that was saved to its place; what it replaces goes.

        The index goes first and comes last, so that a mixture of two models can't be loaded.
        """
        files = sorted(new.rglob("*.*"), key=lambda path: path.name == INDEX)
        if not files:
            return target  # for an upload it was moved before
        names = [file.relative_to(new).as_posix() for file in files]
        own, index = id_of(self.unet), {}
        with suppress(OSError, ValueError):  # no index, or a damaged one
            index = read_json(target / INDEX)
        if Path(self.unet.config.get("_name_or_path") or "") == target / "unet":
            index = {MODEL_ID: own} | index  # it was loaded from there, where it had no id yet
        patterns = replaced_by(names, index, own)
        (target / INDEX).unlink(missing_ok=True)
        for folder in {(target / name).parent for name in names} - {target}:
            if folder.is_symlink():  # to the folder of another model, which stays as it is
                folder.unlink()
            folder.mkdir(exist_ok=True)
        for old in (path for pattern in patterns for path in target.glob(pattern)):
            old.unlink()
        for file, name in zip(files, names, strict=True):
            if name == CARD and (target / name).exists():
                file.unlink()
            else:
                file.replace(target / name)
        return target

    def to_json_string(self) -> str:
        """The text of model_index.json, with the class named as a file of the folder has it."""
        changes = {
            "_class_name": [self.module_name(), type(self).__name__],
            "tokenizer": ["transformers", TOKENIZER_CLASS],
            MODEL_ID: id_of(self.unet),
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


def check_device(device: str | torch.device) -> None:
    """Refuses a device that is not there.

    Raises:
        ValueError: it is "meta", or a GPU that torch can't use.
    """
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}; give cpu, cuda or cuda:1, for example") from error
    if place.type == "meta":
        raise ValueError("device is meta, where the weights would be lost; give cpu or cuda")
    if place.type == "cuda" and (place.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"device is {device}, but torch finds {count} GPUs here; give cpu")


def tidy(text: str, changes: dict) -> str:
    """A configuration in JSON with some entries changed, and without the traces of a loading."""
    table = {key: value for key, value in json.loads(text).items() if key not in LOADING_TRACES}
    return json.dumps(table | changes, indent=2, sort_keys=True) + "\n"
