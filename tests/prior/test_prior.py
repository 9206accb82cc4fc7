"""Priors against exact oracles: closed-form posteriors, enumerated distributions, numpy's SVD, torch's transformer."""

import copy
import itertools
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from composer import Cascade
from composer.__main__ import main
from composer.autoregressive.drawing import choose
from composer.cascade.options import SampleOptions
from composer.data.datasets import ImageDataset, collate
from composer.data.embeddings import write_embeddings
from composer.decomposition import Decomposer, Decomposition
from composer.diffusion.samplers import cosine_sigmas, latents
from composer.evaluation.adherence import Evaluation, quantise
from composer.evaluation.prior import markdown, mean_pairwise_cosine, measure_embeddings, measure_pictures
from composer.evaluation.prompts import Prompt, answer, seeds_of
from composer.evaluation.samples import open_sample
from composer.images.sheet import read_recipe
from composer.networks.transformer import CausalTransformer, KVCache
from composer.prior import AutoregressivePrior, DiffusionPrior, Embeddings, Prior
from composer.prior.autoregressive import smooth
from composer.prior.interface import text_embedding, to_sphere
from composer.prior.pca import DOT_QUANTILES, Codebook, dimensions_for, fit_pca
from composer.scenes import render_batch, write_scenes
from composer.tasks.recipe import parse_recipe
from composer.training import checkpoint as checkpoints
from composer.training.cli import ModelAlone
from decomposers import Agreement, Caption, Semantics
from tests import conftest

DIM, WORDS = 6, 5
TINY: dict[str, Any] = {"dim": DIM, "caption_dim": 8, "width": 16, "layers": 2, "heads": 2, "length": WORDS}


class Read(Decomposer):
    """Encodes a caption by its letters: one entry a word, then the sentence."""

    def forward(self, batch):
        rows = []
        for caption in batch["caption"]:
            words = caption.split()[:WORDS]
            row = torch.zeros(WORDS + 1, 9)
            for i, word in enumerate(words):
                row[i, :8] = torch.randn(8, generator=torch.Generator().manual_seed(sum(map(ord, word))))
                row[i, 8] = 1
            if words:
                row[-1] = row[:-1].sum(0)
                row[-1, DIM:8], row[-1, 8] = 0, 1
            rows.append(row)
        return torch.stack(rows)

    def preview(self, value):
        raise NotImplementedError

    def distance(self, wanted, got):
        raise NotImplementedError


def livened(prior):
    """Weights with something to say, whatever a fresh network starts with."""
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return prior.eval()


def embeddings(n=400, d=DIM):
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(5))
    return to_sphere(torch.randn(n, d, generator=torch.Generator().manual_seed(6)) @ mixing + 0.5)


def diffusion(**changes):
    return livened(DiffusionPrior(**TINY | {"steps": 8} | changes)).reads(Read())


def autoregressive(**changes):
    prior = livened(AutoregressivePrior(**TINY | {"dimensions": 3, "buckets": 8, "dot_buckets": 4} | changes))
    z = embeddings()
    prior.adopt(fit_pca(z, z + torch.randn(z.shape, generator=torch.Generator().manual_seed(7))))
    return prior.reads(Read())


def corrected(**changes):
    """A diffusion prior that corrects the best linear estimate."""
    prior, z = diffusion(**{"linear": True} | changes), embeddings()
    prior.adopt(fit_pca(z, z + torch.randn(z.shape, generator=torch.Generator().manual_seed(7))))
    return prior


def waved(**changes):
    return autoregressive(**{"waves": 5} | changes)


KINDS = pytest.mark.parametrize("make", [diffusion, corrected, autoregressive, waved])
CAPTIONS = ["a red cube", "two small green cones on", "sky"]


# The transformer


def test_the_transformer_is_torchs_own_with_a_causal_mask():
    ours, theirs = CausalTransformer(16, 2, 4), []
    block: Any
    for block in ours.blocks:
        layer = nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", norm_first=True, batch_first=True)
        attention = {"in_proj_weight": block.qkv.weight, "in_proj_bias": block.qkv.bias}
        attention |= {"out_proj.weight": block.out.weight, "out_proj.bias": block.out.bias}
        layer.self_attn.load_state_dict(attention)
        for own, other in (
            (block.attention_norm, layer.norm1),
            (block.mlp_norm, layer.norm2),
            (block.mlp[0], layer.linear1),
            (block.mlp[2], layer.linear2),
        ):
            other.load_state_dict(own.state_dict())
        theirs.append(layer)
    x, mask = torch.randn(3, 7, 16), nn.Transformer.generate_square_subsequent_mask(7)
    expected = x
    for layer in theirs:
        expected = layer(expected, mask, is_causal=True)
    torch.testing.assert_close(ours(x, torch.ones(3, 7, dtype=torch.bool)), F.layer_norm(expected, (16,)))


@torch.no_grad()
def test_padding_changes_nothing_for_others_and_memory_nothing_at_all():
    network, x = CausalTransformer(16, 2, 4), torch.randn(2, 7, 16)
    real = torch.ones(2, 7, dtype=torch.bool)
    real[0, :2] = False
    whole = network(x, real)
    torch.testing.assert_close(whole[:1, 2:], network(x[:1, 2:], real[:1, 2:]))
    cache = KVCache(8)
    parts = [network(x[:, a:b], real[:, a:b], cache) for a, b in ((0, 3), (3, 4), (4, 7))]
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    cache.rewind(3)
    torch.testing.assert_close(network(x[:, 3:], real[:, 3:], cache), whole[:, 3:])
    with pytest.raises(ValueError, match="at most 8 positions, found 9"):
        network(x[:, :2], real[:, :2], cache)


# Principal components and buckets


def test_components_are_those_of_numpys_svd():
    z = embeddings(d=9)
    found = fit_pca(z, z)
    wide = z.double().numpy()
    _, s, vt = np.linalg.svd(wide - wide.mean(0))
    np.testing.assert_allclose(found["variance"], s**2 / len(z), rtol=1e-5)
    assert (np.diff(found["variance"]) <= 0).all()
    np.testing.assert_allclose(np.abs((found["components"].numpy() * vt).sum(1)), 1, atol=1e-5)
    shares = (s**2).cumsum() / (s**2).sum()
    for share in (0.5, 0.9, 0.99, 1.0):
        assert dimensions_for(found["variance"], share) == min(int(np.argmax(shares >= share - 1e-12)) + 1, 9)
    with pytest.raises(ValueError, match="more than 9 embeddings"):
        fit_pca(z[:9], z[:9])


