import numpy as np
import pytest

from mtl_diffusion.data.shapes import shapes


def pixels(split) -> np.ndarray:
    return np.stack([np.asarray(image) for image in split["image"]])


@pytest.fixture(scope="module")
def small():
    return shapes(num_train=500, num_test=100)


def test_train_and_test_share_no_image(small):
    train = {image.tobytes() for image in pixels(small["train"])}
    test = {image.tobytes() for image in pixels(small["test"])}
    assert len(train) == 500 and len(test) == 100 and not train & test


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


def test_a_resolution_that_is_too_low():
    with pytest.raises(ValueError, match="resolution: 4 is too low"):
        shapes(4)
