import math

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from mtl_diffusion.pictures.plots import signed_matrix


def test_a_signed_matrix_is_white_at_zero_and_has_its_values_written_in(tmp_path, monkeypatch):
    shown, written = [], []
    imshow, text = Axes.imshow, Axes.text
    monkeypatch.setattr(
        Axes, "imshow", lambda self, *a, **k: (shown.append((a, k)), imshow(self, *a, **k))[1]
    )
    monkeypatch.setattr(
        Axes, "text", lambda self, *a, **k: (written.append(a[:3]), text(self, *a, **k))[1]
    )
    values, errors = np.array([[1.0, -3.0]]), np.array([[0.5, math.nan]])
    signed_matrix(values, errors, ["a"], ["low", "high"], "%", tmp_path / "x.png")
    [((drawn,), options)] = shown
    assert drawn is values and options["vmin"] == -3 and options["vmax"] == 3
    assert written == [(0, 0, "+1.0\n±0.5"), (1, 0, "-3.0")]
    assert Image.open(tmp_path / "x.png").width > 100
