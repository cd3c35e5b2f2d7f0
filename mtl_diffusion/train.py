"""The training loop: `train` is the run, `train_step` is one step of it, top to bottom."""

import json
import logging
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .config import ConfigError, TrainConfig
from .gallery import task_picture, to_pictures
from .keyed import generator
from .losses import sum_of_task_means
from .noise import draw_sigma
from .publish import BackgroundPublisher, export, push
from .resume import folder_of, restore, save
from .run import Run, build, learning_rate, microbatches, process_rows
from .startup import begin, check_room, describe
from .stop import STOPPED, StopRequest
from .survival import Terminal, any_process, from_all_processes, io_errors_logged
from .validation import held_out_loss

logger = logging.getLogger(__name__)


def train(config: TrainConfig) -> None:
    """Trains, validates, checkpoints and exports. Run again, it goes on where it stopped.

    Raises:
        ConfigError: before anything is trained, everything that forbids to.
        CheckpointError: the checkpoint to resume from is missing or damaged.
        FloatingPointError: a loss, a gradient or a weight is not finite.
        OSError: the last checkpoint could not be written.
        SystemExit: with `STOPPED`, after a checkpoint, when a stop was asked for.
        UploadError: all is trained and exported, and it could not be published.
    """
    stop = StopRequest(config.max_train_minutes)
    with begin(config) as accelerator:
        try:
            run = build(config, accelerator)
        except ValueError as error:  # of the data, or of the pretrained model
            raise ConfigError([str(error)]) from error
        check_room(run)
        if config.dry_run:
            if accelerator.is_main_process:
                print(describe(run))
            return
        first = restore(run)
        with stop, BackgroundPublisher(config) as publisher:
            done = loop(run, first, stop, publisher)
            # gloo can hang at its end, if its last work was on tensors, which belong to Python.
            accelerator.wait_for_everyone()
            if done < config.max_train_steps:
                if accelerator.is_main_process:
                    reason = stop.reason or "another process"
                    logger.warning("stopped by %s after step %d; run again to go on", reason, done)
                accelerator.end_training()
                sys.exit(STOPPED)
        if accelerator.is_main_process:
            folder = export(run)
            print(f"The pipeline is in {folder}")
        accelerator.end_training()
        if accelerator.is_main_process and config.push_to_hub:
            print(f"Published as {push(folder, config)}")


def loop(run: Run, first: int, stop: StopRequest, publisher: BackgroundPublisher) -> int:
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
            losses = meter.read()
            progress.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items()})
            curves = {f"train/{name}": loss for name, loss in losses.items()}
            with io_errors_logged("the curves could not be logged"):
                accelerator.log({**curves, "learning_rate": learning_rate(config, step)}, step=done)
        if stopping or done == last or done % config.checkpointing_steps == 0:
            save(run, done, needed=stopping or done == last)
            if accelerator.is_main_process and done < last:
                publisher.submit(folder_of(run) / f"step-{done}")
        if validation_due(config, done):
            validate(run, done)
        if stopping:
            return done
    progress.close()
    return last


def train_step(run: Run, step: int, meter: "Meter") -> None:
    """One optimiser step. Everything random in it is a function of (seed, step).

    Raises:
        FloatingPointError: a loss or a gradient is not finite, on any process. On none of them has
            the optimiser stepped.
    """
    config, accelerator, device = run.config, run.accelerator, run.accelerator.device
    rank, world = accelerator.process_index, accelerator.num_processes
    batch_size, size = config.total_batch_size, config.resolution

    # Drawn for the whole global batch and sliced, so that it may be cut over any processes.
    draw = run.mixture.draw(config.seed, step, batch_size, device)
    random = generator(config.seed, step, "noise", device=device)
    sigma = draw_sigma(batch_size, config.sigma_mean, config.sigma_std, random)
    noise = torch.randn(batch_size, 3, size, size, generator=random, device=device)

    pieces = microbatches(process_rows(batch_size, rank, world), config.per_device_batch_size)
    for i, rows in enumerate(pieces):
        batch = run.loader.batch(step, rows)
        task = draw.task[rows].to(device)
        conditioning = run.mixture.condition(batch.images, batch.labels, draw[rows])
        # The UNet draws its dropout from the global generators.
        torch.manual_seed(generator(config.seed, step, i, rank, "dropout").initial_seed())
        is_last = i == len(pieces) - 1
        with nullcontext() if is_last else accelerator.no_sync(run.objective):
            plain, weighted = run.objective(
                batch.images, noise[rows], sigma[rows], conditioning, task
            )
            # Processes average their gradients, and the parts of a sum must be added.
            loss = world * sum_of_task_means(weighted, task, draw.counts)
            accelerator.backward(loss)
        meter.add(plain, sigma[rows], task)

    parameters = run.optimizer.param_groups[0]["params"]
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
    meter.require_finite(step, norm)
    run.optimizer.param_groups[0]["lr"] = learning_rate(config, step)
    run.optimizer.step()
    run.optimizer.zero_grad()
    if run.ema is not None:
        run.ema.update(run.unet, (step + 1) * batch_size, batch_size)


