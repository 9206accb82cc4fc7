"""How much, when and where a condition counts."""

import math

import pytest
import torch

from composer.cascade.composition import Composition
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts
from composer.diffusion.strength import Strength, weigh

SIZE = (4, 4)


def sigma(time):
    return math.tan(math.pi / 2 * time)


def weights(names, strengths, time=0.5):
    found = {tuple(sorted(subset)): at(sigma(time)) for subset, at in weigh(names, strengths, SIZE).items()}
    return {subset: w for subset, w in found.items() if isinstance(w, torch.Tensor) or w != 0}


def left():
    region = torch.zeros(1, 1, *SIZE)
    region[..., :2] = 1
    return region


def test_without_strengths_everything_counts():
    assert weights(["a", "b"], {}) == {("a", "b"): 1.0}
    assert weights([], {}) == {(): 1.0}


def test_numbers_by_hand():
    found = weights(["a", "b", "c"], {"a": Strength(weight=0.3), "b": Strength(weight=0.7)})
    expected = {("c",): 0.3, ("b", "c"): 0.4, ("a", "b", "c"): 0.3}
    assert found == {subset: pytest.approx(w) for subset, w in expected.items()}


def test_a_strength_above_one_guides_towards_that_condition():
    found = weights(["a", "b"], {"a": Strength(weight=1.5)})
    assert found == {("a", "b"): pytest.approx(1.0), ("a",): pytest.approx(0.5), (): pytest.approx(-0.5)}


@pytest.mark.parametrize(("time", "expected"), [(0.1, {("b",): 1.0}), (0.2, {("a", "b"): 1.0}), (0.9, {("b",): 1.0})])
def test_intervals(time, expected):
    assert weights(["a", "b"], {"a": Strength(interval=(0.2, 0.8))}, time) == expected


def test_regions():
    found = weights(["a", "b"], {"a": Strength(weight=0.5, region=left())})
    torch.testing.assert_close(found["a", "b"], 0.5 * left())
    torch.testing.assert_close(found["b",], 1 - 0.5 * left())


def test_each_condition_takes_part_with_its_strength_everywhere():
    strengths = {
        "a": Strength(weight=0.6, region=torch.rand(1, 1, *SIZE)),
        "b": Strength(interval=(0.3, 0.7), region=left()),
        "c": Strength(weight=0.2),
    }
    for time in (0.1, 0.31, 0.5, 0.9):
        found = weights(["a", "b", "c", "d"], strengths, time)
        total = sum(w if isinstance(w, torch.Tensor) else torch.tensor(w).expand(1, 1, *SIZE) for w in found.values())
        torch.testing.assert_close(total, torch.ones(1, 1, *SIZE))
        for name, strength in strengths.items():
            share = sum(w for subset, w in found.items() if name in subset) + torch.zeros(1, 1, *SIZE)
            counts = strength.interval[0] <= time <= strength.interval[1]
            wanted = strength.map(SIZE) * counts
            torch.testing.assert_close(share, wanted.expand_as(share))


def test_what_cannot_be():
    with pytest.raises(ValueError, match=r"expected a weight of at least 0 and an interval within 0-1"):
        Strength(weight=-1.0)
    with pytest.raises(ValueError, match=r"an interval within 0-1, found 1\.0 and 0\.8-0\.2"):
        Strength(interval=(0.8, 0.2))


def test_a_strength_of_nothing_and_of_everything(cascade):
    parts = cascade.decompose({"image": torch.rand(1, 3, 16, 16)})
    full = cascade.sample(parts)
    assert torch.equal(cascade.sample(Composition(parts=parts, strengths={"palette": Strength()})), full)
    without = cascade.sample(parts.drop("palette"))
    torch.testing.assert_close(
        cascade.sample(Composition(parts=parts, strengths={"palette": Strength(weight=0.0)})), without
    )
    half = cascade.sample(Composition(parts=parts, strengths={"palette": Strength(weight=0.5)}))
    assert not torch.allclose(half, full) and not torch.allclose(half, without)
    with pytest.raises(KeyError, match="a strength for sketch, which is not among the given"):
        cascade.sample(Composition(parts=Parts(palette=parts["palette"]), strengths={"sketch": Strength()}))


def test_the_network_is_called_once_a_set(cascade, monkeypatch):
    parts, rows = cascade.decompose({"image": torch.rand(1, 3, 16, 16)}), []
    denoiser = cascade.stages[0].denoiser
    call = type(denoiser).forward
    monkeypatch.setattr(
        type(denoiser), "forward", lambda self, x, s, c: (rows.append((float(s[0]), len(x))), call(self, x, s, c))[1]
    )
    strengths = {"palette": Strength(weight=0.5, interval=(0.4, 1.0))}
    cascade.sample(Composition(parts=parts, strengths=strengths), options=SampleOptions(guidance=2.0, steps=6))
    early = {n for s, n in rows if s > sigma(0.4)}
    late = {n for s, n in rows if s < sigma(0.4)}
    assert early == {3} and late == {2}  # intensity, intensity and palette, nothing; then intensity, nothing


@pytest.mark.parametrize(
    ("palette", "intensity", "sets"),
    [(1.0, 1.0, 2), (0.0, 1.0, 2), (0.5, 1.0, 3), (0.5, 0.5, 2), (0.3, 0.6, 3), (1.5, 1.0, 3), (0.0, 0.0, 1)],
)
def test_a_step_is_one_call_with_an_estimate_for_each_distinct_set(cascade, palette, intensity, sets):
    parts, rows = cascade.decompose({"image": torch.rand(1, 3, 16, 16)}).pick("palette", "intensity"), []
    hook = cascade.stages[0].denoiser.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    strengths = {"palette": Strength(weight=palette), "intensity": Strength(weight=intensity)}
    cascade.sample(
        Composition(parts=parts, strengths=strengths), seeds=[0, 1], options=SampleOptions(guidance=3.0, steps=3)
    )
    hook.remove()
    assert rows == [2 * sets] * 3
