"""Prompts by category: reading, drawing, scores, tables, and the blind vote as a browser would run it."""

import base64
import copy
import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from composer.__main__ import main
from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.evaluation.adherence import quantise
from composer.evaluation.metrics import clip_score
from composer.evaluation.prompts import (
    Answers,
    Prompt,
    answer,
    make_tables,
    markdown,
    read_prompts,
    seeds_of,
    summary,
    write_report,
)
from composer.evaluation.vote import Pair, vote_page
from composer.images.sheet import from_pil
from composer.scenes import NOVEL_PAIRS
from decomposers import Agreement, Tokens
from tests.conftest import TINY, diffusion

WORDS = "asset:scenes_clip/words.txt"
TEXT = {"vocabulary_size": 84, "width": 8, "layers": 1, "heads": 1, "vector_dim": 32, "token_dim": 16}


@pytest.fixture(scope="module")
def talking():
    """The tiny model with captions, read as the shipped model reads them."""
    spec = copy.deepcopy(TINY)
    spec["stages"][0]["conditions"]["caption"] = {"class_path": "conditions.TextTransformer", "init_args": TEXT}
    spec["decomposers"]["caption"] = {"class_path": "decomposers.Tokens", "init_args": {"words": WORDS}}
    spec["readers"] = {
        "caption": {"class_path": "decomposers.Agreement", "init_args": {"weights": "asset:scenes_clip"}}
    }
    torch.manual_seed(0)
    made = Cascade.from_spec(spec)
    with torch.no_grad():
        for parameter in diffusion(made).denoiser.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made


@pytest.fixture
def folders(talking, tmp_path):
    for name in ("first", "second"):
        talking.save(tmp_path / name)
    return tmp_path / "first", tmp_path / "second"


def prompts(*rows):
    return [Prompt(text=text, category=category, meaning=text) for text, category in rows]


