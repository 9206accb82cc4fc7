"""Every condition keeps one contract; then what is particular to each, and the joint policy."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, combinations, permutations
from math import prod
from typing import Any, cast

import pytest
import torch
from diffusers.models.embeddings import TextTimeEmbedding
from jaxtyping import Float
from torch import Tensor, nn

from composer.conditioning import JOINED, Condition, Conditioning, ConditionSet, stack
from conditions import Grounding, Instances, LowRes, Spatial, Text, TextTransformer, Vector
from conditions.instances import borders

SIZE = (16, 12)


def token_ids(*lengths: int) -> Tensor:
    value = torch.zeros(len(lengths), 9, 2, dtype=torch.long)
    for row, n in zip(value, lengths, strict=True):
        row[:n, 0], row[:n, 1] = torch.randint(0, 20, (n,)), 1
    return value


def caption(*lengths: int) -> Tensor:
    value = torch.randn(len(lengths), 9, 7)
    value[..., -1] = 1
    for row, n in zip(value, lengths, strict=True):
        row[n:-1, -1] = 0
    return value


def objects(*numbers: int) -> Tensor:
    value = torch.rand(len(numbers), 4, 11)
    value[..., 2:4] += value[..., :2]
    for row, n in zip(value, numbers, strict=True):
        row[:, -1] = torch.arange(4) < n
    return value


def instance_ids() -> Tensor:
    return torch.randint(0, 4, (3, 2, 8, 6))


CASES: dict[str, tuple[Callable[[], Condition], Callable[[], Tensor]]] = {
    "spatial": (lambda: Spatial(2, 6), lambda: torch.randn(3, 2, 16, 12)),
    "spatial, shrunk": (lambda: Spatial(2, 6), lambda: torch.randn(3, 2, 40, 30)),
    "spatial, strided": (lambda: Spatial(2, 6, strides=(2, 3)), lambda: torch.randn(3, 2, 96, 72)),
    "instances": (lambda: Instances(3, 6), instance_ids),
    "vector": (lambda: Vector(5, 8, 4), lambda: torch.randn(3, 5)),
    "palette": (lambda: Vector(5, 8, 4, shares=True), lambda: torch.eye(5)[:3]),
    "text": (lambda: Text(6, 8, 4), lambda: caption(5, 3, 8)),
    "text, words alone": (lambda: Text(6, 8, 4, sentence=False), lambda: caption(5, 3, 8)),
    "grounding": (lambda: Grounding(6, 4), lambda: objects(2, 4, 1)),
    "transformer": (lambda: TextTransformer(20, 8, 2, 2, 8, 4, length=9), lambda: token_ids(3, 9, 0)),
    "transformer, GLIDE": (
        lambda: TextTransformer(20, 8, 2, 2, 8, 4, length=9, skip_padding=False),
        lambda: token_ids(3, 9, 0),
    ),
}
every_condition = pytest.mark.parametrize("name", CASES)


class TinyNetwork(nn.Module):
    """Reads all ports: the map and the vector by addition, the tokens by attention that the pixels join."""

    def __init__(self):
        super().__init__()
        self.image = nn.Conv2d(3, 6, 1)
        self.vector, self.tokens = nn.Linear(8, 6, bias=False), nn.Linear(4, 6, bias=False)
        self.out = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        h = self.image(x)
        if cond.spatial is not None:
            h = h + cond.spatial
        if cond.vector is not None:
            h = h + self.vector(cond.vector)[:, :, None, None]
        pixels = h.flatten(2).transpose(1, 2)
        context, seen = pixels, torch.ones(pixels.shape[:2], dtype=torch.bool)
        if cond.tokens is not None:
            context = torch.cat([context, self.tokens(cond.tokens)], 1)
            seen = torch.cat([seen, cond.token_mask], 1)
        if cond.objects is not None:
            context = torch.cat([context, 10 * self.tokens(cond.objects)], 1)
            seen = torch.cat([seen, cond.object_mask], 1)
        attention = (pixels @ context.transpose(1, 2)).masked_fill(~seen[:, None], -torch.inf).softmax(-1)
        return self.out(h + (attention @ context).transpose(1, 2).reshape(h.shape))


def ports(cond: Conditioning) -> list[Tensor]:
    return [x for x in (cond.vector, cond.tokens, cond.spatial, cond.objects) if x is not None]


def size_of(cond: Conditioning, row: int) -> float:
    return sum(float(x[row].detach().abs().sum()) for x in ports(cond))


@every_condition
def test_a_dropped_row_contributes_nothing(name):
    make, values = CASES[name]
    condition, value = make(), values()
    cond = condition(value, torch.tensor([True, False, True]), SIZE)
    assert size_of(cond, 1) == 0 and size_of(cond, 0) > 0 and size_of(cond, 2) > 0
    assert cond.spatial is None or cond.spatial.shape[-2:] == SIZE
    assert (cond.tokens is None) == (cond.token_mask is None)
    assert cond.token_mask is None or (not cond.token_mask[1].any() and cond.token_mask[0].any())


@every_condition
def test_a_dropped_row_leaves_no_gradient(name):
    make, values = CASES[name]
    condition, value = make(), values()

    def gradients(value: Tensor, keep: list[bool]) -> list[Tensor]:
        condition.zero_grad()
        sum((x**2).sum() for x in ports(condition(value, torch.tensor(keep), SIZE))).backward()
        return [p.grad.clone() for p in condition.parameters() if p.grad is not None]

    assert all((g == 0).all() for g in gradients(value, [False, False, False]))
    with_dropped, without = gradients(value, [True, False, True]), gradients(value[[0, 2]], [True, True])
    assert len(without) > 0 and all(
        torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(with_dropped, without, strict=True)
    )


@every_condition
def test_rows_are_independent_and_the_batch_may_be_empty(name):
    make, values = CASES[name]
    condition, value, keep = make(), values(), torch.ones(3, dtype=torch.bool)
    together = stack([condition(value, keep, SIZE)], 3)
    apart = [condition(value[i : i + 1], keep[:1], SIZE) for i in range(3)]
    for row, alone in enumerate(apart):
        for a, b in ((together.vector, alone.vector), (together.spatial, alone.spatial)):
            assert a is None or torch.allclose(a[row], b[0], atol=1e-5)
        if together.objects is not None:
            assert torch.allclose(together.objects[row], alone.objects[0], atol=1e-5)
        if together.tokens is not None:  # rows alone may be trimmed further
            assert torch.allclose(
                together.tokens[row][together.token_mask[row]], alone.tokens[0][alone.token_mask[0]], atol=1e-5
            )
    assert all(len(x) == 0 for x in ports(condition(value[:0], keep[:0], SIZE)))


@every_condition
def test_absent_equals_dropped(name):
    make, values = CASES[name]
    conditions, network = ConditionSet({"other": Spatial(1, 6), "this": make()}), TinyNetwork()
    x, reps = torch.randn(3, 3, *SIZE), {"other": torch.randn(3, 1, *SIZE), "this": values()}
    kept = torch.ones(3, dtype=torch.bool)
    absent = network(x, conditions({"other": reps["other"]}, SIZE))
    dropped = network(x, conditions(reps, SIZE, {"other": kept, "this": ~kept}))
    present = network(x, conditions(reps, SIZE))
    assert torch.allclose(absent, dropped, atol=1e-6) and not torch.allclose(absent, present, atol=1e-2)


def test_dropping_survives_values_that_are_not_numbers():
    value = torch.full((2, 5), torch.nan)
    cond = Vector(5, 8, 4)(value, torch.tensor([False, False]), SIZE)
    assert size_of(cond, 0) == 0 and size_of(cond, 1) == 0


def test_conditionings_form_a_monoid():
    def draw() -> Conditioning:
        return Conditioning(
            vector=torch.randint(9, (2, 4)).float(),  # small integers add exactly
            tokens=torch.randn(2, 3, 4),
            token_mask=torch.rand(2, 3) < 0.5,
            spatial=torch.randint(9, (2, 6, 4, 4)).float(),
        )

    a, b, c = draw(), Conditioning(vector=torch.ones(2, 4)), draw()
    for x, y in [((a + b) + c, a + (b + c)), (a + Conditioning(), a), (Conditioning() + a, a)]:
        assert all(torch.equal(getattr(x, f), getattr(y, f)) for f in ("vector", "tokens", "token_mask", "spatial"))
    assert ports(Conditioning() + Conditioning()) == []


def test_stacked_conditionings_act_as_each_alone():
    vector, text, depth = Vector(5, 8, 4), Text(6, 8, 4), Spatial(1, 6)
    keep, network, x = torch.ones(2, dtype=torch.bool), TinyNetwork(), torch.randn(2, 3, *SIZE)
    parts = [
        vector(torch.randn(2, 5), keep, SIZE),
        text(caption(5, 8), keep, SIZE) + depth(torch.randn(2, 1, *SIZE), keep, SIZE),
        Conditioning(),
        vector(torch.randn(1, 5), keep[:1], SIZE),  # one row for both
    ]
    together = network(x.repeat(4, 1, 1, 1), stack(parts, 2)).chunk(4)
    for part, got in zip(parts, together, strict=True):
        assert torch.allclose(got, network(x, part.expand(2)), atol=1e-5)
    with pytest.raises(ValueError, match="expected 1 or 3 rows"):
        stack(parts, 3)


@dataclass(frozen=True, kw_only=True)
class Grounded(Conditioning):
    """With one port more, of tokens."""

    grounding: Float[Tensor, "b n 5"] | None = field(default=None, metadata=JOINED)


def test_a_further_port_costs_a_line():
    boxes, more = torch.randn(2, 3, 5), torch.randn(1, 4, 5)
    a, b = Grounded(grounding=boxes, spatial=torch.randn(2, 6, 4, 4)), Grounded(grounding=more, vector=torch.ones(1, 4))
    assert torch.equal(vars(a + a)["grounding"], torch.cat([boxes, boxes], 1))
    assert torch.equal(vars(b.expand(2))["grounding"], more.expand(2, 4, 5))
    assert torch.equal(vars(a.crop(slice(2), slice(2)))["grounding"], boxes)
    both = stack([a, b, Grounded()], 2)
    assert isinstance(both, Grounded)
    assert torch.equal(both.grounding[:2, :3], boxes) and torch.equal(both.grounding[2:4], more.expand(2, 4, 5))
    assert not both.grounding[:2, 3:].any() and not both.grounding[4:].any()
    assert torch.equal(both.spatial[:2], a.spatial) and torch.equal(both.vector[2:4], torch.ones(2, 4))


def test_which_conditions_give_a_map_is_found_out():
    conditions = ConditionSet({name: make() for name, (make, _) in CASES.items()} | {"low_res": LowRes(3)})
    assert conditions.maps == {"spatial", "spatial, shrunk", "spatial, strided", "instances", "low_res"}


def test_joint_dropout_has_composers_frequencies():
    rates = {"sketch": 0.5, "palette": 0.5, "intensity": 0.7}
    conditions, n = ConditionSet({k: Spatial(1, 2, dropout=rate) for k, rate in rates.items()}), 40_000
    keep = conditions.draw_keep(n, torch.device("cpu"), torch.Generator().manual_seed(0))
    seen = torch.stack([keep[k] for k in rates], 1).long() @ torch.tensor([4, 2, 1])
    expected = []
    for outcome in range(8):
        kept = [bool(outcome & bit) for bit in (4, 2, 1)]
        p = 0.8 * torch.tensor([1 - r if k else r for k, r in zip(kept, rates.values(), strict=True)]).prod()
        expected.append(float(p) + 0.1 * (not any(kept)) + 0.1 * all(kept))
    wanted = torch.tensor(expected) * n
    assert wanted.sum() == pytest.approx(n)
    chi_square = ((seen.bincount(minlength=8) - wanted) ** 2 / wanted).sum()
    assert chi_square < 24.3  # 99.9% of draws at 7 degrees of freedom
    again = conditions.draw_keep(n, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert all(torch.equal(keep[k], again[k]) for k in rates)


WEIGHTS = {"caption": 2.0, "semantics": 2.0, "palette": 1.0, "sketch": 1.0}


def stratified(**changes):
    conditions: dict[str, Condition] = {
        name: Vector(5, 8, 4, dropout=0.6) for name in ("caption", "semantics", "palette")
    }
    conditions |= {"sketch": Spatial(1, 2, dropout=0.7), "low_res": LowRes(3)}
    options = {"drop_all": 0.1, "keep_all": 0.15, "keep_one": 0.35, "keep_two_global": 0.15}
    return ConditionSet(conditions, **options | {"weights": {"caption": 2, "semantics": 2}} | changes)


def outcomes(conditions, n, known=None):
    """How often each set of names is kept."""
    keep = conditions.draw_keep(n, torch.device("cpu"), torch.Generator().manual_seed(3), known)
    rows = torch.stack([keep[name] for name in WEIGHTS], 1).tolist()
    assert keep["low_res"].all()
    return Counter(frozenset(name for name, kept in zip(WEIGHTS, row, strict=True) if kept) for row in rows)


def expected(shares, known):
    """The probability of each set, by enumeration, where only `known` representations are there."""
    total = dict.fromkeys(
        map(frozenset, chain.from_iterable(combinations(known, k) for k in range(len(known) + 1))), 0.0
    )
    weights = {name: WEIGHTS[name] for name in known}
    for kept in total:
        rest = 1 - sum(shares.values())
        total[kept] += rest * prod(
            (0.3 if n == "sketch" else 0.4) if n in kept else (0.7 if n == "sketch" else 0.6) for n in known
        )
    total[frozenset()] += shares["drop_all"]
    total[frozenset(known)] += shares["keep_all"]
    for name, weight in weights.items():
        total[frozenset([name])] += shares["keep_one"] * weight / sum(weights.values())
    pool = {name: weight for name, weight in weights.items() if name != "sketch"}
    for a, b in permutations(pool, 2):  # the first by weight, then the second among those that are left
        p = pool[a] / sum(pool.values()) * pool[b] / (sum(pool.values()) - pool[a])
        total[frozenset([a, b])] += shares["keep_two_global"] * p
    return total


@pytest.mark.parametrize("gone", [None, "semantics"])
def test_stratified_dropout_has_its_frequencies(gone):
    """Also where rows lack a representation: the one or two that they keep are among those that they have."""
    n = 40_000
    known = None if gone is None else {gone: torch.zeros(n, dtype=torch.bool)}
    seen = outcomes(stratified(), n, known)
    shares = {"drop_all": 0.1, "keep_all": 0.15, "keep_one": 0.35, "keep_two_global": 0.15}
    want = expected(shares, [name for name in WEIGHTS if name != gone])
    assert sum(want.values()) == pytest.approx(1)
    merged = Counter()
    for kept, count in seen.items():
        merged[kept - {gone}] += count
    chi_square = sum((merged[kept] - n * p) ** 2 / (n * p) for kept, p in want.items())
    assert set(merged) == set(want)
    assert chi_square < {16: 37.7, 8: 24.3}[len(want)]  # 99.9 % of draws at 15 and 7 degrees of freedom


def test_stratified_dropout_has_no_state_and_default_is_the_papers():
    conditions, paper = stratified(), stratified(drop_all=0.1, keep_all=0.1, keep_one=0, keep_two_global=0)
    assert outcomes(conditions, 500) == outcomes(conditions, 500)
    plain = ConditionSet(dict(paper.named()))
    assert outcomes(paper, 500) == outcomes(plain, 500)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"keep_one": 0.7}, "sum to at most 1"),
        ({"keep_two_global": -0.1}, "sum to at most 1"),
        ({"weights": {"depth": 2}}, "found depth"),
        ({"weights": {"low_res": 2}}, "found low_res"),
        ({"weights": {"sketch": 0}}, "above 0"),
    ],
)
def test_shares_that_cannot_be(changes, says):
    with pytest.raises(ValueError, match=says):
        stratified(**changes)
    with pytest.raises(ValueError, match="two conditions without a map"):
        ConditionSet({"sketch": Spatial(1, 2), "palette": Vector(5, 8, 4)}, keep_two_global=0.1)


def test_an_unknown_name_is_an_error_that_lists_the_known():
    conditions = ConditionSet({"sketch": Spatial(1, 2), "palette": Vector(5, 8, 4)})
    with pytest.raises(KeyError, match="no condition named dpeth; this model has palette, sketch"):
        conditions({"dpeth": torch.zeros(1, 1, 4, 4)}, SIZE)


@pytest.mark.parametrize(
    ("make", "value", "message"),
    [
        (lambda: Spatial(1, 2), torch.zeros(1, 3, 4, 4), "expected a map of 1 channels, found 3"),
        (lambda: Vector(156, 2, 2), torch.zeros(1, 180), "expected vectors of length 156, found 180"),
        (lambda: Text(768, 2, 2), torch.zeros(1, 78, 1025), "expected encodings of width 768 and a mask, found 1025"),
        (lambda: Instances(3, 2), torch.full((1, 2, 4, 4), 7), "expected category ids in 0..3, found 7..7"),
        (lambda: TextTransformer(9, 8, 1, 3, 8, 4), torch.zeros(1, 9, 2), "expected a width that 3 heads divide"),
        (lambda: Spatial(1, 2, strides=(2, 2)), torch.zeros(1, 1, 64, 47), "at least 48 pixels at the shorter side, 4"),
        (lambda: Spatial(1, 2, strides=(4, 1)), torch.zeros(1, 1, 64, 48), "two or more strides from 1 to 3, found [4"),
        (lambda: Spatial(1, 2, strides=(2,)), torch.zeros(1, 1, 64, 48), "two or more strides from 1 to 3, found [2]"),
        (lambda: Spatial(1, 2, offset=0, strides=(2, 1)), torch.zeros(1, 1, 64, 48), "leave out the strides, or the"),
        (lambda: Spatial(1, 2, dropout=1.5), torch.zeros(1, 1, 4, 4), "dropout is a probability, found 1.5"),
    ],
)
def test_what_does_not_fit_is_refused(make, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()(value, torch.ones(1, dtype=torch.bool), SIZE)


def test_borders_as_drawn_by_hand():
    category = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0], [2, 0, 0, 0, 0]])
    instance = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 2, 2, 0], [0, 1, 2, 2, 0], [0, 0, 0, 0, 0], [3, 0, 0, 0, 0]])
    wanted = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    assert torch.equal(borders(torch.stack([category, instance])[None])[0, 0], wanted.bool())
    assert not borders(torch.full((1, 2, 3, 3), 5)).any()


def test_instances_read_borders_not_numbers_and_resize_by_nearest():
    condition, keep = Instances(3, 4), torch.ones(1, dtype=torch.bool)
    ids = torch.zeros(1, 2, 8, 8)
    ids[:, 0, 2:6, 2:6], ids[:, 1, 2:6, 2:4], ids[:, 1, 2:6, 4:6] = 2, 1, 2
    renumbered = torch.where(ids[:, 1:] > 0, 9 - ids[:, 1:], 0)
    one, other = (condition(x, keep, (8, 8)).spatial for x in (ids, torch.cat([ids[:, :1], renumbered], 1)))
    assert torch.equal(one, other)
    larger = ids.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(condition(larger, keep, (8, 8)).spatial, one)
    assert torch.equal(condition(ids.long(), keep, (8, 8)).spatial, one)
    single = torch.cat([ids[:, :1], ids[:, 1:].clamp(max=1)], 1)
    assert not torch.equal(condition(single, keep, (8, 8)).spatial, one)


def test_spatial_shrinks_without_aliasing():
    condition, keep = Spatial(1, 4), torch.ones(1, dtype=torch.bool)
    stripes = torch.tensor([1.0, -1.0]).repeat(32)[None, None, :, None].expand(1, 1, 64, 64)
    grey = condition(torch.zeros(1, 1, 16, 16), keep, (16, 16)).spatial
    inner = (slice(None), slice(None), slice(4, 12), slice(4, 12))  # the filter is cut off at the margin
    assert torch.allclose(condition(stripes, keep, (16, 16)).spatial[inner], grey[inner], atol=0.05)


@pytest.mark.parametrize("strides", [(2, 3), (2, 2), (1, 3), (2, 1, 2)])
def test_strides_bring_a_map_down_without_resizing_it(strides):
    condition, keep = Spatial(1, 4, strides=strides), torch.ones(1, dtype=torch.bool)
    value = torch.randn(condition.example(1, SIZE).shape)
    assert value.shape == (1, 1, SIZE[0] * prod(strides), SIZE[1] * prod(strides))
    h = value
    for i, stride in enumerate(strides):
        layer = cast(Any, condition.encode)[2 * i]
        h = nn.functional.conv2d(h if i == 0 else nn.functional.silu(h), layer.weight, layer.bias, stride, padding=1)
    got = condition(value, keep, SIZE).spatial
    assert got.shape[2:] == SIZE
    torch.testing.assert_close(got, h)
    larger = nn.functional.interpolate(value, scale_factor=2.0, mode="nearest")  # resized to where it enters
    assert condition(larger, keep, SIZE).spatial.shape == got.shape


def test_a_strided_condition_sees_lines_that_a_small_map_has_not():
    stripes = torch.tensor([1.0, -1.0]).repeat(48)[None, None, :, None].expand(1, 1, 96, 72)
    keep, inner = torch.ones(1, dtype=torch.bool), (..., slice(4, 12), slice(4, 8))
    for strides, seen in (((1, 1), False), ((2, 3), True)):
        condition = Spatial(1, 4, strides=strides)
        a, b = (condition(x, keep, SIZE).spatial[inner] for x in (stripes, torch.zeros_like(stripes)))
        assert torch.allclose(a, b, atol=0.05) is not seen


def test_maps_of_unit_scale_leave_with_unit_scale():
    scale = Spatial(3, 16)(torch.randn(8, 3, 32, 32), torch.ones(8, dtype=torch.bool), (32, 32)).spatial.std()
    assert 0.4 < scale < 2


def test_shares_reach_the_layers_at_unit_scale():
    seen = []
    condition = Vector(156, 8, 4, shares=True)
    condition.to_vector[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    shares = torch.rand(4, 156) ** 20
    condition(shares / shares.sum(1, keepdim=True), torch.ones(4, dtype=torch.bool), SIZE)
    assert torch.allclose((seen[0] ** 2).mean(1), torch.ones(4), atol=1e-3)


def test_a_caption_without_a_sentence_adds_none():
    value = caption(5, 3)
    value[1, -1, -1] = 0
    cond = Text(6, 8, 4)(value, torch.ones(2, dtype=torch.bool), SIZE)
    assert cond.tokens.shape == (2, 8, 4) and cond.token_mask.sum(1).tolist() == [5, 3]
    assert (cond.vector[1] == 0).all() and (cond.vector[0] != 0).any()


@torch.no_grad()
def test_words_are_pooled_as_deepfloyd_if_pools_them():
    theirs, ours = TextTimeEmbedding(128, 128, num_heads=2), Text(128, 128, 4, sentence=False)
    pairs = [(ours.pool.norm, theirs.norm1), (ours.pool.out, theirs.proj), (ours.pool.to_query, theirs.pool.q_proj)]
    pairs += [(ours.pool.to_key, theirs.pool.k_proj), (ours.pool.to_value, theirs.pool.v_proj)]
    for mine, other in pairs:
        nn.init.normal_(other.weight, std=0.2)
        nn.init.normal_(other.bias, std=0.2)
        mine.load_state_dict(other.state_dict())
    ours.pool.query.copy_(theirs.pool.positional_embedding[0])
    words = torch.randn(3, 7, 128)
    expected = theirs.proj(theirs.pool(theirs.norm1(words)))
    padded = torch.nn.functional.pad(torch.cat([words, torch.ones(3, 7, 1)], 2), (0, 0, 0, 4))
    for value in (padded[:, :7], padded):
        vector = ours(value, torch.ones(3, dtype=torch.bool), SIZE).vector
        assert torch.allclose(vector, expected, atol=1e-5) and expected.std() > 0.1


@pytest.mark.parametrize("sentence", [True, False])
def test_what_stands_in_padding_reaches_nothing(sentence):
    condition, keep, value = Text(6, 8, 4, sentence), torch.tensor([True, True, False]), caption(5, 3, 8)
    value[:, -1, -1] = float(sentence)
    odd = value.clone()
    odd[..., :-1][odd[..., -1] == 0] = torch.nan
    odd[2, :, :-1] = torch.inf

    def results(value: Tensor) -> list[Tensor]:
        condition.zero_grad()
        made = ports(condition(value, keep, SIZE))
        sum((x**2).sum() for x in made).backward()
        return made + [p.grad.clone() for p in condition.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(results(value), results(odd), strict=True))


def test_a_caption_without_words_pools_to_nothing():
    condition, value = Text(6, 8, 4, sentence=False), caption(5, 0)
    value[:, -1, -1] = 0
    cond = condition(value, torch.ones(2, dtype=torch.bool), SIZE)
    assert size_of(cond, 1) == 0 and cond.vector[0].abs().sum() > 0 and not cond.token_mask[1].any()
    cond.vector.sum().backward()
    assert all(p.grad.isfinite().all() for p in condition.pool.parameters())
    cond = condition(value[1:], torch.ones(1, dtype=torch.bool), SIZE)
    assert size_of(cond, 0) == 0 and cond.vector.shape == (1, 8)


def test_pooling_changes_no_name_of_a_text_with_a_sentence():
    names = {f"{head}.{i}.{kind}" for head in ("to_tokens", "to_vector") for i in "01" for kind in ("weight", "bias")}
    assert Text(6, 8, 4).state_dict().keys() == names


def naive_transformer(model: TextTransformer, row: Tensor, skip: bool) -> tuple[Tensor, list[Tensor]]:
    """One row, one position, one head at a time, straight from GLIDE's description."""
    w, heads = {k: v.detach() for k, v in model.state_dict().items()}, int(vars(model.blocks[0])["heads"])

    def norm(x: Tensor, name: str) -> Tensor:
        scaled = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    real = [bool(m) for m in row[:, 1]]
    last = len(row) - 1
    seen = [i for i in range(len(row)) if real[i] or i == last or not skip]
    h = [w["embedding.weight"][row[i, 0]] + w["position"][i] if real[i] else w["padding"][i] for i in range(len(row))]
    for n in range(len(model.blocks)):
        block = f"blocks.{n}"
        qkv = [linear(norm(x, f"{block}.attention_norm"), f"{block}.qkv").view(3, heads, -1) for x in h]
        for i in range(len(row)):
            out = []
            for head in range(heads):
                q, ks = qkv[i][0, head], [qkv[j][1, head] for j in seen]
                weights = torch.stack([q @ k / len(q) ** 0.5 for k in ks]).softmax(0)
                out.append(sum(a * qkv[j][2, head] for a, j in zip(weights, seen, strict=True)))
            h[i] = h[i] + linear(torch.cat(out), f"{block}.out")
        for i, x in enumerate(h):
            inner = linear(norm(x, f"{block}.mlp_norm"), f"{block}.mlp.0")
            gelu = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
            h[i] = x + linear(gelu, f"{block}.mlp.2")
    h = [norm(x, "norm") for x in h]
    return linear(h[-1], "to_vector"), [linear(h[i], "to_tokens") for i in seen]


