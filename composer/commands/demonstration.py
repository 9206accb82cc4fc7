"""The demonstration: takes images apart, recombines them, edits a region and measures, on the shipped model."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts
from composer.data.datasets import Photographs, SceneImages, collate
from composer.decomposition import Batch
from composer.evaluation.adherence import Evaluation
from composer.evaluation.samples import Sample
from composer.images.reading import resize
from composer.images.sheet import Section, decomposed, from_pil, html_index, save_png, sheet, to_pil
from composer.storage.files import write_atomically
from composer.tasks.composition import from_words
from composer.tasks.editing import Original, edit, open_region
from composer.terminal import bar

PHOTOGRAPHS = ["astronaut.png", "chelsea.png"]
LOCAL, GLOBAL = ("sketch", "depth", "instances"), ("palette", "semantics")
SHAPES_OF_PHOTOGRAPHS = ("sketch", "depth", "intensity")
"""Of a photograph the reader of Scenes finds no instances; its brightness carries what a sketch leaves out."""
ROWS, COLUMNS = (3, 4, 5, 0, 1), (6, 7, 8, 9)
EDITED, BOX = 7, "0.5,0.3,0.92,0.78"
WORDS = {"caption": "a large shiny blue torus on grass under a dawn sky", "palette": "#1133bb 1, #55803a 2, #333a22 1"}
SAMPLE = 8


def run(cascade: Cascade, out: Path) -> Path:
    """Writes pictures, a table and a page that shows them together.

    Args:
        cascade: The model.
        out: Folder to write to.

    Returns:
        The page.
    """
    batch = sources(cascade)
    steps: dict[str, Callable[[Cascade, Batch, Path], Section]] = {
        "taking images apart": take_apart,
        "recombining": recombine,
        "editing a region": edit_region,
        "measuring adherence": measure,
    }
    sections = []
    with bar() as progress:
        task = progress.add_task("", total=len(steps))
        for what, step in steps.items():
            progress.update(task, description=what)
            sections.append(step(cascade, batch, out))
            progress.advance(task)
    return html_index(out, sections, "Composer: what it does")


def sources(cascade: Cascade) -> Batch:
    """Two photographs that scikit-image ships, then Scenes that no training saw, at the size of the last stage."""
    size = cascade.stages[-1].size
    photographs, scenes = Photographs(size, PHOTOGRAPHS, smallest=1.0), SceneImages("val", size, 9)
    return collate([*(photographs.row(i, 2) for i in range(2)), *(scenes.row(i, 0) for i in range(9))])


def small(cascade: Cascade, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
    """Images at the size of the first stage, where they are taken apart."""
    return torch.stack([resize(x, cascade.stages[0].size) for x in image])


def take_apart(cascade: Cascade, batch: Batch, out: Path) -> Section:
    """Decomposes two photographs and two Scenes; the mask hides their lower right quarter."""
    size = cascade.stages[0].size
    region = torch.zeros(4, 1, size, size)
    region[..., size // 2 :, size // 2 :] = 1
    image, captions = small(cascade, batch["image"][:4]), batch["caption"][:4]
    parts = cascade.decompose({"image": image, "caption": captions, "region": region})
    save_png(out / "decomposed.png", decomposed(image, cascade.decomposition, parts, captions))
    text = "Each row is one image and the representations that the model reads from it."
    return Section(title="Taken apart", text=text, pictures=[(out / "decomposed.png", "image -> representations")])


def recombine(cascade: Cascade, batch: Batch, out: Path) -> Section:
    """Draws a matrix: local conditions of the rows, global conditions of the columns."""
    parts = cascade.decompose({"image": small(cascade, batch["image"])})
    other = _pick(parts, GLOBAL)
    grid: list[list[torch.Tensor | None]] = [[None, *(batch["image"][j] for j in COLUMNS)]]
    for i in ROWS:
        local = _pick(parts, SHAPES_OF_PHOTOGRAPHS if i < len(PHOTOGRAPHS) else LOCAL)
        rows = local.rows([i] * len(COLUMNS)) | other.rows(list(COLUMNS))
        drawn = cascade.sample(rows, seeds=[0] * len(COLUMNS)).cpu()
        grid.append([batch["image"][i], *drawn])
    save_png(out / "recombined.png", sheet(grid))
    text = (
        f"Each picture takes {_listed(parts, GLOBAL)} from its column's image, and from its row's image "
        f"{_listed(parts, LOCAL)}, or, of a photograph, {_listed(parts, SHAPES_OF_PHOTOGRAPHS)}."
    )
    return Section(title="Recombined", text=text, pictures=[(out / "recombined.png", "rows x columns")])


def _pick(parts: Parts, names: Sequence[str]) -> Parts:
    return parts.pick(*(n for n in names if n in parts))


def _listed(parts: Parts, names: Sequence[str]) -> str:
    return ", ".join(_pick(parts, names))


def edit_region(cascade: Cascade, batch: Batch, out: Path) -> Section:
    """Redraws one thing of a picture in the colours that words name, keeping its shape and brightness."""
    before = batch["image"][EDITED]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "before.png"
        save_png(file, before)
        original = Original.open(file)
    region = open_region(BOX, (before.shape[1], before.shape[2]))
    asked = Parts()
    for name in (n for n in WORDS if n in cascade.names):
        asked |= from_words(cascade, name, WORDS[name]).parts
    kept = [n for n in (*LOCAL, "intensity") if n in cascade.names]
    after = from_pil(edit(cascade, original, region, asked, keep=kept)[0])
    change = (after - before).abs().amax(0, keepdim=True).expand(3, -1, -1) - 1
    outside = float(((after - from_pil(to_pil(before))).abs() * (1 - region[0])).max())
    shown = [before, region[0].expand(3, -1, -1) * 2 - 1, after, change]
    save_png(out / "edited.png", sheet([shown], columns=["before", "region", "after", "difference"]))
    text = (
        f"The region keeps its {', '.join(kept)}; words ask for its {' and '.join(asked)}: {WORDS['caption']}. "
        f"Largest change outside the region: {outside:g}."
    )
    return Section(title="Edited within a region", text=text, pictures=[(out / "edited.png", "before -> after")])


def measure(cascade: Cascade, batch: Batch, out: Path) -> Section:
    """Measures adherence on a small sample."""
    scenes = SceneImages("val", cascade.stages[0].size, 64)
    sample = Sample(SAMPLE, lambda index: collate([scenes.row(32 + i, 0) for i in index]))
    found = Evaluation(cascade, sample, options=SampleOptions(steps=15)).measure()
    text = (
        f"How much of the way from chance (0) to perfect (1) each condition closes, on {SAMPLE} Scenes and 15 steps "
        "only; the model's card has the figures of 256."
    )
    write_atomically(out / "adherence.md", f"# Adherence\n\n{text}\n\n{found.markdown()}".encode())
    return Section(title="Measured", text=text, table=found.table())
