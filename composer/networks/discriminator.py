"""The patch discriminator of an autoencoder's training (Isola et al. 2017, section 3.2.2; Esser et al. 2021)."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from composer.networks.norm import GroupNorm
from composer.storage.building import Buildable

STEEPEST = 8
"""The most that the channels grow to, in multiples of the width."""


class PatchDiscriminator(nn.Module, Buildable):
    """Says of each patch of an image how real it looks.

    The released code normalises over the batch; here groups of channels are normalised, so that what is said of an
    image does not depend on the others of its batch.

    Args:
        width: Channels of the first layer; they double with each level, up to eight times.
        levels: Halvings; with 3 a patch has 70 x 70 pixels.
        groups: Groups of each norm, a divisor of the width.

    Raises:
        ValueError: There are no levels, or the groups do not divide the width.
    """

    def __init__(self, width: int = 64, levels: int = 3, groups: int = 4):
        super().__init__()
        if levels < 1 or groups < 1 or width % groups:
            raise ValueError(
                f"expected at least one level and groups that divide the width, found {levels}, {groups} and {width}"
            )
        widths = [width * min(2**level, STEEPEST) for level in range(levels + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, padding=1), nn.LeakyReLU(0.2)]
        for level, (before, after) in enumerate(pairwise(widths), 1):
            stride = 2 if level < levels else 1
            layers += [nn.Conv2d(before, after, 4, stride, padding=1, bias=False), GroupNorm(groups, after)]
            layers += [nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h2 w2"]:
        """Returns a logit per patch; high ones mean real.

        Args:
            images: In [-1, 1]. Their sides are at least 2 ** levels * 3 pixels.
        """
        logits: Tensor = self.layers(images)
        return logits.float()