def test_what_is_left_out_is_the_variance_of_the_other_components():
    z = embeddings()
    book, found = Codebook(DIM, 3, 4096), fit_pca(z, z)
    book.adopt(found)
    lost = (book.decode(book.encode(z)) - z).square().sum(1).mean()
    torch.testing.assert_close(lost, found["variance"][3:].sum(), rtol=1e-3, atol=1e-6)


def test_buckets_are_as_wide_as_they_say_and_codes_come_back():
    z = embeddings()
    book = Codebook(DIM, DIM, 64)
    assert not book.fitted
    book.adopt(fit_pca(z, z))
    assert book.fitted
    error = (book.decode(book.encode(z)) - z) @ book.components.T
    assert (error.abs() <= (book.high - book.low) / 64 / 2 + 1e-5).all()
    codes = torch.randint(0, 64, (200, DIM))
    assert torch.equal(book.encode(book.decode(codes)), codes)
    assert book.encode(z).amin() == 0 and book.encode(z).amax() == 63
    assert book.encode(100 * z).amin() == 0 and book.encode(100 * z).amax() == 63
    with pytest.raises(ValueError, match="of width 5"):
        Codebook(5, 5, 64).adopt(fit_pca(z, z))


def test_the_rank_of_a_dot_product_is_the_share_below_it():
    z, text = embeddings(5000), embeddings(5000).roll(1, 0)
    book = Codebook(DIM, 2, 4)
    book.adopt(fit_pca(z, text))
    cosine = F.cosine_similarity(z, text)
    expected = (cosine[:, None] > cosine).double().mean(1)
    assert (book.rank(cosine) - expected).abs().max() < 2 / DOT_QUANTILES
    assert book.rank(torch.tensor([-2.0, 2.0])).tolist() == [0, pytest.approx(1, abs=1e-5)]
    assert book.rank(torch.tensor([2.0])) < 1


# The autoregressive prior


def test_choosing_follows_a_handmade_distribution_exactly():
    p = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.float64)
    chance = torch.arange(1000, dtype=torch.float64) / 1000
    counts = torch.bincount(choose(p.log().expand(1000, 4), chance), minlength=4)
    assert (counts - 1000 * p).abs().max() <= 1 and counts[1] == 0


@torch.no_grad()
def every_code(prior, caption, keep, dot):
    """All codes, and the logits of each."""
    codes = torch.tensor(list(itertools.product(range(prior.codebook.buckets), repeat=prior.dimensions)))
    n = len(codes)
    return codes, prior(codes, dot.expand(n), caption.expand(n, -1, -1), torch.full((n,), keep))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_sampled_codes_have_the_frequencies_of_the_enumerated_joint(guidance):
    prior = autoregressive(dimensions=2, buckets=4, dot_buckets=1)
    caption, dot = Read()({"caption": ["a red cube"]}), torch.zeros(1, dtype=torch.long)
    codes, logits = every_code(prior, caption, True, dot)
    nothing = every_code(prior, caption, False, dot)[1]
    guided = (guidance * logits + (1 - guidance) * nothing).log_softmax(2)
    joint = guided.gather(2, codes[..., None]).sum((1, 2)).exp()
    torch.testing.assert_close(joint.sum(), torch.tensor(1.0))
    n = 10_000
    drawn = prior.draw(caption.expand(n, -1, -1), range(n), guidance, lambda steps: steps)
    found = prior.codebook.encode(drawn)
    counts = torch.bincount(found[:, 0] * 4 + found[:, 1], minlength=16)
    chi = ((counts - n * joint).square() / (n * joint)).sum()
    assert chi < 44  # 15 degrees of freedom: a right sampler exceeds this once in ten thousand


def test_the_loss_is_the_negative_log_likelihood_a_component():
    prior = autoregressive(dimensions=2, buckets=4, dot_buckets=1)
    caption = Read()({"caption": ["a red cube"]})
    codes, logits = every_code(prior, caption, True, torch.zeros(1, dtype=torch.long))
    log_p = logits.log_softmax(2).gather(2, codes[..., None]).sum((1, 2))
    with torch.no_grad():
        z, keep = prior.codebook.decode(codes), torch.ones(16, dtype=torch.bool)
        loss = prior.loss(z, caption.expand(16, -1, -1), keep, torch.Generator())
    torch.testing.assert_close(loss, -log_p / 2)


def test_no_component_sees_itself_or_a_later_one():
    prior = autoregressive(dimensions=5, buckets=8)
    caption, keep = Read()({"caption": CAPTIONS}), torch.ones(3, dtype=torch.bool)
    codes, dot = torch.randint(0, 8, (3, 5)), torch.tensor([0, 1, 3])
    with torch.no_grad():
        before = prior(codes, dot, caption, keep)
        for j in range(5):
            other = codes.clone()
            other[:, j] = (other[:, j] + 3) % 8
            change = (prior(other, dot, caption, keep) - before).abs().amax((0, 2))
            assert (change[: j + 1] == 0).all() and (change[j + 1 :] > 1e-3).all()
        assert (prior(codes, (dot + 1) % 4, caption, keep) - before).abs().amax((0, 2)).min() > 1e-3
        assert (prior(codes, dot, caption.roll(1, 0), keep) - before).abs().amax((0, 2)).min() > 1e-3


