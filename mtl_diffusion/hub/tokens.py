"""What the tokens mean: a reading of the tokenizer's vocabulary, and nothing beside it.

The saved vocabulary is the only home of ids. Its words are `<null>`, `<task:NAME>`,
`<class:NAME>`, `<strength:I>` for the levels I / (L - 1), and a reserve `<reserved:I>` whose ids a
new task or a new class can take without changing a shape.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

NULL = "<null>"
WORD = re.compile(r"<(task|class|strength|reserved):(.+)>", re.DOTALL)


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a model's words.

    Attributes:
        null: id of the word that says nothing; it stands in for whatever was dropped.
        tasks: task name -> id.
        classes: class name -> id, in the order of the class labels.
        strengths: ids of the strength levels, from 0 to 1.
        reserved: ids that no word has taken yet.
        size: number of ids, V.
    """

    null: int
    tasks: dict[str, int]
    classes: dict[str, int]
    strengths: tuple[int, ...]
    reserved: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, words: Mapping[str, int]) -> "Vocabulary":
        """Reads word -> id, as `tokenizer.get_vocab()` gives it.

        Raises:
            ValueError: the words aren't those of such a vocabulary.
        """
        if sorted(words.values()) != list(range(len(words))) or NULL not in words:
            raise ValueError(
                f"the tokenizer's vocabulary has {len(words)} words; it needs {NULL} and the ids "
                f"0..{len(words) - 1}, each once. Load a tokenizer that was saved with this model."
            )
        kinds = {"task": {}, "class": {}, "strength": {}, "reserved": {}}
        for word, index in sorted(words.items(), key=lambda item: item[1]):
            if word == NULL:
                continue
            match = WORD.fullmatch(word)
            if match is None:
                raise ValueError(f"the tokenizer's vocabulary has the word {word!r}, of no kind")
            kinds[match[1]][match[2]] = index
        levels = kinds["strength"]
        if len(levels) < 2 or set(levels) != {str(i) for i in range(len(levels))}:
            raise ValueError(
                f"the tokenizer's vocabulary has the strength levels {sorted(levels)}; it needs "
                "two or more, numbered from 0"
            )
        return cls(
            null=words[NULL],
            tasks=kinds["task"],
            classes=kinds["class"],
            strengths=tuple(levels[str(i)] for i in range(len(levels))),
            reserved=tuple(kinds["reserved"].values()),
            size=len(words),
        )

    def class_ids(self, labels: Tensor) -> Tensor:
        """Class labels (B,) -> ids (B,). A negative label means no class."""
        table = torch.tensor([*self.classes.values(), self.null], device=labels.device)
        return table[torch.where(labels < 0, len(self.classes), labels)]

    def tokens(self, task: Tensor | int, label: Tensor, strength: Tensor) -> Tensor:
        """The three tokens of B samples, as distributions over the vocabulary.

        Args:
            task: (B,) ids, or one id for all.
            label: (B,) class ids, not labels.
            strength: (B,) in [0, 1], NaN for null. Between two levels, both share the token.

        Returns:
            (B, 3, V) float32: task, class, strength; each row sums to 1.
        """
        ids = torch.stack([torch.as_tensor(task, device=label.device).expand_as(label), label], 1)
        known = ~strength.isnan()
        position = strength.nan_to_num().clamp(0, 1) * (len(self.strengths) - 1)
        low = position.floor().clamp(max=len(self.strengths) - 2)
        share = (position - low)[:, None]
        levels = torch.tensor(self.strengths, device=label.device)
        low = low.long()
        level = (1 - share) * one_hot(levels[low], self.size) + share * one_hot(
            levels[low + 1], self.size
        )
        null = one_hot(torch.full_like(label, self.null), self.size)
        third = torch.where(known[:, None], level, null.to(level.dtype))
        return torch.cat([one_hot(ids, self.size).float(), third[:, None].float()], dim=1)
