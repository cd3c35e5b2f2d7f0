"""Exports of runs and checkpoints as folders for `from_pretrained`, and their upload."""

import copy
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from ..checkpoints.resume import check_facts, sources_on_hub
from ..checkpoints.store import MANIFEST, CheckpointError, load, load_latest
from ..config import from_dict
from ..pictures import grids
from ..pipeline.loading import INDEX, REPLACED
from ..pipeline.pipeline import MultiTaskPipeline
from ..tools.files import replaced_folder
from ..training.model import SCHEDULERS, tokenizer_of
from ..training.run import Run
from .card import PIPELINE, Trained, model_card
from .upload import README, full_name, is_edited, upload

logger = logging.getLogger(__name__)

GALLERY, METRICS = "gallery.png", "metrics.json"
# The files of an exported folder that are uploaded. Nothing else is.
UPLOADED = ("unet/*.safetensors", "unet/*.json", "tokenizer/*.json", "scheduler/*.json", INDEX)
UPLOADED += (REPLACED[0], README, GALLERY, METRICS)


def of_checkpoint(path: Path) -> Trained:
    """Builds the pipeline of a checkpoint, from its averaged weights (EMA) where it has them.

    Args:
        path: a checkpoint's folder, or a run's, whose newest complete checkpoint is taken.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or its weights don't fit its
            configuration.
    """
    if (path / MANIFEST).exists():
        checkpoint = load(path)
    else:
        checkpoint, skipped = load_latest(path / "checkpoints")
        for reason in skipped:
            logger.warning("passed over a checkpoint: %s", reason)
        if checkpoint is None:
            raise CheckpointError(f"{path} is no checkpoint, and no run with a complete one")
    check_facts(checkpoint)
    facts = checkpoint.facts
    config = from_dict(facts["config"])
    tensors = checkpoint.tensors.get("ema") or checkpoint.tensors.get("unet", {})
    try:
        # On "meta", no time goes into first weights, which are replaced.
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(facts["unet"])
        unet.load_state_dict(tensors, assign=True)
        unet = unet.eval().requires_grad_(False)
        tokenizer = tokenizer_of(facts["words"])
        scheduler = SCHEDULERS[config.objective].from_config(facts["scheduler"])
        pipeline = MultiTaskPipeline(unet, tokenizer, scheduler, facts.get("chains"))
    except Exception as error:  # diffusers has no common one for bad configurations
        raise CheckpointError(
            f"{path}: its weights don't fit its configuration: {error}"
        ) from error
    return Trained(pipeline, config, checkpoint.step, facts["minutes"], facts.get("on_hub", ()))


def export(run: Run) -> Path:
    """Writes <output_dir>/pipeline: weights, tokenizer, scheduler, sources and model card."""
    config = run.config
    repository = full_name(config.repository) if config.push_to_hub else None
    with run.pipeline() as pipe:
        given = run.clock.minutes, sources_on_hub(config)
        trained = Trained(pipe, config, config.max_train_steps, *given)
        return write(trained, Path(config.output_dir) / PIPELINE, repository=repository)


def write(
    trained: Trained,
    target: Path,
    repository: str | None = None,
    *,
    metrics: Mapping[str, Any] | None = None,
    pictures: bool | None = None,
    half: bool = False,
) -> Path:
    """Writes a folder for `from_pretrained`, which replaces an earlier export only when complete.

    What an export did not write stays, and so does a README.md that was edited.

    Args:
        repository: user/name on the Hub, for the card's snippet. None: hub_model_id, if the
            configuration has one, or else the folder.
        metrics: of mtl-diffusion evaluate; the card's figures, and metrics.json beside it.
        pictures: draw the card's gallery. None: as in the configuration.
        half: write the weights as float16, in half the bytes; they load as float32 all the same.

    Raises:
        ValueError: the target is something else, which is not replaced; or `metrics` are.
        OSError: the disk is full, for example. The target is unchanged.
    """
    check_target(target)
    pipeline = trained.pipeline
    if half:
        unet = copy.deepcopy(pipeline.unet).half()
        chains = pipeline.config.get("chains")  # where a version before 0.2 kept them
        pipeline = MultiTaskPipeline(unet, pipeline.tokenizer, pipeline.scheduler, chains)
    with replaced_folder(target) as folder:
        if target.is_dir():
            shutil.copytree(target, folder, symlinks=True, dirs_exist_ok=True)
        for name in (GALLERY, METRICS):
            (folder / name).unlink(missing_ok=True)
        pipeline.save_pretrained(folder)  # replaces the old model
        wanted = trained.config.gallery if pictures is None else pictures
        if wanted:  # of the model's own samples, and the first seeds
            trained.pipeline.set_progress_bar_config(disable=True)
            drawn = grids.pictures_of(trained.pipeline).values()
            grids.side_by_side([*drawn]).save(folder / GALLERY)
        if metrics is not None:
            (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n")
        here = target.absolute()  # or relative to the working directory, if it is inside
        here = here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here
        source = repository or trained.config.hub_model_id or here.as_posix()
        text = model_card(trained, source, metrics, GALLERY if wanted else None)
        card = folder / README
        if card.is_file() and is_edited(card.read_text("utf-8", "replace")):
            logger.warning("%s was edited, and is kept; delete it for a new one", target / README)
        else:
            card.write_text(text, encoding="utf-8")
    return target


def check_target(target: Path, mark: str = INDEX, argument: str = "output_dir") -> None:
    """Refuses a target that an export may not replace.

    Args:
        mark: the file by which an earlier export is known.
        argument: what the user calls the target.

    Raises:
        ValueError: it is a link, a file or a folder of something else.
    """
    other = "a link" if target.is_symlink() else "a file" if target.is_file() else None
    if target.is_dir() and not (target / mark).is_file() and any(target.iterdir()):
        other = other or f"neither empty nor an export, which has {mark}"
    if other:
        raise ValueError(
            f"{argument}: {target} is {other}, and is left alone: give a new or an empty folder"
        )


# --- to the Hub ---------------------------------------------------------------------------------


def files_to_upload(folder: Path) -> dict[str, Path]:
    """Path in the repository -> file, of the files of an exported folder that are uploaded."""
    files = sorted(path for pattern in UPLOADED for path in folder.glob(pattern))
    return {
        path.relative_to(folder).as_posix(): path
        for path in files
        if path.is_file() and not path.is_symlink()
    }


def push(
    folder: Path, repository: str, step: int, private: bool = False, revision: str | None = None
) -> str:
    """Uploads an exported folder; returns the commit's address, or raises an UploadError."""
    message = f"Trained for {step:,} steps"
    files = files_to_upload(folder)
    return upload(files, repository, message=message, private=private, revision=revision)
