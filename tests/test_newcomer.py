"""What newcomers write in Python: the page `docs/python.md`, the notebooks, what results can do, what errors say."""

import ast
import copy
import io
import json
import pickle
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import composer
from composer import Composition, Images, NoisyImage, Parts, SampleOptions, SmallImage, Source, Strength, edit
from composer.__main__ import main
from composer.cascade.cascade import Cascade
from composer.cascade.stage import Sampling
from composer.cascade.start import Kept
from composer.evaluation.best_of import best_of
from composer.evaluation.report import report
from composer.images.sheet import previews, read_recipe, sheet, to_pil
from composer.tasks.composition import from_words, preview
from composer.tasks.editing import Original, open_region, to_region
from composer.tasks.recipe import draw_recipe
from tests import unchecked

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/python.md").read_text()
TASKS = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
NOTEBOOKS = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))
FAST = SampleOptions(steps=2)


@pytest.fixture
def here(eight, tmp_path, monkeypatch):
    """A folder with a tiny model under the name of the included one, and pictures where the README puts them."""
    monkeypatch.chdir(tmp_path)
    assert eight.folder is not None
    shutil.copytree(eight.folder, "scenes256")
    rng = np.random.default_rng(0)
    Path("out/scenes").mkdir(parents=True)
    for number in range(6):
        pixels = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8).repeat(12, 0).repeat(12, 1)
        Image.fromarray(pixels).save(f"out/scenes/{number:06d}.png")
    return tmp_path


def blocks(text, language="python"):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def drawn(model, *, seeds=(0,), options=None, **parts):
    """The long way to a picture: tensors that the decomposers made, and nothing else."""
    return model.sample(Composition(parts=Parts(parts)), list(seeds), options)


def test_the_ten_tasks_of_the_page_do_what_they_say(here):
    said = {}
    exec(compile(blocks(PAGE)[0], "<page>", "exec"), said)
    model = said["model"]
    assert len(TASKS) == 10
    a, b = (model.decompose({"image": model.open(f"out/scenes/00000{n}.png")}) for n in (1, 5))
    by = model.decomposition
    results = []
    for title, text in TASKS:
        (block,) = blocks(text)
        assert len([line for line in block.splitlines() if line]) <= 3, title
        exec(compile(block, title, "exec"), said)
        results.append(dict(said))
    words, apart, recombined, colours, pillow, weaker, best, edited, measured, saved = results

    caption = by["caption"].from_text("a red cube on grass")
    assert torch.equal(words["images"], drawn(model, caption=caption, seeds=(0, 1)))
    assert apart["parts"].keys() == a.keys() and all(torch.equal(apart["parts"][name], a[name]) for name in a)
    assert np.array_equal(np.asarray(Image.open("out/parts.png")), np.asarray(apart["parts"].preview()))
    mixed = {**a.pick("sketch", "depth", "instances"), **b.pick("palette", "semantics")}
    assert torch.equal(recombined["images"], drawn(model, **mixed))
    palette = by["palette"].from_text("#aa3311 2, #eeddcc 1")
    assert torch.equal(colours["images"], drawn(model, **a.pick("sketch", "depth"), palette=palette))
    two = b.pick("sketch", "palette")
    assert np.array_equal(np.asarray(pillow["picture"]), np.asarray(to_pil(drawn(model, **two)[0])))
    asked = Composition(parts=two, strengths={"palette": Strength(0.5)})
    assert torch.equal(weaker["images"], model.sample(asked, [0], SampleOptions(steps=20)))
    assert not torch.equal(weaker["images"], drawn(model, **two, options=SampleOptions(steps=20)))
    long = best_of(model, Composition(parts=two, wanted=two), [0], 4)
    assert torch.equal(best["best"].images, long.images) and best["best"].seeds == long.seeds
    assert torch.equal(best["best"].scores, long.scores) and best["best"].scores.shape == (1, 4)
    original = Original.open("out/scenes/000005.png")
    region = open_region("0.5,0.3,0.92,0.78", (original.image.shape[1], original.image.shape[2]))
    cube = Parts(caption=by["caption"].from_text("a large red cube"))
    (changed,) = edit(model, original, region, cube)
    assert np.array_equal(np.asarray(edited["picture"]), np.asarray(changed))
    assert np.array_equal(np.asarray(Image.open("out/changed.png")), np.asarray(changed))
    rows = {row.name: row.closed for row in report("out/best.png", model).rows}
    assert measured["measured"] == rows and rows.keys() == {"sketch", "palette"}
    assert saved["files"] == [Path("out/drawn.png")]

    (command,) = blocks(PAGE, "bash")
    assert main([*shlex.split(command)[1:], "--model", "scenes256"]) == 0
    first, second = (np.asarray(Image.open(path)) for path in ("out/drawn.png", "out/again/drawn.png"))
    assert np.array_equal(first, second) and np.array_equal(first, np.asarray(weaker["images"][0].pil()))


