"""DALL-E's transformer, against the paper's figure 11 read position by position, and sampling without a cache."""

import math
from itertools import product

import pytest
import torch

from composer.autoregressive import ImageTokens
from composer.autoregressive.attention import column_mask, convolution_mask, row_mask
from composer.autoregressive.drawing import choose, keep_top

TEXT, ROWS, COLUMNS = 3, 3, 4


def model(seed=0, scale=8.0, **sizes):
    """A small model whose weights are large enough for its predictions to differ."""
    sizes = {"width": 16, "layers": 4, "heads": 2, "vocabulary": 5, "codes": 7, "text_length": TEXT} | sizes
    torch.manual_seed(seed)
    net = ImageTokens(**{"rows": ROWS, "columns": COLUMNS, "kernel": 3} | sizes).requires_grad_(False)
    for name, p in net.named_parameters():
        if "transformer" not in name:
            p.mul_(scale if p.dim() > 1 else 1.0)
    return net


def texts(net, count=2):
    return net.pad_text([[1, 2], [4, 0, 3], [], [2]][:count])


# --- attention ---


def attended(kind, text, rows, columns, kernel):
    """Figure 11, position by position, as sets of positions; text stands first."""
    found = [set(range(i + 1)) for i in range(text)]
    for r, c in product(range(rows), range(columns)):
        here = r * columns + c
        if kind == "row":  # walk back in raster order; the last is the token above
            image, (y, x) = {here}, (r, c)
            while (y, x) != (r - 1, c) and (y, x) != (0, 0):
                y, x = (y, x - 1) if x else (y - 1, columns - 1)
                image.add(y * columns + x)
        elif kind == "column":  # figure 11 (c): causal blocks on the transposed grid
            turned = [(b, a) for a, b in product(range(columns), range(rows))]
            block = turned[c * rows : (c + 1) * rows]
            image = {b * columns + a for b, a in block[: r + 1]}
        else:  # a window on the sequence, shifted by whole rows, without what is to come
            reach = range(-(kernel // 2), kernel // 2 + 1)
            image = {here + dy * columns + dx for dy in reach for dx in reach}
            image = {place for place in image if 0 <= place <= here}
        found.append(set(range(text)) | {text + place for place in image})
    return found


def positions(mask):
    return [set(row.nonzero()[:, 0].tolist()) for row in mask]


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 5), (1, 6), (5, 1)])
def test_masks_are_those_of_the_figure(rows, columns):
    assert positions(row_mask(rows, columns)) == attended("row", 0, rows, columns, 3)
    assert positions(column_mask(rows, columns)) == attended("column", 0, rows, columns, 3)
    for kernel in (1, 3, 5, 11):
        expected = attended("convolution", 0, rows, columns, kernel)
        assert positions(convolution_mask(rows, columns, kernel)) == expected


def test_masks_of_one_token_in_the_figures_grid():
    """Row 2, column 1 of 4 x 4, read off the figure; row 2, column 0 wraps around."""
    assert positions(row_mask(4, 4))[9] == {5, 6, 7, 8, 9}
    assert positions(column_mask(4, 4))[9] == {1, 5, 9}
    assert positions(convolution_mask(4, 4, 3))[9] == {4, 5, 6, 8, 9}
    assert positions(convolution_mask(4, 4, 3))[8] == {3, 4, 5, 7, 8}


def test_each_layer_attends_as_the_paper_orders_them():
    net = model(layers=7)
    given = []
    for block in net.transformer.blocks:
        block.register_forward_pre_hook(lambda _, args: given.append(args[1]))
    net(texts(net), torch.zeros(2, ROWS, COLUMNS, dtype=torch.long))
    order = ["row", "column", "row", "row", "row", "column", "convolution"]
    for kind, mask in zip(order, given, strict=True):
        expected = attended(kind, 1 + TEXT, ROWS, COLUMNS, 3)[:-1]  # nothing reads the last code
        for row in mask[:, 0]:
            assert positions(row) == expected


