"""What decomposers cost: beside their networks' own tensors, counts by hand, and torch's counter."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from composer.decomposition import Decomposer
from composer.storage.pretrained import locate, offline
from composer.training import decomposer_costs
from composer.training.decomposer_costs import DecomposerCost, measure_decomposers
from decomposers import Semantics
from tests.decomposers.test_t5 import LENGTH, SIZES, write_folder

CLIP: dict[str, Any] = {"class_path": "decomposers.Semantics", "init_args": {"weights": "asset:scenes_clip"}}
DEPTH, INSTANCES = ({"class_path": f"decomposers.{name}"} for name in ("SceneDepth", "SceneInstances"))
ABSENT = {"class_path": "decomposers.Semantics", "init_args": {"weights": "hub:nobody/nothing@main:clip.safetensors"}}


class Projection(Decomposer):
    """One matrix product."""

    def __init__(self, channels=5):
        super().__init__()
        self.net = torch.nn.Linear(3, channels)
        self.register_buffer("mean", torch.zeros(7))

    def forward(self, batch):
        return self.net(batch["image"].movedim(1, -1)).movedim(-1, 1)

    preview = distance = None


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        pytest.fail("asked the network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


def test_one_product_by_hand():
    spec = {"class_path": f"{__name__}.Projection", "init_args": {"channels": 4}}
    costs, weights = measure_decomposers({"it": spec}, 16, (__name__,))
    assert costs == {"it": DecomposerCost(3 * 4 + 4, 4 * (3 * 4 + 4 + 7), 2 * 16 * 16 * 3 * 4)}
    assert weights == 4 * (3 * 4 + 4 + 7)


def test_a_clip_is_counted_without_its_fused_attention():
    clip = Semantics(**CLIP["init_args"])._clip
    network: Any = clip.network
    costs, weights = measure_decomposers({"semantics": CLIP}, 64)
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network.train().encode_image(torch.zeros(1, 3, *clip.size))  # training knows no fused attention
    network.eval()
    assert torch.backends.mha.get_fastpath_enabled() == fast
    found = costs["semantics"]
    assert found.flops == counter.get_total_flops() > 0 and found.remark == ""
    assert found.parameters == sum(p.numel() for p in network.parameters())
    assert found.weights == weights == sum(t.nbytes for t in (*network.parameters(), *network.buffers()))


def test_shared_weights_are_counted_once():
    costs, weights = measure_decomposers({"depth": DEPTH, "instances": INSTANCES}, 64)
    assert costs["depth"].weights == costs["instances"].weights == weights > 0


def test_what_is_not_here_is_not_counted():
    broken = {"class_path": "decomposers.Semantics", "init_args": {"weights": "nowhere/at/all"}}
    costs, weights = measure_decomposers({"far": ABSENT, "gone": broken}, 64)
    assert costs["far"] == DecomposerCost(remark="not counted: weights are fetched on first use") and weights == 0
    assert costs["gone"].flops is None and "there is nothing at nowhere/at/all" in costs["gone"].remark


def test_a_t5_is_counted_at_full_length_and_not_run_when_it_is_large(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "tiny")
    spec = {"class_path": "decomposers.T5", "init_args": {"weights": folder, "length": LENGTH, "precision": "fp32"}}
    d, inner, hidden = SIZES["d_model"], SIZES["d_kv"] * SIZES["num_heads"], SIZES["d_ff"]
    a_layer = LENGTH * (4 * d * inner + 3 * d * hidden) + 2 * LENGTH * LENGTH * inner
    norms, bias = (2 * SIZES["num_layers"] + 1) * d, 32 * SIZES["num_heads"]
    parameters = 192 * d + SIZES["num_layers"] * (4 * d * inner + 3 * d * hidden) + norms + bias
    costs, _ = measure_decomposers({"t5": spec}, 64)
    assert costs["t5"] == DecomposerCost(parameters, 4 * parameters, 2 * SIZES["num_layers"] * a_layer)
    monkeypatch.setattr(decomposer_costs, "LARGEST_RUN", 1000)
    monkeypatch.setattr("decomposers.t5._load", lambda *_: pytest.fail("loaded"))
    costs, _ = measure_decomposers({"t5": spec}, 64)
    assert costs["t5"].parameters == parameters and costs["t5"].flops is None and "too large" in costs["t5"].remark


def test_offline_ends_with_its_block(monkeypatch):
    asked = []
    monkeypatch.setattr("composer.storage.pretrained.require_network", lambda: asked.append(1) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        locate("hub:nobody/nothing@main:x", wanted="x", who="Y")
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="the network may not be used"), offline():
        locate("hub:nobody/nothing@main:x", wanted="x", who="Y")
