"""The pairs of edits that a second stage learns from: its teacher draws them first."""

from dataclasses import replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..data.images import FRAME
from ..editing.pairs import (
    CHUNK,
    EditPairs,
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


def with_pairs(run: Run) -> Run:
    """The run with the pairs that its edits are learned from; those that are missing are drawn.

    They are kept in the run's folder, in a folder for each teacher and seed, so a run that is cut,
    here or later, draws none twice. The processes share the files.
    """
    config = run.config
    if run.teacher is None or Edit.name not in config.shares:
        return run
    folder = Path(config.output_dir) / FOLDER / f"{run.unwrapped.teacher}-{config.seed}"
    _draw_missing(run, folder)
    run.accelerator.wait_for_everyone()
    pairs = load_pairs(folder, config.edit_pairs).to(run.accelerator.device)
    held = max(1, min(len(pairs) // 8, config.validation_images))
    mixture = replace(run.mixture, pairs=pairs[held:])
    return replace(run, mixture=mixture, held_out_pairs=pairs[:held])


def _draw_missing(run: Run, folder: Path) -> None:
    accelerator, config, data = run.accelerator, run.config, run.train_data
    folder.mkdir(parents=True, exist_ok=True)
    missing = missing_chunks(folder, config.edit_pairs)
    accelerator.wait_for_everyone()  # all have looked before one writes
    if not missing:
        return
    # Training images in the order of a key, or of the stream.
    if config.streaming:
        data = data.head(config.edit_pairs, config.shuffle_buffer_size, run.loader.decoder)
        order = torch.arange(len(data))
    else:
        order = torch.randperm(len(data), generator=generator(config.seed, "edit sources"))
    order = order[: -(-config.edit_pairs // CHUNK) * CHUNK]
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    quiet = not accelerator.is_main_process
    for index in tqdm(mine, "Drawing edits to learn from", unit="file", disable=quiet):
        places = torch.arange(index * CHUNK, (index + 1) * CHUNK) % len(order)
        random, parts = generator(config.seed, index, "edit pairs"), []
        for rows in order[places].split(BATCH):
            frame = data.layers[FRAME][rows] if FRAME in data.layers else None
            with accelerator.autocast():
                given = (data.images[rows], data.labels[rows], random, frame)
                parts.append(draw_pairs(run.teacher, *given))
        with replaced_file(chunk_file(folder, index)) as path:
            save_chunk(path, EditPairs.cat(parts))
