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


def test_a_resolution_that_is_too_low():
    with pytest.raises(ValueError, match="resolution: 4 is too low"):
        shapes(4)
