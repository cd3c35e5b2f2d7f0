"""The pairs of edits that a second stage learns from: its teacher draws them first."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from tqdm.auto import tqdm

from ..data.images import FRAME
from ..editing.pairs import EditPairs, draw_pairs
from ..pipeline.edit import Edit
from ..tools.files import replaced_file
from ..tools.rng import generator
from .run import Run

FOLDER = "edit_pairs"  # in the run's output_dir
CHUNK = 256  # pairs in a file
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
    count = -(-config.edit_pairs // CHUNK)
    files = [folder / f"pairs-{index:05d}.safetensors" for index in range(count)]
    _draw_missing(run, files)
    run.accelerator.wait_for_everyone()
    pairs = EditPairs.cat([EditPairs(**load_file(file)) for file in files])
    pairs = pairs[: config.edit_pairs].to(run.accelerator.device)
    held = max(1, min(len(pairs) // 8, config.validation_images))
    mixture = replace(run.mixture, pairs=pairs[held:])
    return replace(run, mixture=mixture, held_out_pairs=pairs[:held])


def _draw_missing(run: Run, files: list[Path]) -> None:
    accelerator, config, data = run.accelerator, run.config, run.train_data
    files[0].parent.mkdir(parents=True, exist_ok=True)
    missing = [index for index, file in enumerate(files) if not file.exists()]
    accelerator.wait_for_everyone()  # all have looked before one writes
    if not missing:
        return
    # Training images in the order of a key, or of the stream.
    if config.streaming:
        data = data.head(config.edit_pairs, config.shuffle_buffer_size, run.loader.decoder)
        order = torch.arange(len(data))
    else:
        order = torch.randperm(len(data), generator=generator(config.seed, "edit sources"))
    order = order[: len(files) * CHUNK]
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
        tensors = {name: part.contiguous() for name, part in vars(EditPairs.cat(parts)).items()}
        with replaced_file(files[index]) as path:
            path.write_bytes(save(tensors))  # `save_file`'s files only their owner can read
