"""Which sample gets which task, and the merged conditioning of a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ..config import TrainConfig
from ..data.images import FRAME, MASK, condition_of
from ..data.loader import Batch
from ..editing.pairs import EditPairs
from ..pipeline.denoiser import CLASS, TASK, Conditioning, build_conditioning
from ..pipeline.edit import Edit, EditAtOnce
from ..pipeline.format import ImageFormat
from ..pipeline.pipeline import TASKS, TRANSLATIONS
from ..pipeline.task import Choice, Hint, Task
from ..pipeline.tokens import Vocabulary
from ..pipeline.translate import Translate
from ..tools.rng import generator
from ..tools.tensors import to_device

GOLDEN = (5**0.5 - 1) / 2


def assign_tasks(proportions: Sequence[float], first: int, count: int) -> Tensor:
    """(count,) task indices of the samples first, first + 1, ... of the run, int64 on the CPU.

    The multiples of the golden ratio, modulo 1, fill the unit interval as evenly as any sequence
    does (Kronecker), so every stretch of samples holds the tasks in their proportions: a global
    batch, the part of it that one process sees, a microbatch. Measured, of any stretch: at most
    2.5 samples off in 64, 3.5 in 512, 4 in 4,096. The data is shuffled, so nothing correlates with
    this order.
    """
    shares = np.asarray(proportions, dtype=np.float64)
    edges = (shares / shares.sum()).cumsum()[:-1]
    place = (np.arange(first, first + count, dtype=np.float64) * GOLDEN) % 1
    # numpy's, because torch starts its threads for this, which took 4 ms.
    return torch.from_numpy(np.searchsorted(edges, place, side="right"))


def task_of(name: str) -> Task:
    """The task of a name; one that is none of the package's is of the class `Translate`."""
    return TASKS[name] if name in TASKS else Translate(name)


def translations(config: TrainConfig, unet: UNet2DConditionModel) -> list[str] | None:
    """Names of the class `Translate`: those that the UNet knew, and the run's; None without any."""
    names = [*(unet.config.get(TRANSLATIONS) or ()), *(config.condition_columns or {})]
    return list(dict.fromkeys(names)) or None


@dataclass(frozen=True)
class Draw:
    """Random draws for the samples of a global batch. They don't depend on the images.

    Attributes:
        task: (B,) task indices, on the CPU, where they are used to index.
        choice: the draws of each sample's task.
        drop_task: (B,) bool, the task token becomes null.
        noise: (B, C, H, W) standard normal, for the tasks' `condition`.
        counts: (T,) samples of each task in the whole global batch.
        from_data: (B,) bool, the hole is a mask of the dataset; None: it has none.
        pairs: (B) edits by a teacher, for the samples of edit; None: edit learns from the images.
    """

    task: Tensor
    choice: Choice
    drop_task: Tensor
    noise: Tensor
    counts: Tensor
    pairs: EditPairs | None
    from_data: Tensor | None = None

    def __getitem__(self, rows: slice) -> "Draw":
        choice = Choice(*(getattr(self.choice, f.name)[rows] for f in fields(Choice)))
        return Draw(
            self.task[rows],
            choice,
            self.drop_task[rows],
            self.noise[rows],
            self.counts,
            None if self.pairs is None else self.pairs[rows],
            None if self.from_data is None else self.from_data[rows],
        )


