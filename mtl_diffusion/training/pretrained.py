"""The trained models that a run uses: the one it starts from, its teacher, its classifiers."""

from dataclasses import replace
from typing import Any

import torch

from ..classifiers.classifier import Classifier
from ..config import ConfigError, TrainConfig, show
from ..pipeline.chains import Chains
from ..pipeline.edit import Edit
from ..pipeline.pipeline import MultiTaskPipeline
from ..pipeline.tokens import Vocabulary

START, TEACHER = "pretrained_model_name_or_path", "teacher_model_name_or_path"  # fields


def pipeline_of(config: TrainConfig, field: str) -> MultiTaskPipeline:
    """The pipeline that a field names.

    Raises:
        ValueError: it can't be loaded, or its images have another size.
    """
    source, revision = getattr(config, field), config.revision if field == START else None
    try:
        pipeline = MultiTaskPipeline.from_pretrained(source, revision=revision)
    except OSError as error:
        raise ValueError(
            f"{field}: {source} can't be loaded: {error}; give the folder of an exported pipeline,"
            " or a name on the Hub"
        ) from error
    if pipeline.format.size != config.size:
        trained = pipeline.format.sample_size
        raise ValueError(
            f"{field}: {source} was trained at resolution {trained}, resolution is "
            f"{config.resolution}; they must be the same"
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def teacher_of(
    config: TrainConfig, student: MultiTaskPipeline, class_names: tuple[str, ...]
) -> MultiTaskPipeline:
    """The pipeline that a second stage learns from, with weights of its own.

    Args:
        student: the pipeline that the run starts from.
        class_names: the classes of the data.

    Raises:
        ValueError: it can't teach this.
    """
    teacher = pipeline_of(config, TEACHER if getattr(config, TEACHER) else START)
    if teacher.chains is not None:
        raise ValueError(
            f"{START} is a model of few steps itself; give the one that it has learned from as "
            f"{TEACHER}, or set objective to denoising"
        )
    if teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        raise ValueError(
            f"{TEACHER} has other words than {START}; give the model that it has learned from"
        )
    needed = [*config.shares, *(["generate"] if Edit.name in config.shares else [])]  # guides edits
    for field, wanted, known in (
        ("tasks", needed, teacher.tasks),
        ("dataset_name", class_names, teacher.class_names),
    ):
        if unknown := [name for name in wanted if name not in known]:
            raise ValueError(
                f"{field}: the teacher has not learned {', '.join(unknown)}, and can't teach it; "
                f"it knows {', '.join(known)}"
            )
    return teacher


def chains_of(config: TrainConfig, start: MultiTaskPipeline) -> Chains:
    """The noise levels of the model of few steps that a third stage starts from.

    Raises:
        ValueError: it draws in many steps, or has not learned the tasks.
    """
    if start.chains is None:
        raise ValueError(
            f"{START} draws in many steps; set objective to distillation first, and give the model"
            " that this exports"
        )
    if unknown := [name for name in config.shares if name not in start.tasks]:
        raise ValueError(
            f"tasks: {START} has not learned {', '.join(unknown)}; it knows"
            f" {', '.join(start.tasks)}"
        )
    return start.chains


def classifier_of(config: TrainConfig, field: str, device: torch.device) -> Classifier | None:
    """The classifier that a field names; None: it names none.

    Raises:
        ValueError: there is none, or it is for images of another size.
    """
    folder = getattr(config, field)
    if folder is None:
        return None
    classifier = Classifier.load(folder, device)
    if classifier.size != config.size:
        raise ValueError(
            f"{field}: {folder} is for images of {classifier.resolution} pixels, resolution is "
            f"{config.resolution}; train one for it"
        )
    return classifier


def with_model(config: TrainConfig, pipeline: MultiTaskPipeline) -> TrainConfig:
    """The configuration with the values of the trained model in place of defaults.

    Raises:
        ConfigError: it names each field that was given another value than the model's.
    """
    kept, source = fields_of(pipeline), config.pretrained_model_name_or_path
    faults = []
    for name in sorted(kept.keys() & config.given):
        given = getattr(config, name)
        # The order of attention_resolutions has no meaning.
        if given != kept[name] and (name != "attention_resolutions" or {*given} != {*kept[name]}):
            faults.append(
                f"{name}: found {show(given)}; the run starts from {source}, which has "
                f"{show(kept[name])} and keeps it: leave the field out, or give that value"
            )
    if faults:
        raise ConfigError(faults)
    return replace(config, **kept, written=config.written | kept.keys())


def fields_of(pipeline: MultiTaskPipeline) -> dict[str, Any]:
    """The fields of a configuration that describe a trained model."""
    unet, sigmas = pipeline.unet.config, pipeline.scheduler.config
    vocabulary = Vocabulary.of(pipeline.tokenizer.get_vocab())
    attends = ["CrossAttn" in kind for kind in unet.down_block_types]
    images = pipeline.format
    return {
        "image_fit": images.fit,
        "image_mode": images.mode,
        "image_dtype": images.dtype,
        "value_range": images.value_range and list(images.value_range),
        "shown_bands": images.shown_bands and list(images.shown_bands),
        "block_out_channels": list(unet.block_out_channels),
        "layers_per_block": unet.layers_per_block,
        "attention_resolutions": [min(images.size) // 2**i for i, a in enumerate(attends) if a],
        "num_attention_heads": unet.attention_head_dim,  # diffusers' name for the number of heads
        "norm_num_groups": unet.norm_num_groups,
        "dropout": unet.dropout,
        "token_dim": unet.cross_attention_dim,
        "strength_levels": len(vocabulary.strengths),
        "reserved_tokens": len(vocabulary.reserved),
        **{name: sigmas[name] for name in ("sigma_data", "sigma_min", "sigma_max")},
    }