def write_csv(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_drawbench_layout_is_read(tmp_path):
    text = '"Prompts","Category"\r\n"a ""blue"" cube, on sand","Colors"\r\n"two\nthings",Counting\r\n"",""\r\n'
    found = read_prompts(write_csv(tmp_path / "a.csv", text, "utf-8-sig"))
    assert found == prompts(('a "blue" cube, on sand', "Colors"), ("two\nthings", "Counting"))
    text = "id, CATEGORY ,meaning,prompt\n1,Misspellings,a red cube,a rde cube\n2,Colors,,a blue cube\n"
    first, second = read_prompts(write_csv(tmp_path / "b.csv", text))
    assert first == Prompt(text="a rde cube", category="Misspellings", meaning="a red cube")
    assert second.meaning == second.text == "a blue cube"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the columns Prompts and Category, found nothing"),
        ("Prompts,Kind\na,b\n", "expected the columns Prompts and Category, found prompts, kind"),
        ("Category\nb\n", "found category"),
        ("Prompts,Category\n", "holds no prompts, only the columns prompts, category"),
        ("Prompts,Category\na,b\na red cube\n", r"line 3: expected a prompt and its category, found 'a red cube', ''"),
        ('Prompts,Category\n"a,b\n', "cannot be read as a CSV"),
        ("Prompts,Category\nein w\xfcrfel,b\n", "is not a text in UTF-8"),
    ],
)
def test_files_that_are_no_prompts_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(write_csv(tmp_path / "a.csv", text, "latin-1"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"columns Prompts and Category: there is nothing at .*gone\.csv"):
        read_prompts(tmp_path / "gone.csv")


def test_our_prompts_try_what_they_say():
    found, tokens = read_prompts("asset:scenes_prompts.csv"), Tokens(words=WORDS)
    categories = {prompt.category for prompt in found}
    assert 60 <= len(found) <= 100 and len({prompt.text for prompt in found}) == len(found)
    assert len(categories) == 7
    for prompt in found:
        assert tokens.unread(prompt.meaning) == (), prompt
        hard = prompt.category in ("Misspellings", "Rare words")
        assert not hard or (tokens.unread(prompt.text) and prompt.meaning != prompt.text), prompt
        assert hard or prompt.category == "Descriptions" or prompt.meaning == prompt.text, prompt
    names = {"ball": "sphere", "box": "cube", "ring": "torus"}
    unusual = [prompt.text for prompt in found if prompt.category == "Unusual pairs"]
    following = [pair for text in unusual for pair in re.findall(r"(\w+) (?=(\w+))", text)]
    held = {(names.get(thing, thing), colour) for colour, thing in following}
    assert set(NOVEL_PAIRS) <= held


def test_words_that_no_model_reads_are_named():
    tokens = Tokens(words=WORDS)
    assert tokens.unread("a red, shpere on the sand.") == ("shpere",)
    assert tokens.encode("a red shpere")[:, 0].eq(1).any()
    assert Tokens(length=5, words=WORDS).unread("a red cube on sand") == ("on", "sand")
    assert Tokens(length=5).unread("an astronaut riding a horse") == ("a", "horse") and Tokens().unread("shpere") == ()
    assert Agreement(weights="asset:scenes_clip").unread("an azure cube") == ("azure",)


def test_pictures_and_scores_are_those_of_the_seeds(talking):
    asked = [
        Prompt(text="a red cube", category="Colors", meaning="a red cube"),
        Prompt(text="a bleu ball", category="Misspellings", meaning="a blue ball"),
        Prompt(text="two things: a cone and a ring", category="Counting", meaning="two things: a cone and a ring"),
    ]
    reader, counts = dict(talking.readers.named())["caption"], []
    found = answer(talking, asked, reader, n=2, seed=1, rows=4, progress=counts.append, options=SampleOptions(steps=2))
    assert counts == [4, 2] and found.images.shape == (3, 2, 3, 16, 16)
    assert found.unread == [(), ("bleu",), ()]
    for i, prompt in enumerate(asked):
        parts = talking.decompose({"caption": [prompt.text]})
        images = quantise(talking.sample(parts, seeds=seeds_of(i, 2, 1), options=SampleOptions(steps=2)))
        assert (found.images_of(i) - images).abs().max() <= 1 / 127.5 + 1e-5  # one level, where batches round otherwise
        assert torch.allclose(found.scores[i], clip_score(found.images_of(i), [prompt.meaning] * 2, reader), atol=1.0)
        other = asked[(i + 1) % 3].meaning
        assert torch.allclose(found.strangers[i], clip_score(found.images_of(i), [other] * 2, reader), atol=1.0)
    assert len({seed for i in range(3) for seed in (*seeds_of(i, 2, 1), *seeds_of(i, 2, 0))}) == 12


def test_a_model_without_captions_is_refused(cascade):
    with pytest.raises(ValueError, match=r"reads captions; this one reads palette, intensity, mask"):
        answer(cascade, prompts(("a", "x"), ("b", "x")), Agreement(weights="asset:scenes_clip"))
    with pytest.raises(ValueError, match="at least 2 prompts and 1 picture of each, found 1 and 4"):
        answer(cascade, prompts(("a", "x")), Agreement(weights="asset:scenes_clip"))


ASKED = prompts(("a red cube", "Colors"), ("a </script> azure cone", "Colors"), ("three things", "Counting"))


def made(scores):
    images = torch.randint(0, 256, (3, 2, 3, 8, 8), dtype=torch.uint8)
    return Answers(images, torch.tensor(scores), torch.full((3, 2), 1.5), [(), ("azure",), ()])


ALL = {"first": [[10.0, 20.0], [30.0, 40.0], [50.0, 50.0]], "second": [[10.0, 10.0], [31.0, 33.0], [40.0, 40.0]]}


@pytest.fixture
def answers():
    return {name: made(scores) for name, scores in ALL.items()}


def test_tables_by_hand(answers):
    reader = Agreement(weights="asset:scenes_clip")
    found = summary(ASKED, answers["first"], reader)
    want = {"prompts": 2, "score": 25.0, "error": 10.0, "another": 1.5, "words": 7, "unread": 1, "unread_by_clip": 2}
    assert asdict(found.categories["Colors"]) == pytest.approx(want)
    assert found.categories["Counting"].error == 0 and found.all.prompts == 3
    text = markdown(make_tables(ASKED, answers, reader))
    assert "| Colors | 2 | 25.0 ± 10.0 | 1.5 | 1 of 7 | 2 |" in text
    # Means 15, 35, 50 and 10, 32, 40: differences 5, 3, 10
    assert "| Colors | 25.0 | 21.0 | +4.0 ± 1.0 |" in text and "| all | 33.3 | 27.3 | +6.0 ± 2.1 |" in text


def test_the_report_has_a_sheet_a_category_and_a_vote(answers, tmp_path):
    result = write_report(tmp_path, ASKED, answers, Agreement(weights="asset:scenes_clip"), seed=5)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["01_colors.png", "02_counting.png", "index.html", "prompts.md", "vote.html"]
    assert result["prompts"][1]["first"] == {"scores": [30.0, 40.0], "unread": ("azure",)}
    assert result["prompts"][1]["seeds"] == seeds_of(1, 2, 5) and json.dumps(result)
    page = (tmp_path / "index.html").read_text()
    assert "02_counting.png" in page and "a &lt;/script&gt; azure cone" in page


def pairs(count=4):
    return [
        Pair(f"prompt {i} </script>", "even" if i % 2 == 0 else "odd", *torch.rand(2, 3, 3, 8, 8).mul(2).sub(1))
        for i in range(count)
    ]


def content(path):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)[1])


