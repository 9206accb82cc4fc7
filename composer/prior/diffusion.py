"""The diffusion prior: a causal transformer that denoises image embeddings."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from composer.decomposition import draw as draw_number
from composer.diffusion.denoiser import Cosine, NoiseLevels, time_of
from composer.diffusion.samplers import Denoise, Progress, cosine_sigmas, dpmpp_2m, latents
from composer.networks.transformer import KVCache
from composer.networks.unet import sinusoids
from composer.prior.gaussian import Gaussian
from composer.prior.interface import Prior, has_caption, projection
from composer.prior.standard import Standard

STREAM = 900
"""The first of the streams of `draw` that give the seeds of the candidates after the first."""


class DiffusionPrior(Prior):
    """Diffusion over image embeddings by a causal transformer (unCLIP, section 2.2; table 3).

    The sequence is: the caption's words, the text embedding, the noise level, the noised image embedding, and a final
    query, whose output is the estimate of the embedding itself: L = |f(z + sigma noise, sigma, caption) - z|^2. As it
    is causal, their keys and values are computed once per sample, not once per step.

    Noise is sigma (see `composer.diffusion.denoiser`); the network sees the noised embedding scaled to unit variance
    and, unless `time` says otherwise, the level as the cosine schedule's time. Where the paper takes 64 steps of
    Analytic-DPM, this takes DPM-Solver++(2M).

    A short training learns to use the caption long before it learns to use the noised embedding at low noise levels,
    and until then all draws for a caption are nearly the same. With `linear`, the network starts as the best linear
    estimate and learns only a correction (see `Gaussian`); its squared error is given in units of that estimate's, and
    the query starts as the sum of the tokens that it would otherwise have to attend to. Not in the paper. It needs the
    principal components that `composer pca` computes.

    Args:
        dim: See `Prior`.
        caption_dim: See `Prior`.
        width: See `Prior`.
        layers: See `Prior`.
        heads: See `Prior`.
        length: See `Prior`.
        guidance: See `Prior`.
        noise: Distribution of the noise levels of training; None is the paper's cosine schedule.
        steps: Sampling steps.
        candidates: Embeddings drawn per result: the one with the largest dot product with the text embedding is kept. 2
            in the paper.
        linear: Whether the network corrects the best linear estimate; False predicts the embedding as in the paper.
        noises: Noised embeddings per training row, each at its own level. The caption, by far the longest part of the
            sequence, is processed once for all of them. 1 in the paper.
        scaled: See `Prior`; so are the next two.
        hidden: See `Prior`.
        null_length: See `Prior`.
        time: What the network is told of the noise level, see `composer.diffusion.denoiser.Denoiser`.
        standardised: Whether the network sees and estimates embeddings less their mean, in units of their standard
            deviation. It needs what `composer pca` finds; not with `linear`, which has units of its own.
        clamp: Largest number of an estimate while sampling, after guidance, in the network's units; None for no limit.

    Raises:
        ValueError: The arguments contradict each other.
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
        linear: bool = False,
        noises: int = 1,
        scaled: bool = True,
        hidden: int = 0,
        null_length: int = 0,
        time: Literal["cosine", "step"] = "cosine",
        standardised: bool = False,
        clamp: float | None = None,
    ):
        super().__init__(dim, caption_dim, width, layers, heads, length, guidance, scaled, hidden, null_length)
        if min(steps, candidates, noises) < 1:
            raise ValueError(
                f"expected steps, candidates and noises of at least 1, found {steps}, {candidates}, {noises}"
            )
        if linear and standardised:
            raise ValueError("linear has units of its own: expected linear or standardised, found both")
        self.noise, self.steps, self.candidates, self.noises = noise or Cosine(), steps, candidates, noises
        time_of(torch.ones(1), self.noise, time)  # raises where there is no such time
        self.time, self.clamp = time, clamp
        self.embed_level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_noised = projection(dim, hidden, width)
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.out = nn.Linear(width, dim)
        self.linear = Gaussian(dim) if linear else None
        self.standard = Standard(dim) if standardised else None
        if linear:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def adopt(self, statistics: Mapping[str, Tensor]) -> None:
        if (own := self.linear or self.standard) is None:
            super().adopt(statistics)
        else:
            own.adopt(statistics)

    def check_ready(self) -> None:
        if (own := self.linear or self.standard) is not None and not own.fitted:
            raise ValueError(
                "this prior has no principal components yet: compute them with `composer pca -c CONFIG`, then "
                "train or adopt them"
            )

    def forward(
        self,
        z: Float[Tensor, "b k d"],
        sigma: Float[Tensor, "b k"],
        caption: Float[Tensor, "b n c"],
        keep: Bool[Tensor, " b"],
    ) -> Float[Tensor, "b k d"]:
        """Estimates the clean embedding, for k noised ones per row that do not attend to each other.

        Args:
            z: Noised embeddings, z + sigma * noise, in the network's units.
            sigma: Noise levels.
            caption: Encoded captions.
            keep: False where a row has no text.
        """
        tokens, real = self.captions(caption, keep)
        k, beside = z.shape[1], torch.zeros(tokens.shape[1], dtype=torch.long, device=z.device)
        branch = torch.cat([beside, torch.arange(1, k + 1, device=z.device).repeat_interleave(3)])

        def run(last: Tensor) -> Tensor:
            last = last.flatten(1, 2)
            x, seen = torch.cat([tokens, last], dim=1), torch.cat([real, real.new_ones(last.shape[:2])], dim=1)
            queries: Tensor = self.transformer(x, seen, branch=branch)[:, tokens.shape[1] + 2 :: 3]
            return queries

        return self._estimate(z, sigma, run, self.captions.sentence(caption), has_caption(caption, keep))

    def _estimate(
        self,
        z: Float[Tensor, "b k d"],
        sigma: Float[Tensor, "b k"],
        run: Callable[[Tensor], Tensor],
        text: Float[Tensor, "b d"],
        captioned: Bool[Tensor, " b"],
    ) -> Float[Tensor, "b k d"]:
        """The clean embedding, where `run` takes the last tokens (b k 3 w) through the transformer to its queries."""
        if self.linear is None:
            last = self._last(z * (sigma**2 + 1).rsqrt()[..., None], sigma)
            out: Tensor = self.out(run(torch.stack([*last, self.query.expand_as(last[0])], dim=-2)))
            return out.float()
        with torch.autocast(z.device.type, enabled=False):
            centre = self.linear.centre(text, captioned)
            seen = self.linear.read(z, sigma, centre, captioned)
        last = self._last(seen, sigma)
        query = self.query + sum(last) + self.captions.text(text * captioned[:, None])[:, None]
        out = self.out(run(torch.stack([*last, query], dim=-2))).float()
        with torch.autocast(z.device.type, enabled=False):
            return self.linear.estimate(seen, out, sigma, centre, captioned)

    def _last(self, seen: Float[Tensor, "*b d"], sigma: Float[Tensor, "*b"]) -> tuple[Tensor, Tensor]:
        """The two tokens before the query: noise level, noised embedding."""
        noised = self.embed_noised(seen)
        steps = (
            sinusoids(time_of(sigma.flatten(), self.noise, self.time), noised.shape[-1]).to(seen.dtype).view_as(noised)
        )
        return self.embed_level(steps), noised

    def loss(
        self,
        semantics: Float[Tensor, "b d"],
        caption: Float[Tensor, "b n c"],
        keep: Bool[Tensor, " b"],
        generator: torch.Generator,
        among: tuple[int, int] | None = None,
    ) -> Float[Tensor, " b"]:
        """|f(z + sigma noise, sigma, caption) - z|^2, the mean over an embedding's numbers and the noises.

        With `linear`, each noise's in units of the best linear estimate's.
        """
        if self.standard is not None:
            semantics = self.standard(semantics)
        first, total = among or (0, len(semantics))
        own, count = slice(first, first + len(semantics)), total * self.noises
        u = (torch.arange(count) + torch.rand(count, generator=generator)) / count  # one level from each equal share
        u = u[torch.randperm(count, generator=generator)].clamp(1e-6, 1 - 1e-6)
        sigma = self.noise.sigma(u).to(semantics).view(-1, self.noises)[own]
        clean = semantics[:, None].expand(-1, self.noises, -1)
        noise = torch.randn(total, *clean.shape[1:], generator=generator)[own].to(semantics)
        error: Tensor = (self(clean + sigma[..., None] * noise, sigma, caption, keep) - clean).square().mean(2)
        if self.linear is not None:
            error = error / self.linear.error(sigma, has_caption(caption, keep))
        return error.mean(1)

    def denoiser(self, caption: Float[Tensor, "b n c"], guidance: float) -> Denoise:
        """The guided estimate, as samplers take it; the captions are processed here, once.

        Args:
            caption: Encoded captions, one per row of what will be denoised.
            guidance: Weight w of w f(z, caption) + (1 - w) f(z, no caption).
        """
        b, k = len(caption), 1 if guidance == 1 else 2
        keep = torch.arange(k, device=caption.device).repeat_interleave(b) == 0
        caption = caption.repeat(k, 1, 1)
        text, captioned = self.captions.sentence(caption), has_caption(caption, keep)
        tokens, real = self.captions(caption, keep)
        start = tokens.shape[1]
        cache = KVCache(start + 3)
        self.transformer(tokens, real, cache)

        def run(last: Tensor) -> Tensor:
            cache.rewind(start)
            query: Tensor = self.transformer(last[:, 0], keep.new_ones(len(last), 3), cache)[:, -1:]
            return query

        def denoise(z: Tensor, sigma: Tensor) -> Tensor:
            z, sigma = z.repeat(k, 1)[:, None], sigma.repeat(k)[:, None]
            estimates: tuple[Tensor, ...] = self._estimate(z, sigma, run, text, captioned)[:, 0].chunk(k)
            guided = estimates[0] if k == 1 else torch.lerp(estimates[1], estimates[0], guidance)
            return guided if self.clamp is None else guided.clamp(-self.clamp, self.clamp)

        return denoise

    def draw(
        self, caption: Float[Tensor, "b n c"], seeds: Sequence[int], guidance: float, progress: Progress
    ) -> Float[Tensor, "b d"]:
        """Draws `candidates` embeddings per row and keeps the one with the largest dot product with the text's."""
        more = [draw_number(torch.tensor(seeds), STREAM + i, 1 << 62).tolist() for i in range(1, self.candidates)]
        fresh = [seed for group in (seeds, *more) for seed in group]
        sigmas = cosine_sigmas(self.steps)
        x = latents(fresh, (self.dim,), caption.device) * sigmas[0]
        denoise = self.denoiser(caption.repeat(self.candidates, 1, 1), guidance)
        drawn = dpmpp_2m(denoise, x, sigmas, progress).view(self.candidates, len(caption), self.dim)
        if self.standard is not None:
            drawn = self.standard.inverse(drawn)
        best = (drawn * self.captions.sentence(caption)).sum(2).argmax(0)
        kept: Tensor = drawn[best, torch.arange(len(best), device=best.device)]
        return kept
