"""Distribution metrics against formulas that are written out here."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from composer.decomposition import Decomposer
from composer.evaluation.metrics import (
    INCEPTION_FILE,
    Inception,
    clip_score,
    embed,
    fid,
    frechet_distance,
    kernel_distance,
    kid,
    read_by,
    tiles,
)


def picture(levels):
    """One-pixel images whose three channels hold these 8-bit levels."""
    return torch.tensor(levels, dtype=torch.float32)[:, :, None, None] / 127.5 - 1


def identity(images):
    return (images[:, :, 0, 0] + 1) * 127.5


def test_fid_of_gaussians_in_closed_form():
    # Independent channels: the covariances commute, so that it is the sum over channels of (m - m')^2 + (s - s')^2
    signs = np.array(list(itertools.product((-1, 1), repeat=3)))
    real, fake = picture(100 + 3 * signs), picture(np.array([104, 97, 100]) + signs * [6, 9, 3])
    grow = (8 / 7) ** 0.5  # the unbiased deviation of a +-1 draw among eight
    want = 4**2 + 3**2 + ((6 - 3) ** 2 + (9 - 3) ** 2) * grow**2
    assert fid(real, fake, identity) == pytest.approx(want, rel=1e-6)
    assert fid(real, real, identity) == pytest.approx(0, abs=1e-9)


def test_fid_with_correlated_features_equals_scipy():
    from scipy.linalg import sqrtm

    real = torch.randn(50, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64) + 5
    fake = torch.randn(40, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64)
    a, b = np.cov(real.numpy().T), np.cov(fake.numpy().T)
    want = float((real.mean(0) - fake.mean(0)).square().sum()) + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(real, fake) == pytest.approx(want, rel=1e-8)


def mmd(x, y):
    """Squared maximum mean discrepancy (Gretton et al. 2012, eq. 3) under KID's kernel, pair by pair."""

    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_kid_is_the_discrepancy_under_the_cubic_kernel():
    x, y = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64) + 0.5
    found = kernel_distance(x, y, subsets=3, subset_size=9)
    assert found.value == pytest.approx(mmd(x, y), rel=1e-10) and found.spread == pytest.approx(0, abs=1e-12)