def test_the_order_of_all_64_layers():
    with torch.device("meta"):
        patterns = ImageTokens(heads=2, width=4).patterns
    assert patterns == [*(1 if (i - 2) % 4 == 0 else 0 for i in range(1, 64)), 2]


def test_the_preset_has_12_billion_parameters_and_runs_on_meta():
    with torch.device("meta"):
        net = ImageTokens()
        text, codes = net(torch.zeros(1, 256, dtype=torch.long), torch.zeros(1, 32, 32, dtype=torch.long))
    assert text.shape == (1, 256, 16385) and codes.shape == (1, 1024, 8192)
    count = sum(p.numel() for p in net.parameters())
    width, tokens = 3968, 16384 + 8192
    block = 12 * width**2 + 13 * width  # four projections, an MLP of four times the width, two norms
    tables = tokens * width + width * (1 + 2 * 256 + 2 * 32)
    heads = (tokens + 1) * (width + 1)
    assert count == 64 * block + 2 * width + tables + heads
    assert abs(count / 12e9 - 1) < 0.03


# --- likelihood and loss ---


def test_the_probabilities_of_all_sequences_sum_to_1():
    net = model(vocabulary=2, text_length=2, codes=2, rows=2, columns=2, layers=2).double()
    text = torch.tensor(list(product(range(3), repeat=2)))
    codes = torch.tensor(list(product(range(2), repeat=4))).view(-1, 2, 2)
    of_text, of_codes = net.negative_log_likelihood(text.repeat_interleave(16, 0), codes.repeat(9, 1, 1))
    p = (-of_text.sum(1) - of_codes.sum(1)).double().exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    assert p.max() > 3 * p.min(), "the probabilities must differ for this to say anything"
    given_text = (-of_codes.sum(1)).double().exp().view(9, 16)
    torch.testing.assert_close(given_text.sum(1), torch.ones(9, dtype=torch.double), rtol=0, atol=1e-5)


def test_no_token_is_predicted_from_a_later_one():
    net, codes = model(), torch.zeros(1, ROWS, COLUMNS, dtype=torch.long)
    text = texts(net, 1)
    text_logits, code_logits = net(text, codes)
    for place in range(ROWS * COLUMNS):
        changed = codes.clone()
        changed.view(-1)[place] = 3
        now_text, now_codes = net(text, changed)
        assert torch.equal(now_text, text_logits)
        assert torch.equal(now_codes[:, : place + 1], code_logits[:, : place + 1])
        if place + 1 < ROWS * COLUMNS:
            assert not torch.equal(now_codes[:, place + 1], code_logits[:, place + 1])
    for i in range(TEXT):
        changed = text.clone()
        changed[0, i] = (changed[0, i] + 1) % 5
        now_text, now_codes = net(changed, codes)
        assert torch.equal(now_text[:, : i + 1], text_logits[:, : i + 1])
        assert (now_codes != code_logits).any(2).all(), "every code reads every text token"


def test_the_loss_is_an_eighth_text_and_seven_eighths_image():
    net = model()
    text, codes = texts(net), torch.arange(2 * ROWS * COLUMNS).view(2, ROWS, COLUMNS) % 7
    text_logits, code_logits = net(text, codes)
    loss = net.loss(text, codes, torch.tensor([True, True]))
    for b in range(2):
        words = [-text_logits[b, i].log_softmax(0)[text[b, i]].item() for i in range(TEXT)]
        image = [-code_logits[b, i].log_softmax(0)[codes[b].flatten()[i]].item() for i in range(ROWS * COLUMNS)]
        expected = 0.125 * sum(words) / TEXT + 0.875 * sum(image) / (ROWS * COLUMNS)
        assert loss[b].item() == pytest.approx(expected, rel=1e-5)


