import datasets
import numpy as np
import pytest

from mtl_diffusion.data.shapes import CLASSES, shapes


def pixels(split) -> np.ndarray:
    return np.stack([np.asarray(image) for image in split["image"]])


@pytest.fixture(scope="module")
def small():
    return shapes(num_train=500, num_test=100)


def test_it_is_an_ordinary_dataset(small):
    assert set(small) == {"train", "test"}
    assert isinstance(small["train"].features["image"], datasets.Image)
    assert tuple(small["train"].features["label"].names) == CLASSES
    assert pixels(small["train"]).shape == (500, 16, 16, 3)
    assert np.bincount(small["test"]["label"][:]).tolist() == [20] * 5


def test_it_is_a_function_of_the_seed(small):
    train = pixels(small["train"])
    again = shapes(num_train=50, num_test=100)
    assert np.array_equal(pixels(again["train"]), train[:50])
    assert np.array_equal(pixels(again["test"]), pixels(small["test"]))
    assert not np.array_equal(pixels(shapes(num_train=50, num_test=1, seed=1)["train"]), train[:50])


def test_train_and_test_share_no_image(small):
    train = {image.tobytes() for image in pixels(small["train"])}
    test = {image.tobytes() for image in pixels(small["test"])}
    assert len(train) == 500 and len(test) == 100 and not train & test


@pytest.mark.parametrize("resolution", [16, 32])
def test_light_shapes_of_the_right_size_lie_inside_on_a_dark_background(resolution):
    images = pixels(shapes(resolution, num_train=500, num_test=1)["train"]).max(-1)
    rim = np.ones((resolution, resolution), bool)
    rim[1:-1, 1:-1] = False
    assert images[:, rim].max() < 140  # the background, at most 0.3 of 255, and soft edges
    light = images > 140
    for axis in (1, 2):
        extent = light.any(axis).sum(1) * 16 / resolution
        assert extent.min() >= 5 and extent.max() <= 13
    assert (images.max((1, 2)) > 160).all()


def test_a_ring_has_a_hole_and_a_disc_has_none(small):
    images = pixels(small["train"]).max(-1).astype(float)
    labels = np.array(small["train"]["label"][:])
    for name, hollow in {"ring": True, "disc": False}.items():
        for image in images[labels == CLASSES.index(name)]:
            y, x = np.argwhere(image > 140).mean(0).round().astype(int)
            assert (image[y, x] < 0.6 * image.max()) == hollow


def test_another_resolution_shows_the_same_scene():
    low, high = (pixels(shapes(side, num_train=20, num_test=1)["train"]) for side in (16, 32))
    shrunk = high.reshape(20, 16, 2, 16, 2, 3).mean((2, 4))
    assert np.abs(shrunk - low).mean() < 3


@pytest.mark.parametrize(("share", "count"), [(0.5, 100), (0.25, 50), (1.0, 200)])
def test_a_share_of_the_rows_is_grey(share, count):
    colour = pixels(shapes(num_train=200, num_test=1)["train"])
    split = shapes(num_train=200, num_test=1, grey_share=share)["train"]
    images, labels = pixels(split), np.array(split["label"][:])
    grey = (images == images[..., :1]).all((1, 2, 3))
    assert grey.sum() == count and np.bincount(labels[grey]).tolist() == [count / 5] * 5
    assert np.array_equal(images[~grey], colour[~grey])
    luma = colour[grey] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(images[grey][..., 0] - luma).max() <= 1


def test_every_class_can_have_a_hue_of_its_own():
    split = shapes(num_train=200, num_test=1, class_hues=True)["train"]
    images, labels = pixels(split).astype(float), np.array(split["label"][:])
    light = images.max(-1, keepdims=True) > 180
    colours = (images * light).sum((1, 2)) / light.sum((1, 2))
    means = np.stack([colours[labels == k].mean(0) for k in range(5)])
    apart = np.linalg.norm(means[:, None] - means, axis=-1)[~np.eye(5, dtype=bool)]
    within = max(np.linalg.norm(colours[labels == k] - means[k], axis=1).mean() for k in range(5))
    assert apart.min() > 3 * within


@pytest.mark.parametrize(
    "argument",
    [{"grey_share": 1.5}, {"resolution": 4}, {"num_train": 0}, {"num_test": 0}, {"seed": -1}],
)
def test_bad_arguments_are_named(argument):
    with pytest.raises(ValueError, match=next(iter(argument))):
        shapes(**argument)