def test_the_page_names_every_notebook():
    assert len(NOTEBOOKS) == 3
    assert all(path.relative_to(ROOT).as_posix() in PAGE for path in NOTEBOOKS)


SMALL = {"width": "16", "multipliers": "[1, 2]", "attention": "[2]", "head_dim": "16"}
NETWORK = "--model.denoiser.init_args.network.init_args"
SMALLER = {
    "scenes": ["--workers", "0"],
    "compose": ["--model", "scenes256"],
    "train": [
        *("--trainer.max_steps", "2", "--data.batch_size", "2", "--trainer.accelerator", "cpu"),
        *(word for name, value in SMALL.items() for word in (f"{NETWORK}.{name}", value)),
    ],
}


def command(line):
    """Runs a command of a notebook, smaller; pictures of few pixels are rendered faster."""
    words = shlex.split(line)[1:]
    if "--count" in words:
        words[words.index("--count") + 1] = "4"
        words[words.index("--size") + 1] = "32"
    assert main([*words, *SMALLER[words[0]]]) == 0, words


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_the_first_cell_to_the_last(path, here, monkeypatch):
    """As Jupyter runs them, on a tiny model; what stands last in a cell shows itself."""
    override = Sampling.override
    monkeypatch.setattr(Sampling, "override", lambda *args: replace(override(*args), steps=2))
    shutil.rmtree("out")
    said, pictures = {"command": command}, 0
    cells = json.loads(path.read_text())["cells"]
    assert not any(cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        source = re.sub(r"^!(.+)$", lambda line: f"command({line[1]!r})", "".join(cell["source"]), flags=re.MULTILINE)
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, path.name, "exec"), said)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), path.name, "eval"), said)
            pictures += hasattr(value, "_repr_png_") and value._repr_png_() is not None
    assert pictures >= 2


def test_results_are_a_tensor_and_know_their_seeds(eight):
    images = eight.sample(caption="a red cube", seeds=[4, 5, 6], options=FAST)
    plain = images.as_subclass(torch.Tensor)
    assert isinstance(images, torch.Tensor) and type(images) is Images
    assert torch.equal(images, plain) and torch.equal(images[1], plain[1])
    for derived in (
        images * 2,
        images.clamp(-1, 1),
        torch.stack(list(images)),
        images[:, 0],
        images[[0]],
        images[0][0],
    ):
        assert type(derived) is torch.Tensor
    for kept, seeds in ((images[1], [5]), (images[-2:], [5, 6]), (images.cpu(), [4, 5, 6]), (list(images)[2], [6])):
        assert type(kept) is Images and kept.seeds == seeds
    assert images[1].recipes() == images.recipes()[1:2] and images[1].recipes()[0]["seed"] == 5
    assert [type(picture) for picture in images.pil()] == [Image.Image] * 3
    assert np.array_equal(np.asarray(images[1].pil()), np.asarray(to_pil(plain[1])))
    assert repr(images) == "Images(3 x 3 x 16 x 16: 16 x 16 px, seeds 4, 5, 6)"


def test_results_survive_copies_and_files(eight):
    images = eight.sample(palette="#aa3311", seeds=[1, 2], options=FAST)
    copied = copy.deepcopy(images)
    assert torch.equal(copied, images) and copied.recipes() == images.recipes()
    assert type(pickle.loads(pickle.dumps(images))) is torch.Tensor
    file = io.BytesIO()
    torch.save(images, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), images)


def test_each_result_is_drawn_again_from_the_recipe_that_was_saved(eight, tmp_path):
    start = NoisyImage(torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16), 0.9)
    asked = Composition(parts=from_words(eight, "palette", "#aa3311").parts, start=start)
    images = eight.sample(asked, [3, 8], FAST)
    files = images.save(tmp_path / "new" / "x.png")
    assert [path.name for path in files] == ["x_seed3.png", "x_seed8.png"]
    for path, image in zip(files, images, strict=True):
        torch.testing.assert_close(
            draw_recipe(eight, read_recipe(path))[0], image.as_subclass(torch.Tensor), atol=1e-5, rtol=0
        )
    (alone,) = eight.sample(caption="a red cube", seeds=3, options=FAST).save(tmp_path / "y")
    found = read_recipe(alone)
    assert found["sources"] == {"caption": "a red cube"} and found["wanted"].keys() == {"caption"}
    assert torch.equal(draw_recipe(eight, found), eight.sample(caption="a red cube", seeds=3, options=FAST))


