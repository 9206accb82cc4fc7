"""Instance maps: what is where, and which pixels belong together."""

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn

from composer.conditioning import Condition, Conditioning, zero
from composer.decomposition import nearest

from .spatial import convolutions


class Instances(Condition):
    """Encodes categories and the borders between instances.

    Category ids become a learned embedding per pixel. Instance ids are arbitrary, so only the borders between them are
    read; renumbering the instances changes nothing.

    Args:
        categories: Number of categories; ids run from 1 to this, 0 is none.
        spatial_dim: Channels of the U-Net's map.
        embedding_dim: Width of a category's embedding.
        hidden: Channels between the two convolutions.
        dropout: Probability that joint dropout removes this condition from a row.
    """

    def __init__(
        self, categories: int, spatial_dim: int, embedding_dim: int = 8, hidden: int = 16, dropout: float = 0.5
    ):
        super().__init__(dropout)
        self.embedding = nn.Embedding(categories + 1, embedding_dim)
        self.encode = convolutions(embedding_dim + 1, hidden, spatial_dim)

    def forward(
        self, value: Shaped[Tensor, "b 2 h w"], keep: Bool[Tensor, " b"], size: tuple[int, int]
    ) -> Conditioning:
        """Encodes (category id, instance id), resized to `size` by nearest neighbour; see `Condition.forward`.

        Raises:
            ValueError: A category id is outside [0, categories]. Checked on the CPU only; on a GPU, reading the
                maximum would stall every step, and torch's own index assertion stops the run.
        """
        ids = nearest(value, size).long()
        if ids.device.type == "cpu" and ids.numel():
            low, high = (int(x) for x in ids[:, 0].aminmax())
            if low < 0 or high >= self.embedding.num_embeddings:
                raise ValueError(
                    f"expected category ids in 0..{self.embedding.num_embeddings - 1}, found {low}..{high}"
                )
        category = self.embedding(ids[:, 0]).movedim(-1, 1)
        maps = self.encode(torch.cat([category, borders(ids).to(category.dtype)], dim=1))
        return Conditioning(spatial=torch.where(keep[:, None, None, None], maps, 0))

    def example(self, b: int, size: tuple[int, int]) -> Shaped[Tensor, "b 2 h w"]:
        """A map of the image's size without any instance."""
        return torch.zeros(b, 2, *size, dtype=torch.long)

    def silence(self, channels: int | None = None) -> None:
        zero(self.encode[-1], channels)


def borders(ids: Shaped[Tensor, "b c h w"]) -> Bool[Tensor, "b 1 h w"]:
    """Marks the pixels that differ from one of their four neighbours in any channel: one pixel on either side."""
    border = torch.zeros_like(ids[:, :1], dtype=torch.bool)
    across = (ids[..., 1:, :] != ids[..., :-1, :]).any(1, keepdim=True)
    border[..., 1:, :] |= across
    border[..., :-1, :] |= across
    along = (ids[..., 1:] != ids[..., :-1]).any(1, keepdim=True)
    border[..., 1:] |= along
    border[..., :-1] |= along
    return border
