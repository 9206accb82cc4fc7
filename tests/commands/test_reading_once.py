"""A command reads each of its files once, however many cells a sheet has, and does nothing twice."""

import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from composer.__main__ import main
from composer.cascade.cascade import Cascade
from composer.decomposition import Decomposition
from composer.evaluation.report import report
from composer.images.reading import MAX_BYTES, PictureFile, Reason, Refused, load_rgb
from composer.images.sheet import read_written, save_gif
from composer.prior import Prior
from composer.tasks.composition import Source
from composer.tasks.editing import Original

OLD = Path(__file__).parents[1] / "data" / "before_rooms"
NINE = ("--sheet", "guidance=1,2,3", "seed=0,1,2", "--steps", "2")

_watched: list[Path] = []
_watching = False


def _watch(event, args):
    if _watching and event == "open" and isinstance(args[0], str | Path) and args[2] & os.O_ACCMODE == os.O_RDONLY:
        _watched.append(Path(args[0]).absolute())


sys.addaudithook(_watch)  # for good; Python itself says which files it opens, whoever asks for them


@pytest.fixture
def opened():
    """Counts how often each file has been opened for reading."""
    global _watching
    _watched.clear()
    _watching = True
    yield lambda *paths: [_watched.count(Path(path).absolute()) for path in paths]
    _watching = False


@pytest.fixture
def calls(monkeypatch):
    """Counts calls of what takes long."""
    count = Counter()

    def watch(owner, name):
        whole = getattr(owner, name)

        def counted(*args, **kwargs):
            count[name] += 1
            return whole(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    watch(Cascade, "invert")
    loading = vars(Prior)["load"].__func__

    def load(cls, *args, **kwargs):
        count["load"] += 1
        return loading(cls, *args, **kwargs)

    monkeypatch.setattr(Prior, "load", classmethod(load))
    return count


@pytest.fixture
def mask(tmp_path):
    region = np.zeros((40, 50), np.uint8)
    region[8:30, 10:40] = 255
    Image.fromarray(region).save(tmp_path / "mask.png")
    return str(tmp_path / "mask.png")


@pytest.fixture
def run(tmp_path):
    def command(*args):
        assert main([*map(str, args), "--out", str(tmp_path / "out")]) == 0
        return tmp_path / "out"

    return command


def test_the_count_sees_every_way_of_opening(photos, opened):
    load_rgb(photos[0])
    Path(photos[0]).read_bytes()
    with Image.open(photos[0]):
        assert opened(*photos) == [3, 0]


def test_nine_cells_load_the_prior_once(run, calls, opened, mask, photos):
    asked = ("--caption", "a red cube", "--start", f"{photos[0]}:0.9", "--palette", f"{photos[1]}:0.5:{mask}")
    out = run("compose", "--model", OLD / "model", "--prior", OLD / "prior", *asked, *NINE)
    assert len(list(out.glob("*_seed?_*.png"))) == 9
    assert calls == {"load": 1} and opened(*photos, mask) == [1, 1, 1]


def test_rows_load_the_prior_once(run, calls):
    captions = ("--caption", "a red cube", "a blue ball")
    run("compose", "--model", OLD / "model", "--prior", OLD / "prior", *captions, "--steps", "2")
    assert calls == {"load": 1}


def test_nine_cells_invert_once(run, saved, calls, opened, photos):
    run("reconfigure", photos[0], "--model", saved, "--intensity", photos[1], *NINE)
    assert calls == {"invert": 1} and opened(*photos) == [1, 1]


def test_what_an_inversion_depends_on_is_inverted_again(run, saved, calls, photos):
    sheet = ("--sheet", "steps=2,3", "guidance=1,2")
    run("reconfigure", photos[0], "--model", saved, "--intensity", photos[1], *sheet)
    assert calls == {"invert": 2}
    run("interpolate", *photos, "--model", saved, "--between", "palette", "--from-noises", *NINE)
    assert calls == {"invert": 4}


def test_inversions_are_known_by_all_that_they_depend_on(cascade, photos, calls):
    source = Source.open(cascade, photos[0])
    first = source.invert(cascade, source.pick("palette").parts, 2)
    assert source.invert(cascade, source.pick("palette").parts, 2) is first and calls["invert"] == 1
    others = [
        source.pick("intensity"),
        source.pick("palette", "intensity"),
        Source.open(cascade, photos[1]).pick("palette"),
    ]
    for i, other in enumerate(others):
        found = source.invert(cascade, other.parts, 2)
        assert calls["invert"] == 2 + i and (found.noise != first.noise).any()
    source.invert(cascade, source.pick("palette").parts, 3)
    assert calls["invert"] == 5


@pytest.mark.parametrize("command", ["edit", "reconfigure"])
def test_nine_cells_of_a_region_open_picture_and_mask_once(run, saved, calls, opened, photos, mask, command):
    within = ("--region", mask, "--intensity", photos[1])
    run(command, photos[0], "--model", saved, *within, *NINE)
    assert opened(*photos, mask) == [1, 1, 1] and calls["invert"] == (command == "reconfigure")


def test_a_larger_canvas_opens_the_picture_once(run, saved, opened, photos):
    run("outpaint", photos[0], "--by", "0.2,0,0.2,0", "--model", saved, "--palette", photos[0], *NINE)
    assert opened(photos[0]) == [1]


def test_pictures_made_again_are_opened_once(run, saved, opened, photos):
    drawn = run("edit", photos[0], "--model", saved, "--region", "0.2,0.2,0.7,0.8") / "edit_a_seed0.png"
    assert opened(photos[0], drawn) == [1, 0]
    run("edit", photos[0], "--model", saved, "--from-png", drawn)
    assert opened(photos[0], drawn) == [2, 1]


def test_results_are_not_read_back_for_sheet_and_film(run, saved, opened, photos):
    out = run("interpolate", *photos, "--model", saved, "--between", "palette", "--frames", "3", "--steps", "2")
    made = sorted(out.glob("interpolate_*"))
    assert [path.suffix for path in made] == [".png"] * 3 + [".gif", ".png"] and opened(*made) == [0] * 5


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "LA", "L", "I;16", "P"])
def test_a_film_is_that_of_the_files(run, saved, photos, tmp_path, kind):
    read = Image.open(photos[0])
    picture = (
        Image.fromarray(np.asarray(read)[..., 0].astype(np.uint16) * 200) if kind == "I;16" else read.convert(kind)
    )
    picture.save(tmp_path / "a.png")
    within = ("--region", "0.2,0.2,0.7,0.8", "--between", "palette", "--frames", "3", "--steps", "2")
    out = run("interpolate", *photos, "--model", saved, *within)
    save_gif(tmp_path / "b.gif", [read_written(path) for path in sorted(out.glob("*_seed0.png"))])
    (film,) = out.glob("*.gif")
    assert film.read_bytes() == (tmp_path / "b.gif").read_bytes()