def test_saving_overwrites_nothing_and_leaves_no_recipe_where_none_would_do(eight, tmp_path):
    images = eight.sample(caption="a red cube", seeds=[3, 8], options=FAST)
    names = [[path.name for path in images.save(tmp_path / "x.png")] for _ in range(2)]
    assert names == [["x_seed3.png", "x_seed8.png"], ["x_seed3-2.png", "x_seed8-2.png"]]
    (bare,) = images[0].save(tmp_path / "bare.png", recipe=False)
    with pytest.raises(ValueError, match="has no recipe"):
        read_recipe(bare)
    kept = Kept(torch.zeros(1, 3, 16, 16), torch.ones(1, 1, 16, 16))
    assert eight.sample(Composition(kept=kept), 0, FAST).recipes() is None
    small = Composition(start=SmallImage(torch.zeros(1, 3, 8, 8)))
    assert not replace(images.origin, composition=small).can_be_redrawn
    images[0].mul_(0.5)
    assert images.recipes() is None and images[1].recipes() is None and images.cpu().recipes() is None
    for wrong, says in ((tmp_path, "found the folder"), (tmp_path / "x.jpg", "expected a PNG")):
        with pytest.raises(ValueError, match=says):
            images.save(wrong)


def test_a_recipe_says_how_it_was_drawn_not_how_the_model_is_now(eight):
    images = eight.sample(palette="#aa3311", options=FAST)
    try:
        eight.to("cpu", torch.bfloat16)
        assert images.recipes()[0]["precision"] == "fp32"
    finally:
        eight.to("cpu")


def shown(thing):
    return np.asarray(Image.open(io.BytesIO(thing._repr_png_())))


def test_a_notebook_shows_parts_sources_and_images(eight, photos):
    parts = eight.decompose(photos)
    assert repr(parts.pick("palette")) == "Parts(palette: 2 x 156)" and len(repr(parts)) < 200
    columns = previews(eight.decomposition, parts, 128)
    assert np.array_equal(
        shown(parts), np.asarray(sheet(list(zip(*columns.values(), strict=True)), columns=list(columns)))
    )
    assert np.array_equal(shown(parts), np.asarray(preview(eight, photos)))
    assert shown(parts.rows([0])).shape[0] < shown(parts).shape[0]
    assert Parts(palette=parts["palette"])._repr_png_() is None  # nobody knows how
    assert (Parts(palette=parts["palette"]) | parts.pick("sketch")).shown_by is eight.decomposition
    assert copy.deepcopy(parts).shown_by is None and pickle.loads(pickle.dumps(parts)).keys() == parts.keys()
    source = Source.open(eight, photos[0], "a red cube")
    assert re.fullmatch(r"Source\(has=Composition\(caption: a red cube, semantics: a.png, .*\)\)", repr(source))
    assert shown(source).shape[1] > shown(source.has).shape[1]
    asked = Composition(parts=parts.pick("palette"), strengths={"palette": Strength(0.5)}, options=FAST)
    assert repr(asked) == "Composition(palette at 0.5: 2 x 156; steps=2)"
    assert not np.array_equal(shown(asked), shown(asked.parts))  # it says the strength, too
    images = eight.sample(seeds=range(5), options=FAST)
    assert shown(images).shape[0] > 2 * 128 and np.array_equal(shown(images[0]), np.asarray(images[0].pil()))


def test_a_region_may_come_in_any_form(eight, photos, tmp_path):
    mask = np.zeros((40, 50), bool)
    mask[8:20, 5:30] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    forms: list[Any] = ["0.1,0.2,0.6,0.5", (0.1, 0.2, 0.6, 0.5), (5, 8, 30, 20), str(tmp_path / "mask.png")]
    forms += [mask, mask * 1.0, (mask * 255).astype(np.uint8), torch.from_numpy(mask)[None], Image.fromarray(mask)]
    for form in forms:
        assert torch.equal(to_region(form, (40, 50)), torch.from_numpy(mask).float()[None, None])
    with Image.open(photos[0]) as picture:
        pixels = np.array(picture)
    originals = (photos[0], Image.fromarray(pixels), pixels)
    made = [edit(eight, original, mask, palette="#aa3311", options=FAST)[0] for original in originals]
    assert (
        np.array_equal(np.asarray(made[0])[~mask], pixels[~mask]) and (np.asarray(made[0])[mask] != pixels[mask]).any()
    )
    assert all(np.array_equal(np.asarray(one), np.asarray(made[0])) for one in made)


