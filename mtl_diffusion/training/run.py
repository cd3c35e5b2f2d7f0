"""The parts of a run, built from its configuration."""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from diffusers import SchedulerMixin, UNet2DConditionModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from ..classifiers.classifier import Classifier
from ..config import TrainConfig
from ..data.decode import Decoder
from ..data.images import ImageDataset, load_splits
from ..data.loader import Loader, process_rows
from ..data.stream import ImageStream, open_streams
from ..data.streaming_loader import StreamingLoader
from ..pipeline.chains import Chains, default_chains
from ..pipeline.pipeline import TASKS, MultiTaskPipeline
from ..pipeline.task import Task
from ..pipeline.tokens import Vocabulary
from ..tools.rng import generator
from ..tools.tensors import to_unit_range
from .aggregation import Jacobian, Sum, build_gradients
from .alignment import Alignment
from .clock import Clock
from .distillation import Distillation, draw_level
from .ema import EMA
from .losses import Objective, build_weighting
from .mixture import Mixture
from .model import SCHEDULERS, build_scheduler, build_unet, freeze, train_mode
from .noise import draw_sigma
from .optimizers import build_optimizer
from .validation import evaluating
from .vocabulary import build_tokenizer, extend_tokenizer


@dataclass(frozen=True)
class Run:
    """Everything that a training step uses.

    Attributes:
        objective: the trained module, wrapped for several processes.
        unet, weighting: the parts of it.
        draw_sigma: (n, generator=...) -> (n, 1, 1, 1) noise levels of a batch.
        chains: the noise levels of few steps, if these are learned.
        alignment: the losses in a classifier's features, or None.
        gradients: how the losses of the tasks become one gradient.
        ema: the averaged denoiser, or None.
        train_data, held_out: the two splits, labelled in the vocabulary's order.
        clock: the minutes of training.
        first_length: optimiser steps that the run was first given; its warm-up is a share of them.
    """

    config: TrainConfig
    accelerator: Accelerator
    tokenizer: PreTrainedTokenizerFast
    vocabulary: Vocabulary
    scheduler: SchedulerMixin
    unet: UNet2DConditionModel
    weighting: nn.Module
    alignment: Alignment | None
    objective: nn.Module
    draw_sigma: Callable[..., Tensor]
    chains: Chains | None
    gradients: Sum | Jacobian
    optimizer: torch.optim.Optimizer
    ema: EMA | None
    mixture: Mixture
    loader: Loader | StreamingLoader
    train_data: ImageDataset | ImageStream
    held_out: ImageDataset
    clock: Clock
    first_length: int

    @property
    def best_unet(self) -> UNet2DConditionModel:
        """The UNet that is validated and published: the average, if there is one."""
        return self.ema.module if self.ema else self.unet

    @contextmanager
    def pipeline(self) -> Iterator[MultiTaskPipeline]:
        """The pipeline of the best weights, which it shares; inside, they are in eval mode."""
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        with evaluating(self.best_unet):
            yield MultiTaskPipeline(self.best_unet, self.tokenizer, scheduler, self.chains)


def build(config: TrainConfig, accelerator: Accelerator) -> Run:
    """Loads the data and builds the model, the same on every process.

    Raises:
        ValueError: the data or the pretrained model don't fit the configuration.
    """
    decoder, device = Decoder(config.resolution, torch.get_num_threads()), accelerator.device
    train_data, held_out = _data(config, decoder, accelerator)
    tokenizer, unet, scheduler = _components(config, train_data.class_names)
    vocabulary = Vocabulary.of(tokenizer.get_vocab())
    train_data = train_data.relabelled(tuple(vocabulary.classes))
    held_out = held_out.relabelled(tuple(vocabulary.classes))
    tasks = tuple(TASKS[name] for name in config.shares)

    unet.to(device)
    if config.channels_last:
        unet.to(memory_format=torch.channels_last)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    # Copied before the original is frozen, compiled or wrapped.
    run_images = config.max_train_steps * config.total_batch_size
    ema = EMA(unet, config.ema_half_life * run_images, config.ema_ramp) if config.use_ema else None
    teacher = copy.deepcopy(unet) if config.objective == "distillation" else None
    freeze(unet, config.train_only, config.token_paths)
    train_mode(unet)
    if config.compile:
        unet.compile(mode=config.compile_mode)
        if teacher is not None:
            teacher.compile()  # in the default mode: its batches are of any size

    weighting = build_weighting(config.task_weighting, list(config.shares), config.task_weights)
    alignment = _alignment(config, unet, train_data, held_out, device)
    parts = (unet, scheduler, weighting.to(device), alignment)
    if teacher is None:
        chains, objective = None, Objective(*parts)
        draw = partial(draw_sigma, mean=config.sigma_mean, std=config.sigma_std)
    else:
        chains = default_chains(scheduler.config.sigma_max)
        how = (tasks, vocabulary.null, chains, config.teacher_steps)
        objective = Distillation(*parts, teacher, *how).to(device)
        draw = partial(draw_level, levels=objective.starts)
    optimizer = build_optimizer(config, objective)
    wrapped = accelerator.prepare(objective)
    sources = (objective, wrapped, accelerator, len(tasks))
    return Run(
        config=config,
        accelerator=accelerator,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        scheduler=scheduler,
        unet=unet,
        weighting=weighting,
        alignment=alignment,
        draw_sigma=draw,
        chains=chains,
        optimizer=optimizer,
        objective=wrapped,
        gradients=build_gradients(config.gradient_aggregation, *sources),
        ema=ema,
        mixture=_mixture(config, tasks, vocabulary),
        loader=_loader(config, train_data, decoder, accelerator),
        train_data=train_data,
        held_out=held_out,
        clock=Clock(accelerator),
        first_length=config.max_train_steps,
    )