def test_kid_of_images_averages_over_subsets_that_the_seed_draws():
    real, fake = picture(torch.randint(0, 200, (12, 3)).tolist()), picture(torch.randint(50, 256, (10, 3)).tolist())
    unit = lambda images: images[:, :, 0, 0]  # noqa: E731
    before = torch.get_rng_state()
    found = kid(real, fake, unit, subsets=20, subset_size=4, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(3)
    each = [
        mmd(*(unit(x)[torch.randperm(len(x))[:4]].double() for x in (real, fake)))  # real first, then fake
        for _ in range(20)
    ]
    assert found.value == pytest.approx(np.mean(each)) and found.spread == pytest.approx(np.std(each))
    assert found == kid(real, fake, unit, subsets=20, subset_size=4, seed=3)
    assert found != kid(real, fake, unit, subsets=20, subset_size=4, seed=4)
    assert kid(real, fake, unit, subsets=20, seed=3) == kid(real, fake, unit, subsets=20, subset_size=5, seed=3)


def test_samples_that_are_too_small_are_refused():
    x = torch.randn(4, 2)
    for call in (lambda: kernel_distance(x, x, subset_size=5), lambda: kernel_distance(x, x, subset_size=1)):
        with pytest.raises(ValueError, match="subsets of 2 to 4 images"):
            call()
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(ValueError, match="at least 2 images each"):
            distance(x, x[:1])


def test_images_are_read_as_their_files_would_be():
    seen = []
    images = torch.rand(5, 3, 4, 4) * 2.4 - 1.2
    got = embed(images, lambda x: seen.append(x) or x.flatten(1), rows=2)
    assert [len(x) for x in seen] == [2, 2, 1] and got.dtype == torch.float64
    levels = (got + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4 and got.abs().max() <= 1
    assert (got - images.clamp(-1, 1).flatten(1)).abs().max() <= 0.5 / 127.5 + 1e-6


def test_tiles_are_cut_and_kept_whole():
    image = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    cut = tiles(image, 2)
    assert cut.shape == (12, 3, 2, 2)
    assert torch.equal(cut[4], image[0, :, 2:4, 2:4]) and torch.equal(cut[6], image[1, :, 0:2, 0:2])
    with pytest.raises(ValueError, match="multiples of 4, found 4 x 6"):
        tiles(image, 4)


class Toy(Decomposer):
    """A joint space: an image's mean colour, a caption's words as colours."""

    WORDS = ("red", "green", "blue")

    def can_read(self, batch):
        return "image" in batch or "caption" in batch

    def forward(self, batch):
        if "caption" in batch:
            return torch.tensor([[float(word in text) for word in self.WORDS] for text in batch["caption"]])
        return (batch["image"].mean((2, 3)) + 1) / 2

    def preview(self, value):
        raise NotImplementedError

    def distance(self, wanted, got):
        return 1 - F.cosine_similarity(wanted, got, dim=1)


class ImagesOnly(Toy):
    def can_read(self, batch):
        return "image" in batch


def test_clip_score_by_hand():
    images = picture([[255, 0, 0], [0, 255, 255], [0, 0, 255]])
    got = clip_score(images, ["red", "a green thing", "red"], Toy(), rows=2)
    assert torch.allclose(got, torch.tensor([100.0, 100 / 2**0.5, 0.0]), atol=1e-4)
    with pytest.raises(ValueError, match="one caption per image"):
        clip_score(images, ["red"], Toy())
    with pytest.raises(ValueError, match="ImagesOnly is none"):
        clip_score(images, ["red"] * 3, ImagesOnly())


def test_clip_score_equals_torchmetrics():
    from torchmetrics.multimodal.clip_score import CLIPScore

    toy, captions = Toy(), ["red", "green and blue", "blue red", "green"]
    images = torch.randint(0, 256, (4, 3, 8, 8)).float()

    def processor(text=None, images=None, **_):
        if images is not None:
            return {"pixel_values": torch.stack(images)}
        return {"input_ids": toy({"caption": text}), "attention_mask": torch.ones(len(text), 1)}

    class Model(torch.nn.Module):
        config = SimpleNamespace()

        def get_image_features(self, pixels):
            return pixels.mean((2, 3))

        def get_text_features(self, ids, mask):
            return ids

    metric = CLIPScore(model_name_or_path=lambda: (Model(), processor))
    want = float(metric(images, captions))
    assert float(clip_score(images / 127.5 - 1, captions, toy).mean()) == pytest.approx(want, rel=1e-5)


def test_features_come_from_a_decomposer():
    images = torch.rand(3, 3, 4, 4) * 2 - 1
    assert torch.equal(read_by(Toy())(images), Toy()({"image": images}))


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Random weights in the layout of the published file: names and shapes, statistics of the norms included."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path_factory.mktemp("inception") / INCEPTION_FILE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.save({}, path)
        network = module.FeatureExtractorInceptionV3("layout", ["2048"], feature_extractor_weights_path=str(path))
    state = network.state_dict()
    assert state["Conv2d_1a_3x3.conv.weight"].shape == (32, 3, 3, 3) and state["fc.weight"].shape == (1008, 2048)
    assert "Mixed_7c.branch_pool.bn.running_var" in state and len(state) == 566
    torch.save(state, path)
    return path, network


def test_inception_reads_as_torch_fidelity_at_its_own_size(inception_file):
    path, network = inception_file
    levels = torch.randint(0, 256, (1, 3, 299, 299), dtype=torch.uint8)
    want = network(levels)[0]
    got = Inception(str(path))(levels.float() / 127.5 - 1)
    assert got.shape == (1, 2048) and torch.allclose(got, want, rtol=1e-3, atol=1e-5 * float(want.abs().max()))


def test_inception_resizes_as_clean_fid(inception_file):
    """Each channel by Pillow's bicubic filter on floats, not rounded again."""
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (3, 64, 48)).astype(np.float32)
    resized = [np.asarray(Image.fromarray(c).resize((299, 299), Image.Resampling.BICUBIC)) for c in levels]
    model = Inception(str(inception_file[0]))
    want = model.layers((torch.from_numpy(np.stack(resized))[None] - 128) / 128).flatten(1)
    got = model(torch.from_numpy(levels)[None] / 127.5 - 1)
    assert torch.allclose(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_inception_says_which_file_it_wants(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"Inception needs {INCEPTION_FILE}.*path of a local copy"):
        Inception(str(tmp_path / "gone.pth"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not have the layout of"):
        Inception(str(tmp_path / "other.pth"))
