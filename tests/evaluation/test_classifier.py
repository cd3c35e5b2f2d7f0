import json

import pytest
import torch

from mtl_diffusion.data.images import load_images
from mtl_diffusion.evaluation.classifier import Classifier, train_classifier
from mtl_diffusion.tools.tensors import to_unit_range


@pytest.fixture(scope="module")
def data():
    return load_images("shapes", split="train[:640]", resolution=16)


@pytest.fixture(scope="module")
def trained(data):
    return train_classifier(data, epochs=4, batch_size=64, learning_rate=1e-2, width=8)


def test_it_learns(trained):
    test = load_images("shapes", split="test[:200]", resolution=16)
    assert trained.accuracy(test) > 0.4  # chance is 0.2, give or take 0.03


def test_saved_and_loaded_it_answers_the_same(trained, data, tmp_path):
    trained.save(tmp_path / "judge", {"accuracy": 0.5})
    loaded = Classifier.load(tmp_path / "judge")
    images = to_unit_range(data.images[:5])
    for name, weight in trained.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight)
    # Only close: loaded weights lie at other memory alignments, where the CPU's kernels round
    # otherwise.
    torch.testing.assert_close(loaded(images), trained(images))
    assert loaded(images).shape == (5, 5)
    assert loaded.class_names == data.class_names
    metrics = json.loads((tmp_path / "judge" / "metrics.json").read_text())
    assert metrics == {"accuracy": 0.5, "resolution": 16}


def test_training_is_a_function_of_the_seed(data):
    def weights(seed):
        model = train_classifier(data, epochs=1, batch_size=320, width=8, seed=seed).model
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    first = weights(0)
    torch.rand(1)
    assert torch.equal(weights(0), first) and not torch.equal(weights(1), first)


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 1, 16, 16), (3, 16, 16)])
def test_images_of_another_size_are_refused(trained, shape):
    with pytest.raises(ValueError, match=r"images: .*\(B, 3, 16, 16\)"):
        trained(torch.zeros(shape))


def test_another_datasets_classes_are_refused(trained, data):
    other = type(data).of(data.images, data.labels, tuple("abcde"))
    with pytest.raises(ValueError, match="dataset: its classes"):
        trained.accuracy(other)


def test_a_folder_without_a_classifier(tmp_path):
    with pytest.raises(ValueError, match=r"classifier: .* has no config\.json"):
        Classifier.load(tmp_path)


def test_no_epochs(data):
    with pytest.raises(ValueError, match="epochs: 0"):
        train_classifier(data, epochs=0)