def _data(
    config: TrainConfig, decoder: Decoder, accelerator: Accelerator
) -> tuple[ImageDataset | ImageStream, ImageDataset]:
    """The two splits, which have the classes that the tasks need."""
    with accelerator.main_process_first():  # the first one decodes, the others read its cache
        if config.streaming:
            train_data, stream = open_streams(config)
            held_out = stream.head(config.validation_images, config.shuffle_buffer_size, decoder)
        else:
            train_data, held_out = load_splits(config, config.resolution)
    if set(held_out.class_names) - set(train_data.class_names):
        raise ValueError(
            f"validation_split has the classes {held_out.class_names}, train_split has "
            f"{train_data.class_names}; they must be the same"
        )
    needing = [name for name in config.shares if "class_label" in TASKS[name].required]
    if needing and not train_data.class_names:
        rest = {name: share for name, share in config.tasks.items() if name not in needing}
        rest = rest or {"generate": 1.0}
        raise ValueError(
            f"tasks: {', '.join(needing)} needs a class for each image, and the data has none; name"
            f" their column as label_column, or leave it out: --tasks '{json.dumps(rest)}'"
        )
    return train_data, held_out


def _mixture(config: TrainConfig, tasks: tuple[Task, ...], vocabulary: Vocabulary) -> Mixture:
    return Mixture(
        tasks=tasks,
        proportions=tuple(config.shares.values()),
        vocabulary=vocabulary,
        size=config.resolution,
        class_dropout=config.class_dropout,
        task_dropout=config.task_dropout,
        class_change=0.5 if config.objective == "distillation" else 0.0,
    )


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
        return Loader(data, **common)
    rank, world = accelerator.process_index, accelerator.num_processes
    return StreamingLoader(
        data,
        mine=process_rows(config.total_batch_size, rank, world),
        rank=rank,
        world=world,
        buffer_size=config.shuffle_buffer_size,
        decoder=decoder,
        **common,
    )


def _alignment(
    config: TrainConfig,
    unet: UNet2DConditionModel,
    train_data: ImageDataset | ImageStream,
    held_out: ImageDataset,
    device: torch.device,
) -> Alignment | None:
    if config.alignment_classifier is None:
        return None
    classifier = Classifier.load(config.alignment_classifier, device)
    if classifier.resolution != config.resolution:
        raise ValueError(
            f"alignment_classifier: {config.alignment_classifier} is for images of "
            f"{classifier.resolution} pixels, resolution is {config.resolution}; train one for it"
        )
    if (kind := classifier.model.config.model_type) != "regnet":
        raise ValueError(
            f"alignment_classifier: {config.alignment_classifier} is of model_type {kind!r}; it "
            "must be 'regnet', the default --architecture of mtl-diffusion train_classifier"
        )
    # A stream keeps no images; the held-out split has nearly the same mean.
    images = (held_out if config.streaming else train_data).images
    images = to_unit_range(images[:: max(1, len(images) // 512)][:512].to(device))
    return Alignment(unet, classifier, images, config.alignment_weight, config.seed).to(device)


def _components(config: TrainConfig, class_names: tuple[str, ...]):
    """Tokenizer, unet and scheduler: from a published pipeline, or new from the seed."""
    tasks, source = list(config.shares), config.pretrained_model_name_or_path
    if source is not None:
        try:
            pipeline = MultiTaskPipeline.from_pretrained(source, revision=config.revision)
        except OSError as error:
            raise ValueError(
                f"pretrained_model_name_or_path: {source} can't be loaded: {error}; give the folder"
                " of an exported pipeline, or a name on the Hub"
            ) from error
        if pipeline.size != config.resolution:
            raise ValueError(
                f"pretrained_model_name_or_path {source} was trained at resolution "
                f"{pipeline.size}, resolution is {config.resolution}; they must be the same"
            )
        if config.objective == "distillation":
            _check_teacher(pipeline, tasks, class_names)
        tokenizer = extend_tokenizer(pipeline.tokenizer, tasks, class_names)
        names = ("sigma_min", "sigma_max", "sigma_data", "prediction_type")
        options = {name: pipeline.scheduler.config[name] for name in names}
        return tokenizer, pipeline.unet, SCHEDULERS[config.objective](**options)
    tokenizer = build_tokenizer(tasks, class_names, config.strength_levels, config.reserved_tokens)
    # Modules draw their initial weights from the global generator: key it, and restore it.
    with torch.random.fork_rng():
        torch.manual_seed(generator(config.seed, "weights").initial_seed())
        unet = build_unet(config, len(tokenizer.get_vocab()))
    return tokenizer, unet, build_scheduler(config)


def _check_teacher(
    pipeline: MultiTaskPipeline, tasks: list[str], class_names: tuple[str, ...]
) -> None:
    """Raises a ValueError if the pipeline can't teach this."""
    if pipeline.chains is not None:
        raise ValueError(
            "pretrained_model_name_or_path is a model of few steps itself; give the one that it "
            "has learned from, or set objective to denoising"
        )
    for field, wanted, known in (
        ("tasks", tasks, pipeline.tasks),
        ("dataset_name", class_names, pipeline.class_names),
    ):
        if unknown := [name for name in wanted if name not in known]:
            raise ValueError(
                f"{field}: pretrained_model_name_or_path has not learned {', '.join(unknown)}, "
                f"and can't teach it; it knows {', '.join(known)}"
            )
