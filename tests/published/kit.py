"""The golden kit: outputs of the authors' own code on tiny random weights, and the layouts of all released networks.

It is no part of the project: tests that need it are skipped where it is absent.
"""

import gzip
import json
import os
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("COMPOSER_GOLDEN", ROOT.parent / "shared/golden"))
needs_kit = pytest.mark.skipif(not (FOLDER / "cases.json.gz").is_file(), reason="the golden kit is not here")


@cache
def layouts():
    """Name of a released network -> names and shapes of its tensors."""
    return json.loads(gzip.decompress((FOLDER / "layouts.json.gz").read_bytes()))


def meta(name):
    """A released network's tensors, without values."""
    return {key: torch.empty(shape, device="meta") for key, shape in layouts()[name].items()}


@cache
def _cases():
    return json.loads(gzip.decompress((FOLDER / "cases.json.gz").read_bytes()))["cases"]


def random_weights(shapes):
    """Weights made of their names, as the kit's were."""
    return {
        key: torch.from_numpy(np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape) * 0.08).float()
        for key, shape in shapes.items()
    }


def weights(case):
    return random_weights(_cases()[case]["keys"])


@cache
def _golden():
    return load_file(FOLDER / "golden.safetensors")


def inputs(case):
    return {key.rpartition("/")[2]: x for key, x in _golden().items() if key.startswith(f"{case}/in/")}


def output(case):
    return _golden()[f"{case}/out"]
