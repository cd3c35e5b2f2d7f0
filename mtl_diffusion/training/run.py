"""The parts of a run, built from its configuration."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from ..config import TrainConfig
from ..config.network import with_network
from ..data.decode import Decoder
from ..data.images import ImageDataset, load_splits
from ..data.loader import Loader
from ..data.stream import ImageStream, StreamingLoader, open_streams
from ..editing.pairs import EditPairs
from ..pipeline.chains import default_chains
from ..pipeline.edit import Edit
from ..pipeline.pipeline import (
    CHAINS,
    EDITS_AT_ONCE,
    FREQUENCIES,
    TRANSLATIONS,
    MultiTaskPipeline,
)
from ..pipeline.task import Task
from ..pipeline.tokens import NULL, Vocabulary
from ..tools.rng import generator
from .alignment import Alignment
from .augment import AMOUNTS
from .clock import Clock
from .distillation import Distillation, draw_level
from .ema import EMA
from .losses import Objective, Uncertainty, draw_sigma
from .matching import Matching
from .mixture import Mixture, task_of
from .model import (
    build_scheduler,
    build_tokenizer,
    build_unet,
    extend_tokenizer,
    freeze,
    image_format,
    train_mode,
)
from .optimizers import build_optimizer
from .pretrained import START, chains_of, classifier_of, pipeline_of, teacher_of, with_model


@dataclass(frozen=True)
class Run:
    """Everything that a training step uses.

    Attributes:
        unet: that is trained.
        objective: the trained module, wrapped for several processes.
        draw_sigma: (task indices (B,), generator=...) -> (B, 1, 1, 1) noise levels of a batch.
        teacher: the pipeline that few steps are learned from, or None.
        loss_scale: of float16, whose gradients would be rounded to zero without it; or None.
        ema: the averaged denoiser, or None.
        train_data, held_out: the two splits, labelled in the vocabulary's order.
        held_out_pairs: edits by the teacher that are not trained on, or None.
        clock: the minutes of training.
        first_length: optimiser steps that the run was first given; its warm-up is a share of them.
    """

    config: TrainConfig
    accelerator: Accelerator
    tokenizer: PreTrainedTokenizerFast
    unet: UNet2DConditionModel
    objective: nn.Module
    draw_sigma: Callable[..., Tensor]
    teacher: MultiTaskPipeline | None
    optimizer: torch.optim.Optimizer
    loss_scale: torch.amp.GradScaler | None
    ema: EMA | None
    mixture: Mixture
    loader: Loader | StreamingLoader
    train_data: ImageDataset | ImageStream
    held_out: ImageDataset
    held_out_pairs: EditPairs | None
    clock: Clock
    first_length: int

    @property
    def best_unet(self) -> UNet2DConditionModel:
        """The UNet that is validated and published: the average, if there is one."""
        return self.ema.module if self.ema else self.unet

    @property
    def unwrapped(self) -> Objective:
        """The objective, not wrapped."""
        return self.accelerator.unwrap_model(self.objective, keep_torch_compile=False)

    def note_classes(self) -> None:
        """Writes into the UNets' configurations how often training draws each class.

        Of a stream, how often this process has drawn it. Without classes nothing is written.
        """
        if self.config.streaming:
            counts = self.loader.seen
        else:
            counts = Counter(self.train_data.labels.clamp(min=-1).tolist())
        if self.config.balance_classes:
            counts = dict.fromkeys(counts, 1)
        names = [*self.mixture.vocabulary.classes, NULL]  # the last is that of -1
        found = {names[label]: n for label, n in sorted(counts.items())}
        for unet in (self.unet, self.best_unet) if len(names) > 1 and found else ():
            unet.register_to_config(**{FREQUENCIES: found})

    @contextmanager
    def pipeline(self) -> Iterator[MultiTaskPipeline]:
        """The pipeline of the best weights, which it shares; inside, they are in eval mode."""
        scheduler = self.unwrapped.scheduler
        scheduler = type(scheduler).from_config(scheduler.config)  # it has the state of a call
        self.note_classes()
        self.best_unet.eval()
        try:
            yield MultiTaskPipeline(self.best_unet, self.tokenizer, scheduler)
        finally:
            if self.ema is None:
                train_mode(self.unet)


def build(config: TrainConfig, accelerator: Accelerator) -> Run:
    """Loads the data and builds the model, the same on every process.

    Raises:
        ValueError: the data or the pretrained model don't fit the configuration.
    """
    pipeline = None
    if config.pretrained_model_name_or_path is None:
        config = with_network(config)
    else:
        pipeline = pipeline_of(config, START)
        config = with_model(config, pipeline)
    images, device = image_format(config), accelerator.device
    decoder = Decoder(images, torch.get_num_threads())
    train_data, held_out = _data(config, decoder)
    names = train_data.class_names
    teacher = teacher_of(config, pipeline, names) if config.objective == "distillation" else None
    tokenizer, unet = _network(config, pipeline, names)
    scheduler, vocabulary = build_scheduler(config), Vocabulary.of(tokenizer.get_vocab())
    train_data, held_out = (
        data.relabelled(tuple(vocabulary.classes)) for data in (train_data, held_out)
    )
    tasks = tuple(task_of(name) for name in config.shares)
    at_once, chains = teacher is not None and Edit.name in config.shares, None
    if teacher is not None:
        chains = default_chains(scheduler.config.sigma_max)
    elif config.objective == "matching":
        at_once, chains = unet.config.get(EDITS_AT_ONCE), chains_of(config, pipeline)
    translations = [*(unet.config.get(TRANSLATIONS) or ()), *(config.condition_columns or {})]
    unet.register_to_config(
        **{
            TRANSLATIONS: list(dict.fromkeys(translations)) or None,
            CHAINS: chains,
            EDITS_AT_ONCE: at_once,
            FREQUENCIES: None,
        }
    )
    for network in [unet] if teacher is None else [unet, teacher.unet]:
        network.to(device, memory_format=torch.channels_last)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    # Copied before the original is frozen, compiled or wrapped.
    ema = EMA(unet, config.ema_ramp) if config.use_ema else None
    freeze(unet, config.train_only)
    train_mode(unet)
    if config.compile:
        unet.compile(mode=config.compile_mode)
        if teacher is not None:
            teacher.unet.compile()  # in the default mode: its batches are of any size

    # A stream keeps no images; the held-out split has nearly the same mean.
    seen = held_out if config.streaming else train_data
    objective, draw = _objective(config, unet, scheduler, tasks, teacher or pipeline, seen, device)
    if accelerator.scaler is not None:  # a new one: a rehearsal may have used it
        accelerator.scaler = torch.amp.GradScaler(device.type)
    optimizer = build_optimizer(config, objective)
    return Run(
        config=config,
        accelerator=accelerator,
        tokenizer=tokenizer,
        unet=unet,
        objective=accelerator.prepare(objective),
        draw_sigma=draw,
        teacher=teacher,
        optimizer=optimizer,
        loss_scale=accelerator.scaler,
        ema=ema,
        mixture=Mixture(
            tasks=tasks,
            proportions=tuple(config.shares.values()),
            vocabulary=vocabulary,
            images=images,
            class_dropout=config.class_dropout,
            task_dropout=config.task_dropout,
            dataset_holes=config.dataset_holes if config.mask_column else 0.0,
            augmentation=config.augmentation,
        ),
        loader=_loader(config, train_data, decoder, accelerator),
        train_data=train_data,
        held_out=held_out,
        held_out_pairs=None,
        clock=Clock(accelerator),
        first_length=config.max_train_steps,
    )


def _objective(
    config: TrainConfig,
    unet: UNet2DConditionModel,
    scheduler,
    tasks: Sequence[Task],
    pipeline: MultiTaskPipeline | None,
    seen: ImageDataset,
    device: torch.device,
) -> tuple[Objective, Callable]:
    """The loss of a step, and the function that draws its noise levels.

    Args:
        pipeline: the teacher of a second stage, or else what the run starts from.
        seen: has images like those of training.
    """
    weighting = Uncertainty(len(tasks)) if config.task_weighting == "uncertainty" else None
    parts = (unet, scheduler, weighting)
    if config.objective == "denoising":
        alignment = classifier = classifier_of(config, "alignment_classifier", device)
        if classifier is not None:
            images = seen.images[:: max(1, len(seen.images) // 512)][:512].to(device)
            images = seen.format.from_stored(images)
            alignment = Alignment(unet, classifier, images, config.alignment_weight, config.seed)
        objective = Objective(*parts, alignment).to(device)
        return objective, partial(draw_sigma, mean=config.sigma_mean, std=config.sigma_std)
    classifier = classifier_of(config, "feature_classifier", device)
    if config.objective == "matching":
        objective = Matching(*parts, pipeline, len(tasks), classifier, seen).to(device)
        return objective, partial(draw_level, levels=objective.starts, whole=-1)
    how = (pipeline, tasks, unet.config[CHAINS], config.teacher_steps)
    interval = config.teacher_guidance_interval
    objective = Distillation(*parts, *how, classifier, interval).to(device)
    return objective, partial(draw_level, levels=objective.starts, whole=objective.whole)


def _data(config: TrainConfig, decoder: Decoder) -> tuple[ImageDataset | ImageStream, ImageDataset]:
    """The two splits, which have the classes that the tasks need."""
    if config.streaming:
        train_data, stream = open_streams(config)
        held_out = stream.head(config.validation_images, config.shuffle_buffer_size, decoder)
    else:
        train_data, held_out = load_splits(config, decoder.images)
    if set(held_out.class_names) - set(train_data.class_names):
        raise ValueError(
            f"validation_split has the classes {held_out.class_names}, train_split has "
            f"{train_data.class_names}; they must be the same"
        )
    needing = [name for name in config.shares if "class_label" in task_of(name).required]
    if needing and not train_data.class_names:
        rest = {name: share for name, share in config.tasks.items() if name not in needing}
        rest = rest or {"generate": 1.0}
        raise ValueError(
            f"tasks: {', '.join(needing)} needs a class for each image, and the data has none; name"
            f" their column as label_column, or leave it out: --tasks '{json.dumps(rest)}'"
        )
    return train_data, held_out


def _network(
    config: TrainConfig, pipeline: MultiTaskPipeline | None, class_names: tuple[str, ...]
) -> tuple[PreTrainedTokenizerFast, UNet2DConditionModel]:
    """The tokenizer and the UNet: those of the pipeline, with words for what is new, or new ones.

    The new ones are a function of the configuration and its seed.
    """
    tasks, augments = tuple(config.shares), AMOUNTS if config.augmentation else ()
    if pipeline is not None:
        return extend_tokenizer(pipeline.tokenizer, tasks, class_names, augments), pipeline.unet
    sizes = (config.strength_levels, config.reserved_tokens)
    tokenizer = build_tokenizer(tasks, class_names, *sizes)
    tokenizer = extend_tokenizer(tokenizer, (), (), augments)
    # Modules draw their initial weights from the global generator: key it, and restore it.
    with torch.random.fork_rng():
        torch.manual_seed(generator(config.seed, "weights").initial_seed())
        return tokenizer, build_unet(config, len(tokenizer.get_vocab()))


def _loader(
    config: TrainConfig,
    data: ImageDataset | ImageStream,
    decoder: Decoder,
    accelerator: Accelerator,
) -> Loader | StreamingLoader:
    common = {
        "total_batch_size": config.total_batch_size,
        "seed": config.seed,
        "random_flip": config.random_flip,
        "device": accelerator.device,
    }
    if not config.streaming:
        return Loader(data, **common, balance_classes=config.balance_classes)
    return StreamingLoader(
        data,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        buffer_size=config.shuffle_buffer_size,
        decoder=decoder,
        **common,
    )
