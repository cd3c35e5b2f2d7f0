"""The meaning of the tokens, read from the tokenizer's vocabulary.

Ids are stored in the vocabulary alone. Its words are `<null>`, `<task:NAME>`, `<class:NAME>`,
`<strength:I>` for the levels I / (L - 1), `<augment:NAME>` for the amounts of an augmentation in
training, and `<reserved:I>`: ids that a new word can take without changing a shape.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

NULL = "<null>"
WORD = re.compile(r"<(task|class|strength|augment|reserved):(.+)>", re.DOTALL)


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a model's words.

    Attributes:
        null: id of the null token; it replaces tokens that are dropped.
        tasks, classes: name -> id; classes in the order of the class labels.
        strengths: ids of the strength levels, from 0 to 1.
        augments: name -> id, of what training tells of an augmentation; else nothing has them.
        reserved: ids that are free.
        size: number of ids, V.
    """

    null: int
    tasks: dict[str, int]
    classes: dict[str, int]
    strengths: tuple[int, ...]
    augments: dict[str, int]
    reserved: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, words: Mapping[str, int]) -> "Vocabulary":
        """Reads word -> id, as `tokenizer.get_vocab()` gives it.

        Raises:
            ValueError: the words aren't those of such a vocabulary.
        """
        kinds = {"task": {}, "class": {}, "strength": {}, "augment": {}, "reserved": {}}
        for word, index in sorted(words.items(), key=lambda item: item[1]):
            if match := WORD.fullmatch(word):
                kinds[match[1]][match[2]] = index
        levels = [kinds["strength"].get(str(i)) for i in range(len(kinds["strength"]))]
        dense = sorted(words.values()) == [*range(1 + sum(map(len, kinds.values())))]
        if NULL not in words or not dense or len(levels) < 2 or None in levels:
            raise ValueError(
                f"the tokenizer's vocabulary has {len(words)} words; it needs {NULL}, two or more "
                "strength levels, numbered from 0, tasks, classes and reserved words alone, and the"
                " ids from 0 on, each once. Load a tokenizer that was saved with this model."
            )
        return cls(
            null=words[NULL],
            tasks=kinds["task"],
            classes=kinds["class"],
            strengths=tuple(levels),
            augments=kinds["augment"],
            reserved=tuple(kinds["reserved"].values()),
            size=len(words),
        )

    def class_ids(self, labels: Tensor) -> Tensor:
        """Class labels (B,) -> ids (B,). A negative label means no class."""
        table = _table((*self.classes.values(), self.null), labels.device)
        return table[torch.where(labels < 0, len(self.classes), labels)]

    def tokens(self, task: int, label: Tensor, strength: Tensor | None) -> Tensor:
        """Distributions over the vocabulary (B, 3, V) float32: task, class, strength.

        Args:
            task: an id. label: (B,) class ids, not labels.
            strength: (B,) in [0, 1], NaN or None for null. Two neighbouring levels share it.
        """
        null = self._one_hot(torch.full_like(label, self.null))
        ids = self._one_hot(torch.stack([torch.full_like(label, task), label], 1))
        if strength is None:
            return torch.cat([ids, null[:, None]], dim=1)
        known = ~strength.isnan()
        position = strength.nan_to_num().clamp(0, 1) * (len(self.strengths) - 1)
        low = position.floor().clamp(max=len(self.strengths) - 2)
        share = (position - low)[:, None]
        levels = _table(self.strengths, label.device)
        low = low.long()
        level = (1 - share) * self._one_hot(levels[low]) + share * self._one_hot(levels[low + 1])
        third = torch.where(known[:, None], level, null)
        return torch.cat([ids, third[:, None]], dim=1)

    def _one_hot(self, ids: Tensor) -> Tensor:
        """(...) ids -> (..., V) float32. torch's one_hot is of integers and waits for the ids."""
        zeros = torch.zeros(*ids.shape, self.size, device=ids.device, dtype=torch.float32)
        return zeros.scatter_(-1, ids[..., None], 1.0)


@lru_cache(maxsize=32)
def _table(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """The ids on a device. Cached: a fresh copy in each step would synchronise with the host."""
    return torch.tensor(ids, device=device)
