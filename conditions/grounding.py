"""Objects: phrases, each with the box that it is to fill."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from composer.conditioning import Condition, Conditioning

FREQUENCIES, TEMPERATURE = 8, 100.0
"""Number of frequencies per coordinate of a box, and what they grow to; as in GLIGEN's code."""


class Grounding(Condition):
    """Makes one token per object from its phrase and its box (GLIGEN, Li et al. 2023, eq. 5).

    An MLP reads the phrase's embedding and Fourier features of the box. A learned null feature replaces the embedding
    of a phrase that is all zeros, and the features of a box that is all zeros. A point, such as a keypoint, is a box
    whose sides are 0; GLIGEN has an adapter of its own for points, and learned embeddings in place of phrases. The
    network needs `object_dim`.

    GLIGEN's code also attends to empty slots, as null tokens. Here they are masked: a row without objects is what the
    network draws without this condition.

    Args:
        in_dim: Width of a phrase's embedding; the representation has five channels more.
        object_dim: Width of the U-Net's object tokens.
        dropout: Probability that joint dropout removes this condition from a row; 0.1 in GLIGEN's code.
        hidden: Width of the MLP; 512 in GLIGEN.
        drop_phrase: In training, probability that a single phrase is replaced by its null feature. GLIGEN's code drops
            all objects of a row or none, hence 0.
        drop_box: The same of a single box.
        points: In training, probability that a single box is replaced by its centre, so that points are learned, too.

    Raises:
        ValueError: A probability is outside [0, 1].
    """

    def __init__(
        self,
        in_dim: int,
        object_dim: int,
        dropout: float = 0.5,
        hidden: int = 512,
        drop_phrase: float = 0.0,
        drop_box: float = 0.0,
        points: float = 0.0,
    ):
        super().__init__(dropout)
        if not all(0 <= share <= 1 for share in (drop_phrase, drop_box, points)):
            raise ValueError(
                f"expected drop_phrase, drop_box and points in [0, 1], found {drop_phrase}, {drop_box} and {points}"
            )
        self.in_dim, self.drop_phrase, self.drop_box, self.points = in_dim, drop_phrase, drop_box, points
        features = 2 * FREQUENCIES * 4
        self.no_phrase, self.no_box = nn.Parameter(torch.zeros(in_dim)), nn.Parameter(torch.zeros(features))
        self.to_objects = nn.Sequential(
            nn.Linear(in_dim + features, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, object_dim),
        )

    def forward(self, value: Float[Tensor, "b n d5"], keep: Bool[Tensor, " b"], size: tuple[int, int]) -> Conditioning:
        """Makes the tokens; see `Condition.forward`.

        Args:
            value: Per object the box's left, top, right, bottom in [0, 1], the phrase's embedding, and a mask. Of a
                point left and right are the same, top and bottom too.
            keep: False drops all objects of that row.
            size: Not used.

        Raises:
            ValueError: `value` does not have `in_dim + 5` channels.
        """
        if value.shape[2] != self.in_dim + 5:
            raise ValueError(
                f"expected objects of a box, an embedding of width {self.in_dim} and a mask, "
                f"found {value.shape[2]} channels"
            )
        real = (value[..., -1] > 0.5) & keep[:, None]
        value = torch.where(real[..., None], value, 0)  # empty slots may contain anything
        box, phrase = value[..., :4], value[..., 4:-1]
        first, last = box[..., :2], box[..., 2:]
        is_box, is_point = (first < last).all(2, keepdim=True), (first == last).all(2, keepdim=True)
        has_box = (is_box | (is_point & box.any(2, keepdim=True))) & self._spared(real, self.drop_box)
        box = torch.where(self._spared(real, self.points), box, ((first + last) / 2).repeat(1, 1, 2))
        has_phrase = phrase.any(2, keepdim=True) & self._spared(real, self.drop_phrase)
        phrase = torch.where(has_phrase, phrase, self.no_phrase)
        place = torch.where(has_box, fourier_features(box), self.no_box)
        objects = torch.where(real[..., None], self.to_objects(torch.cat([phrase, place], 2)), 0)
        return Conditioning(objects=objects, object_mask=real)

    def _spared(self, real: Bool[Tensor, "b n"], share: float) -> Bool[Tensor, "b n 1"]:
        """Which objects training does not drop, of which it drops a share."""
        if not self.training or not share:
            return torch.ones_like(real)[..., None]
        return (torch.rand(real.shape, device=real.device) >= share)[..., None]

    def example(self, b: int, size: tuple[int, int]) -> Float[Tensor, "b n d5"]:
        """30 objects, as many as GLIGEN reads, each with the whole image as its box."""
        value = torch.ones(b, 30, self.in_dim + 5)
        value[..., :2] = 0
        return value

    def silence(self, channels: int | None = None) -> None:
        """Changes nothing: the network's own gates start at 0."""


def fourier_features(box: Float[Tensor, "b n 4"]) -> Float[Tensor, "b n d"]:
    """Sines and cosines of all four coordinates, at frequencies from 1 to 100^(7/8), without a factor of pi.

    The order is GLIGEN's code's: for each frequency the four sines, then the four cosines.
    """
    frequencies = TEMPERATURE ** (torch.arange(FREQUENCIES, device=box.device) / FREQUENCIES)
    angles = frequencies[:, None] * box[..., None, :].float()
    return torch.stack([angles.sin(), angles.cos()], dim=3).flatten(2).to(box.dtype)