@torch.no_grad()
def test_drawing_with_remembered_keys_is_drawing_without():
    prior = autoregressive(dimensions=4)
    caption, seeds = Read()({"caption": CAPTIONS}), [3, 4, 5]
    codes, keep = torch.zeros(3, 4, dtype=torch.long), torch.ones(3, dtype=torch.bool)
    chance = torch.stack(
        [torch.rand(5, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
    )
    dot = ((0.5 + chance[:, 0] / 2) * 4).long()
    for j in range(4):
        guided = 2.5 * prior(codes, dot, caption, keep) - 1.5 * prior(codes, dot, caption, ~keep)
        codes[:, j] = choose(guided[:, j].double(), chance[:, j + 1])
    drawn = prior.draw(caption, seeds, 2.5, lambda steps: steps)
    assert torch.equal(prior.codebook.encode(drawn), codes)


@pytest.mark.parametrize(("percentile", "seen"), [(0.0, {0, 1, 2, 3}), (0.5, {2, 3}), (0.75, {3})])
def test_the_dot_product_comes_from_the_top(percentile, seen):
    prior, used = autoregressive(percentile=percentile), []
    prior.embed_dot.register_forward_hook(lambda module, inputs, output: used.extend(inputs[0].tolist()))
    prior.sample(["sky"], n=64)
    assert set(used) == seen


def test_tables_begin_smooth():
    table = smooth(1024, 256)
    assert float(table.var()) == pytest.approx(1, rel=0.1)
    alike = F.cosine_similarity(table[:-1], table[1:])
    assert alike.min() > 0.99 and F.cosine_similarity(table[:300], table[-300:]).abs().mean() < 0.3


def test_with_waves_neighbouring_buckets_are_alike_and_any_peak_is_within_reach():
    prior = waved(buckets=64, waves=16)
    codes = torch.arange(64)[:, None].expand(-1, 3)
    read = prior._read(codes[:, 0]).detach()
    assert (read[1:] - read[:-1]).norm(dim=1).max() < 0.5 * read.std(0).norm()
    wanted = F.softmax(-(((torch.arange(64) - 40.3) / 4) ** 2) / 2, dim=0)
    basis = prior.basis - prior.basis.mean(0)
    found = basis @ torch.linalg.lstsq(basis, wanted.log().clamp(min=-12)[:, None]).solution
    assert 0.5 * float((F.softmax(found[:, 0], dim=0) - wanted).abs().sum()) < 0.05


def test_it_learns_a_handmade_distribution():
    """The first component is a coin; the second is the first in nine of ten cases. Entropy: ln 2 + H(0.9)."""
    torch.manual_seed(0)
    prior = AutoregressivePrior(**TINY | {"dimensions": 2, "buckets": 2, "dot_buckets": 1})
    z = embeddings()
    prior.adopt(fit_pca(z, z))
    table = torch.tensor([[0, 0]] * 9 + [[0, 1]] + [[1, 1]] * 9 + [[1, 0]])
    optimiser = torch.optim.Adam(prior.parameters(), 5e-3)
    caption, keep = Read()({"caption": ["sky"] * 20}), torch.ones(20, dtype=torch.bool)
    for _ in range(100):
        loss = prior.loss(prior.codebook.decode(table), caption, keep, torch.Generator()).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    entropy = math.log(2) - 0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    assert float(2 * loss.detach()) == pytest.approx(entropy, abs=0.01)
    found = prior.codebook.encode(prior.eval().draw(caption[:1].expand(4000, -1, -1), range(4000), 1.0, iter))
    share = (found[:, 0] == found[:, 1]).float().mean()
    assert float(share) == pytest.approx(0.9, abs=0.02)


def test_without_principal_components_it_says_what_to_do():
    prior = AutoregressivePrior(**TINY, dimensions=3).reads(Read())
    with pytest.raises(ValueError, match="composer pca"):
        prior.sample(["sky"])
    with pytest.raises(ValueError, match="needs no statistics"):
        diffusion().adopt({})
    with pytest.raises(ValueError, match="missing or of another shape"):
        prior.adopt({"mean": torch.zeros(DIM)})


# The diffusion prior


class Gaussian(DiffusionPrior):
    """p(z | caption) = N(2 * text embedding, diag(SPREAD)), whose denoiser is known."""

    SPREAD = torch.linspace(0.05, 1.2, DIM)

    def denoiser(self, caption, guidance):
        mean = 2 * text_embedding(caption, self.dim)
        return lambda z, sigma: mean + (z - mean) * self.SPREAD / (self.SPREAD + sigma[:, None] ** 2)


def test_the_sampler_follows_an_exact_posterior_to_its_end():
    """The probability flow of a Gaussian is known: x(0) = m + (x(s) - m) sqrt(c / (c + s^2))."""
    prior = Gaussian(**TINY, candidates=1, steps=64)
    caption = Read()({"caption": CAPTIONS})
    start = latents([1, 2, 3], (DIM,)) * float(cosine_sigmas(64)[0])
    mean, spread = 2 * text_embedding(caption, DIM), prior.SPREAD
    expected = mean + (start - mean) * (spread / (spread + cosine_sigmas(64)[0] ** 2)).sqrt()
    drawn = prior.draw(caption, [1, 2, 3], 1.0, lambda steps: steps)
    assert (drawn - expected).abs().max() < 0.02


def test_samples_have_the_posteriors_mean_and_spread():
    prior = Gaussian(**TINY, candidates=1, steps=32)
    caption = Read()({"caption": ["sky"]})
    drawn = prior.draw(caption.expand(20_000, -1, -1), range(20_000), 1.0, lambda steps: steps)
    # noise of level 80 is where the sampling begins, though the noised posterior would be around the mean there
    mean = 2 * text_embedding(caption, DIM)[0] * (1 - (prior.SPREAD / (prior.SPREAD + 80**2)).sqrt())
    assert ((drawn.mean(0) - mean) / prior.SPREAD.sqrt()).abs().max() < 5 / math.sqrt(20_000)
    torch.testing.assert_close(drawn.T.cov(), prior.SPREAD.diag(), rtol=0.05, atol=0.03)


def test_of_two_draws_the_one_closer_to_the_text_is_kept():
    caption = Read()({"caption": CAPTIONS})
    one, two, many = (Gaussian(**TINY, candidates=k, steps=8) for k in (1, 2, 5))
    text = text_embedding(caption, DIM)
    dots = [(prior.draw(caption, [7, 8, 9], 1.0, lambda s: s) * text).sum(1) for prior in (one, two, many)]
    assert (dots[1] >= dots[0]).all() and (dots[2] >= dots[1]).all() and (dots[2] > dots[0]).any()


@pytest.mark.parametrize("guidance", [1.0, 0.0, 3.0])
@pytest.mark.parametrize("make", [diffusion, corrected])
@torch.no_grad()
def test_captions_are_read_once_and_guidance_is_the_weighted_sum(make, guidance):
    prior, caption = make(), Read()({"caption": CAPTIONS})
    denoise, keep = prior.denoiser(caption, guidance), torch.ones(3, dtype=torch.bool)
    for sigma in (30.0, 0.4):  # the second call finds the captions read
        z, levels = torch.randn(3, DIM), torch.full((3,), sigma)
        with_text, without = (prior(z[:, None], levels[:, None], caption, k)[:, 0] for k in (keep, ~keep))
        expected = guidance * with_text + (1 - guidance) * without
        torch.testing.assert_close(denoise(z, levels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [diffusion, corrected])
@torch.no_grad()
def test_several_noises_of_a_row_know_nothing_of_each_other(make):
    prior, caption, keep = make(), Read()({"caption": CAPTIONS}), torch.tensor([True, False, True])
    z, sigma = torch.randn(3, 4, DIM), torch.rand(3, 4) * 3
    each = [prior(z[:, i : i + 1], sigma[:, i : i + 1], caption, keep) for i in range(4)]
    torch.testing.assert_close(prior(z, sigma, caption, keep), torch.cat(each, 1))


def test_rows_of_several_processes_draw_what_those_of_one_do():
    torch.manual_seed(0)
    prior, z, keep = diffusion(noises=3), embeddings(6), torch.arange(6) % 2 == 0
    caption = Read()({"caption": CAPTIONS * 2})

    def loss(rows, among):
        generator = torch.Generator().manual_seed(4)
        return prior.loss(z[rows], caption[rows], keep[rows], generator, among)

    whole = loss(slice(None), None)
    parts = [loss(slice(first, first + 2), (first, 6)) for first in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_the_loss_is_the_squared_error_of_the_embedding_itself():
    prior, z = diffusion(noises=2), embeddings(4096)
    caption = Read()({"caption": ["sky"]}).expand(4096, -1, -1)
    keep, seen = torch.ones(4096, dtype=torch.bool), {}

    def estimate(noised, sigma, *_):
        seen.update(noised=noised, sigma=sigma)
        return torch.zeros_like(noised)

    prior.forward = estimate
    loss = prior.loss(z, caption, keep, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, z.square().mean(1))
    noise = (seen["noised"] - z[:, None]) / seen["sigma"][..., None]
    assert noise.shape == (4096, 2, DIM)
    torch.testing.assert_close(noise.std(), torch.tensor(1.0), rtol=0.02, atol=0)
    time = seen["sigma"].flatten().atan() * 2 / math.pi  # the cosine schedule: uniform in time
    assert (time.sort().values - torch.linspace(0, 0.9946, 8192)).abs().max() < 2e-3


def test_it_learns_the_best_estimate_of_a_gaussian():
    """z = A t + noise of variance c: no estimate errs less than c s^2 / (c + s^2); without looking at z it were c."""
    torch.manual_seed(0)
    prior = DiffusionPrior(**TINY | {"width": 32, "layers": 1, "noises": 8})
    optimiser = torch.optim.Adam(prior.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 200)
    mixing, c, generator = torch.linalg.qr(torch.randn(DIM, DIM))[0], 0.25, torch.Generator().manual_seed(0)

    def draw(n):
        caption = torch.zeros(n, WORDS + 1, 9)
        caption[:, -1, :DIM], caption[:, -1, -1] = torch.randn(n, DIM, generator=generator), 1
        return text_embedding(caption, DIM) @ mixing + c**0.5 * torch.randn(n, DIM, generator=generator), caption

    for _ in range(200):
        z, caption = draw(48)
        loss = prior.loss(z, caption, torch.ones(48, dtype=torch.bool), generator).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    for s in (0.6, 20.0):
        z, caption = draw(2048)
        with torch.no_grad():
            noised, level = z + s * torch.randn(z.shape, generator=generator), torch.full((2048,), s)
            found = prior(noised[:, None], level[:, None], caption, torch.ones(2048, dtype=torch.bool))[:, 0]
            error = (found - z).square().mean()
        assert 0.95 < float(error) / (c * s**2 / (c + s**2)) < 1.45


def linear_world(n=20_000):
    """z = (t - 1/2) A + noise of covariance C, with texts t; A, C, t and z."""
    generator = torch.Generator().manual_seed(3)
    mixing, root = (torch.randn(DIM, DIM, generator=generator) * size for size in (0.8, 0.3))
    text = to_sphere(torch.randn(n, DIM, generator=generator))
    return mixing, root.T @ root, text, (text - 0.5) @ mixing + torch.randn(n, DIM, generator=generator) @ root


def captioned(text):
    caption = torch.zeros(len(text), WORDS + 1, 9)
    caption[:, -1, :DIM], caption[:, -1, -1] = text, 1
    return caption


def test_before_any_training_it_is_the_best_linear_estimate():
    """With text, the posterior of (t - 1/2) A + noise in closed form; without, numpy's best line through z itself."""
    mixing, spread, text, z = linear_world()
    prior = DiffusionPrior(**TINY, linear=True)
    with pytest.raises(ValueError, match="composer pca"):
        prior.check_ready()
    prior.adopt(fit_pca(z, text))
    few, sigma = captioned(text[:2000]), torch.tensor([0.05, 0.4, 30.0]).expand(2000, 3)
    noise = torch.randn(2000, 3, DIM, generator=torch.Generator().manual_seed(4))
    noised, told = z[:2000, None] + sigma[..., None] * noise, torch.ones(2000, dtype=torch.bool)
    with torch.no_grad():
        found, blind = prior(noised, sigma, few, told), prior(noised, sigma, few, ~told)
    mean, everything = (text[:2000] - 0.5) @ mixing, torch.from_numpy(np.cov(z.numpy().T)).float()
    for i, s in enumerate((0.05, 0.4, 30.0)):
        for middle, c, got in ((mean, spread, found), (z.mean(0), everything, blind)):
            gain = torch.linalg.solve(c + s**2 * torch.eye(DIM), c)
            torch.testing.assert_close(got[:, i], middle + (noised[:, i] - middle) @ gain, rtol=0.02, atol=0.05)
    error = prior.linear.error(sigma, told)[0]
    torch.testing.assert_close((found - z[:2000, None]).square().mean((0, 2)), error, rtol=0.05, atol=0)
    loss = prior.loss(z[:2000], few, told, torch.Generator().manual_seed(0))
    assert float(loss.detach().mean()) == pytest.approx(1, abs=0.05)  # in units of the best linear estimate's


def test_draws_of_an_untrained_correction_have_the_mean_and_the_spread_of_the_data():
    mixing, spread, text, z = linear_world()
    prior = DiffusionPrior(**TINY, linear=True, candidates=1, steps=32)
    prior.adopt(fit_pca(z, text))
    drawn = prior.draw(captioned(text[:1]).expand(4000, -1, -1), range(4000), 1.0, lambda steps: steps)
    torch.testing.assert_close(drawn.mean(0), (text[0] - 0.5) @ mixing, rtol=0, atol=0.06)
    torch.testing.assert_close(drawn.T.cov(), spread, rtol=0.1, atol=0.04)
    with pytest.raises(ValueError, match=r"width 6.*missing or of another shape"):
        prior.adopt({"mean": torch.zeros(DIM)})


# What both have in common


@KINDS
def test_a_row_depends_on_its_caption_and_its_seed_alone(make):
    prior = make()
    together = prior.sample(CAPTIONS, n=2, seeds=[0, 1, 2, 3, 4, 5])
    assert together.shape == (6, DIM)
    torch.testing.assert_close(together, prior.sample(CAPTIONS, n=2))
    torch.testing.assert_close(together.square().mean(1), torch.ones(6))
    alone = torch.cat([prior.sample([CAPTIONS[i // 2]], seeds=[i]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    assert (prior.sample(["sky"], n=2)[0] - prior.sample(["sky"], n=2)[1]).abs().max() > 1e-3
    assert (prior.sample(["a", "sky"], seeds=[7, 7])[0] - prior.sample(["sky"], seeds=[7])[0]).abs().max() > 1e-3


@KINDS
def test_sampling_touches_no_global_state(make):
    prior = make().train()
    before = torch.get_rng_state()
    prior.sample(["sky"], n=3)
    assert torch.equal(before, torch.get_rng_state()) and prior.training


@KINDS
def test_a_dropped_caption_and_an_absent_one_are_the_same(make):
    prior = make()
    given, absent = Read()({"caption": CAPTIONS}), Read()({"caption": [""] * 3})
    z, keep = embeddings(3), torch.ones(3, dtype=torch.bool)
    with torch.no_grad():
        loss = [
            prior.loss(z, caption, kept, torch.Generator().manual_seed(0))
            for caption, kept in ((given, ~keep), (given.roll(1, 0), ~keep), (absent, keep), (given, keep))
        ]
    assert torch.equal(loss[0], loss[1]) and torch.equal(loss[0], loss[2]) and not torch.allclose(loss[0], loss[3])
    torch.testing.assert_close(prior.sample([""], seeds=[3], guidance=1), prior.sample([""], seeds=[3], guidance=4))


@KINDS
def test_words_matter_and_their_order(make):
    prior, z = make(), embeddings(1)
    first, second = (
        prior.loss(z, Read()({"caption": [c]}), torch.tensor([True]), torch.Generator().manual_seed(0))
        for c in ("red cube", "cube red")  # the sentence's embedding is the same
    )
    assert not torch.allclose(first, second)


@KINDS
def test_mistakes_are_explained(make):
    prior = make()
    with pytest.raises(ValueError, match=r"4 seeds \(one per row\), found .* 2 and 1 seeds"):
        prior.sample(["a", "b"], n=2, seeds=[0])
    with pytest.raises(ValueError, match="list of captions"):
        prior.sample("a red cube")
    with pytest.raises(ValueError, match="at most 5 words, found 7"):
        prior.captions(torch.ones(1, 8, 9), torch.tensor([True]))
    prior.encode = None
    with pytest.raises(ValueError, match=r"Prior\.load"):
        prior.sample(["a"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"heads": 3}, "the heads divide"),
        ({"caption_dim": 4}, "hold the embedding's 6 channels"),
        ({"steps": 0}, "at least 1"),
        ({"noises": 0}, "at least 1"),
    ],
)
def test_impossible_sizes_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        DiffusionPrior(**TINY | changes)


@pytest.mark.parametrize(
    "changes",
    [{"dimensions": 7}, {"percentile": 1.0}, {"dot_buckets": 0}, {"buckets": 1}, {"waves": 0}, {"waves": 1024}],
)
def test_impossible_codes_are_refused(changes):
    with pytest.raises(ValueError, match="found"):
        AutoregressivePrior(**TINY | {"dimensions": 3} | changes)


# On disk

CLIP = {"class_path": "decomposers.{}", "init_args": {"weights": "asset:scenes_clip"}}


def spec(kind, **arguments):
    own = {"dim": 128, "caption_dim": 128, "width": 16, "layers": 1, "heads": 2} | arguments
    readers = {"text": "Caption", "semantics": "Semantics"}
    return {
        "name": "tiny",
        "priors": [{"file": "prior.safetensors", "class_path": f"composer.prior.{kind}", "init_args": own}],
        "decomposers": {name: {**CLIP, "class_path": f"decomposers.{cls}"} for name, cls in readers.items()},
    }


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("DiffusionPrior", {"steps": 3}),
        ("DiffusionPrior", {"steps": 3, "linear": True}),
        ("AutoregressivePrior", {"dimensions": 4}),
        ("AutoregressivePrior", {"dimensions": 4, "waves": 8}),
    ],
)
def test_a_saved_prior_draws_the_same(kind, own, tmp_path):
    prior = livened(Prior.from_spec(spec(kind, **own)))
    if "steps" not in own or "linear" in own:
        z = embeddings(300, 128)
        prior.adopt(fit_pca(z, z.roll(1, 0)))
    prior.save(tmp_path / "prior", "# card\n")
    again = Prior.load(tmp_path / "prior")
    wanted = prior.sample(["a red cube on sand"], n=2)
    assert torch.equal(again.sample(["a red cube on sand"], n=2), wanted)
    assert len(again.sha256) == 64 and (tmp_path / "prior" / "README.md").read_text() == "# card\n"
    assert again.image_reader()({"image": torch.zeros(1, 3, 64, 64)}).shape == wanted[:1].shape
    with pytest.raises(ValueError, match="found a prior"):
        Cascade.load(tmp_path / "prior")
    with pytest.raises(ValueError, match="expected a model with priors"):
        Prior.load("scenes256")
    weights = tmp_path / "prior" / "prior.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="damaged or was changed"):
        Prior.load(tmp_path / "prior")


@pytest.mark.parametrize("path", ["os.system", "composer.Denoiser", "composer.prior.Codebook", "decomposers.Caption"])
def test_a_configuration_can_name_priors_alone(path, tmp_path):
    Prior.from_spec(spec("DiffusionPrior")).save(tmp_path / "prior")
    config = tmp_path / "prior" / "config.json"
    found = json.loads(config.read_text())
    found["priors"][0]["class_path"] = path
    with pytest.raises(ValueError, match=r"not one of the modules|expected the name of a Prior"):
        Prior.from_spec(found)


# Training, and the commands around it


class Captioned(ImageDataset):
    """Four colours, captioned."""

    COLOURS = ("red", "green", "blue", "yellow")

    def __len__(self):
        return 64

    def row(self, index, seed):
        value = torch.randn(3, 1, 1, generator=torch.Generator().manual_seed(index % 4)).clamp(-1, 1)
        return {"image": value.expand(3, 64, 64).clone(), "caption": f"a {self.COLOURS[index % 4]} cube"}


def readers():
    return Decomposition(
        {"text": Caption(weights="asset:scenes_clip"), "semantics": Semantics(weights="asset:scenes_clip")}
    )


def test_embeddings_come_back_as_they_were_computed(tmp_path):
    seen = []
    write_embeddings(Captioned(), readers(), tmp_path / "e", rows=24, progress=seen.append)
    rows, images = Embeddings(str(tmp_path / "e")), Captioned()
    assert seen == [24, 24, 16] and len(rows) == 64 and rows.columns == {"text", "semantics"}
    batch = collate([images[i, i] for i in (0, 1, 63)])
    again = collate([rows[i, i] for i in (0, 1, 63)])
    assert again["caption"] == batch["caption"] and "image" not in again
    for name, value in readers()(batch).items():
        torch.testing.assert_close(again[name], value, rtol=1e-3, atol=1e-3)
    with pytest.raises(FileExistsError, match="exists: remove it"):
        write_embeddings(Captioned(), readers(), tmp_path / "e")
    np.save(tmp_path / "e" / "semantics.npy", np.zeros((3, 128)))
    with pytest.raises(ValueError, match="as many rows"):
        Embeddings(str(tmp_path / "e"))
    with pytest.raises(FileNotFoundError, match="composer embed"):
        Embeddings(str(tmp_path / "nowhere"))
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_embeddings_are_written_by_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["composer"])
    config, scenes = tmp_path / "mine.yaml", tmp_path / "scenes"
    config.write_text(CONFIG.format(kind="DiffusionPrior", own="steps: 1", folder=tmp_path, statistics="null"))
    write_scenes("val", 3, 64, scenes, workers=0)
    status = main(["embed", str(scenes), "-c", str(config), "--out", str(tmp_path / "e"), "--names", "semantics"])
    assert status == 0 and "semantics of 3 images" in capsys.readouterr().out
    rows, truth = Embeddings(str(tmp_path / "e")), render_batch("val", range(3), 64)
    assert [rows.row(i, 0)["caption"] for i in range(3)] == truth["caption"]
    expected = Semantics(weights="asset:scenes_clip")(truth)
    found = torch.stack([rows.row(i, 0)["semantics"] for i in range(3)])
    assert F.cosine_similarity(found, expected).min() > 0.999  # the files have 8 bits a channel


def made_up(folder, n=200):
    """Embeddings of no image, of which a caption tells one word."""
    random = np.random.default_rng(0)
    text = np.zeros((n, 6, 129), np.float16)
    text[:, [0, 1, -1], :128], text[:, [0, 1, -1], -1] = random.standard_normal((n, 3, 128)), 1
    semantics = random.standard_normal((n, 128)) + text[:, -1, :128]
    folder.mkdir()
    np.save(folder / "text.npy", text)
    np.save(folder / "semantics.npy", to_sphere(torch.from_numpy(semantics)).half().numpy())
    (folder / "captions.json").write_text(json.dumps(["a cube"] * n))


CONFIG = """
model:
  class_path: composer.training.prior.PriorTraining
  init_args:
    prior:
      class_path: {kind}
      init_args: {{dim: 128, caption_dim: 128, width: 16, layers: 1, heads: 2, {own}}}
    statistics: {statistics}
    learning_rate: 0.01
    warmup_steps: 2
data:
  train: {{class_path: composer.prior.Embeddings, init_args: {{path: {folder}/e}}}}
  validation: {{class_path: SceneImages, init_args: {{split: val, size: 64, count: 2}}}}
  decomposers:
    text: {{class_path: Caption, init_args: {{weights: asset:scenes_clip}}}}
    semantics: {{class_path: Semantics, init_args: {{weights: asset:scenes_clip}}}}
  batch_size: 8
trainer: {{accelerator: cpu, max_steps: 4, val_check_interval: 4, default_root_dir: {folder}/run, logger: false,
  precision: bf16-mixed, gradient_clip_val: 1.0}}
"""


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("DiffusionPrior", "steps: 9"),
        ("DiffusionPrior", "steps: 9, linear: true"),
        ("AutoregressivePrior", "dimensions: 3, dot_buckets: 4, waves: 32"),
    ],
)
def test_from_embeddings_to_a_prior_by_the_commands(kind, own, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["composer"])
    monkeypatch.setenv("COMPOSER_PLUGINS", "")
    statistics = tmp_path / "pca.safetensors"
    config = tmp_path / "mine.yaml"
    plain = own == "steps: 9"
    given = "null" if plain else statistics
    config.write_text(CONFIG.format(kind=kind, own=own, folder=tmp_path, statistics=given))

    def run(*words):
        status = main([str(word) for word in words])
        said = capsys.readouterr()
        assert status == 0, said.err
        return said.out

    made_up(tmp_path / "e")
    if not plain:
        assert main(["fit", "-c", str(config)]) == 1 and "composer pca -c CONFIG" in capsys.readouterr().err
        assert "128 components of 140 embeddings" in run("pca", "-c", config, "--out", statistics, "--count", "140")
    run("fit", "-c", config)
    out = tmp_path / "prior"
    assert "prior in" in run("export", tmp_path / "run", out, "--half", "--guidance", "1.5")
    prior = Prior.load(out)
    assert type(prior).__name__ == kind and prior.guidance == 1.5
    last = checkpoints.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    torch.testing.assert_close(prior.captions.nothing, last["ema"]["prior.captions.nothing"], rtol=1e-3, atol=1e-4)
    z = prior.sample(["a red cube on sand"], n=2, seeds=[0, 1])
    torch.testing.assert_close(z.square().mean(1), torch.ones(2))
    table = tmp_path / "table.json"
    words = ("--count", 2, "--draws", 2, "--pictures", 0, "--guidance", 1, 3, "--json", table)
    assert "| prior, guidance 3 |" in run("evaluate-prior", out, *words)
    assert json.loads(table.read_text())["about"]["prior"] == prior.sha256
    assert main(["export", str(tmp_path / "run"), str(out), "--augmentation", "0.1"]) == 1
    assert "a prior has no augmentation" in capsys.readouterr().err


# How good a prior is


def test_measures_of_embeddings_are_right_by_hand():
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    assert mean_pairwise_cosine(torch.stack([x, x, y])[None]) == pytest.approx(1 / 3)
    assert mean_pairwise_cosine(torch.stack([torch.stack([x, x]), torch.stack([x, -x])])) == pytest.approx(0)


class Oracle(DiffusionPrior):
    """Draws what it was told, whatever the caption: row i of `drawn` for the i-th row ever asked for."""

    drawn: torch.Tensor

    def draw(self, caption, seeds, guidance, progress):
        return self.drawn[torch.tensor(seeds) % len(self.drawn)]


class Known(Read):
    """Reads an image's embedding off its first pixels."""

    def forward(self, batch):
        return batch["image"][:, 0, 0, :DIM]


def test_a_prior_that_knows_the_images_is_found_perfect_and_one_that_mistakes_them_is_not():
    z = torch.eye(DIM)[:4] * math.sqrt(DIM)
    image = torch.zeros(4, 3, 8, 8)
    image[:, 0, 0, :DIM] = z
    batch, prior = {"image": image, "caption": ["a", "b", "c", "d"]}, Oracle(**TINY).reads(Read())
    prior.drawn = z
    twice = torch.stack([image, image.roll(1, 0)], dim=1)  # of which the second is another caption's
    table = measure_embeddings(prior, Known(), batch, draws=3, retold=twice)
    others = table["other images of the caption"]
    assert others.to_image == pytest.approx(0.5) and others.among_draws == pytest.approx(0)
    assert asdict(table["prior, guidance 1"]) == {
        "to_image": pytest.approx(1),
        "to_text": pytest.approx(table["text embedding itself"].to_image),
        "found": 1,
        "among_draws": pytest.approx(1),
    }
    assert table["text embedding itself"].to_text == pytest.approx(1)
    stranger = table["image of another caption"]
    assert stranger.to_image == pytest.approx(0) and stranger.found == 0
    prior.drawn = z.roll(1, 0)
    assert measure_embeddings(prior, Known(), batch)["prior, guidance 1"].found == 0
    with pytest.raises(ValueError, match="each with a caption"):
        measure_embeddings(prior, Known(), {**batch, "caption": ["a", "", "", ""]})


# Pictures


@pytest.fixture(scope="module")
def draws_pictures(tmp_path_factory):
    """A tiny model that reads captions and semantics, and a prior for it; both untrained."""
    folder, made, clip = (
        tmp_path_factory.mktemp("models"),
        copy.deepcopy(conftest.TINY),
        {"weights": "asset:scenes_clip"},
    )
    text = {"vocabulary_size": 84, "width": 8, "layers": 1, "heads": 1, "vector_dim": 32, "token_dim": 16}
    vector = {"in_dim": 128, "vector_dim": 32, "token_dim": 16}
    made["stages"][0]["conditions"] |= {
        "semantics": {"class_path": "conditions.Vector", "init_args": vector},
        "caption": {"class_path": "conditions.TextTransformer", "init_args": text},
    }
    words = {"words": "asset:scenes_clip/words.txt"}
    made["decomposers"] |= {
        "semantics": {"class_path": "decomposers.Semantics", "init_args": clip},
        "caption": {"class_path": "decomposers.Tokens", "init_args": words},
    }
    made["readers"] = {"caption": {"class_path": "decomposers.Agreement", "init_args": clip}}
    model = Cascade.from_spec(made)
    livened(conftest.diffusion(model).denoiser)
    model.save(folder / "model")
    livened(Prior.from_spec(spec("DiffusionPrior", steps=3))).save(folder / "prior")
    livened(Prior.from_spec(spec("DiffusionPrior", dim=64))).save(folder / "narrow")
    return folder


def test_compose_draws_semantics_for_a_caption(draws_pictures, photos, tmp_path, capsys):
    words, out = "a red cube on sand", tmp_path / "out"
    model, prior = ("--model", str(draws_pictures / "model")), ("--prior", str(draws_pictures / "prior"))
    assert main(["compose", *model, *prior, "--caption", words, "--seeds", "4,5", "--out", str(out)]) == 0
    found = read_recipe(out / "compose_seed5.png")
    drawn = Prior.load(draws_pictures / "prior").sample([words], n=2, seeds=[4, 5])
    asked = parse_recipe(Cascade.load(draws_pictures / "model"), found).composition
    torch.testing.assert_close(asked.parts["semantics"], drawn[1:])
    assert found["sources"]["semantics"].startswith("prior tiny ") and found["sources"]["caption"] == words
    capsys.readouterr()
    assert (
        main(["compose", *model, "--from-png", str(out / "compose_seed5.png"), "--out", str(tmp_path / "again")]) == 0
    )
    assert capsys.readouterr().err == ""  # alone instead of in a batch of two: rounding at most
    for wrong, says in (
        (["--palette", "#aa3311", *prior], "give a caption"),
        (["--caption", words, "--semantics", photos[0], *prior], "no --semantics beside it"),
        (["--caption", words, "--prior", str(draws_pictures / "narrow")], "width 128, this prior draws width 64"),
        (["--caption", words, "--prior", str(draws_pictures / "model")], "expected a model with priors"),
    ):
        assert main(["compose", *model, *wrong, "--out", str(out)]) == 1 and says in capsys.readouterr().err


def test_evaluate_draws_captions_through_a_prior(draws_pictures, photos, tmp_path, capsys):
    model, name, file = str(draws_pictures / "model"), str(draws_pictures / "prior"), tmp_path / "table.json"
    cascade, prior = Cascade.load(model), Prior.load(name)

    def evaluate(*args):
        options = ("--data", "scenes:val", "--count", "4", "--steps", "2", "--json", str(file))
        assert main(["evaluate", model, *args, *options]) == 0
        return json.loads(file.read_text())

    plain, table = evaluate("--alone")["alone"], evaluate("--alone", "--prior", name)
    assert table["about"]["prior"] == prior.sha256 and "through the prior" in capsys.readouterr().out
    evaluation = Evaluation(
        cascade, open_sample("scenes:val", 4, cascade.stages[0].size), options=SampleOptions(steps=2)
    )
    whole, every = evaluation.block(range(4)), range(4)
    semantics = prior.sample(whole.captions, seeds=evaluation.seeds_of(every))
    parts = whole.parts.pick("caption") | {"semantics": semantics}
    want = asdict(evaluation.score(evaluation.draw(parts, every), ["caption"], whole)["caption"])
    assert table["alone"].pop("caption") == pytest.approx(want, abs=1e-5) != pytest.approx(plain.pop("caption"))
    assert table["alone"] == plain  # other rows ask for no caption, or for the true semantics
    metrics = ("--metrics", "clip", "--prior", name)
    with_prior, without = (evaluate(*words)["distribution"] for words in (metrics, metrics[:2]))
    assert with_prior["given"] == ["caption", "semantics"] and without["given"] == ["caption"]
    assert with_prior["clip"]["score"] != without["clip"]["score"]
    assert main(["evaluate", model, "--prior", name, "--data", str(Path(photos[0]).parent), "--count", "2"]) == 1
    assert "--prior draws the semantics of captions, and there are none in" in capsys.readouterr().err


def test_prompts_are_drawn_through_a_prior(draws_pictures):
    cascade, prior = Cascade.load(draws_pictures / "model"), Prior.load(draws_pictures / "prior")
    asked = [Prompt(text=text, category="x", meaning=text) for text in ("a red cube", "a blue cone")]
    reader = Agreement(weights="asset:scenes_clip")
    found = answer(cascade, asked, reader, n=2, options=SampleOptions(steps=2), prior=prior)
    for i, prompt in enumerate(asked):
        seeds = seeds_of(i, 2)
        parts = cascade.decompose({"caption": [prompt.text] * 2})
        parts |= {"semantics": prior.sample([prompt.text], n=2, seeds=seeds)}
        images = quantise(cascade.sample(parts, seeds=seeds, options=SampleOptions(steps=2)))
        assert (found.images_of(i) - images).abs().max() <= 1 / 127.5 + 1e-5


def test_pictures_with_and_without_a_prior(draws_pictures):
    cascade, prior = Cascade.load(draws_pictures / "model"), Prior.load(draws_pictures / "prior")
    batch, seen = render_batch("val", range(2), 64), []
    batch["image"] = F.interpolate(batch["image"], (16, 16))
    table, pictures = measure_pictures(
        prior, cascade, batch, draws=2, progress=seen.append, options=SampleOptions(steps=2)
    )
    assert sum(seen) == 2 * 2 * len(pictures) and all(p.shape == (2, 2, 3, 16, 16) for p in pictures.values())
    # two rows of one caption: the first is what the cascade draws from the prior's embedding for that seed
    asked = {"semantics": prior.sample([batch["caption"][1]], n=2, seeds=[0, 1])}
    torch.testing.assert_close(
        pictures["prior"][1], cascade.sample(asked, seeds=[0, 1], options=SampleOptions(steps=2)), atol=1e-2, rtol=0
    )
    apart = (pictures["prior"][:, 0] - pictures["prior"][:, 1]).square().mean((1, 2, 3)).sqrt().mean()
    assert table["prior"].pixels == pytest.approx(float(apart)) and 0 <= table["prior"].spread <= 2
    agreement = Agreement(weights="asset:scenes_clip")
    cosine = F.cosine_similarity(agreement({"image": batch["image"]}), agreement({"caption": batch["caption"]}))
    assert table["true image"].adherence == pytest.approx(float(cosine.mean()), abs=1e-5)
    assert "| caption + prior |" in markdown(table) and "| true image |" in markdown(table)
    with pytest.raises(ValueError, match="belong to different CLIPs"):
        measure_pictures(Prior.load(draws_pictures / "narrow"), cascade, batch, draws=2)


def test_one_caption_goes_with_an_embedding_for_each_seed(draws_pictures):
    cascade, prior = Cascade.load(draws_pictures / "model"), Prior.load(draws_pictures / "prior")
    caption = cascade.decompose({"caption": ["a red cube"]})
    drawn = prior.sample(["a red cube"], n=3, seeds=[1, 2, 3])
    together = cascade.sample(caption | {"semantics": drawn}, seeds=[1, 2, 3], options=SampleOptions(steps=2))
    for i in range(3):
        alone = cascade.sample(caption | {"semantics": drawn[i : i + 1]}, seeds=[i + 1], options=SampleOptions(steps=2))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-4)


# Paper sizes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # what the multi-stage code of Composer's laboratory has at this width and depth
        ("unclip_prior_diffusion", 1.23e9),
        # attention and MLP of table 3's latent decoder: 12 width^2 in each of 24 blocks
        ("unclip_prior_ar", 24 * 12 * 1664**2),
    ],
)
def test_paper_sizes(name, expected):
    path = Path("configs/paper") / f"{name}.yaml"
    model, text = ModelAlone(["-c", str(path)]).model, path.read_text()
    count = sum(p.numel() for p in model.parameters())
    assert all(p.is_meta for p in model.parameters())
    assert count == pytest.approx(expected, rel=0.03) and round(count / 1e9) == 1
    assert f"{count:,} parameters" in text and f"composer fit -c {path}" in text
