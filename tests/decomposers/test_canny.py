import sys

import numpy as np
import pytest
import torch
from skimage import data

from decomposers import Canny, Sketch

cv2 = pytest.importorskip("cv2")

PICTURES = [data.chelsea()[:200, :300], data.coffee()[:200, :300]]


def images(dtype=torch.float32):
    return torch.stack([torch.from_numpy(p.copy()).permute(2, 0, 1) / 127.5 - 1 for p in PICTURES]).to(dtype)


@pytest.mark.parametrize("thresholds", [{}, {"low": 20, "high": 60.5}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_canny_is_opencvs(thresholds, dtype):
    lines = Canny(**thresholds)({"image": images(dtype)})
    expected = [cv2.Canny(p, *(thresholds or {"low": 100, "high": 200}).values()) for p in PICTURES]
    assert lines.shape == (2, 1, 200, 300) and lines.dtype == dtype
    assert np.array_equal(lines[:, 0].numpy(), np.stack(expected) / 255)
    assert lines.unique().tolist() == [0, 1]


def test_canny_is_looked_at_and_compared_as_a_sketch():
    image = images()
    canny, sketch = Canny(), Sketch()
    lines, other = canny({"image": image}), sketch({"image": image})
    assert canny.kind == sketch.kind is not None
    assert torch.equal(canny.preview(lines), sketch.preview(lines))
    assert torch.equal(canny.distance(lines, other), sketch.distance(lines, other))
    assert canny.distance(lines, lines).tolist() == [0, 0]


def test_canny_refuses_thresholds_in_the_wrong_order():
    for low, high in ((200, 100), (-1, 100)):
        with pytest.raises(ValueError, match=r"expected 0 <= low <= high, found a low of"):
            Canny(low, high)


def test_canny_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"Canny needs OpenCV.*pip install 'composer-diffusion\[opencv\]'"):
        Canny()
