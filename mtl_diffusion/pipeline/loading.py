"""Saving a pipeline as a folder that needs nothing beside it, and checking what was loaded."""

import hashlib
import json
import re
from pathlib import Path

from .source import source

TOKENIZER_CLASS = "PreTrainedTokenizerFast"
# What the libraries note when they load: where from, which is nobody else's business.
LOADING_TRACES = ("_name_or_path", "is_local", "local_files_only")
WORDS = "_vocabulary"  # in unet/config.json: the words the weights were trained with
CARD = "README.md"
AGAIN = "download or save the model again"
SHARD = re.compile(r"-\d{5}-of-\d{5}")  # in the name of a part of the weights


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

    def save_pretrained(self, save_directory, safe_serialization: bool = True, *args, **kwargs):
        """As in diffusers, in safetensors only.

        Raises:
            ValueError: safe_serialization is False.
        """
        if not safe_serialization:
            raise ValueError(
                "safe_serialization is False; weights are saved as safetensors only, because a "
                "pickle can run code where it is loaded"
            )
        # diffusers makes the name of a repository of it, which a Path doesn't let it do.
        return super().save_pretrained(str(save_directory), True, *args, **kwargs)

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Writes model_index.json and the source files; `save_pretrained` calls it last."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("pipeline_????????.py"):  # of another version
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
        # transformers 4 repeats here what the file above says, in other words after a loading.
        (folder / "tokenizer" / "special_tokens_map.json").unlink(missing_ok=True)
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
        # The installed class is the class: it needs no file of the folder, and no trust in one.
        index = super()._dict_from_json_file(json_file, **kwargs)
        if isinstance(index.get("_class_name"), list):
            index["_class_name"] = index["_class_name"][-1]
        return index

    def register_to_config(self, **kwargs):
        # `from_pretrained` notes where everything came from when everything is loaded.
        if "_name_or_path" in kwargs:
            check_loaded(self.unet, self.tokenizer)
        super().register_to_config(**kwargs)


def tidy(text: str, changes: dict) -> str:
    """A configuration in JSON with some entries changed, and without the traces of a loading."""
    table = {key: value for key, value in json.loads(text).items() if key not in LOADING_TRACES}
    return json.dumps(table | changes, indent=2, sort_keys=True) + "\n"


def check_loaded(unet, tokenizer) -> None:
    """Compares a loaded UNet with the files it was loaded from, and with its tokenizer.

    diffusers only warns of a tensor that is missing, and makes one up.

    Raises:
        ValueError: a tensor is missing, unexpected, of another shape or not finite; the weights
            aren't safetensors; or they were trained with other words.
    """
    state, folder = unet.state_dict(), Path(unet.config.get("_name_or_path") or "unknown folder")
    if folder.is_dir():
        shapes = {name: list(tensor.shape) for name, tensor in state.items()}
        for file, found in _saved_shapes(folder).items():
            _compare(file, found, shapes)
    for name, tensor in state.items():
        if tensor.is_meta or not tensor.isfinite().all():
            what = "no value" if tensor.is_meta else "NaN or infinite values"
            raise ValueError(f"{folder}: {name} has {what} after loading; {AGAIN}")
    trained, words = unet.config.get(WORDS), tokenizer.get_vocab()
    if trained is not None and trained != words:
        moved = sorted(w for w in {*trained, *words} if trained.get(w) != words.get(w))
        raise ValueError(
            f"{folder.with_name('tokenizer') / 'tokenizer.json'} is of another model than "
            f"{folder}: they differ in the ids of {', '.join(moved[:8])}; {AGAIN}"
        )


def _saved_shapes(folder: Path) -> dict[Path, dict[str, list[int]]]:
    """Each file of weights -> tensor -> shape; a file in parts is named without its part."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.setdefault(file.with_name(SHARD.sub("", file.name)), {}).update(_shapes(file))
    if not found:
        others = sorted(file.name for file in folder.glob("*.bin"))
        raise ValueError(
            f"{folder} has no weights as safetensors, only {', '.join(others) or 'other files'}; "
            "save them again with `save_pretrained`"
        )
    return found


def _shapes(file: Path) -> dict[str, list[int]]:
    """Tensor -> shape of a safetensors file: 8 bytes of length, a table in JSON, then the data."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(length) if length <= size - 8 else b""
    try:
        table = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        data = max((entry["data_offsets"][1] for entry in table.values()), default=0)
        shapes = {name: entry["shape"] for name, entry in table.items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a whole safetensors file; {AGAIN}") from error
    if size != 8 + length + data:
        raise ValueError(f"{file} has {size} bytes of {8 + length + data}; {AGAIN}")
    return shapes


def _compare(file: Path, found: dict, expected: dict) -> None:
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected)
    other = [name for name in expected if name in found and found[name] != expected[name]]
    for kind, names in (("lacks", missing), ("has the unexpected", unexpected)):
        if names:
            raise ValueError(
                f"{file} {kind} {', '.join(names[:4])}"
                f"{f' and {len(names) - 4} more' if len(names) > 4 else ''}; {AGAIN}"
            )
    if other:
        raise ValueError(
            f"{file} has {other[0]} of shape {found[other[0]]}; the configuration says "
            f"{expected[other[0]]}; {AGAIN}"
        )
