"""Saves a pipeline as a folder that loads without this package."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from diffusers.utils.hub_utils import upload_folder

from .components import (
    INDEX,
    MODEL_ID,
    SHARD,
    WORDS,
    check_loaded,
    digest_of,
    id_of,
    plain_module,
    plain_unet,
    read_json,
    stamp,
)
from .source import source

TOKENIZER_CLASS = "PreTrainedTokenizerFast"
# Local paths and options that the libraries note in a configuration when they load it.
LOADING_TRACES = ("_name_or_path", "is_local", "local_files_only")


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

    def to(self, *args, **kwargs):
        """As in diffusers; "meta" is refused, because the weights would be lost there."""
        if "meta" in map(str, (*args, *kwargs.values())):
            raise ValueError("device is meta, where tensors have no values; give cpu or cuda")
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
        """As in diffusers, in safetensors only.

        A model that is there is replaced as a whole, once this one is written; of the same model
        other variants stay. Files that belong to no model stay too.

        Args:
            push_to_hub: then calls the method of this name, with the further arguments. `repo_id`
                is by default the name of the folder.

        Raises:
            ValueError: safe_serialization is False, or a component can't be saved so that it loads.
            OSError: a full disk, for example; what is there is unchanged.
        """
        if not safe_serialization:
            raise ValueError(
                "safe_serialization is False; weights are saved as safetensors only, because a "
                "pickle can run code where it is loaded"
            )
        target, unet = Path(save_directory).expanduser(), plain_unet(self.unet)
        stamp(unet, self.scheduler, id_of(unet) or digest_of(unet))
        target.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".saving-", dir=target) as folder:
            super().save_pretrained(folder, True, variant, max_shard_size)
            self._move(Path(folder), target)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", target.name), variant=variant, **kwargs)

    def _move(self, new: Path, target: Path) -> None:
        """Moves a model that was saved to its place; what it replaces goes."""
        files = {path.relative_to(new): path for path in new.rglob("*.*")}
        index, unet = {}, plain_module(self.unet)
        with suppress(OSError, ValueError):  # there is none, or a damaged one
            index = read_json(target / INDEX)
        if unet.config.get("_name_or_path") == str(target / "unet"):
            index.setdefault(MODEL_ID, id_of(unet))  # it was loaded from there, maybe without an id
        patterns = replaced_by([*map(Path.as_posix, files)], index, id_of(unet))
        # The index goes first and comes last: a mixture of two models can't be loaded.
        (target / INDEX).unlink(missing_ok=True)
        for part in {(target / name).parent for name in files} - {target}:
            if part.is_symlink():  # to the folder of another model, which stays as it is
                part.unlink()
            part.mkdir(exist_ok=True)
        for old in (path for pattern in patterns for path in target.glob(pattern)):
            old.unlink()
        for name in sorted(files, key=lambda name: name.name == INDEX):
            files[name].replace(target / name)

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
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _upload_folder(self, working_dir, repo_id, *, token=None, subfolder=None, **kwargs):
        """Uploads the model in one commit, and deletes what it replaces."""
        folder, index = Path(working_dir), {}
        with suppress(OSError, ValueError):  # no model is there
            index = type(self).load_config(repo_id, token=token, subfolder=subfolder)
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.*")]
        kwargs["commit_message"] = kwargs.get("commit_message") or f"Upload {type(self).__name__}"
        return upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            token=token,
            path_in_repo=subfolder,
            delete_patterns=replaced_by(names, index, id_of(self.unet)),
            **kwargs,
        )

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


def tidy(text: str, changes: dict) -> str:
    """A configuration in JSON with some entries changed, and without the traces of a loading."""
    table = {key: value for key, value in json.loads(text).items() if key not in LOADING_TRACES}
    return json.dumps(table | changes, indent=2, sort_keys=True) + "\n"


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
        ends = ("-*", ".safetensors", ".safetensors.index.json")
    return [code, *(weights + end for end in ends)]