def test_the_page_shows_every_pair_and_hides_the_names(tmp_path):
    path = tmp_path / "vote.html"
    vote_page(path, pairs(20), ("Frida", "Gustav"), seed=3)
    text, data = path.read_text(), content(path)
    assert "Frida" not in text and "Gustav" not in text
    assert not re.search(r"https?:|@import|url\(|src=\"(?!data)", text) and text.count("</script>") == 2
    assert [pair["prompt"] for pair in data["pairs"]] == [f"prompt {i} </script>" for i in range(20)]
    key = json.loads(base64.b64decode(data["key"]))
    assert key["models"] == ["Frida", "Gustav"] and 4 <= sum(key["swapped"]) <= 16
    drawn = [vote_page(path, pairs(20), ("a", "b"), seed) or content(path)["key"] for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(ValueError, match="at least one pair"):
        vote_page(path, [], ("a", "b"))
    with pytest.raises(ValueError, match="two names, found 'a' twice"):
        vote_page(path, pairs(), ("a", "a"))


def test_the_sides_show_what_the_key_says(tmp_path):
    def plain(level):
        return torch.full((2, 3, 8, 8), level)

    path = tmp_path / "vote.html"
    vote_page(path, [Pair(f"{i}", "x", plain(-1.0), plain(1.0)) for i in range(12)], ("dark", "bright"))
    data = content(path)
    swapped = json.loads(base64.b64decode(data["key"]))["swapped"]

    def level(uri):
        return from_pil(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))).median()

    assert {True, False} == set(swapped)
    for pair, swap in zip(data["pairs"], swapped, strict=True):
        assert (level(pair["left"]), level(pair["right"])) == ((1, -1) if swap else (-1, 1))


