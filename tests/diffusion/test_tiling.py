"""Images drawn tile by tile, against the same images drawn as a whole."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from composer.cascade.cascade import Cascade
from composer.cascade.low_res import LowRes, shrink
from composer.cascade.options import SampleOptions
from composer.commands.tasks import TASKS
from composer.conditioning import Conditioning, ConditionSet
from composer.data.datasets import SceneImages
from composer.diffusion.denoiser import Denoiser, LogNormal
from composer.diffusion.guidance import Term, guide
from composer.diffusion.samplers import dpmpp_2m, latents
from composer.diffusion.tiling import Tiled
from composer.networks.norm import GroupNorm
from composer.networks.unet import UNet
from conditions import LowRes as LowResCondition
from tests.cascade.test_upsampling import UP
from tests.conftest import TINY, diffusion


class Local:
    """An estimator that sees 4 pixels far, through every port, and remembers what it was shown."""

    def __init__(self):
        self.seen, self.kernels = [], torch.randn(2, 3, 3, 9, 9) / 9

    def prepare(self, cond):
        return cond

    def __call__(self, x, sigma, cond):
        self.seen.append(tuple(x.shape))
        read = F.conv2d(x, self.kernels[0], padding=4) + F.conv2d(cond.spatial.tanh(), self.kernels[1], padding=4)
        return read * cond.vector[:, :, None, None] + cond.origin + sigma[:, None, None, None]


def local_case(b, h, w):
    cond = Conditioning(vector=torch.randn(b, 3), spatial=torch.randn(b, 3, h, w), origin=torch.randn(b, 3, h, w))
    return torch.randn(b, 3, h, w), torch.rand(b), cond


@pytest.mark.parametrize(("h", "w"), [(96, 160), (48, 200), (136, 64), (72, 72), (64, 1024)])
def test_what_sees_less_far_than_tiles_overlap_gives_the_whole(h, w):
    local, (x, sigma, cond) = Local(), local_case(2, h, w)
    whole = local(x, sigma, cond)
    tiled = Tiled(local, 64, 8)(x, sigma, cond)
    torch.testing.assert_close(tiled, whole, atol=2e-5, rtol=0)
    rows, columns = (-(-(side - 16) // 48) if side > 64 else 1 for side in (h, w))
    assert local.seen[1:] == [(2, 3, min(h, 64), min(w, 64))] * (rows * columns), "tiles, and no more than needed"


def test_tiles_begin_at_multiples_of_the_stride_and_overlap_by_a_quarter():
    for tile, stride in ((64, 8), (64, 32), (96, 16), (256, 64)):
        tiled = Tiled(Local(), tile, stride)
        for side in range(stride, 12 * tile, stride):
            spans = list(tiled._spans(side))
            assert spans[0].start == 0 and spans[-1].stop == side
            assert all(s.start % stride == 0 and s.stop - s.start == min(tile, side) for s in spans)
            assert all(a.stop - b.start >= tile // 4 for a, b in pairwise(spans))
            assert (sum(F.pad(tiled._fade(s, side), (s.start, side - s.stop)) for s in spans) > 0.2).all()


def test_an_image_no_larger_than_a_tile_is_one_call():
    local, case = Local(), local_case(1, 64, 48)
    whole = Tiled(local, 64, 8)(*case)
    assert torch.equal(whole, local(*case)) and local.seen == [(1, 3, 64, 48)] * 2


def test_guided_terms_are_tiled_together():
    local, (x, sigma, cond) = Local(), local_case(1, 96, 96)
    terms = [Term(cond, 3.0), Term(local_case(1, 96, 96)[2], -2.0)]
    torch.testing.assert_close(
        guide(Tiled(local, 64, 8), terms)(x, sigma), guide(local, terms)(x, sigma), atol=1e-4, rtol=0
    )
    assert local.seen[0] == (2, 3, 64, 64)


def test_a_crop_cuts_maps_alone():
    cond = Conditioning(
        vector=torch.randn(1, 2),
        tokens=torch.randn(1, 4, 2),
        token_mask=torch.ones(1, 4, dtype=torch.bool),
        spatial=torch.randn(1, 2, 8, 8),
        keys_values=(torch.randn(2, 1, 1, 4, 2),),
    )
    cut = cond.crop(slice(2, 6), slice(0, 3))
    assert torch.equal(cut.spatial, cond.spatial[:, :, 2:6, :3]) and cut.origin is None
    for name in ("vector", "tokens", "token_mask", "keys_values"):
        assert getattr(cut, name) is getattr(cond, name)


class Normed:
    """A group norm, and nothing else."""

    def __init__(self):
        self.norm, self.seen = GroupNorm(1, 3), []
        torch.nn.init.normal_(self.norm.weight)
        torch.nn.init.normal_(self.norm.bias)

    def prepare(self, cond):
        return cond

    @torch.no_grad()
    def __call__(self, x, sigma, cond):
        if sigma[0] > 1:
            raise ArithmeticError
        self.seen.append(tuple(x.shape[2:]))
        return self.norm(x)


@pytest.mark.parametrize(("h", "w"), [(128, 128), (64, 128), (96, 128), (144, 64)])
def test_norms_go_by_the_whole_image(h, w):
    """Where a look at all tiles, side by side, finds its statistics exactly."""
    normed, x = Normed(), torch.randn(2, 3, h, w) * torch.linspace(0.1, 2, w) + torch.linspace(-1, 1, h)[:, None]
    sigma = torch.zeros(2)
    whole = normed(x, sigma, Conditioning())
    torch.testing.assert_close(Tiled(normed, 64, 8, [normed.norm])(x, sigma, Conditioning()), whole)
    apart = Tiled(normed, 64, 8)(x, sigma, Conditioning())
    assert (apart - whole).abs().mean() > 0.1
    with pytest.raises(ArithmeticError):
        Tiled(normed, 64, 8, [normed.norm])(x, sigma + 2, Conditioning())
    assert torch.equal(normed(x, sigma, Conditioning()), whole), "and the norm is as it was"


def test_a_norm_is_changed_for_the_caller_alone():
    """Two threads share a network: one in the midst of its tiles, the other with an image that fits into one."""
    normed, x, sigma = Normed(), torch.randn(2, 3, 64, 64), torch.zeros(2)
    alone, found = normed(x, sigma, Conditioning()), []

    class Amid(Normed):
        norm = normed.norm

        def __init__(self):
            pass

        @torch.no_grad()
        def __call__(self, tile, sigma, cond):
            with ThreadPoolExecutor(1) as other:
                found.append(other.submit(normed, x, sigma, cond).result())
            return self.norm(tile)

    large = torch.randn(2, 3, 128, 128)
    tiled = Tiled(Amid(), 64, 8, [normed.norm])(large, sigma, Conditioning())
    assert len(found) == 4 + 9 and all(torch.equal(each, alone) for each in found)
    assert torch.equal(tiled, Tiled(normed, 64, 8, [normed.norm])(large, sigma, Conditioning()))


def test_of_many_tiles_every_other_is_looked_at():
    normed = Normed()
    Tiled(normed, 64, 8, [normed.norm])(torch.randn(1, 3, 256, 192), torch.zeros(1), Conditioning())
    assert len(normed.seen) == 4 * 3 / 2 + 5 * 4


@pytest.mark.parametrize("tile", [0, -64, 32, 100])
def test_tiles_that_do_not_fit_the_network_are_refused(tile):
    with pytest.raises(ValueError, match=f"multiple of 32 pixels, at least 64, found {tile}"):
        Tiled(Local(), tile, 32)


def discs(b, side):
    """Images of discs before a ramp."""
    y, x = torch.meshgrid(*[torch.arange(side) / side - 0.5] * 2, indexing="ij")
    along, across, middle = torch.rand(3, b, 3, 1, 1) - 0.5
    image = along * x + across * y + middle
    for _ in range(side * side // 400):
        cx, cy, radius = torch.rand(3, b, 1, 1, 1)
        inside = torch.hypot(x - cx + 0.5, y - cy + 0.5) * side < 3 + 9 * radius
        image = torch.where(inside, torch.rand(b, 3, 1, 1) * 1.6 - 0.8, image)
    return image


@pytest.fixture(scope="module")
def upsampler():
    """A small U-Net, group norms and all, that has learned for some seconds to enlarge discs."""
    torch.manual_seed(0)
    network = UNet(**UP["denoiser"]["init_args"]["network"]["init_args"])
    denoiser = Denoiser(network, LogNormal(std=1.4), residual=0.4)
    conditions = ConditionSet({"low_res": LowResCondition()})
    images, optimizer = discs(64, 32), torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(70):
        rows = images[torch.arange(8) + 8 * (step % 8)]
        cond = conditions({"low_res": LowRes().corrupt(shrink(rows, 4), 0.0, [])}, (32, 32))
        loss = denoiser.loss(rows, cond, denoiser.draw(8), torch.randn_like(rows)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.8, "it has learned something; a network of zeros has a loss of about 1"
    return denoiser.requires_grad_(False), conditions


def enlarged(upsampler, small, tile, wrap=Tiled, *, steps=6):
    denoiser, conditions = upsampler
    h, w = 4 * small.shape[2], 4 * small.shape[3]
    cond = conditions({"low_res": LowRes().corrupt(small, 0.0, [0])}, (h, w))
    norms = [module for module in denoiser.modules() if isinstance(module, GroupNorm)]
    estimator = denoiser if tile is None else wrap(denoiser, tile, denoiser.network.stride, norms)
    sigmas = denoiser.sigmas(steps)
    return dpmpp_2m(guide(estimator, [Term(cond, 1.0)]), latents([0], (3, h, w)) * sigmas[0], sigmas)


class Apart(Tiled):
    """Tiles whose norms know of nothing else."""

    def __init__(self, denoiser, tile, stride, norms):
        super().__init__(denoiser, tile, stride)


class Abrupt(Apart):
    """Tiles side by side: what the seams of tiles look like."""

    def _spans(self, side):
        return (slice(i, i + self.tile) for i in range(0, side, self.tile))

    def _fade(self, span, side):
        return torch.ones(span.stop - span.start)


def test_a_unets_tiles_leave_no_seams(upsampler):
    small = shrink(discs(1, 128), 4)
    whole = enlarged(upsampler, small, None)
    tiled, abrupt = enlarged(upsampler, small, 64), enlarged(upsampler, small, 64, Abrupt)
    assert 0 < (tiled - whole).abs().mean() / 2 < 1 / 255

    def seam(image, at):
        """The jump of the difference to the whole from one column to the next, beside what is usual."""
        jumps = (image - whole).diff(dim=3).abs().mean((0, 1, 2))
        return float(jumps[at - 1] / jumps.median())

    assert seam(abrupt, 64) > 4
    spans = Tiled(upsampler[0], 64, 4)._spans(128)
    borders = [at for span in spans for at in (span.start, span.stop) if 0 < at < 128]
    assert borders and all(seam(tiled, at) < 2 for at in borders)


def test_the_shipped_upsampler_hardly_notices_tiles():
    stage = diffusion(Cascade.load("scenes256"), 1)
    small = shrink(SceneImages("val", 256, 3).row(2, 0)["image"][None], 4)
    whole, tiled, apart = (
        enlarged((stage.denoiser, stage.conditions), small, *how, steps=3) for how in ((None,), (128,), (128, Apart))
    )
    assert (tiled - whole).abs().mean() / 2 < 1 / 255
    assert (tiled - whole).abs().mean() < (apart - whole).abs().mean() / 1.5


def test_a_cascade_tiles_the_stages_that_are_told_to():
    torch.manual_seed(0)
    cascade = Cascade.from_spec({**TINY, "name": "two", "stages": [*TINY["stages"], UP]})
    for parameter in cascade.stages[1].weights().parameters():
        parameter.add_(torch.randn_like(parameter) * 0.02)
    seen = []
    diffusion(cascade, 1).denoiser.network.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[2:]))
    options = SampleOptions(size=(64, 128))
    whole = cascade.sample(options=options)
    assert set(seen) == {(64, 128)}
    seen.clear()
    tiled = cascade.sample(options=replace(options, stages={"up64": {"tile": 64}}))
    assert set(seen) == {(64, 64)} and tiled.shape == whole.shape == (1, 3, 64, 128)
    assert 0 < (tiled - whole).abs().mean() / 2 < 1 / 255
    ran = []
    diffusion(cascade).denoiser.network.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match="multiple of 4 pixels, at least 8, found 30"):
        cascade.sample(options=replace(options, stages={"up64": {"tile": 30}}))
    assert not ran, "refused before the base has taken its time"


def test_the_option():
    compose = TASKS["compose"]
    assert compose.read(["--tile", "256"]).sampling.options == SampleOptions(tile=256)
    assert compose.read(["--stage", "up1024:tile=256"]).sampling.options == SampleOptions(
        stages={"up1024": {"tile": 256}}
    )