def test_a_dropped_text_is_padding_and_does_not_count():
    net = model()
    text, codes = texts(net), torch.arange(2 * ROWS * COLUMNS).view(2, ROWS, COLUMNS) % 7
    loss = net.loss(text, codes, torch.tensor([True, False]))
    _, image = net.negative_log_likelihood(net.pad_text([[], []]), codes)
    assert loss[0] == net.loss(text, codes, torch.tensor([True, True]))[0]
    assert loss[1].item() == pytest.approx(7 / 8 * image[1].mean().item(), rel=1e-6)


def test_each_position_has_its_own_padding():
    net, codes = model(), torch.zeros(1, ROWS, COLUMNS, dtype=torch.long)
    before = net(texts(net, 1), codes)[1]
    net.pad[:2] += 1  # positions that hold words
    assert torch.equal(net(texts(net, 1), codes)[1], before)
    net.pad[2] += torch.linspace(-1, 1, 16)
    assert not torch.equal(net(texts(net, 1), codes)[1], before)


def test_a_training_learns_a_picture_per_text():
    net = model(scale=1.0).requires_grad_(True)
    text, codes = texts(net, 4), torch.randint(7, (4, ROWS, COLUMNS))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        net.loss(text, codes, torch.ones(4, dtype=torch.bool)).mean().backward()
        optimizer.step()
    assert all(p.grad is not None for p in net.parameters())
    assert torch.equal(net.sample(text, range(4), top_k=1), codes)


# --- sampling ---


def uncached(net, text, seeds, temperature=1.0, top_k=None, guidance=1.0):
    """Reads the whole sequence anew for each code."""
    codes = torch.zeros(len(text), ROWS, COLUMNS, dtype=torch.long)
    chance = [torch.rand(ROWS * COLUMNS, generator=torch.Generator().manual_seed(s), dtype=torch.double) for s in seeds]
    nothing = torch.full_like(text, net.padding)
    for i in range(ROWS * COLUMNS):
        logits = net(text, codes)[1][:, i].double()
        if guidance != 1:
            without = net(nothing, codes)[1][:, i].double()
            logits = without + guidance * (logits - without)
        logits = logits / temperature
        if top_k is not None:
            least = logits.sort(dim=1, descending=True).values[:, top_k - 1 : top_k]
            logits[logits < least] = -math.inf
        p = logits.softmax(1)
        for b in range(len(text)):
            total, code = p[b, 0].item(), 0
            while total <= chance[b][i]:
                code += 1
                total += p[b, code].item()
            codes[b, i // COLUMNS, i % COLUMNS] = code
    return codes


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.7}, {"top_k": 3}, {"guidance": 2.5}, {"temperature": 1.3, "top_k": 4, "guidance": 0.5}],
    ids=str,
)
def test_the_cache_changes_no_code(options):
    net = model()
    drawn = net.sample(texts(net, 4), range(4), **options)
    assert torch.equal(drawn, uncached(net, texts(net, 4), range(4), **options))
    assert len(drawn.unique()) > 3