HARNESS = """
const fs = require("fs"), vm = require("vm");
const [html, orders] = [fs.readFileSync(process.argv[2], "utf8"), JSON.parse(process.argv[3])];
const [, data, script] = html.match(/id="data">(.*?)<\\/script>\\s*<script>(.*?)<\\/script>/s);
const kept = {};
function open() {
  const elements = {}, listeners = {}, saved = [];
  const make = () => ({ style: {}, children: [],
    append(...more) { this.children.push(...more); }, replaceChildren(...all) { this.children = all; }, click() {} });
  const at = (id) => (elements[id] ??= Object.assign(make(), id === "data" ? { textContent: data } : {}));
  const world = vm.createContext({
    document: { getElementById: at, createElement: make, addEventListener: (name, on) => (listeners[name] = on) },
    localStorage: { getItem: (name) => kept[name] ?? null, setItem: (name, value) => (kept[name] = value) },
    atob, Blob: class { constructor(parts) { saved.push(...parts); } }, setTimeout: () => 0, confirm: () => true,
    URL: { createObjectURL: () => "blob:", revokeObjectURL() {} },
  });
  vm.runInContext(script + ";globalThis.share = wilson;", world);
  return { at, listeners, saved, world };
}
let page = open();
const seen = [];
for (const order of orders) {
  if (order === "reload") page = open();
  else if (order.startsWith("click ")) page.at(order.slice(6)).onclick();
  else page.listeners.keydown({ key: order, preventDefault() {} });
  const text = (x) => x.textContent ?? x.children.map(text).join("|");
  seen.push({ end: !page.at("end").hidden, place: page.at("place").textContent, left: page.at("left").src,
    question: page.at("question").textContent, result: text(page.at("tables")), kept: Object.values(kept)[0],
    saved: page.saved.at(-1) });
}
console.log(JSON.stringify({ seen, share: [[0, 5], [3, 7], [40, 40]].map(([k, n]) => [...page.world.share(k, n)]) }));
"""


@pytest.fixture
def browse(tmp_path):
    """Runs a page's script with a stand-in for the browser; None where there is no node."""
    if shutil.which("node") is None:
        pytest.skip("the page's script runs in node, which is not installed")

    def run(page, *orders):
        (tmp_path / "harness.js").write_text(HARNESS)
        command = ["node", str(tmp_path / "harness.js"), str(page), json.dumps(orders)]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    return run


def test_a_vote_from_the_first_key_to_the_download(tmp_path, browse):
    path = tmp_path / "vote.html"
    vote_page(path, pairs(2), ("Frida", "Gustav"), seed=1)
    data = content(path)
    left, right = (
        ["Frida", "Gustav"][:: -1 if swap else 1] for swap in json.loads(base64.b64decode(data["key"]))["swapped"]
    )
    orders = [
        "a",
        "Backspace",
        "a",
        "x",
        "=",
        "reload",
        "click b",
        "B",
        "reload",
        "click download",
        "Backspace",
        "click again",
    ]
    shown = browse(path, *orders)["seen"]
    assert shown[0]["place"] == "2 of 4" and shown[0]["left"] == data["pairs"][0]["left"]
    assert shown[0]["question"].endswith("represents the text caption: prompt 0 </script>?")
    assert shown[1]["place"] == "1 of 4" and shown[1]["question"] == "Which set of images is of higher quality?"
    assert [shot["kept"] for shot in shown[2:8]] == ["a", "a", "a=", "a=", "a=b", "a=bb"]
    assert shown[5]["place"] == "3 of 4" and shown[6]["left"] == data["pairs"][1]["left"]
    assert [shot["end"] for shot in shown] == [False] * 7 + [True] * 3 + [False] * 2
    assert not any("Frida" in str(shot) for shot in shown[:7]) and "Frida preferred" in shown[7]["result"]
    saved = json.loads(shown[9]["saved"])
    prefers = [vote["prefers"] for vote in saved["votes"]]
    assert prefers == [left[0], None, right[1], right[1]]
    assert [vote["question"] for vote in saved["votes"]] == ["quality", "alignment"] * 2
    assert [vote["left"] for vote in saved["votes"]] == [left[0]] * 2 + [right[0]] * 2
    for name, chosen in (("quality", [left[0], right[1]]), ("alignment", [None, right[1]])):
        row = saved["summary"][name]["all"]
        assert row["votes"] == 2 and row["indifferent"]["votes"] == chosen.count(None)
        assert [row[x]["votes"] for x in ("first", "second")] == [chosen.count(x) for x in ("Frida", "Gustav")]
        assert [part["category"] for part in saved["summary"][name]["categories"]] == ["even", "odd"]
    assert shown[10]["kept"] == "a=b" and shown[11]["kept"] == "" and shown[11]["place"] == "1 of 4"


