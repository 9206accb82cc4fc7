"""The diffusion prior."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from composer.decomposition import draw as draw_number
from composer.denoiser import Cosine, NoiseLevels, level
from composer.samplers import Denoise, Progress, cosine_sigmas, dpmpp_2m, latents
from composer.transformer import Memory
from composer.unet import sinusoids

from .interface import Prior, text_embedding

STREAM = 900
"""Of `draw`, and the numbers above it: seeds of the candidates after the first."""


SIGMA_MAX = 80.0
"""Noise level that samplings start from."""


class DiffusionPrior(Prior):
    """Diffusion over image embeddings by a causal transformer (unCLIP, section 2.2; table 3).

    The sequence is: the caption's words, the text embedding, the noise level, the noised image embedding, and a final
    query, whose output is the estimate of the embedding itself: L = |f(z + sigma noise, sigma, caption) - z|^2. As it
    is causal, words and text are read once a sampling and not once a step.

    Noise is sigma (see `composer.denoiser`); the network sees the noised embedding scaled to unit variance and the
    level as the cosine schedule's time. Where the paper takes 64 steps of Analytic-DPM, this takes DPM-Solver++(2M).

    A short training learns what the caption says long before it learns to keep what little noise leaves of the
    embedding, and until then all draws of a caption are nearly the same. `max_snr` makes that part of the loss count,
    and `sigma_min` ends the sampling where the estimate can be trusted; neither is in the paper.

    Args:
        dim: See `Prior`.
        caption_dim: See `Prior`.
        width: See `Prior`.
        layers: See `Prior`.
        heads: See `Prior`.
        length: See `Prior`.
        guidance: See `Prior`.
        noise: Distribution of the noise levels of training; None is the paper's cosine schedule.
        steps: Steps of a sampling.
        candidates: Embeddings that are drawn for each that is given: the one with the largest dot product with the text
            embedding is kept. 2 in the paper.
        max_snr: The squared error weighs 1 + min(1 / sigma^2, max_snr); 0 is the paper's even weight.
        sigma_min: Noise level that the last step of a sampling starts from.
        noises: Noised embeddings, each at its own level, that training makes of every row. The caption is read once for
            all of them, and it is by far the longest part of the sequence. 1 in the paper.
    """

    def __init__(
        self,
        dim: int,
        caption_dim: int,
        width: int,
        layers: int,
        heads: int,
        length: int = 77,
        guidance: float = 1.0,
        noise: NoiseLevels | None = None,
        steps: int = 64,
        candidates: int = 2,
        max_snr: float = 0.0,
        sigma_min: float = 0.002,
        noises: int = 1,
    ):
        super().__init__(dim, caption_dim, width, layers, heads, length, guidance)
        if min(steps, candidates, noises) < 1:
            raise ValueError(
                f"expected steps, candidates and noises of at least 1, found {steps}, {candidates}, {noises}"
            )
        if max_snr < 0 or not 0 < sigma_min < SIGMA_MAX:
            raise ValueError(
                f"expected max_snr >= 0 and sigma_min in (0, {SIGMA_MAX:g}), found {max_snr} and {sigma_min}"
            )
        self.max_snr, self.sigma_min = max_snr, sigma_min
        self.noise, self.steps, self.candidates, self.noises = noise or Cosine(), steps, candidates, noises
        self.embed_level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_noised = nn.Linear(dim, width)
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.out = nn.Linear(width, dim)

    def forward(
        self,
        z: Float[Tensor, "b k d"],
        sigma: Float[Tensor, "b k"],
        caption: Float[Tensor, "b n c"],
        keep: Bool[Tensor, " b"],
    ) -> Float[Tensor, "b k d"]:
        """Estimates the clean embedding, for k noised ones a row that know nothing of each other.

        Args:
            z: Noised embeddings, z + sigma * noise.
            sigma: Noise levels.
            caption: Encoded captions.
            keep: False where a row goes without its text.
        """
        tokens, real = self.captions(caption, keep)
        last = self._last(z, sigma).flatten(1, 2)
        k, beside = z.shape[1], torch.zeros(tokens.shape[1], dtype=torch.long, device=z.device)
        branch = torch.arange(1, k + 1, device=z.device).repeat_interleave(3)
        x, real = torch.cat([tokens, last], dim=1), torch.cat([real, real.new_ones(last.shape[:2])], dim=1)
        x = self.transformer(x, real, branch=torch.cat([beside, branch]))
        estimate: Tensor = self.out(x[:, tokens.shape[1] + 2 :: 3])
        return estimate.float()

    def _last(self, z: Float[Tensor, "*b d"], sigma: Float[Tensor, "*b"]) -> Float[Tensor, "*b 3 w"]:
        """The tokens after the caption's: noise level, noised embedding, query."""
        z = z * (sigma**2 + 1).rsqrt()[..., None]
        noised = self.embed_noised(z)
        steps = sinusoids(level(sigma).flatten(), noised.shape[-1]).to(z.dtype).view_as(noised)
        return torch.stack([self.embed_level(steps), noised, self.query.expand_as(noised)], dim=-2)

    def loss(
        self,
        semantics: Float[Tensor, "b d"],
        caption: Float[Tensor, "b n c"],
        keep: Bool[Tensor, " b"],
        generator: torch.Generator,
    ) -> Float[Tensor, " b"]:
        """|f(z + sigma noise, sigma, caption) - z|^2, weighted; the mean over an embedding's numbers and the noises."""
        count = len(semantics) * self.noises
        u = (torch.arange(count) + torch.rand(count, generator=generator)) / count  # one level from each equal share
        u = u[torch.randperm(count, generator=generator)].clamp(1e-6, 1 - 1e-6)
        sigma = self.noise.sigma(u).to(semantics).view(-1, self.noises)
        clean = semantics[:, None].expand(-1, self.noises, -1)
        noise = torch.randn(clean.shape, generator=generator).to(semantics)
        error: Tensor = self(clean + sigma[..., None] * noise, sigma, caption, keep) - clean
        weight = 1 + (sigma**-2).clamp(max=self.max_snr)
        return (weight * error.square().mean(2)).mean(1)

    def denoiser(self, caption: Float[Tensor, "b n c"], guidance: float) -> Denoise:
        """The guided estimate as a sampler takes it; the captions are read here, once.

        Args:
            caption: Encoded captions, one a row of what will be denoised.
            guidance: Weight w of w f(z, caption) + (1 - w) f(z, nothing).
        """
        b, k = len(caption), 1 if guidance == 1 else 2
        keep = torch.arange(k, device=caption.device).repeat_interleave(b) == 0
        tokens, real = self.captions(caption.repeat(k, 1, 1), keep)
        start = tokens.shape[1]
        memory = Memory(start + 3)
        self.transformer(tokens, real, memory)

        def denoise(z: Tensor, sigma: Tensor) -> Tensor:
            memory.rewind(start)
            last = self._last(z.repeat(k, 1), sigma.repeat(k))
            x = self.transformer(last, keep.new_ones(last.shape[:2]), memory)[:, -1]
            estimates: tuple[Tensor, ...] = self.out(x).float().chunk(k)
            return estimates[0] if k == 1 else torch.lerp(estimates[1], estimates[0], guidance)

        return denoise

    def draw(
        self, caption: Float[Tensor, "b n c"], seeds: Sequence[int], guidance: float, progress: Progress
    ) -> Float[Tensor, "b d"]:
        """Draws `candidates` embeddings a row and keeps the one that agrees best with the text."""
        more = [draw_number(torch.tensor(seeds), STREAM + i, 1 << 62).tolist() for i in range(1, self.candidates)]
        fresh = [seed for group in (seeds, *more) for seed in group]
        sigmas = cosine_sigmas(self.steps, self.sigma_min, SIGMA_MAX)
        x = latents(fresh, (self.dim,), caption.device) * sigmas[0]
        denoise = self.denoiser(caption.repeat(self.candidates, 1, 1), guidance)
        drawn = dpmpp_2m(denoise, x, sigmas, progress).view(self.candidates, len(caption), self.dim)
        best = (drawn * text_embedding(caption, self.dim)).sum(2).argmax(0)
        kept: Tensor = drawn[best, torch.arange(len(best), device=best.device)]
        return kept