def test_the_cache_changes_logits_by_rounding_alone():
    """Not bit for bit: matrix products of another number of rows add up in another order."""
    net, seen = model(), []
    handle = net.to_code.register_forward_hook(lambda *args: seen.append(args[2]))
    drawn = net.sample(texts(net), range(2))
    handle.remove()
    expected = net(texts(net), drawn)[1]
    torch.testing.assert_close(torch.stack(seen, dim=1), expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def test_a_row_depends_on_its_text_and_seed_alone():
    net = model()
    together = net.sample(texts(net, 4), [5, 6, 7, 5])
    for i, seed in enumerate([5, 6, 7, 5]):
        torch.rand(3)  # the global generator has no say
        assert torch.equal(net.sample(texts(net, 4)[i : i + 1], [seed])[0], together[i])
    same = net.sample(texts(net, 1).repeat(3, 1), [5, 6, 5])
    assert torch.equal(same[0], same[2]) and not torch.equal(same[0], same[1])


def test_top_1_is_greedy():
    net = model()
    drawn = net.sample(texts(net), [0, 1], top_k=1)
    assert torch.equal(drawn, net.sample(texts(net), [8, 9], top_k=1, temperature=3.0))
    assert torch.equal(net(texts(net), drawn)[1].argmax(2), drawn.flatten(1))


def test_codes_are_as_frequent_as_they_are_likely():
    net = model(codes=3, rows=1, columns=2)
    text = texts(net, 1)
    every = torch.tensor(list(product(range(3), repeat=2))).view(9, 1, 2)
    likely = (-net.negative_log_likelihood(text.expand(9, -1), every)[1].sum(1)).exp()
    drawn = net.sample(text.expand(4000, -1), range(4000)).flatten(1) @ torch.tensor([3, 1])
    share = torch.bincount(drawn, minlength=9) / 4000
    torch.testing.assert_close(share, likely, rtol=0, atol=4 * 0.5 / math.sqrt(4000))
    assert likely.max() > 2 / 9


def test_completion_keeps_the_first_rows_and_draws_the_rest():
    net = model()
    whole = net.sample(texts(net), [3, 4])
    for rows in range(ROWS + 1):  # the places that remain are drawn with the same numbers
        assert torch.equal(net.sample(texts(net), [3, 4], first=whole[:, :rows]), whole)
    other = (whole[:, :1] + 1) % 7
    done = net.sample(texts(net), [3, 4], first=other, guidance=2.0)
    assert torch.equal(done[:, :1], other) and not torch.equal(done[:, 1:], whole[:, 1:])


def test_progress_sees_each_code_that_is_drawn():
    net, seen = model(), []

    def watch(steps):
        for step in steps:
            seen.append(step)
            yield step

    net.sample(texts(net), [0, 1], first=torch.zeros(2, 1, COLUMNS, dtype=torch.long), progress=watch)
    assert seen == list(range(COLUMNS, ROWS * COLUMNS))


def test_keep_top_keeps_exactly_k_even_where_logits_are_equal():
    kept = keep_top(torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0]]), 2)
    assert kept.isfinite().sum() == 2 and kept[kept.isfinite()].tolist() == [3.0, 3.0]
    logits = torch.randn(2, 5)
    assert keep_top(logits, None) is logits and torch.equal(keep_top(logits, 9), logits)
    assert choose(torch.tensor([[-math.inf, 0.0, -math.inf]]), torch.zeros(1)).tolist() == [1]


# --- mistakes ---


@pytest.mark.parametrize(
    "sizes", [{"kernel": 4}, {"kernel": 0}, {"codes": 0}, {"rows": 0}, {"heads": 3}, {"layers": 0}]
)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="expected"):
        model(**sizes)


@pytest.mark.parametrize("text", [[0, 1, 2, 3], [5], [-1]])
def test_texts_that_do_not_fit_are_refused(text):
    with pytest.raises(ValueError, match="at most 3 tokens from 0 to 4"):
        model().pad_text([[1], text])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": [0]}, "one seed for each"),
        ({"text": torch.zeros(2, 2, dtype=torch.long)}, "texts of 3 tokens"),
        ({"text": torch.full((2, 3), 6)}, "text tokens from 0 to 5"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"top_k": 0}, "top_k of at least 1"),
        ({"first": torch.zeros(2, 4, COLUMNS, dtype=torch.long)}, "at most 3 rows of 4"),
        ({"first": torch.zeros(1, 1, COLUMNS, dtype=torch.long)}, "of 2 images"),
        ({"first": torch.full((2, 1, COLUMNS), 7)}, "codes from 0 to 6"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, message):
    net = model()
    with pytest.raises(ValueError, match=message):
        net.sample(**{"text": texts(net), "seeds": [0, 1]} | options)
