"""The pairs of edits that a second stage learns from: its teacher draws them first."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..config import ConfigError
from ..data.images import FRAME, ImageDataset
from ..editing.pairs import (
    CHUNK,
    EditPairs,
    check_facts,
    chunk_file,
    draw_pairs,
    load_pairs,
    missing_chunks,
    save_chunk,
)
from ..pipeline.edit import Edit
from ..tools.files import replaced_file
from ..tools.rng import generator
from .run import Run

FOLDER = "edit_pairs"  # in the run's output_dir
BATCH = 64  # edits that are drawn at once


def with_pairs(run: Run, rehearsal: bool = False) -> Run:
    """The run with the pairs that its edits are learned from; those that are missing are drawn.

    They are kept in files in the run's folder, so a run that is cut, here or later, draws none
    twice. The processes share the files.

    Args:
        rehearsal: take held-out images as their own edits instead, to learn how long a step takes.

    Raises:
        ConfigError: the folder has pairs of another teacher or seed.
    """
    if run.teacher is None or Edit.name not in run.config.shares:
        return run
    if rehearsal:
        pairs = _unedited(run.held_out)
    else:
        folder = Path(run.config.output_dir) / FOLDER
        facts = {"teacher": run.unwrapped.teacher, "seed": run.config.seed}
        try:
            check_facts(folder, facts)  # before hours of drawing
        except ValueError as error:
            raise ConfigError(str(error)) from error
        _draw_missing(run, folder, facts)
        run.accelerator.wait_for_everyone()
        pairs = load_pairs(folder, run.config.edit_pairs, facts)
    pairs = pairs.to(run.accelerator.device)
    held = max(1, min(len(pairs) // 8, run.config.validation_images))
    return replace(
        run, mixture=replace(run.mixture, pairs=pairs[held:]), held_out_pairs=pairs[:held]
    )


def _draw_missing(run: Run, folder: Path, facts: dict) -> None:
    accelerator, config = run.accelerator, run.config
    folder.mkdir(parents=True, exist_ok=True)
    missing = missing_chunks(folder, config.edit_pairs)
    accelerator.wait_for_everyone()  # all have looked before one writes
    if not missing:
        return
    images, labels, frames = _sources(run)
    progress = tqdm(
        total=len(missing) * CHUNK,
        desc="Drawing edits to learn from",
        unit="img",
        disable=not accelerator.is_main_process,
    )
    for index in missing[accelerator.process_index :: accelerator.num_processes]:
        rows = torch.arange(index * CHUNK, (index + 1) * CHUNK) % len(images)
        random = generator(config.seed, index, "edit pairs")
        parts = []
        for part in rows.split(BATCH):
            with accelerator.autocast():
                given = (images[part], labels[part], random)
                frame = None if frames is None else frames[part]
                parts.append(draw_pairs(run.teacher, *given, frame))
            progress.update(BATCH * accelerator.num_processes)
        with replaced_file(chunk_file(folder, index)) as path:
            save_chunk(path, EditPairs.cat(parts), facts)
    progress.close()


def _sources(run: Run) -> tuple[Tensor, Tensor, Tensor | None]:
    """Training images, labels and frames, on the CPU, in the order of a key or of the stream."""
    config, data = run.config, run.train_data
    if config.streaming:
        head = data.head(config.edit_pairs, config.shuffle_buffer_size, run.decoder)
        return head.images, head.labels, head.layers.get(FRAME)
    order = torch.randperm(len(data), generator=generator(config.seed, "edit sources"))
    order = order[: -(-config.edit_pairs // CHUNK) * CHUNK]
    frames = data.layers.get(FRAME)
    return data.images[order], data.labels[order], None if frames is None else frames[order]


def _unedited(data: ImageDataset) -> EditPairs:
    mask, strength = torch.ones(len(data), 1, *data.format.size), torch.full((len(data),), 0.5)
    mask = mask.to(torch.uint8)
    return EditPairs(data.images, data.images, mask, data.labels, data.labels, strength)