# Report


@pytest.fixture
def reads(monkeypatch):
    """What was read from the one picture, condition by condition."""
    found = []
    whole = Decomposition.forward

    def counted(self, batch, names=None):
        made = whole(self, batch, names)
        if len(batch.get("image", ())) == 1:
            found.extend(made)
        return made

    monkeypatch.setattr(Decomposition, "forward", counted)
    return found


def test_report_reads_a_picture_once(run, saved, opened, reads, photos):
    asked = ("--intensity", photos[0], "--palette", "#aa3311 1")
    drawn = run("compose", "--model", saved, *asked, "--steps", "2") / "compose_seed0.png"
    reads.clear()
    run("report", drawn, "--model", saved)
    assert opened(drawn) == [1] and sorted(reads) == ["intensity", "palette"]


def test_report_reads_an_edit_and_its_original_once(run, saved, opened, reads, photos):
    within = ("--region", "0.2,0.2,0.7,0.8", "--keep", "intensity", "--steps", "2")
    drawn = run("edit", photos[0], "--model", saved, *within) / "edit_a_seed0.png"
    before = opened(photos[0])
    reads.clear()
    run("report", drawn, "--image", photos[0], "--model", saved)
    assert opened(drawn) == [1] and opened(photos[0]) == [before[0] + 1] and sorted(reads) == ["intensity", "mask"]


def test_only_what_was_asked_is_read_for_a_report(run, saved, reads, photos):
    drawn = run("compose", "--model", saved, "--intensity", photos[0], "--steps", "2") / "compose_seed0.png"
    reads.clear()
    report(drawn, Cascade.load(saved))
    assert reads == ["intensity"]


# Files that keep their content


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM"])
def test_kept_content_is_read_as_the_file_is(tmp_path, format, opened):
    y, x = np.mgrid[:90, :120]
    path = tmp_path / "a"
    Image.fromarray(np.stack([x, y, x + y], 2).astype(np.uint8)).save(path, format)
    kept = PictureFile(path)
    for size in (None, 16):
        assert (load_rgb(kept, size).image == load_rgb(path, size).image).all()
    one, other = Original.open(kept), Original.open(path)
    assert one.picture.tobytes() == other.picture.tobytes() and (one.image == other.image).all()
    assert kept.data == path.read_bytes() and PictureFile.of(kept) is kept


def test_what_is_no_picture_is_refused_before_it_is_read_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"II*\0")
    os.truncate(tmp_path / "a", 6_000_000_000)  # takes no room
    Image.new("RGB", (64, 64)).save(tmp_path / "b", "TIFF")
    os.truncate(tmp_path / "b", MAX_BYTES + 1)
    for name, reason in (("a", Reason.NOT_AN_IMAGE), ("b", Reason.TOO_LARGE), ("c", Reason.MISSING)):
        with pytest.raises(Refused) as caught:
            load_rgb(PictureFile(tmp_path / name))
        assert caught.value.reason is reason and caught.value.path == tmp_path / name