def test_what_is_asked_besides_takes_the_place_of_a_compositions_own(eight):
    asked = from_words(eight, "palette", "#aa3311") | from_words(eight, "caption", "a red cube")
    made = eight.ask(asked, palette="#2244aa")
    other = from_words(eight, "palette", "#2244aa")
    assert made.sources == {"palette": "#2244aa", "caption": "a red cube"}
    for name, value in (asked | other).wanted.items():
        assert torch.equal(made.wanted[name], value)
    assert torch.equal(made.parts["palette"], other.parts["palette"])


WRONG = {
    'model.sample("a red cube")': 'caption="a red cube"',
    'model.sample("photo.png")': 'model.decompose("photo.png")',
    'model.sample({"caption": 3})': "a tensor or words for caption, found int",
    'model.sample(prompt="a red cube")': 'write caption="..."',
    'model.sample(capton="a red cube")': "did you mean caption?",
    "model.sample(parts, steps=10)": "options=SampleOptions(steps=...)",
    "model.sample(parts, seed=3)": "seeds=0",
    "model.sample(parts, num_inference_steps=10)": "SampleOptions(steps=...)",
    "model.sample(parts, guidance_scale=3.0)": "SampleOptions(guidance=...)",
    'model.sample(parts, options={"steps": 10})': "options=SampleOptions(steps=10), found dict",
    'SampleOptions(steps="10")': "expected a number, such as SampleOptions(steps=10)",
    "SampleOptions(size=256)": "SampleOptions(size=(256, 256))",
    'model.sample(parts, "0,1")': "seeds=[0, 1, 2]; found '0,1'",
    "model.sample(parts, 0.5)": "seeds=[0, 1, 2]; found 0.5",
    "model.sample(parts, [])": "seeds=[0, 1, 2]; found []",
    'model.sample(Source.open(model, "photo.png"))': "the `has` of a Source; found Source",
    'model.sample(sketch="photo.png")': 'sketch=model.decompose("photo.png")["sketch"]',
    'model.sample(sketch=Image.open("photo.png"))': "sketch=model.decompose(picture)",
    "model.sample(palette=parts)": 'expected parts["palette"] for palette',
    'model.sample(palette="red")': "expected colours and weights like '#aa3311 0.6",
    'Composition(parts=parts, strengths={"palette": 0.5})': "such as Strength(0.5), found 0.5",
    'Composition(parts=parts, start="photo.png")': "NoisyImage(image, 0.7)",
    'Strength("0.5")': "Strength(0.5), found '0.5'",
    "Strength(0.5, interval=0.5)": "such as (0.2, 0.8), found 0.5",
    'Strength(0.5, region="0.1,0.1,0.5,0.5")': 'open_region("0.1,0.2,0.6,0.9")',
    'model.decompose("missing.jpg")': "there is no such file",
    'model.decompose("photo.png").pick("palete")': "did you mean palette?",
    'model.decompose(["photo.png"], caption=["a", "b"])': "one for each of 1 pictures, found 2",
    'composer.open("photo.png")': 'model.decompose("photo.png")',
    'composer.load("scenes256")': 'Cascade.load("scenes256")',
    "composer.Cascad": "did you mean Cascade?",
    'edit("photo.png", model, "0.1,0.2,0.6,0.9")': 'edit(model, "photo.png"',
    'edit(model, "photo.png", 3)': '"0.1,0.2,0.6,0.9"',
    'report(model, "photo.png")': 'report("out.png", model)',
    'best_of("a red cube", model)': "best_of(model, parts, n=8)",
    'save_png(torch.zeros(3, 8, 8), "x.png")': 'save_png("out.png", image)',
    'save_png("x.png", torch.zeros(1, 3, 8, 8))': "a single image (3 h w), such as images[0]",
    "sheet(torch.zeros(2, 3, 8, 8))": "sheet([images])",
    "preview(model)": 'preview(model, "photo.png")',
}


def test_errors_say_what_to_type_instead(eight, photos, tmp_path, monkeypatch):
    shutil.copy(photos[0], tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {name: getattr(composer, name) for name in dir(composer)}
    scope |= {"composer": composer, "torch": torch}
    said = {}
    with unchecked(), Image.open("photo.png") as picture:
        scope["Image"] = SimpleNamespace(open=lambda path: picture)  # one that is closed again
        scope["model"] = Cascade.load(str(eight.folder))
        scope["parts"] = scope["model"].decompose("photo.png")
        for line in WRONG:
            try:
                said[line] = repr(eval(line, scope))
            except (ValueError, KeyError, AttributeError) as error:
                said[line] = error.args[0] if isinstance(error, KeyError) else str(error)
    assert {line: says for line, says in said.items() if WRONG[line] not in says} == {}
