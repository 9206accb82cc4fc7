"""Systems are asked as their models are asked elsewhere; what they cost is counted by hand, or by torch's counter."""

import copy
import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from composer.autoregressive.dvae import dvae_loss
from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.evaluation.adherence import quantise
from composer.evaluation.best_of import best_of
from composer.evaluation.systems import System
from composer.prior import Prior
from tests.cascade.test_token_stage import SPEC, loud
from tests.conftest import shipped, talkative

CAPTIONS, SEEDS = ["a red cube", "a blue ball on sand"], [5, 6]
OPTIONS = SampleOptions(steps=2)
CODEC = {"channels": 4, "width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}


@pytest.fixture(scope="module")
def grounded(eight_folder):
    """A tiny model of nine conditions, objects among them, on the latents of a tiny autoencoder."""
    spec = json.loads((eight_folder / "config.json").read_text())
    (stage,) = spec["stages"]
    stage["codec"] = {"class_path": "composer.networks.autoencoder.Autoencoder", "init_args": CODEC}
    stage["denoiser"]["init_args"]["network"]["init_args"] |= {"object_dim": 12, "channels": 4}
    stage["conditions"]["objects"] = {
        "class_path": "conditions.Grounding",
        "init_args": {"in_dim": 128, "object_dim": 12},
    }
    arguments = {"weights": "asset:scenes_clip", "slots": 4}
    spec["decomposers"]["objects"] = {"class_path": "decomposers.Objects", "init_args": arguments}
    return talkative(spec)


def counted(compute):
    """FLOPs by torch's own counter, on real tensors."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


def test_a_caption_alone_is_asked_as_sample_is(eight):
    system = System("plain", eight, options=OPTIONS)
    drawn = system.draw({"caption": CAPTIONS}, SEEDS)
    asked = eight.decompose({"caption": CAPTIONS}).pick("caption")
    assert torch.equal(drawn, quantise(eight.sample(asked, SEEDS, OPTIONS)))
    assert (system.pictures, system.calls) == (2, 2 * 2 * 2)  # pictures, steps, terms of guidance
    assert system.seconds > 0
    system.draw({"caption": CAPTIONS[:1]}, [5])
    assert (system.pictures, system.calls) == (3, 3 * 2 * 2)
    stage = eight.stages[0]
    assert not stage.denoiser.network._forward_hooks
    assert system.parameters == sum(p.numel() for part in (stage.denoiser, stage.conditions) for p in part.parameters())


def test_a_prior_draws_semantics_from_the_same_seeds(eight):
    prior = Prior.load("scenes_prior_ar")
    system = System("prior", eight, prior, options=OPTIONS)
    drawn = system.draw({"caption": CAPTIONS}, SEEDS)
    semantics = prior.sample(CAPTIONS, seeds=SEEDS)
    asked = eight.decompose({"caption": CAPTIONS}).pick("caption") | {"semantics": semantics}
    assert torch.equal(drawn, quantise(eight.sample(asked, SEEDS, OPTIONS)))
    own = sum(p.numel() for p in prior.parameters())
    assert system.parameters == System("plain", eight).parameters + own > own


def test_the_best_by_the_caption_is_kept_and_all_candidates_are_counted(eight):
    system = System("best", eight, best_of=3, options=OPTIONS)
    drawn = system.draw({"caption": CAPTIONS}, SEEDS)
    for i, caption in enumerate(CAPTIONS):
        wanted = best_of(eight, caption=caption, seeds=[SEEDS[i]], n=3, weights={"caption": 1}, options=OPTIONS)
        torch.testing.assert_close(drawn[i : i + 1], quantise(wanted.images), rtol=0, atol=0.01)
    assert (system.pictures, system.calls) == (2, 2 * (3 + 1) * 2 * 2)  # the best one is drawn again


def test_boxes_are_given_where_they_are_known(grounded):
    boxes = [[("a red cube", (0.1, 0.2, 0.5, 0.6))], [("a blue ball", (0.5, 0.5, 0.9, 0.8))]]
    system = System("boxes", grounded, boxes=True, options=OPTIONS)
    parts = grounded.decompose({"caption": CAPTIONS, "boxes": boxes})
    both, alone = (quantise(grounded.sample(p, SEEDS, OPTIONS)) for p in (parts, parts.pick("caption")))
    assert torch.equal(system.draw({"caption": CAPTIONS, "boxes": boxes}, SEEDS), both)
    assert torch.equal(system.draw({"caption": CAPTIONS}, SEEDS), alone)
    without = System("no boxes", grounded, options=OPTIONS).draw({"caption": CAPTIONS, "boxes": boxes}, SEEDS)
    assert torch.equal(without, alone) and not torch.equal(both, alone)


def test_codes_are_called_one_after_the_other():
    system = System("DALL-E", loud(SPEC))
    system.draw({"caption": CAPTIONS}, SEEDS)
    assert system.calls == 2 * 16 * 2  # pictures, codes, terms of guidance


def test_a_system_that_cannot_be_asked_so_is_refused(cascade, eight):
    with pytest.raises(ValueError, match="plain: expected a model that reads captions"):
        System("plain", cascade)
    with pytest.raises(ValueError, match="boxes: expected a model that reads objects"):
        System("boxes", eight, boxes=True)
    with pytest.raises(KeyError, match="no part codec; this system has base"):
        System("plain", eight).training_flops({"base": 1, "codec": 2}, {})


def test_a_trainings_flops_are_three_forward_passes(grounded):
    system = System("latent", grounded)
    stage, (side, size) = grounded.stages[0], (8, 16)
    reps = {name: condition.example(1, (side, side)) for name, condition in stage.conditions.named()}
    image, sigma = torch.zeros(1, 4, side, side), torch.ones(1)
    base = counted(lambda: stage.denoiser.loss(image, stage.conditions(reps, (side, side)), sigma, image))
    codec, picture = stage.codec, torch.zeros(1, 3, size, size)
    moments = codec.moments(picture)
    both = counted(lambda: (codec.moments(picture), codec.reconstruct(moments[0])))
    assert system.training_flops({"base": 7}, {}) == 3 * 7 * base > 0
    assert system.training_flops({"base": 7, "autoencoder": 5}, {}) == 3 * (7 * base + 5 * both)
    quarter = system.training_flops({"autoencoder": 1}, {"autoencoder": size // 2})
    assert 0 < quarter < 3 * both / 3.9  # attention grows faster than the number of pixels


def test_flops_of_a_dall_e_and_of_a_prior(eight):
    model = loud(SPEC)
    (stage,), keep = model.stages, torch.ones(1, dtype=torch.bool)
    text, codes = torch.zeros(1, 12, dtype=torch.long), torch.zeros(1, 4, 4, dtype=torch.long)
    picture, generator = torch.zeros(1, 3, 16, 16), torch.Generator()
    tokens = counted(lambda: stage.tokens.loss(text, codes, keep))
    dvae = counted(lambda: dvae_loss(stage.autoencoder, picture, 1.0, 1.0, generator))
    found = System("DALL-E", model).training_flops({"base": 2, "autoencoder": 3}, {})
    assert found == 3 * (2 * tokens + 3 * dvae)
    prior = Prior.load("scenes_prior_diffusion")
    words = torch.ones(1, 78, 129)
    of_prior = counted(lambda: prior.loss(torch.ones(1, 128), words, keep, generator))
    assert System("prior", eight, prior).training_flops({"prior": 2}, {}) == 6 * of_prior > 0


def test_only_the_stages_that_draw_count():
    whole = Cascade.from_spec(copy.deepcopy(shipped()))
    first, both = System("base", whole), System("both", whole, options=SampleOptions(until="up256"))
    upsampler = sum(p.numel() for p in whole.stages[1].weights().parameters())
    assert both.parameters == first.parameters + upsampler
    with pytest.raises(KeyError, match="no stage up512"):
        System("more", whole, options=SampleOptions(until="up512"))
