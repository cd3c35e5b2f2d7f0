"""The training loop: `train` is the run, `train_step` is one step of it, top to bottom."""

import logging
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from .checkpoints.resume import restore
from .checkpoints.saver import Saver
from .config import ConfigError, TrainConfig, check
from .data.line import data_line
from .data.loader import microbatches, process_rows
from .launch.preflight import begin, check_room, start_trackers
from .launch.stop import STOPPED, StopRequest
from .publishing.export import export, push
from .tools.distributed import Terminal, any_process, io_errors_logged
from .tools.rng import generator
from .tools.tensors import to_device
from .training.length import describe, with_length
from .training.losses import sum_of_task_means
from .training.meter import Meter, StepRecord
from .training.optimizers import trained_parameters
from .training.run import Run, build
from .training.schedule import learning_rate, lengthening_steps
from .training.teaching import with_pairs
from .training.validation import validate, validation_due

logger = logging.getLogger(__name__)

REHEARSAL = (10, 30)  # steps that are run, and then steps that are timed, to learn the rate
PATIENCE = 20.0  # seconds, after which a slow device runs no more of either,
LEAST = 3  # but at least these: the first ones compile


def train(config: TrainConfig, *, ends_process: bool = False) -> None:
    """Trains, validates, checkpoints and exports. Called again, it continues where it stopped.

    Args:
        ends_process: True if the caller exits when training was stopped. Then signals stay ignored
            until the process has ended. False restores the caller's signal handlers.

    Raises:
        ConfigError: before the first step; it lists every reason why the run can't start.
        CheckpointError: the checkpoint to resume from is missing or damaged.
        FloatingPointError: a loss, a gradient or a weight is not finite.
        OSError: the last checkpoint could not be written.
        SystemExit: with `STOPPED`, after a checkpoint, when a stop was requested.
        UploadError: all is trained and exported, and it could not be published.
    """
    config = check(config)
    # Where max_train_steps is given, the minutes cut the run; otherwise they are its length.
    minutes = config.max_train_minutes if config.max_train_steps else None
    stop = StopRequest(minutes, ends_process=ends_process)
    with begin(config) as accelerator:
        try:
            config = with_length(config, accelerator, seconds_per_step)
            run = build(config, accelerator)
        except ConfigError:
            raise
        except (ValueError, OSError) as error:  # of the data, or of the pretrained model
            raise ConfigError(str(error)) from error
        if accelerator.is_main_process:
            print(data_line(run.train_data, run.held_out, config), flush=True)
        check_room(run)
        if config.dry_run:
            seconds = rehearse(run)
            if accelerator.is_main_process:
                print(describe(run, config, seconds))
            return
        run, first = restore(run)
        run = with_pairs(run)
        config = run.config
        start_trackers(run, first)
        with stop, Saver(run) as saver:
            done = loop(run, first, stop, saver)
            # gloo can hang at its end, if its last work was on tensors, which belong to Python.
            accelerator.wait_for_everyone()
            if done < config.max_train_steps:
                if accelerator.is_main_process:
                    why = stop.reason
                    logger.warning("stopped by %s after step %d; run again to go on", why, done)
                accelerator.end_training()
                sys.exit(STOPPED)
        if accelerator.is_main_process:
            folder = export(run)
            print(f"The pipeline is in {folder}")
        accelerator.end_training()
        if accelerator.is_main_process and config.push_to_hub:
            done = config.max_train_steps
            address = push(folder, config.repository, done, config.hub_private_repo)
            print(f"Published as {address}")


def seconds_per_step(config: TrainConfig, accelerator: Accelerator) -> float:
    """How long a step takes here, on a run that is thrown away."""
    return rehearse(build(replace(config, max_train_steps=sum(REHEARSAL)), accelerator))


def rehearse(run: Run) -> float:
    """Seconds of a step, the mean of some after others, which compile. `run` is trained.

    A second stage has no pairs yet: it takes its edits from the images, which lasts as long.
    """
    meter, step = Meter(run), 0
    main = run.accelerator.is_main_process
    with tqdm(desc="Measuring the rate", unit="step", leave=False, disable=not main) as progress:
        for count in REHEARSAL:
            started, first, late = time.perf_counter(), step, False
            while step < first + (LEAST if late else count):
                train_step(run, step, meter)
                step += 1
                progress.update()
                late = any_process(time.perf_counter() - started > PATIENCE)
            meter.read()  # waits for the device
    return (time.perf_counter() - started) / (step - first)


