"""Printed figures are those of the committed results, digit for digit; where there are none, those of the cards."""

import json
import re
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-\d+)?(?![\w])")
TASKS, THRESHOLDS, GALLERY = "docs/tasks.md", "docs/thresholding.md", "docs/gallery/README.md"
SCENES, CLIP, SWAPS = (
    f"composer/assets/{name}/README.md" for name in ("scenes256", "scenes_clip", "scenes_clip_swaps")
)
DIFFUSION, AR = (f"composer/assets/scenes_prior_{name}/README.md" for name in ("diffusion", "ar"))

Table = dict[str, list[str]]
"""First cell of a row -> the others."""


@cache
def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def results(name: str):
    return json.loads(text(f"benchmarks/results/{name}.json"))


def tables(markdown: str) -> list[tuple[list[str], Table]]:
    """The heads and the rows of all tables."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", markdown, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        found.append((rows[0], {row[0]: row[1:] for row in rows[2:]}))
    return found


def table(page: str, *head: str) -> Table:
    """The only table of a page whose head begins so."""
    (found,) = [rows for cells, rows in tables(text(page)) if cells[: len(head)] == list(head)]
    return found


def rounded(value: float, printed: str) -> str:
    """A value with as many digits as a printed number has; half goes up, as a reader of the results rounds."""
    if "e" in printed:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    places = len(printed.partition(".")[2])
    return f"{Decimal(repr(value)).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP):f}"


def check(printed: str, values: Sequence[float]) -> None:
    """All numbers of a text are these, rounded as they are printed."""
    numbers = NUMBER.findall(printed)
    assert len(numbers) == len(values), printed
    assert numbers == [rounded(value, number) for value, number in zip(values, numbers, strict=True)], printed


def check_table(printed: Table, values: Mapping[str, Sequence[float]]) -> None:
    """A table has these rows and in them these values; cells without a number count for nothing."""
    assert list(printed) == list(values)
    for name, cells in printed.items():
        check(" ".join(cells), values[name])


def picked(rows, **where):
    """The row that has these fields."""
    (row,) = [row for row in rows if all(row[key] == value for key, value in where.items())]
    return row


def check_prose(page: str, fragment: str, values: Sequence[float]) -> None:
    """A page says this, and its numbers are these."""
    assert fragment in " ".join(text(page).split())
    check(fragment, values)


def test_numbers_are_found_and_rounded_as_they_are_printed():
    assert NUMBER.findall("3 x 64, -0.5 and 7e-7, DPM-Solver++(2M), up256 0.71") == ["3", "64", "-0.5", "7e-7", "0.71"]
    assert [rounded(*case) for case in ((0.085, "0.09"), (1.445, "1.5"), (-0.0005, "0.0"))] == ["0.09", "1.4", "-0.0"]
    assert rounded(9.775e-08, "1e-7") == "1e-7" and rounded(64.9, "65") == "65"
    for wrong in ("0.72", "0.71 0.71", "none"):
        with pytest.raises(AssertionError):
            check(wrong, [0.714])


def test_inversion():
    rows = results("round_trip")["rows"]
    under = {
        name: [picked(rows, under=name, steps=steps) for steps in (10, 25, 50)]
        for name in {r["under"]: 0 for r in rows}
    }
    values = {name: [*(row["psnr"] for row in own), own[-1]["worst"]] for name, own in under.items()}
    check_table(table(TASKS, "known of the picture"), values)
    said = "The inverted noise has a standard deviation of 0.71"
    check_prose(TASKS, said, [picked(rows, under="semantics, palette", steps=50)["std"]])


def best_of(request: str, n: int):
    return picked(results("best_of")["rows"], request=request, n=n)


def test_best_of():
    named = {"caption": "caption", "caption, palette": "caption + palette"}
    named |= {"a sketch, another Scene's semantics": "sketch + another's semantics", "all but the mask": "all"}
    values = {
        name: [best_of(request, n)[key]["mean"] for key in ("chosen_by", "checked") for n in (1, 4, 16)]
        for name, request in named.items()
    }
    check_table(table(TASKS, "asked, of 16 Scenes"), values)
    pixels, kinds = best_of("all", 16)["check_gain"], best_of("caption + palette", 4)["check_gain"]
    errors = [row["gain"]["error"] for row in results("best_of")["rows"] if row["n"] > 1]
    check_prose(TASKS, "by what was asked are 0.01 to 0.02", [min(errors), max(errors)])
    check_prose(TASKS, "in pixels (0.020, standard error 0.008)", [pixels["mean"], pixels["error"]])
    check_prose(TASKS, "has at 4 (0.063, 0.025)", [4, kinds["mean"], kinds["error"]])


def test_strengths():
    found = results("strengths")

    def closed(kind, **where):
        return picked(found[kind], **where)["closed"]

    pairs = [("sketch", "depth"), ("palette", "semantics"), ("caption", "semantics")]
    ends = [[closed("against", condition=a, other=b, weight=w) for w in (0.0, 1.5)] for a, b in pairs]
    said = "by 0.77 (sketch against depth), 0.59 (palette against semantics) and 0.19 (caption against semantics)"
    check_prose(TASKS, said, [round(high - low, 3) for low, high in ends])
    alone = {
        name: [row["closed"] for row in found["alone"] if row["condition"] == name] for name in ("sketch", "intensity")
    }
    lost = [round(max(values) - values[-1], 3) for values in alone.values()]
    check_prose(TASKS, "lose up to 0.06 and 0.10 again", lost)
    moment = closed("moment", condition="palette", **{"from": 0.9})
    check_prose(TASKS, "(0.71 of the 0.73 that", [moment, closed("alone", condition="palette", weight=1.0)])

    def half(name, side):
        return closed("place", condition=name, given="left half", measured=side)

    check_prose(TASKS, "given everywhere (0.80, 0.58)", [half("sketch", "left"), half("depth", "left")])
    check_prose(TASKS, "0.13 and 0.06 in the right half", [half("sketch", "right"), half("depth", "right")])
    check_prose(TASKS, "spread: 0.42 and 0.50", [half("intensity", "right"), half("palette", "right")])


def test_thresholds():
    found = results("thresholding")
    true = found["about"]["true_scenes"]

    def at(guidance, way, key):
        return picked(found["guidance"], guidance=guidance, threshold=way)[key]

    def share(value):
        return round(100 * value, 2)

    def saturated(way):
        return [share(row["saturated"]) for row in found["guidance"] if row["threshold"] == way]

    ways, static, dynamic = ("none", "static", "dynamic"), saturated("static"), saturated("dynamic")
    said = "to 5.5 % at 15, where the true Scenes have 1.5 %"
    check_prose(THRESHOLDS, said, [share(at(15.0, "none", "saturated")), 15, share(true["saturated"])])
    check_prose(THRESHOLDS, "keep it at 0.7 to 1.4 %", [min(static), max(static)])
    for value in dynamic:
        check_prose(THRESHOLDS, "bring it to 0.3 % at any guidance", [value])
    said = "0.42 at guidance 1 and 0.39 at 15; true Scenes 0.43, static thresholds 0.43 and 0.44"
    contrasts = [[at(guidance, way, "contrast") for guidance in (1.0, 15.0)] for way in ("dynamic", "static")]
    (pale, paler), kept = contrasts
    check_prose(THRESHOLDS, said, [pale, 1, paler, 15, true["contrast"], *kept])
    check_prose(THRESHOLDS, "at 15 it is 0.39, 0.39 and 0.41 for", [15, *(at(15.0, way, "caption") for way in ways)])
    for way in ways:
        check_prose(THRESHOLDS, "a standard error of 0.04", [at(15.0, way, "caption_error")])
        falls = [5, at(5.0, way, "palette"), *(at(15.0, each, "palette") for each in ways), 15]
        check_prose(THRESHOLDS, "best at 5 (0.59) and falls to 0.52, 0.53 and 0.55 at 15", falls)
    said = "99.5th percentile is 8.0, the last one's 1.11"
    assert said in " ".join(text(THRESHOLDS).split())
    check(said.partition("percentile")[2], [at(15.0, "none", f"{end}_step") for end in ("first", "last")])


def test_quantiles():
    keys = ("ours_ms", "torch_ms", "topk_ms", "difference", "error")
    rows = results("thresholding")["quantile"]
    values = {f"3 x {row['size']} x {row['size']}, {row['content']}": [row[key] for key in keys] for row in rows}
    check_table(table(THRESHOLDS, "values", "ours"), values)


def test_upsampler():
    val, novel = (results(name)["rows"] for name in ("upsampling", "upsampling_novel"))
    ours, keys = "ours, 8 steps, augmentation 0", ("back_db", "truth_db", "edges", "kid_tiles", "kid_tiles_of_others")
    rows = {"true render": val["true render"], "bicubic": val["bicubic"], "this upsampler": val[ours]}
    rows |= {"`novel`: bicubic": novel["bicubic"], "`novel`: this upsampler": novel[ours]}
    check_table(table(SCENES, "", "back, dB"), {name: [row[key] for key in keys] for name, row in rows.items()})
    left = [
        100 * (val[ours][key] - val["true render"][key]) / (val["bicubic"][key] - val["true render"][key])
        for key in ("kid_tiles", "kid_tiles_of_others")
    ]
    check_prose(SCENES, "8 % is left on the same Scenes and 22 % on others", left)
    whole = [val[name]["kid_whole"] for name in ("bicubic", ours, "true render")]
    check_prose(SCENES, "(-0.2130, -0.2130, -0.2131)", whole)
    check_prose(SCENES, "(0.7 s an image", [val[ours]["seconds"]])


def test_clips():
    clips = [results("clip")["clips"][f"asset:{name}"]["captions"] for name in ("scenes_clip", "scenes_clip_swaps")]
    told = {"colours of two things swapped": "colours", "shapes of two things swapped": "shapes"}
    told |= {"another colour": "colour", "another shape": "shape", "another place": "place"}
    values = {name: [clip["told apart"][key]["share"] for clip in clips] for name, key in told.items()}
    ways = ("caption of an image", "image of a caption")
    values |= {f"{way}, of 256": [clip["found"][way] for clip in clips] for way in ways}
    check_table(table(SWAPS, "", "scenes_clip"), values)
    errors = {key: row["error"] for key, row in clips[1]["told apart"].items()}
    worst = max(errors[key] for key in ("colours", "shapes", "colour", "shape"))
    check_prose(SWAPS, "Standard errors are 0.004 or less", [worst])
    check_prose(SWAPS, "0.02 for places", [errors["place"]])
    check_table(table(CLIP, "", "top-1"), {way: [clips[0]["found"][way]] for way in ways})


def test_the_gallery():
    rows = json.loads(text("docs/gallery/figures.json"))["rows"]
    sections = {
        section.partition("\n")[0]: section for section in re.split(r"^### ", text(GALLERY), flags=re.MULTILINE)[1:]
    }
    assert list(sections) == [row["title"] for row in rows.values()]
    for row in rows.values():
        found = tables(sections[row["title"]])
        assert len(found) == any(row["closed"].values())
        head, printed = found[0] if found else (["closed", *row["closed"]], {})
        assert head == ["closed", *row["closed"]]
        for name, cells in printed.items():
            check(" ".join(cells), [column[name] for column in row["closed"].values() if name in column])
        assert set(printed) == {name for column in row["closed"].values() for name in column}


def test_pages_agree_with_the_cards():
    """Of these no results are committed; the same figure is at least the same everywhere."""
    adherence, together = table(SCENES, "condition", "goal"), table(SCENES, "condition", "alone")
    for name, cells in table("README.md", "condition alone").items():
        assert cells == [adherence[name][1], adherence[name][3], together[name][1]]
    own, other = (table(page, "", "to image") for page in (DIFFUSION, AR))
    renamed = {"other true pictures of the caption": "other images of the caption"}
    renamed |= {
        "the text embedding itself": "text embedding itself",
        "picture of another caption": "image of another caption",
    }
    first, second, *rest = (printed := table(TASKS, "", "to image"))
    assert [printed[first], printed[second]] == [each["prior, guidance 1"] for each in (own, other)]
    for name in rest:
        assert printed[name] == own[renamed[name]] == other[renamed[name]]
    renamed = {"caption": "caption", "caption, diffusion prior": "caption, prior", "the true picture": "true image"}
    renamed |= {"caption, its text embedding as semantics": "caption, its text embedding as semantics"}
    renamed |= {"caption, the true picture's embedding": "caption, the true image's embedding"}
    asked, card = table(TASKS, "asked", "adherence"), table(DIFFUSION, "asked", "adherence")
    assert {name: asked[name] for name in renamed} == {name: card[own] for name, own in renamed.items()}
    said = "adherence 0.718 and spread 0.259 with the caption and this prior, 0.302 and 0.632 with the caption alone"
    assert said in " ".join(text(AR).split())
    both = asked["caption, autoregressive prior"][:2] + asked["caption"][:2]
    assert NUMBER.findall(said) == both
