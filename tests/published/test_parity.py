"""Published networks, against outputs of their authors' code and against the layouts of all released files."""

import pytest
import torch
from torch.nn import functional as F

from composer.cascade.stage import Stage
from composer.published.engine import Row, Transform, convert
from composer.published.family import Needs
from composer.published.importing import FAMILIES
from tests.published.kit import inputs, meta, needs_kit, output, weights

RELEASED = {
    "glide-base": "glide_base",
    "glide-up": "glide_upsample",
    "glide-inpaint": "glide_base_inpaint",
    "glide-up-inpaint": "glide_upsample_inpaint",
    "adm-64": "adm_64",
    "adm-128": "adm_128",
    "adm-256": "adm_256",
    "adm-256-uncond": "adm_256_uncond_and_lsun",
    "adm-512": "adm_512",
    "adm-up256": "adm_64_256_upsampler",
    "adm-up512": "adm_128_512_upsampler",
    "karlo-decoder": "karlo_decoder",
    "alibaba-decoder": "modelscope_decoder",
    "alibaba-up256": "modelscope_up256",
    "alibaba-up1024": "modelscope_up1024",
}
CASES = {
    "glide_base": "glide-base",
    "glide_upsample": "glide-up",
    "glide_inpaint": "glide-inpaint",
    "glide_upsample_inpaint": "glide-up-inpaint",
    "adm_new_order": "adm-64",
    "adm_uncond": "adm-256-uncond",
    "adm_half_width": "adm-256-uncond",
    "adm_upsampler_heads4": "adm-up256",
    "karlo_decoder": "karlo-decoder",
    "modelscope_decoder": "alibaba-decoder",
    "modelscope_up256": "alibaba-up256",
    "modelscope_up1024": "alibaba-up1024",
}
HEAD, TEXT_HEADS = 16, 4  # of the kit's tiny networks; shapes do not tell


def converted(case, family):
    """A stage of ours with the kit's tiny weights."""
    theirs = weights(case)
    spec = family.configure(theirs, 8, Needs())["stages"][0]
    network = spec["denoiser"]["init_args"]["network"]["init_args"]
    network |= {"head_dim": HEAD} if "head_dim" in network else {}
    if "heads" in spec["conditions"].get("caption", {}).get("init_args", {}):
        spec["conditions"]["caption"]["init_args"]["heads"] = TEXT_HEADS
    stage = Stage.from_spec(spec)
    own = stage.weights().state_dict()
    rows = family.rows(stage.weights(), Needs())
    rows = [row if row.theirs else Row(row.ours, (), Transform("", lambda o=row.ours: own[o])) for row in rows]
    stage.weights().load_state_dict(convert(rows, theirs, own).tensors)
    return stage


def representations(given):
    """What the kit's inputs are, as decomposers give them."""
    made = {}
    if "tokens" in given:
        made["caption"] = torch.stack([given["tokens"].long(), given["mask"].long()], -1)
    if "words" in given:
        words = torch.cat([given["words"], given["mask"].float()[..., None]], -1)
        sentence = F.pad(given["sentence"], (0, 1), value=1.0)[:, None]
        made["caption"] = torch.cat([words, sentence], 1)
    if "keep" in given:
        made["mask"] = torch.cat([given["image"] * given["keep"], given["keep"]], 1)
    if "low" in given:
        made["low_res"] = F.pad(given["low"], (0, 0, 0, 0, 0, 1))
    return (
        made
        | {
            ours: given[theirs]
            for ours, theirs in (("semantics", "image"), ("semantics", "y"))
            if theirs in given and given[theirs].ndim == 2
        }
        | ({"label": given["y"].long()[:, None]} if "y" in given and given["y"].ndim == 1 else {})
    )


@needs_kit
@pytest.mark.parametrize("name", RELEASED)
def test_every_tensor_of_a_released_network_has_its_place(name):
    family, theirs = FAMILIES[name], meta(RELEASED[name])
    assert family.recognises(theirs)
    counts = (len(theirs), sum(x.numel() for x in theirs.values()))
    assert set(family.released.values()) == {counts}
    spec = family.configure(theirs, family.size, Needs())
    with torch.device("meta"):
        own = Stage.from_spec(spec["stages"][0]).weights()
    done = convert(family.rows(own, Needs()), theirs, own.state_dict(), family.left)
    assert done.tensors.keys() == own.state_dict().keys() and not done.left
    assert {n for row in done.report for n in row["theirs"]} == theirs.keys()


@needs_kit
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_estimates_are_those_of_the_authors_code(case):
    stage, given = converted(case, FAMILIES[CASES[case]]), inputs(case)
    cond = stage.encode(representations(given), (8, 8))
    found = stage.denoiser.network(given["x"], given["t"].float() / 1000, cond)
    assert (found - output(case)[:, :3]).abs().max() < 1e-6


@needs_kit
@torch.no_grad()
def test_an_absent_caption_is_an_empty_one():
    stage, given = converted("glide_base", FAMILIES["glide-base"]), inputs("glide_base")
    cond = stage.encode({}, (8, 8))  # the kit's second row has an empty caption
    found = stage.denoiser.network(given["x"][1:], given["t"][1:].float() / 1000, cond)
    assert (found - output("glide_base")[1:, :3]).abs().max() < 1e-6