@pytest.mark.parametrize("skip", [True, False])
def test_text_transformer_equals_a_naive_one(skip):
    model = TextTransformer(20, 8, 2, 2, 8, 4, length=9, skip_padding=skip)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    value = token_ids(3, 9, 0, 5)
    cond = model(value, torch.ones(4, dtype=torch.bool), SIZE)
    for i, row in enumerate(value):
        vector, tokens = naive_transformer(model, row, skip)
        assert torch.allclose(cond.vector[i], vector, atol=1e-4)
        assert torch.allclose(cond.tokens[i][cond.token_mask[i]], torch.stack(tokens), atol=1e-4)


def test_leaving_out_unused_positions_changes_nothing(monkeypatch):
    model, value = TextTransformer(20, 8, 2, 2, 8, 4, length=12), token_ids(3, 5, 0)
    keep = torch.tensor([True, True, True])
    trimmed = model(value, keep, SIZE)
    assert trimmed.tokens.shape[1] == 6  # the longest caption and the last position
    assert model(value, torch.tensor([True, False, True]), SIZE).tokens.shape[1] == 4  # of those that are kept
    monkeypatch.setattr(model, "_positions", lambda real: torch.arange(12))
    full = model(value, keep, SIZE)
    assert full.tokens.shape[1] == 12
    assert torch.allclose(full.vector, trimmed.vector, atol=1e-5)
    assert torch.allclose(full.tokens[full.token_mask], trimmed.tokens[trimmed.token_mask], atol=1e-5)


def test_longer_captions_are_cut_and_an_empty_one_is_not_a_dropped_one():
    model, value = TextTransformer(20, 8, 2, 2, 8, 4, length=6), token_ids(9, 0)
    cond, cut = (model(v, torch.ones(2, dtype=torch.bool), SIZE) for v in (value, value[:, :6]))
    assert torch.equal(cond.vector, cut.vector) and torch.equal(cond.tokens, cut.tokens)
    assert cond.token_mask.sum(1).tolist() == [6, 1] and size_of(cond, 1) > 0