def test_the_intervals_are_wilsons(tmp_path, browse):
    vote_page(tmp_path / "vote.html", pairs(1), ("a", "b"))
    for (k, n), found in zip([(0, 5), (3, 7), (40, 40)], browse(tmp_path / "vote.html")["share"], strict=True):
        want = binomtest(k, n).proportion_ci(0.95, "wilson")
        assert found == pytest.approx([want.low, want.high], abs=1e-12)


def run(*args):
    return main([str(arg) for arg in args])


def test_the_command_compares_two_models(folders, tmp_path, capsys):
    file, out = (
        write_csv(tmp_path / "p.csv", "Prompts,Category\na red cube,Colors\na bleu ball,Words\n"),
        tmp_path / "out",
    )
    options = ("--prompts", file, "--n", "2", "--steps", "1", "--out", out)
    assert run("evaluate", folders[0], "--against", folders[1], *options) == 0
    shown = capsys.readouterr().out
    assert "## first" in shown and "## Difference" in shown and "| Words | 1 | " in shown and "1 of 3" in shown
    found = json.loads((out / "prompts.json").read_text())
    assert set(found["models"]) == {"first", "second"} and found["about"]["sampling"] == {"steps": 1}
    assert found["prompts"][0]["first"] == found["prompts"][0]["second"]  # the same weights, the same seeds
    assert "first" not in (out / "vote.html").read_text().partition('id="data"')[2].partition("</script>")[0]
    assert run("evaluate", folders[0], *options[:-1], tmp_path / "alone") == 0
    assert not (tmp_path / "alone" / "vote.html").exists()


def test_the_command_measures_distributions(folders, tmp_path, capsys):
    options = ("--data", "scenes:val", "--count", "6", "--steps", "1", "--json", tmp_path / "t.json")
    assert run("evaluate", folders[0], "--metrics", "fid", "kid", "clip", "--features", "palette", *options) == 0
    found = json.loads((tmp_path / "t.json").read_text())
    assert set(found) == {"distribution", "about"} and found["distribution"]["given"] == ["caption"]
    assert found["distribution"]["fid"] > 0 and set(found["distribution"]["kid"]) == {"value", "spread"}
    assert set(found["distribution"]["clip"]) == {"score", "true", "another"}
    shown = capsys.readouterr().out
    assert "| FID |" in shown and "needs many more images than its 156 features" in shown
    metrics = ("--metrics", "adherence", "kid", "--features", "palette", "--alone")
    assert run("evaluate", folders[0], *metrics, *options) == 0
    found = json.loads((tmp_path / "t.json").read_text())
    assert {"alone", "distribution"} <= set(found) and "fid" not in found["distribution"]


def test_mistakes_are_explained(saved, folders, capsys, tmp_path):
    few = ("--data", "scenes:val", "--count", "4", "--steps", "1")
    for args, says in [
        ((folders[0], "--metrics", "fid", *few), "weights-inception-2015-12-05-6726825d.pth"),
        ((saved, "--metrics", "clip", *few), "name the weights of a CLIP (--clip)"),
        ((saved, "--prompts", "asset:scenes_prompts.csv"), "name the weights of a CLIP (--clip)"),
        ((saved, "--prompts", "asset:scenes_prompts.csv", "--clip", "asset:scenes_clip"), "needs a model that reads"),
        ((folders[0], "--prompts", tmp_path / "gone.csv"), "there is nothing at"),
    ]:
        assert run("evaluate", *args) == 1
        shown = capsys.readouterr().err
        assert says in shown and "Traceback" not in shown, args


def test_our_prompts_are_a_plain_csv():
    path = Path(__file__).parents[2] / "composer" / "assets" / "scenes_prompts.csv"
    with path.open(newline="") as file:
        assert {len(row) for row in csv.reader(file)} == {3}
