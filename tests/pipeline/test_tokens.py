import pytest
import torch

from mtl_diffusion.pipeline.tokens import NULL, Vocabulary
from mtl_diffusion.training.model import build_tokenizer

TASKS, CLASSES, LEVELS = ("generate", "edit"), ("cat", "a dog: <big>", "ship"), 5


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TASKS, CLASSES, LEVELS, reserved=3)


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return Vocabulary.of(tokenizer.get_vocab())


def test_the_words_are_read_back(tokenizer, vocabulary):
    assert tuple(vocabulary.tasks) == TASKS and tuple(vocabulary.classes) == CLASSES
    assert len(vocabulary.strengths) == LEVELS and len(vocabulary.reserved) == 3
    assert vocabulary.size == 1 + len(TASKS) + len(CLASSES) + LEVELS + 3
    word_of = tokenizer.convert_ids_to_tokens
    assert word_of(vocabulary.null) == NULL
    assert word_of(vocabulary.tasks["edit"]) == "<task:edit>"
    assert word_of(vocabulary.classes["a dog: <big>"]) == "<class:a dog: <big>>"
    assert word_of(list(vocabulary.strengths)) == [f"<strength:{i}>" for i in range(LEVELS)]


@pytest.mark.parametrize(
    "words, message",
    [
        ("<strength:0> <strength:1>", "needs <null>"),
        ("<null> <strength:0> <strength:1> <mood:sad>", "reserved words alone"),
        ("<null> <strength:1> <strength:2>", "strength levels"),
    ],
)
def test_other_vocabularies_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary.of({word: i for i, word in enumerate(words.split())})


def test_ids_with_a_gap_are_refused():
    with pytest.raises(ValueError, match="ids from 0 on, each once"):
        Vocabulary.of({NULL: 0, "<strength:0>": 1, "<strength:1>": 3})


def test_task_and_class_are_one_hot(vocabulary):
    label = torch.tensor([3, 0])
    tokens = vocabulary.tokens(2, label, torch.tensor([0.3, float("nan")]))
    assert tokens.dtype == torch.float32
    expected = torch.eye(vocabulary.size)[torch.tensor([[2, 3], [2, 0]])]
    assert torch.equal(tokens[:, :2], expected)


def test_strengths_between_two_levels_share_the_token(vocabulary):
    strength = torch.linspace(0, 1, 101)
    tokens = vocabulary.tokens(0, torch.zeros(101, dtype=torch.long), strength)[:, 2]
    torch.testing.assert_close(tokens.sum(-1), torch.ones(101))
    assert (tokens >= 0).all() and ((tokens > 0).sum(-1) <= 2).all()
    # The mean level is the strength: only a linear share between the right neighbours does that.
    mean = tokens[:, list(vocabulary.strengths)] @ torch.linspace(0, 1, LEVELS)
    torch.testing.assert_close(mean, strength, atol=1e-6, rtol=0)


def test_no_strength_is_null(vocabulary):
    label, nothing = torch.zeros(2, dtype=torch.long), torch.full((2,), torch.nan)
    for strength in (None, nothing):
        third = vocabulary.tokens(1, label, strength)[:, 2]
        assert torch.equal(third, torch.eye(vocabulary.size)[[vocabulary.null] * 2])
