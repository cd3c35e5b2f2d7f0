"""Building and extending the vocabulary. Reading it is `pipeline/tokens.py`, which ships."""

from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from ..pipeline.tokens import NULL, Vocabulary


def build_tokenizer(
    tasks: Iterable[str], classes: Iterable[str], strength_levels: int, reserved: int
) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a word for every task, class and strength level.

    Args:
        tasks: names of the tasks that are trained; a later task takes a reserved id.
        classes: class names in the order of the labels.
        strength_levels: words for the strengths from 0 to 1, at least 2.
        reserved: ids kept for later tasks and classes.
    """
    words = [
        NULL,
        *(f"<task:{name}>" for name in tasks),
        *(f"<strength:{i}>" for i in range(strength_levels)),
        *(f"<class:{name}>" for name in classes),
        *(f"<reserved:{i}>" for i in range(reserved)),
    ]
    return tokenizer_of({word: i for i, word in enumerate(words)})


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerFast, tasks: Iterable[str], classes: Iterable[str]
) -> PreTrainedTokenizerFast:
    """The same ids, with reserved ones given to the tasks and classes that have no word yet.

    Raises:
        ValueError: there are more new words than reserved ids.
    """
    words = dict(tokenizer.get_vocab())
    vocabulary = Vocabulary.of(words)
    new = [f"<task:{name}>" for name in tasks if name not in vocabulary.tasks]
    new += [f"<class:{name}>" for name in classes if name not in vocabulary.classes]
    if len(new) > len(vocabulary.reserved):
        raise ValueError(
            f"pretrained_model_name_or_path has {len(vocabulary.reserved)} reserved tokens, and "
            f"{len(new)} new words need one: {', '.join(new)}. Start from a model with more "
            "reserved tokens, or drop some tasks or classes."
        )
    word_of = {index: word for word, index in words.items()}
    for word, index in zip(new, vocabulary.reserved, strict=False):
        word_of[index] = word
    return tokenizer_of({word_of[index]: index for index in range(len(word_of))})


def tokenizer_of(words: dict[str, int]) -> PreTrainedTokenizerFast:
    """The word-level tokenizer of these words, each with its id."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token=NULL)),
        unk_token=NULL,
        pad_token=NULL,
        model_max_length=3,
    )