@dataclass(frozen=True)
class Mixture:
    """The tasks of a run and the proportions in which a batch holds them.

    Attributes:
        tasks: the tasks that are trained, in the order of the task indices.
        proportions: (T,) shares of the samples, positive.
        vocabulary: the ids of the tokens.
        images: their format.
        dataset_holes: share of the samples whose hole is a mask of the dataset.
        class_dropout, task_dropout: probabilities in [0, 1) that the token is dropped.
        pairs: whole edits by a teacher, which the edit task then learns; None: it learns to
            restore degraded images.
    """

    tasks: tuple[Task, ...]
    proportions: tuple[float, ...]
    vocabulary: Vocabulary
    images: ImageFormat
    class_dropout: float
    task_dropout: float
    pairs: EditPairs | None = None
    dataset_holes: float = 0.0

    def draw(self, seed: int, step: int, batch_size: int, device: torch.device) -> Draw:
        """Draws for a whole global batch, from the key (seed, step)."""
        random = generator(seed, step, "task", device=device)
        task = assign_tasks(self.proportions, step * batch_size, batch_size)
        counts = torch.bincount(task, minlength=len(self.tasks))
        choices = [
            _filled(t.draw(n, self.images.size, self.class_dropout, random))
            for t, n in zip(self.tasks, counts.tolist(), strict=True)
        ]
        # The choices are ordered by task: reorder them as the samples are.
        order = to_device(task.argsort(stable=True).argsort(), device)
        choice = Choice(
            *(torch.cat([getattr(c, f.name) for c in choices])[order] for f in fields(Choice))
        )
        shape = (batch_size, *self.images.shape)
        drop_task = torch.rand(batch_size, generator=random, device=device) < self.task_dropout
        noise = torch.randn(shape, generator=random, device=device)
        pairs = None
        if self.pairs is not None:
            pairs = self.pairs.draw(batch_size, generator(seed, step, "pairs", device=device))
        from_data = None
        if self.dataset_holes:
            random = generator(seed, step, "dataset holes", device=device)
            from_data = torch.rand(batch_size, generator=random, device=device) < self.dataset_holes
        return Draw(
            task=task,
            choice=choice,
            drop_task=drop_task,
            noise=noise,
            counts=to_device(counts, device),
            pairs=pairs,
            from_data=from_data,
        )

    def condition(self, batch: Batch, draw: Draw) -> tuple[Tensor, Conditioning]:
        """What the samples of a batch, or of a part of it, are to become, and their conditioning.

        Args:
            batch: b samples. draw: b rows, of the same samples.

        Returns:
            (b, C, H, W) in [-1, 1], the images or a teacher's edits; and the conditioning.
        """
        images, labels, frame = batch.images, batch.labels, batch.layers.get(FRAME)
        choice, targets, parts = draw.choice, [], []
        order = draw.task.argsort(stable=True)  # the samples, ordered by task
        sizes = torch.bincount(draw.task, minlength=len(self.tasks)).tolist()
        for task, rows in zip(self.tasks, order.split(sizes), strict=True):
            rows = to_device(rows, images.device)
            if draw.pairs is not None and task.name == Edit.name:
                target, hint, label = of_pairs(draw.pairs[rows], self.images)
            else:
                target, label, mask = images[rows], labels[rows], choice.mask[rows]
                if task.holes_from_data and draw.from_data is not None:
                    mask = holes(mask, batch.layers[MASK][rows], draw.from_data[rows])
                shown = source_of(task, batch.layers, self.images, target, rows)
                hint = task.condition(shown, mask, choice.strength[rows], draw.noise[rows])
                if frame is not None:
                    hint = hint.within(frame[rows], target)
            targets.append(target)
            parts.append(build_conditioning(hint, task, label, self.vocabulary))
        back = to_device(order.argsort(), images.device)
        conditioning, null = Conditioning.cat(parts)[back], self.vocabulary.null
        conditioning = (
            conditioning.without_image(null, self._unless_pair(draw, choice.drop_image))
            .without(CLASS, null, self._unless_pair(draw, choice.drop_class))
            .without(TASK, null, draw.drop_task)
        )
        return torch.cat(targets)[back], conditioning

    def _unless_pair(self, draw: Draw, dropped: Tensor) -> Tensor:
        """(b,) what is dropped; of a pair nothing is: its guidance is built in."""
        if draw.pairs is None:
            return dropped
        is_pair = torch.tensor([task.name == Edit.name for task in self.tasks])[draw.task]
        return dropped & ~to_device(is_pair, dropped.device)


def source_of(
    task: Task, layers: Mapping[str, Tensor], form: ImageFormat, image: Tensor, rows: Tensor
) -> Tensor:
    """What a task is given of some rows: the images, or those of another kind in [-1, 1]."""
    if not isinstance(task, Translate):
        return image
    return form.from_stored(layers[condition_of(task.name)][rows])


def holes(drawn: Tensor, region: Tensor, from_data: Tensor) -> Tensor:
    """(n, 1, H, W) the region where it is asked for, if that is a hole: not empty, nor everything.

    Args:
        drawn: (n, 1, H, W) in {0, 1}. region: alike, uint8. from_data: (n,) bool.
    """
    share = region.float().mean((1, 2, 3))
    taken = from_data & (share > 0) & (share < 1)
    return torch.where(taken[:, None, None, None], region.to(drawn.dtype), drawn)


def of_pairs(pairs: EditPairs, images: ImageFormat) -> tuple[Tensor, Hint, Tensor]:
    """The edits (n, C, H, W) in [-1, 1], what the network is shown of them, and their classes."""
    source, edit = images.from_stored(pairs.source), images.from_stored(pairs.edit)
    mask = pairs.mask.float()
    return edit, EditAtOnce().condition(source, mask, pairs.strength, source), pairs.label


def _filled(choice: Choice) -> Choice:
    """The choice with tensors in place of None, so that several tasks' can be concatenated."""
    shape, device = choice.drop_class.shape, choice.drop_class.device
    no_strength = torch.full(shape, torch.nan, device=device)
    return Choice(
        mask=choice.mask,
        drop_class=choice.drop_class,
        strength=no_strength if choice.strength is None else choice.strength,
        drop_image=(
            torch.zeros_like(choice.drop_class) if choice.drop_image is None else choice.drop_image
        ),
    )