def loop(run: Run, first: int, stop: StopRequest, saver: Saver) -> int:
    """Steps from `first` to the end or to a stop; returns how many are done."""
    config, accelerator = run.config, run.accelerator
    batch_size, last = config.total_batch_size, config.max_train_steps
    progress = tqdm(
        total=last * batch_size,
        initial=first * batch_size,
        unit="img",
        unit_scale=True,
        disable=not accelerator.is_main_process,
        file=Terminal(sys.stderr),
        # Each update is a line of its own in a log file: one in five seconds is enough there.
        mininterval=0.1 if sys.stderr.isatty() else 5,
    )
    meter = Meter(run)
    if first and validation_due(config, first):
        validate(run, first, only_if_missing=True)  # killed after the checkpoint, before this
    for step in range(first, last):
        train_step(run, step, meter)
        done = step + 1
        stopping = any_process(stop.due())
        progress.update(batch_size)
        if done % config.logging_steps == 0:
            losses, scale = meter.read(), run.loss_scale
            shown = {name: f"{loss:.3f}" for name, loss in losses.items()}
            curves = {f"train/{name}": loss for name, loss in losses.items()}
            curves["learning_rate"] = learning_rate(config, step)
            if scale is not None:
                shown["skipped"] = meter.skipped
                curves |= {"loss_scale": scale.get_scale(), "skipped_steps": meter.skipped}
            progress.set_postfix(shown, refresh=False)  # the next update draws it
            with io_errors_logged("the curves could not be logged"):
                accelerator.log(curves, step=done)
        due = done % config.checkpointing_steps == 0 or done in lengthening_steps(config)
        if stopping or done == last or due:
            meter.check()  # after a step that failed nothing is saved
            saver.save(done, needed=stopping or done == last)
        if validation_due(config, done):
            validate(run, done)
        if stopping:
            stop.reason = stop.reason or "another process"
            return done
    progress.close()
    return last


def train_step(run: Run, step: int, meter: Meter) -> None:
    """One optimiser step. Everything random in it is a function of (seed, step).

    The host waits for nothing here, so that a GPU always has the next kernels queued. If a loss or
    a gradient is not finite the weights stay as they are, and `meter.check` raises, or counts the
    step as skipped.
    """
    config, accelerator, device = run.config, run.accelerator, run.accelerator.device
    rank, world = accelerator.process_index, accelerator.num_processes
    batch_size, shape = config.total_batch_size, run.mixture.images.shape

    # Drawn for the whole global batch and sliced, so that it may be cut over any processes.
    draw = run.mixture.draw(config.seed, step, batch_size, device)
    counts = to_device(run.mixture.counts(draw.task), device)
    random = generator(config.seed, step, "noise", device=device)
    sigma = run.draw_sigma(draw.task, generator=random)
    noise = torch.randn(batch_size, *shape, generator=random, device=device)

    losses = []
    pieces = microbatches(process_rows(batch_size, rank, world), config.per_device_batch_size)
    for i, rows in enumerate(pieces):
        batch = run.loader.batch(step, rows)
        task = to_device(draw.task[rows], device)
        images, conditioning = run.mixture.condition(batch, draw[rows])
        # The UNet draws its dropout from the global generators.
        torch.manual_seed(generator(config.seed, step, i, rank, "dropout").initial_seed())
        # The processes exchange their gradients after the last piece.
        is_last = i == len(pieces) - 1
        with nullcontext() if is_last else accelerator.no_sync(run.objective):
            plain, weighted = run.objective(images, noise[rows], sigma[rows], conditioning, task)
            # Accelerate averages them, and the parts of a sum must be added: hence times `world`.
            accelerator.backward(world * sum_of_task_means(weighted, task, counts))
        losses.append(plain)

    if run.loss_scale is not None:
        run.loss_scale.unscale_(run.optimizer)
    parameters = trained_parameters(run.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
    loss, mine = torch.cat(losses), slice(pieces[0].start, pieces[-1].stop)
    # If this is 1 the optimiser skips the step, as it does for a GradScaler. It stays on the
    # device: `loop` learns of it when it next reads the meter.
    run.optimizer.found_inf = 1 - (loss.isfinite().all() & norm.isfinite()).float()
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    run.optimizer.step()
    if run.loss_scale is not None:
        run.loss_scale.update()
    run.optimizer.zero_grad()
    meter.add(StepRecord(step, loss, sigma[mine].flatten(), draw.task[mine], norm))
    if run.ema is not None:
        run.ema.update((step + 1) * batch_size, batch_size)
