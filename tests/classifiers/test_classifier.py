import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tables import load

from mtl_diffusion.classifiers.classifier import Classifier
from mtl_diffusion.classifiers.resnet9 import ResNet9, ResNet9Config
from mtl_diffusion.classifiers.training import train_classifier
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline
from mtl_diffusion.tools.tensors import to_unit_range


@pytest.fixture(scope="module")
def data():
    return load("shapes", split="train[:640]", resolution=16)


@pytest.fixture(scope="module", params=["regnet", "resnet9"])
def trained(data, request):
    """One in float32, and one in bfloat16."""
    precision = {"regnet": "no", "resnet9": "bf16"}[request.param]
    return train_classifier(data, request.param, 12, 64, width=8, mixed_precision=precision)


def test_it_learns(trained):
    test = load("shapes", split="test[:200]", resolution=16)
    assert trained.accuracy(test) > 0.4  # chance is 0.2, give or take 0.03
    assert {p.dtype for p in trained.model.parameters()} == {torch.float32}


def test_saved_and_loaded_it_answers_the_same(trained, data, tmp_path):
    folder = tmp_path / "classifier"
    trained.save(folder, {"accuracy": 0.5})
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    loaded = Classifier.load(folder)
    images = to_unit_range(data.images[:5])
    for name, weight in trained.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight)
    # Only close: loaded weights lie at other memory alignments, where the CPU's kernels round
    # otherwise.
    torch.testing.assert_close(loaded(images), trained(images))
    assert loaded(images).shape == (5, 5)
    torch.testing.assert_close(loaded.features(images), trained.features(images))
    assert loaded.class_names == data.class_names
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == {"accuracy": 0.5, "resolution": 16}
    # Weights of half precision are computed with in float32.
    replace(trained, model=copy.deepcopy(trained.model).half()).save(tmp_path / "half", {})
    half = Classifier.load(tmp_path / "half")
    assert half.features(images).dtype == half(images).dtype == torch.float32
    torch.testing.assert_close(half(images), trained(images), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("architecture", ["regnet", "resnet9"])
def test_training_is_a_function_of_the_seed(data, architecture):
    def weights(seed):
        model = train_classifier(data, architecture, 1, 320, width=8, seed=seed).model
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    first = weights(0)
    torch.rand(1)
    assert torch.equal(weights(0), first) and not torch.equal(weights(1), first)


def test_what_it_is_not_made_for_is_refused(trained, data, tmp_path):
    for shape in ((1, 3, 32, 32), (1, 1, 16, 16), (3, 16, 16)):
        with pytest.raises(ValueError, match=r"images: .*\(B, 3, 16, 16\)"):
            trained(torch.zeros(shape))
    with pytest.raises(ValueError, match="epochs: 0 leaves nothing to train"):
        train_classifier(data, epochs=0)
    with pytest.raises(ValueError, match=r"noise: -0\.1 is no standard deviation"):
        train_classifier(data, noise=-0.1)
    with pytest.raises(ValueError, match=r"classifier: .* has no config\.json"):
        Classifier.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"'bert'; give .* which makes resnet9 and regnet"):
        Classifier.load(tmp_path)


def test_resnet9_is_the_published_network():
    """Its parameters, counted from the channels 64, 128, 256, 512 of the original."""
    convolutions = 3 * 64 + 64 * 128 + 2 * 128**2 + 128 * 256 + 256 * 512 + 2 * 512**2
    norms = 2 * (64 + 3 * 128 + 256 + 3 * 512)
    model = ResNet9(ResNet9Config(width=64, num_labels=10))
    assert model.num_parameters() == 9 * convolutions + norms + 10 * 512 == 6_573_120


def test_noise_of_each_image_is_up_to_the_largest(data, monkeypatch):
    seen, forward = [], ResNet9.forward

    def spy(self, images):
        seen.append(images)
        return forward(self, images)

    monkeypatch.setattr(ResNet9, "forward", spy)
    for noise in (0.0, 0.5):
        train_classifier(data, "resnet9", 1, len(data), width=4, noise=noise)
    deviations = (seen[1] - seen[0]).std((1, 2, 3))
    assert deviations.min() < 0.05 and 0.45 < deviations.max() < 0.55
    assert deviations.mean() == pytest.approx(0.25, abs=0.03)


@pytest.mark.slow
def test_the_published_classifier_knows_the_published_models_samples():
    published = Path(__file__).parents[2] / "pretrained"
    classifier = Classifier.load(published / "cifar10-classifier")
    assert classifier.metrics["accuracy"] > 0.9 and classifier.metrics["n"] == 10_000
    pipe = MultiTaskPipeline.from_pretrained(published / "mtl-cifar10-fewstep")
    pipe.set_progress_bar_config(disable=True)
    asked = [name for name in classifier.class_names for _ in range(3)]
    random = torch.Generator().manual_seed(0)
    images = pipe(task="generate", class_label=asked, generator=random, output_type="pt").images
    found = [classifier.class_names[k] for k in classifier(2 * images - 1).argmax(1)]
    # It finds the class in 0.95 of them (n = 5,000): fewer than 24 of 30 is a chance of 6e-4.
    assert sum(one == other for one, other in zip(asked, found, strict=True)) >= 24
