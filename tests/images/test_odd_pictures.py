"""Pictures of 110 kinds and their mutants: each is right or refused, and an edit keeps what lies outside."""

import io
import os
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from composer.images.fidelity import loss
from composer.images.masks import read_mask
from composer.images.reading import Reason, Refused, load_rgb, opened
from composer.images.sheet import save_png
from composer.tasks.editing import Frame, Original
from tests.hostility import run
from tests.odd_pictures import KINDS, REFUSED, SAME, mutant

SEEDS = 5
MUTANTS = int(os.environ.get("COMPOSER_MUTANTS", "1000"))


def png_values(data):
    """Reads a PNG of 8 or 16 bits that isn't interlaced, without Pillow."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, packed, chunks = 8, b"", {}
    while place < len(data):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        content = data[place + 8 : place + 8 + length]
        chunks[kind] = content
        packed += content if kind == b"IDAT" else b""
        place += length + 12
    header = chunks[b"IHDR"]
    w, h = (int.from_bytes(header[i : i + 4], "big") for i in (0, 4))
    depth, colour = header[8], header[9]
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    step = channels * depth // 8
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(h, 1 + w * step).astype(int)
    found = np.zeros((h + 1, w * step + step), np.int64)  # a row above and a pixel at the left, of zeros
    for y in range(h):
        for x in range(w * step):
            a, b, c = found[y + 1, x], found[y, x + step], found[y, x]
            d = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            found[y + 1, x + step] = (rows[y, 1 + x] + [0, a, b, (a + b) // 2, d][rows[y, 0]]) % 256
    values = found[1:, step:].reshape(h, w, channels, depth // 8)
    values = values[..., 0] if depth == 8 else values[..., 0] * 256 + values[..., 1]
    return (values[..., 0] if channels == 1 else values), chunks


def region(rng, h, w):
    y, x = rng.integers(0, h - 8), rng.integers(0, w - 8)
    made = torch.zeros(1, 1, h, w)
    made[..., y : y + rng.integers(2, 20), x : x + rng.integers(2, 20)] = 1
    return made


@pytest.mark.parametrize("kind", SAME)
def test_an_edit_keeps_what_lies_outside(tmp_path, kind):
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        odd = SAME[kind](rng)
        (tmp_path / "a.jpg").write_bytes(odd.data)
        original = Original.open(tmp_path / "a.jpg")
        where = region(rng, *odd.stored.shape[:2])
        drawn = torch.from_numpy(rng.uniform(-1, 1, (1, 3, 16, 16))).float()  # stands for what a model draws
        (picture,) = Frame.around(original, where).paste(drawn)
        save_png(tmp_path / "b.png", picture)
        found = np.asarray(Image.open(tmp_path / "b.png")) if seed else png_values((tmp_path / "b.png").read_bytes())[0]
        outside = where[0, 0].numpy() == 0
        assert found.shape == odd.stored.shape
        assert (found[outside] == odd.stored[outside]).all()
        if found.ndim == 3 and found.shape[2] in (2, 4):
            assert (found[..., -1] == odd.stored[..., -1]).all()
        assert (found[~outside] != odd.stored[~outside]).any()


@pytest.mark.parametrize("kind", REFUSED)
def test_what_an_edit_could_not_keep_is_refused_from_the_header(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("composer.images.reading.Pixels.of", lambda *_: pytest.fail("it was decoded"))
    for seed in range(SEEDS):
        (tmp_path / "a.jpg").write_bytes(REFUSED[kind](np.random.default_rng(seed)).data)
        with pytest.raises(Refused, match="save it") as caught:
            Original.open(tmp_path / "a.jpg")
        assert caught.value.reason is Reason.CHANGED


@pytest.mark.parametrize("kind", SAME)
def test_every_odd_picture_is_read_as_it_is(tmp_path, kind):
    odd = SAME[kind](np.random.default_rng(7))
    (tmp_path / "a").write_bytes(odd.data)
    found = load_rgb(tmp_path / "a")
    stored = odd.stored.astype(np.float64) / (65535 if odd.stored.dtype == np.uint16 else 255)
    stored = stored[..., None] if stored.ndim == 2 else stored
    assert (found.alpha is not None) == (stored.shape[2] in (2, 4))
    if found.alpha is not None:
        assert np.abs(found.alpha[0].numpy() - stored[..., -1]).max() < 1e-6
        colours, alpha = stored[..., :-1], stored[..., -1:]
        stored = colours * alpha + 1 - alpha
    error = np.abs((found.image.permute(1, 2, 0).numpy() + 1) / 2 - stored).max()
    assert error < (0.02 if "profile" in kind else 1e-6)


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if "JPEG 2000" not in kind])  # whose headers are false
def test_what_is_not_edited_is_still_read(tmp_path, kind):
    for seed in range(SEEDS):
        (tmp_path / "a").write_bytes(REFUSED[kind](np.random.default_rng(seed)).data)
        image = load_rgb(tmp_path / "a").image
        assert image.isfinite().all() and image.abs().max() <= 1 and image.max() - image.min() > 0.2


def test_a_deep_avif_is_told_by_its_header(tmp_path):
    (tmp_path / "a").write_bytes(data := SAME["AVIF"](np.random.default_rng(0)).data)
    with opened(tmp_path / "a") as header:
        assert loss(header) is None
        deep = bytearray(data)
        deep[deep.index(b"av1C") + 6] |= 0x40  # high_bitdepth
        vars(header)["fp"] = io.BytesIO(deep)  # Pillow writes none, and reads none whose pixels are not so
        assert "10 or 12 bits" in loss(header)


def test_a_declared_gamma_survives_an_edit(tmp_path):
    odd = SAME["PNG with gamma"](np.random.default_rng(0))
    (tmp_path / "a.png").write_bytes(odd.data)
    original = Original.open(tmp_path / "a.png")
    where = region(np.random.default_rng(0), *odd.stored.shape[:2])
    save_png(tmp_path / "b.png", Frame.around(original, where).paste(torch.zeros(1, 3, 8, 8))[0])
    assert png_values((tmp_path / "b.png").read_bytes())[1][b"gAMA"] == (100_000).to_bytes(4, "big")


def test_mutants_are_read_or_refused(tmp_path, capfd):
    """No crash, warning, program or connection, nothing written, bounded time and memory."""
    rng = np.random.default_rng(MUTANTS)
    bases = [make(np.random.default_rng(1)).data for make in KINDS.values()]
    folder = tmp_path / "out"
    path = folder / "a.png"
    counts = {"read": 0, "refused": 0}

    def read_all(_):
        for i in range(MUTANTS):
            path.write_bytes(mutant(rng, bases[i % len(bases)], bases[int(rng.integers(len(bases)))]))
            try:
                image = load_rgb(path, 32 if i % 3 == 0 else None).image
                assert image.ndim == 3 and image.shape[0] == 3 and image.isfinite().all() and image.abs().max() <= 1
                counts["read"] += 1
            except Refused:
                counts["refused"] += 1
            if i % 4 == 1:
                for read in (Original.open, read_mask):
                    try:
                        read(path)
                    except Refused:
                        counts["refused"] += 1
        return 0

    outcome = run([], folder, seconds=60 + MUTANTS / 50, call=read_all)
    assert not outcome.broken and outcome.status == 0, outcome
    assert outcome.err == "" and capfd.readouterr().err == ""
    assert counts["read"] > MUTANTS // 10 and counts["refused"] > MUTANTS // 10
