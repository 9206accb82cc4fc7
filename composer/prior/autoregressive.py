"""The autoregressive prior: a causal transformer over the quantised principal components of image embeddings."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from composer.autoregressive.drawing import choose, uniform
from composer.devices import to_float64
from composer.diffusion.samplers import Progress
from composer.networks.transformer import KVCache
from composer.prior.interface import Prior, has_caption, text_embedding
from composer.prior.pca import Codebook


class AutoregressivePrior(Prior):
    """Predicts the principal components of an image embedding one after the other (unCLIP, section 2.2; table 3).

    The sequence is: the caption's words, the text embedding, the quantised dot product of text and image embedding,
    then the embedding's code: its leading principal components, by decreasing variance, each in one of 1,024
    buckets. When sampling, the dot product is drawn from the top half of those seen in training; keys and values are
    cached, so that each component costs one position.

    The embeddings of the buckets are initialised as smooth functions of the value that a bucket stands for: with
    independent ones, a short training learns next to nothing. With `waves` they remain smooth functions, so that what
    is learned about a bucket also holds for its neighbours. Not in the paper.

    Needs the principal components of the training's embeddings, which `composer pca` computes.

    Args:
        dim: See `Prior`.
        caption_dim: See `Prior`.
        width: See `Prior`.
        layers: See `Prior`.
        heads: See `Prior`.
        dimensions: Components that are kept; 319 of 1024 in the paper, which lose less than 1% of the variance.
        buckets: Buckets per component.
        dot_buckets: Buckets of the dot product, each of which holds equally many training images. Not in the paper.
        length: See `Prior`.
        waves: A bucket's embedding and logit are sums of this many cosines of the bucket's index, which a small model
            learns sooner; None learns an independent embedding per bucket, as in the paper.
        guidance: See `Prior`; of the logits.
        percentile: Dot products are drawn above this percentile, in [0, 1), of those seen in training. The paper tried
            0.5, 0.7, 0.85 and 0.95 and found the first best.
    """

    basis: Tensor | None

    def __init__(
        self,
        dim: int,
        caption_dim: int,
        width: int,
        layers: int,
        heads: int,
        dimensions: int = 319,
        buckets: int = 1024,
        dot_buckets: int = 1024,
        waves: int | None = None,
        length: int = 77,
        guidance: float = 1.0,
        percentile: float = 0.5,
    ):
        super().__init__(dim, caption_dim, width, layers, heads, length, guidance)
        if dot_buckets < 1 or not 0 <= percentile < 1:
            raise ValueError(f"expected dot_buckets >= 1 and a percentile in [0, 1), found {dot_buckets}, {percentile}")
        if waves is not None and not 1 <= waves < buckets:
            raise ValueError(f"expected 1 to {buckets - 1} waves for {buckets} buckets, found {waves}")
        self.codebook = Codebook(dim, dimensions, buckets)
        self.dimensions, self.dot_buckets, self.percentile = dimensions, dot_buckets, percentile
        self.embed_dot = nn.Embedding(dot_buckets, width)
        self.no_dot = nn.Parameter(torch.randn(width) * 0.02)
        self.component = nn.Parameter(torch.randn(dimensions, width) * 0.02)
        self.register_buffer("basis", None if waves is None else cosines(buckets, waves), persistent=False)
        self.embed_code: nn.Module = nn.Embedding(buckets, width) if waves is None else nn.Linear(waves, width)
        self.out = nn.Linear(width, waves or buckets)
        tables = ((self.embed_dot, 0.3), *(() if waves else ((self.embed_code, 0.3), (self.out, 0.05))))
        with torch.no_grad():
            for table, std in tables:
                table.weight.copy_(std * smooth(*table.weight.shape))

    def adopt(self, statistics: Mapping[str, Tensor]) -> None:
        self.codebook.adopt(statistics)

    def check_ready(self) -> None:
        if not self.codebook.fitted:
            raise ValueError(
                "this prior has no principal components yet: compute them with `composer pca -c CONFIG`, then "
                "train or adopt them"
            )

    def forward(
        self,
        codes: Int[Tensor, "b k"],
        dot: Int[Tensor, " b"],
        caption: Float[Tensor, "b n c"],
        keep: Bool[Tensor, " b"],
    ) -> Float[Tensor, "b k q"]:
        """Computes the logits of each component's bucket, given the components before it.

        Args:
            codes: Bucket of each component, as `Codebook.encode` gives them.
            dot: Bucket of the dot product.
            caption: Encoded captions.
            keep: False where a row has no text and no dot product.
        """
        tokens, real = self._prefix(dot, caption, keep)
        later = self._read(codes[:, :-1]) + self.component[1:]
        x = torch.cat([tokens, later], dim=1)
        real = torch.cat([real, real.new_ones(later.shape[:2])], dim=1)
        return self._logits(self.transformer(x, real)[:, -self.dimensions :])

    def _read(self, codes: Int[Tensor, "*b"]) -> Float[Tensor, "*b w"]:
        token: Tensor = self.embed_code(codes if self.basis is None else self.basis[codes])
        return token

    def _logits(self, x: Float[Tensor, "*b w"]) -> Float[Tensor, "*b q"]:
        out: Tensor = self.out(x).float()
        return out if self.basis is None else out @ self.basis.T

    def _prefix(self, dot: Tensor, caption: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens before the code: words, text embedding, dot product."""
        tokens, real = self.captions(caption, keep)
        captioned = has_caption(caption, keep)
        agreed = torch.where(captioned[:, None], self.embed_dot(dot), self.no_dot) + self.component[0]
        also = torch.ones_like(captioned)[:, None]
        return torch.cat([tokens, agreed[:, None]], dim=1), torch.cat([real, also], dim=1)

    def loss(
        self,
        semantics: Float[Tensor, "b d"],
        caption: Float[Tensor, "b n c"],
        keep: Bool[Tensor, " b"],
        generator: torch.Generator,
        among: tuple[int, int] | None = None,
    ) -> Float[Tensor, " b"]:
        """-ln p(code | caption), in nats, the mean over the components; nothing is random."""
        codes = self.codebook.encode(semantics)
        agreement = (semantics * text_embedding(caption, self.dim)).mean(1)
        dot = (self.codebook.rank(agreement) * self.dot_buckets).long()
        logits = self(codes, dot, caption, keep)
        return F.cross_entropy(logits.transpose(1, 2), codes, reduction="none").mean(1)

    def draw(
        self, caption: Float[Tensor, "b n c"], seeds: Sequence[int], guidance: float, progress: Progress
    ) -> Float[Tensor, "b d"]:
        """Draws a dot product, then component by component, with logits w l(caption) + (1 - w) l(no caption)."""
        # one number in [0, 1) per choice, for inverse transform sampling
        chance = torch.stack([uniform(seed, self.dimensions + 1) for seed in seeds])
        agreed = torch.lerp(torch.full_like(chance[:, 0], self.percentile), torch.ones_like(chance[:, 0]), chance[:, 0])
        b, k = len(caption), 1 if guidance == 1 else 2
        keep = torch.arange(k, device=caption.device).repeat_interleave(b) == 0
        dot = (agreed * self.dot_buckets).long().clamp(max=self.dot_buckets - 1).to(caption.device)
        tokens, real = self._prefix(dot.repeat(k), caption.repeat(k, 1, 1), keep)
        cache, codes = KVCache(tokens.shape[1] + self.dimensions - 1), []
        for i in progress(range(self.dimensions)):
            logits = to_float64(self._logits(self.transformer(tokens, real, cache)[:, -1])).chunk(k)
            guided = logits[0] if k == 1 else torch.lerp(logits[1], logits[0], guidance)
            codes.append(choose(guided, chance[:, i + 1].to(guided.device)).to(caption.device))
            tokens = (self._read(codes[-1]) + self.component[min(i + 1, self.dimensions - 1)]).repeat(k, 1)[:, None]
            real = keep.new_ones(k * b, 1)
        return self.codebook.decode(torch.stack(codes, dim=1))


def cosines(buckets: int, waves: int) -> Float[Tensor, "{buckets} {waves}"]:
    """Cosines of a bucket's position, of increasing frequency and decreasing amplitude."""
    place, k = (torch.arange(buckets) + 0.5) / buckets, torch.arange(1, waves + 1)
    return torch.cos(math.pi * place[:, None] * k) / k.sqrt()


def smooth(buckets: int, width: int, waves: int = 16) -> Float[Tensor, "{buckets} {width}"]:
    """A random table of unit variance with similar neighbouring rows: sums of cosines of low frequency."""
    basis = cosines(buckets, waves)
    return basis @ torch.randn(waves, width) / basis.square().sum(1).mean().sqrt()