class Meter:
    """Running means of the tasks' losses, kept on the device until they are read."""

    def __init__(self, run: Run):
        self.run = run
        self.names = [task.name for task in run.mixture.tasks]
        self.latest: list[tuple[Tensor, Tensor, Tensor]] = []  # the microbatches of this step
        self._reset()

    def _reset(self) -> None:
        self.sums = torch.zeros(2, len(self.names), device=self.run.accelerator.device)

    def add(self, loss: Tensor, sigma: Tensor, task: Tensor) -> None:
        """loss: (b,) as measured. sigma: (b, 1, 1, 1). task: (b,) indices."""
        self.latest.append((loss, sigma.flatten(), task))
        self.sums[0].index_add_(0, task, loss)
        self.sums[1].index_add_(0, task, torch.ones_like(loss))

    def read(self) -> dict[str, float]:
        """Task name -> mean loss since the last reading, over all processes."""
        sums, counts = self.run.accelerator.reduce(self.sums, reduction="sum").tolist()
        self._reset()
        return {
            name: total / count
            for name, total, count in zip(self.names, sums, counts, strict=True)
            if count
        }

    def require_finite(self, step: int, norm: Tensor) -> None:
        """Ends the step's account. All processes raise, if one has a loss that is not finite.

        Args:
            norm: of the averaged gradient, and so the same on all processes.
        """
        loss, sigma, task = (torch.cat(parts) for parts in zip(*self.latest, strict=True))
        self.latest.clear()
        if not any_process(~(loss.isfinite().all() & norm.isfinite())):
            return
        bad = (~loss.isfinite()).nonzero()[:, 0].tolist() or [int(loss.argmax())]
        places = [f"{self.names[task[i]]} at sigma {sigma[i]:.4g}: {loss[i]:.4g}" for i in bad[:8]]
        rank = self.run.accelerator.process_index
        lines = from_all_processes([f"process {rank}: {'; '.join(places)}"])
        raise FloatingPointError(
            f"step {step}: a loss or a gradient is not finite, and the optimiser has not stepped. "
            f"Norm of the gradient: {norm:.4g}. Worst losses: {'. '.join(lines)}"
        )


def validation_due(config: TrainConfig, done: int) -> bool:
    return done == config.max_train_steps or done % config.validation_steps == 0


def validate(run: Run, step: int, only_if_missing: bool = False) -> None:
    """Held-out loss by task and noise level, and a grid a task: logged, and written to files."""
    path = Path(run.config.output_dir) / "validation" / f"step-{step}.json"
    if run.accelerator.is_main_process and not (only_if_missing and path.exists()):
        with io_errors_logged("the validation could not be written"):
            write_validation(run, step, path)
    run.accelerator.wait_for_everyone()


def write_validation(run: Run, step: int, path: Path) -> None:
    """The JSON file comes last: a validation that has it is complete."""
    config, accelerator = run.config, run.accelerator
    folder = path.parent
    folder.mkdir(exist_ok=True)
    held_out = held_out_loss(
        run.best_unet,
        run.scheduler,
        run.mixture.tasks,
        run.vocabulary,
        run.held_out,
        config.validation_images,
        device=accelerator.device,
    )
    accelerator.log(
        {
            f"held_out/{task}/sigma_{level}": entry["loss"]
            for task, levels in held_out.table().items()
            for level, entry in levels.items()
        },
        step=step,
    )
    pipe = run.pipeline()
    pipe.set_progress_bar_config(disable=True)
    count = min(8, len(run.held_out))
    sources = to_pictures(run.held_out.images[:count])
    labels = run.held_out.labels[:count].tolist()
    pictures = {name: task_picture(pipe, name, sources, labels, config.seed) for name in pipe.tasks}
    for name, picture in pictures.items():
        picture.save(folder / f"step-{step}-{name}.png")
    log_pictures(run, pictures, step)
    table = {"step": step, "num_images": held_out.num_images, "loss": held_out.table()}
    path.write_text(json.dumps(table, indent=2) + "\n")


def log_pictures(run: Run, pictures: dict, step: int) -> None:
    """Hands the grids to the trackers, each in its own way."""
    for tracker in run.accelerator.trackers:
        if tracker.name == "tensorboard":
            for name, picture in pictures.items():
                pixels = torch.tensor(list(picture.getdata()), dtype=torch.uint8)
                pixels = pixels.view(1, picture.height, picture.width, 3)
                tracker.log_images({f"samples/{name}": pixels}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({f"samples/{n}": [p] for n, p in pictures.items()}, step=step)
        elif tracker.name == "trackio":
            import trackio

            tracker.log({f"samples/{n}": trackio.Image(p) for n, p in pictures.items()}, step=step)
