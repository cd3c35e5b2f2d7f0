"""Feature spaces: of a classifier, and of an image model of transformers."""

import json

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from mtl_diffusion.classifiers.classifier import Classifier
from mtl_diffusion.classifiers.training import train_classifier
from mtl_diffusion.data.images import load_images
from mtl_diffusion.evaluation.features import feature_space
from mtl_diffusion.tools.tensors import weights_digest


@pytest.fixture(scope="module")
def data():
    return load_images("shapes", split="test[:40]", resolution=16)


@pytest.fixture(scope="module")
def classifier(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    train_classifier(data, epochs=1, batch_size=20, width=8).save(folder, {"accuracy": 0.25})
    return folder


def test_a_classifiers_space_is_its_last_but_one_layer(classifier, data):
    space = feature_space(str(classifier))
    features = space.features(data.images, batch_size=7)
    assert features.shape == (40, 32) and features.isfinite().all()
    model = Classifier.load(classifier).model
    logits = model.classifier(features)
    expected = model(data.images.float() / 127.5 - 1).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert space.about == {"kind": "classifier", "accuracy": 0.25}
    assert space.digest == weights_digest(model)


def test_an_image_model_of_transformers_gets_its_own_size_and_normalisation(tmp_path, data):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Dinov2Model(
            Dinov2Config(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=28,
                patch_size=14,
            )
        ).eval()
    model.save_pretrained(tmp_path)
    settings = {
        "crop_size": {"height": 28, "width": 28},
        "size": {"shortest_edge": 32},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
        "image_processor_type": "BitImageProcessor",
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    space = feature_space(str(tmp_path))
    # A uniform image of any size stays uniform, so the expected input is easy to write down.
    grey = torch.full((1, 3, 16, 16), 128, dtype=torch.uint8)
    shown = torch.full((1, 3, 28, 28), (128 / 255 - 0.5) / 0.25)
    with torch.no_grad():
        expected = model(shown).pooler_output
    torch.testing.assert_close(space.features(grey), expected, atol=1e-4, rtol=1e-4)
    assert space.about["enlarged_to"] == 28
    assert space.features(data.images[:3]).shape == (3, 16)


def test_a_name_that_is_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"feature_space .*nowhere.*train_classifier"):
        feature_space(str(tmp_path / "nowhere"))
