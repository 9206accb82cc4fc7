"""From published files to pictures: tiny random weights in the true layouts."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from composer import Cascade
from composer.__main__ import main
from composer.cascade.stage import Stage
from composer.published import FAMILIES, Needs, Published, import_model
from composer.published.engine import convert
from tests.decomposers.test_clip_decomposers import tiny, write_folder
from tests.published import kit
from tests.published import layouts as own

MERGES = ["r e", "re d", "Ġ c", "Ġc u", "Ġcu b", "Ġcub e", "o n"]
BASE = own.glide(32, (1, 1, 2), 1, (4,), text=64, layers=2, length=16, words=257 + len(MERGES))
UP = own.glide(32, (1, 1, 1, 2), 1, (8,), 6, text=64, layers=2, length=16, words=257 + len(MERGES))
RELEASED = {
    "glide_base": own.glide(192, (1, 2, 3, 4), 3, (2, 4, 8)),
    "glide_base_inpaint": own.glide(192, (1, 2, 3, 4), 3, (2, 4, 8), 7),
    "glide_upsample": own.glide(192, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), 6),
    "glide_upsample_inpaint": own.glide(192, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), 10),
    "adm_64": own.unet(192, (1, 2, 3, 4), 3, (2, 4, 8), labels=1000),
    "adm_128": own.unet(256, (1, 1, 2, 3, 4), 2, (4, 8, 16), labels=1000),
    "adm_256": own.unet(256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), labels=1000),
    "adm_512": own.unet(256, (0.5, 1, 1, 2, 2, 4, 4), 2, (16, 32, 64), labels=1000),
    "adm_64_256_upsampler": own.unet(192, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), 6, labels=1000),
    "karlo_decoder": own.karlo_decoder(320, (1, 2, 3, 4), 3, (2, 4, 8)),
}


@pytest.fixture
def merges(tmp_path):
    path = tmp_path / "merges.txt"
    path.write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8")
    return str(path)


def size_of(path):
    with Image.open(path) as image:
        return image.size


def write(path, shapes, seed=0):
    torch.save(own.fill(shapes, seed), path)
    return str(path)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.effect_mandelbrot((96, 80), (-2, -1, 1, 1), 30).convert("RGB").save(path)
    return str(path)


@kit.needs_kit
@pytest.mark.parametrize("name", RELEASED)
def test_our_layouts_are_the_released_ones(name):
    assert {key: list(shape) for key, shape in RELEASED[name].items()} == kit.layouts()[name]


@pytest.mark.parametrize(
    ("family", "shapes"),
    [
        ("glide-base", RELEASED["glide_base"]),
        ("adm-512", RELEASED["adm_512"]),
        ("karlo-decoder", RELEASED["karlo_decoder"]),
    ],
)
def test_a_released_layout_has_a_place_for_every_tensor(family, shapes):
    theirs = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    spec = FAMILIES[family].configure(theirs, 64, Needs())
    with torch.device("meta"):
        weights = Stage.from_spec(spec["stages"][0]).weights()
    done = convert(FAMILIES[family].rows(weights, Needs()), theirs, weights.state_dict())
    assert {name for row in done.report for name in row["theirs"]} == theirs.keys()


def test_from_glides_files_to_pictures(tmp_path, merges, photo, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [write(tmp_path / "base.pt", BASE), write(tmp_path / "upsample.pt", UP, 1)]
    assert not main(["import", *files])
    assert "looks like glide-base" in capsys.readouterr().out
    assert not main(["import", *files, "--check", "--as", "glide-base", "glide-up"])
    assert "every tensor has its place" in capsys.readouterr().out and not (tmp_path / "glide").exists()
    assert not main(
        [
            "import",
            *files,
            "--as",
            "glide-base",
            "glide-up",
            "--out",
            "glide",
            "--merges",
            merges,
            "--report",
            "report.json",
        ]
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert {n for row in report["glide-base"] for n in row["theirs"]} == BASE.keys()
    assert "783" in (tmp_path / "glide/README.md").read_text()
    model = Cascade.load(tmp_path / "glide")
    assert [stage.size for stage in model.stages] == [64, 256] and model.names == ("caption",)
    few = ["--model", "glide", "--stage", "base:steps=2", "--stage", "up256:steps=1", "--out", "out"]
    assert not main(["compose", "--caption", "a red cube", "--and", "a cube:2", *few])
    assert not main(["edit", photo, "--region", "0.2,0.2,0.8,0.8", "--caption", "a red cube", *few])
    assert not main(["vary", photo, "--keep", "--caption", "a red cube", *few, "--until", "base"])
    assert not main(["compose", "--caption", "a cube", "--start", f"{photo}:0.5", *few, "--until", "base"])
    assert not main(["report", "out/compose_seed0.png", "--model", "glide", "--out", "out"])
    assert size_of("out/compose_seed0.png") == (256, 256) and size_of("out/edit_photo_seed0.png") == (96, 80)


def test_from_karlos_decoder_to_pictures(tmp_path, photo, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = write_folder(tiny(True, embed_dim=64), tmp_path / "clip", True, embed_dim=64)
    shapes = own.karlo_decoder(32, (1, 1, 2), 1, (4,), clip=64, words=64, context=24)
    torch.save({"state_dict": {f"model.{k}": v for k, v in own.fill(shapes).items()}}, tmp_path / "decoder.ckpt")
    assert not main(["import", "decoder.ckpt", "--as", "karlo-decoder", "--out", "karlo", "--clip", clip])
    few = ["--model", "karlo", "--steps", "2", "--out", "out"]
    assert not main(["compose", "--caption", "a red cube", *few])
    assert not main(["vary", photo, "--seeds", "0,1", *few])
    assert not main(["interpolate", photo, photo, "--frames", "3", "--between", "semantics", *few])
    assert not main(["turn", photo, "--before", "a red cube", "--after", "a blue cube", "--shares", "0.2", *few])
    assert not main(["report", "out/compose_seed0.png", "--model", "karlo", "--out", "out"])


def test_what_is_wrong_with_a_file_is_said(tmp_path, merges):
    base = own.fill(BASE)
    for name, tensors, said in (
        ("other", own.fill(own.unet(32, (1, 2), 1, (2,), labels=10)), "looks like adm-64"),
        ("unknown", {"a.weight": torch.zeros(3)}, "looks like no known family"),
        ("extra", base | {"input_blocks.1.0.gate": torch.zeros(2)}, "1 tensors are unknown in the file"),
        (
            "cut",
            {k: v for k, v in base.items() if k != "middle_block.1.norm.bias"},
            "missing in the file.*middle_block",
        ),
        ("wide", base | {"out.0.weight": torch.zeros(64)}, r"shape \(32,\), found out.0.weight \(64,\)"),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(ValueError, match=said):
            import_model({"glide-base": tmp_path / f"{name}.safetensors"}, tmp_path / "out", Needs(merges))
        assert not (tmp_path / "out").exists()
    whole = tmp_path / "base.pt"
    write(whole, BASE)
    whole.write_bytes(whole.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="is refused"):
        Published.open(whole, "glide-base")
    other = tmp_path / "other.txt"
    other.write_text("o n\n")
    with pytest.raises(ValueError, match=f"expected merges that make {257 + len(MERGES)} pieces, found 258"):
        import_model({"glide-base": write(tmp_path / "base2.pt", BASE)}, tmp_path / "out", Needs(str(other)))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Published.open(tmp_path / "absent.pt", "glide-base")
    with pytest.raises(ValueError, match="expected a family of glide-base"):
        Published.open(whole, "imagen")


def test_a_model_is_not_overwritten(tmp_path, merges):
    file = write(tmp_path / "base.pt", BASE)
    import_model({"glide-base": file}, tmp_path / "out", Needs(merges))
    with pytest.raises(FileExistsError, match="choose another folder"):
        import_model({"glide-base": file}, tmp_path / "out", Needs(merges))
