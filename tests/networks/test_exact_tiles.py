"""A decoder on tiles against the decoder on the whole, and the memory of both."""

from typing import Any

import pytest
import torch
from torch import nn

from composer.networks.autoencoder import Autoencoder
from composer.networks.codec import Pixels
from composer.networks.exact_tiles import run_in_tiles
from composer.networks.norm import GroupNorm
from composer.training.dry_run import LiveBytes


def lively(**plan):
    """An untrained autoencoder whose norms shift and scale, and whose outcome is of about unit size."""
    torch.manual_seed(1)
    whole: dict[str, Any] = {"width": 8, "multipliers": [1, 2, 2], "blocks": 1, "groups": 4, "scale": 0.7} | plan
    made = Autoencoder(**whole)
    for module in made.modules():
        if isinstance(module, GroupNorm):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, std=0.3)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=1.2 / module.weight[0].numel() ** 0.5)
    return made.eval().requires_grad_(False)


def uneven(*shape):
    """Latents whose statistics differ from place to place, so that a tile's own would be wrong."""
    ramp = torch.linspace(0.2, 3, shape[-1]) * torch.linspace(-1, 2, shape[-2])[:, None]
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)) * ramp + ramp


@pytest.mark.parametrize("plan", [{}, {"multipliers": [1, 1, 2, 2]}, {"multipliers": [1, 2], "blocks": 2}])
@pytest.mark.parametrize("tile", [8, 24, 40])
def test_tiles_decode_to_what_the_whole_decodes_to(plan, tile):
    made, latents = lively(**plan), uneven(1, 4, 9, 13)
    whole, tiled = made.decode(latents), made.decode_in_tiles(latents, tile)
    assert 0.3 < whole.std() < 30
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-4)


def test_the_statistics_of_single_tiles_would_show():
    made, latents = lively(), uneven(1, 4, 16, 24)
    whole = made.decode(latents)
    left = made.decode(latents[..., :16])[..., :32]
    assert (left - whole[..., :32]).abs().max() > 0.1


def test_a_picture_no_larger_than_a_tile_is_decoded_as_a_whole():
    made, latents = lively(), uneven(1, 4, 8, 8)
    assert torch.equal(made.decode_in_tiles(latents, 32), made.decode(latents))
    assert torch.equal(made.decode_in_tiles(latents[..., :1, :1], 8), made.decode(latents[..., :1, :1]))
    assert torch.equal(Pixels().decode_in_tiles(latents[:, :3], 2), latents[:, :3])


def test_memory_is_bounded_by_the_tile():
    made = lively(multipliers=[1, 2, 4, 4], blocks=2)
    peaks = []
    for decode in (made.decode, lambda x: made.decode_in_tiles(x, 64)):
        with LiveBytes(made) as live:
            decode(torch.zeros(1, 4, 48, 48))
        peaks.append(live.peak)
    assert peaks[1] < peaks[0] / 3


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.idle = (GroupNorm(2, 4) for _ in range(3))

    def forward(self, x):
        return self.second(self.first(x).relu())


def test_what_the_tiles_do_not_measure_is_noticed():
    net, x = Odd(), torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(run_in_tiles(net, [net.first, net.second], x, 3, 0), net(x), rtol=0, atol=1e-5)
    with pytest.raises(AssertionError, match="computes before those"):
        run_in_tiles(net, [net.second, net.first], x, 3, 0)
    with pytest.raises(AssertionError, match="does not use this norm"):
        run_in_tiles(net, [net.first, net.second, net.idle], x, 3, 0)
    with pytest.raises(ValueError, match="tiles of at least 1, found 0"):
        run_in_tiles(net, [net.first, net.second], x, 0, 0)
