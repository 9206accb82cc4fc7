"""OpenAI's dVAE: against its authors' outputs, and read from pickled modules of which no code runs."""

import json
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from composer import Cascade
from composer.__main__ import main
from composer.networks.dvae import DVAE, map_pixels, unmap_pixels
from composer.published import FAMILIES, Needs, Published, import_model
from composer.published.dvae import CLASSES
from composer.published.engine import convert
from composer.published.importing import network_of
from composer.published.pickled import read_modules
from composer.storage.folder import digest
from tests.published.kit import inputs, meta, needs_kit, output, weights

TINY = {"codes": 5, "width": 4, "start": 3, "blocks": 2}


@pytest.fixture
def authors(monkeypatch):
    """Classes named as the authors' are, which build modules with their names; they are here only to be pickled."""
    for module, names in {
        "dall_e": (),
        "dall_e.encoder": ("Encoder", "EncoderBlock"),
        "dall_e.decoder": ("Decoder", "DecoderBlock"),
        "dall_e.utils": ("Conv2d",),
    }.items():
        made = ModuleType(module)
        for name in names:
            setattr(made, name, type(name, (nn.Module,), {"__module__": module}))
        monkeypatch.setitem(sys.modules, module, made)

    def conv(n_in, n_out, kw):
        made = sys.modules["dall_e.utils"].Conv2d()
        made.n_in, made.n_out, made.kw, made.device = n_in, n_out, kw, torch.device("cpu")
        made.w = nn.Parameter(torch.randn(n_out, n_in, kw, kw) / (n_in * kw * kw) ** 0.5)
        made.b = nn.Parameter(torch.randn(n_out))
        return made

    def block(cls, n_in, n_out, kernels):
        made, hidden = cls(), n_out // 4
        made.id_path = nn.Identity() if n_in == n_out else conv(n_in, n_out, 1)
        widths = [n_in, hidden, hidden, hidden, n_out]
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for i, kernel in enumerate(kernels):
            parts[f"relu_{i + 1}"], parts[f"conv_{i + 1}"] = nn.ReLU(), conv(widths[i], widths[i + 1], kernel)
        made.res_path = nn.Sequential(parts)
        return made

    def half(cls, one, first, widths, kernels, between, out):
        made, current, parts = cls(), first.n_out, OrderedDict(input=first)
        for i, width in enumerate(widths):
            blocks = OrderedDict()
            for j in range(TINY["blocks"]):
                blocks[f"block_{j + 1}"], current = block(one, current, width, kernels), width
            if i < 3:
                blocks |= between()
            parts[f"group_{i + 1}"] = nn.Sequential(blocks)
        parts["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=conv(current, out, 1)))
        made.blocks = nn.Sequential(parts)
        return made

    width, codes = TINY["width"], TINY["codes"]
    widths = [width, 2 * width, 4 * width, 8 * width]
    e, d = sys.modules["dall_e.encoder"], sys.modules["dall_e.decoder"]

    def pool():
        return {"pool": nn.MaxPool2d(2)}

    def upsample():
        return {"upsample": nn.Upsample(scale_factor=2, mode="nearest")}

    encoder = half(e.Encoder, e.EncoderBlock, conv(3, width, 7), widths, (3, 3, 3, 1), pool, codes)
    decoder = half(d.Decoder, d.DecoderBlock, conv(codes, TINY["start"], 1), widths[::-1], (1, 3, 3, 3), upsample, 6)
    return encoder, decoder


@pytest.fixture
def files(authors, tmp_path, monkeypatch):
    """The two files, and no such package installed when they are read."""
    paths = [tmp_path / "encoder.pkl", tmp_path / "decoder.pkl"]
    for module, path in zip(authors, paths, strict=True):
        torch.save(module, path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "dall_e"]:
        monkeypatch.delitem(sys.modules, name)
    return paths


def run(module, x, between):
    """What the authors' code computes with these weights."""
    w = module.state_dict()

    def conv(name, x):
        kernel = w[f"blocks.{name}.w"]
        return F.conv2d(x, kernel, w[f"blocks.{name}.b"], padding=(kernel.shape[-1] - 1) // 2)

    x = conv("input", x)
    for i in range(1, 5):
        for j in range(1, 3):
            h, name = x, f"group_{i}.block_{j}"
            for k in range(1, 5):
                h = conv(f"{name}.res_path.conv_{k}", h.relu())
            x = (conv(f"{name}.id_path", x) if f"blocks.{name}.id_path.w" in w else x) + h / 8**2
        x = between(x) if i < 4 else x
    return conv("output.conv", x.relu())


def converted(load):
    """The kit's two halves in our layout: the network, and its weights."""
    halves = {f"{half}.": load(f"dvae_{half}") for half in ("encoder", "decoder")}
    theirs = {half + name: x for half, tensors in halves.items() for name, x in tensors.items()}
    with torch.device("meta"):
        network = network_of(FAMILIES["dvae"].configure(theirs, 0, Needs()))
    return theirs, network, convert(FAMILIES["dvae"].rows(network, Needs()), theirs, network.state_dict())


@needs_kit
def test_every_tensor_of_the_released_files_has_its_place():
    theirs, network, done = converted(meta)
    assert FAMILIES["dvae"].recognises(meta("dvae_encoder"))
    assert (len(theirs), sum(x.numel() for x in theirs.values())) in FAMILIES["dvae"].released.values()
    assert (network.codes, network.width, network.start, network.blocks) == (8192, 256, 128, 2)
    assert {name for row in done.report for name in row["theirs"]} == theirs.keys()


@needs_kit
@torch.no_grad()
def test_both_halves_are_those_of_the_authors_code():
    _, network, done = converted(weights)
    network.load_state_dict(done.tensors, assign=True)
    for half, given in (("encoder", "x"), ("decoder", "z")):
        found = network.get_submodule(half)(inputs(f"dvae_{half}")[given])
        assert (found - output(f"dvae_{half}")).abs().max() < 1e-6


def test_pickled_modules_are_read_tensor_by_tensor(authors, files):
    for module, path in zip(authors, files, strict=True):
        found, true = read_modules(path, CLASSES), module.state_dict()
        assert found.keys() == true.keys() and all(torch.equal(found[name], true[name]) for name in true)


@torch.no_grad()
def test_imported_files_are_a_folder_that_encodes_and_decodes(authors, files, tmp_path, capsys):
    (done,) = import_model({"dvae": files}, tmp_path / "dvae")
    assert len(done.report) == sum(len(list(half.parameters())) for half in authors)
    assert not main(["import", *map(str, files), "--as", "dvae", "--check"])
    assert "every tensor has its place" in capsys.readouterr().out
    dvae = DVAE.load(tmp_path / "dvae")
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    codes = dvae.encode(images)
    assert codes.shape == (2, 2, 3)
    assert torch.equal(codes, run(authors[0], map_pixels(images), lambda x: F.max_pool2d(x, 2)).argmax(1))
    decoded = dvae.decode(codes)
    one_hot = torch.eye(TINY["codes"])[codes].permute(0, 3, 1, 2)
    statistics = run(authors[1], one_hot, lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(decoded, unmap_pixels(statistics[:, :3].sigmoid()))
    assert decoded.shape == images.shape and decoded.std() > 0.01
    assert "modified MIT" in (tmp_path / "dvae/README.md").read_text()
    with pytest.raises(FileExistsError, match="another folder"):
        import_model({"dvae": files}, tmp_path / "dvae")
    with pytest.raises(ValueError, match=r"an autoencoder: composer\.networks\.dvae\.DVAE\.load"):
        Cascade.load(tmp_path / "dvae")


def test_pixels_survive_the_mapping():
    images = torch.linspace(-1, 1, 27).reshape(1, 3, 3, 3)
    torch.testing.assert_close(map_pixels(images).flatten()[[0, 13, 26]], torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(unmap_pixels(map_pixels(images)), images)
    assert unmap_pixels(torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2).expand(1, 3, 1, 2)).abs().min() == 1


def test_odd_images_and_codes_are_refused():
    dvae = DVAE(**TINY)
    with pytest.raises(ValueError, match="multiples of 8, found 12 x 16"):
        dvae.encode(torch.zeros(1, 3, 12, 16))
    with pytest.raises(ValueError, match="codes from 0 to 4, found 0 to 5"):
        dvae.decode(torch.tensor([[[0, 5]]]))
    with pytest.raises(ValueError, match="at least one block"):
        DVAE(blocks=0)


def test_a_damaged_folder_is_refused(tmp_path):
    DVAE(**TINY).save(tmp_path)
    path = tmp_path / "autoencoder.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged or was changed"):
        DVAE.load(tmp_path)


def test_a_folder_that_asks_for_more_than_its_weights_is_refused(tmp_path):
    DVAE(**TINY).save(tmp_path)
    config, manifest = tmp_path / "config.json", tmp_path / "manifest.json"
    config.write_text(config.read_text().replace('"width": 4', '"width": 400000'))
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"config.json": digest(config)}))
    with pytest.raises(ValueError, match="larger than its weights"):
        DVAE.load(tmp_path)


class Harmful:
    """Runs a command when it is unpickled."""

    place = Path()

    def __reduce__(self):
        return os.system, (f"touch {self.place}",)


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "inside a module"])
@pytest.mark.parametrize("how", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))], ids=["torch", "plain"])
def test_code_in_a_file_is_refused_and_does_not_run(how, inside, files, tmp_path):
    harmful = Harmful()
    harmful.place = tmp_path / "ran"
    content = nn.Sequential(nn.ReLU()) if inside else harmful
    if inside:
        content.extra = harmful
    how(content, tmp_path / "encoder.pkl")
    with pytest.raises(ValueError, match="is refused"):
        import_model({"dvae": [tmp_path / "encoder.pkl", files[1]]}, tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_other_classes_and_damaged_files_are_refused(files, tmp_path):
    encoder, decoder = files
    torch.save(nn.Sequential(nn.LayerNorm(2)), tmp_path / "other.pkl")
    for length in (0, 3, 100, encoder.stat().st_size // 2, encoder.stat().st_size - 30):
        (tmp_path / f"{length}.pkl").write_bytes(encoder.read_bytes()[:length])
    for path in [tmp_path / "other.pkl", *tmp_path.glob("[0-9]*.pkl")]:
        with pytest.raises(ValueError, match="is refused"):
            import_model({"dvae": [path, decoder]}, tmp_path / "out")
    torch.save({"a": torch.zeros(1)}, tmp_path / "plain.pkl")
    with pytest.raises(ValueError, match="expected a pickled module, found dict"):
        import_model({"dvae": [tmp_path / "plain.pkl", decoder]}, tmp_path / "out")
    with pytest.raises(ValueError, match="expected the encoder, then the decoder"):
        import_model({"dvae": [decoder, encoder]}, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no file"):
        import_model({"dvae": [encoder, tmp_path / "none.pkl"]}, tmp_path / "out")
    with pytest.raises(ValueError, match=r"made of 2 files, in this order: encoder\.pkl; decoder\.pkl"):
        import_model({"dvae": encoder}, tmp_path / "out")
    with pytest.raises(ValueError, match=r"is not a file of glide-base.*looks like dvae"):
        Published.open(encoder, "glide-base")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("state", [{}, {"_parameters": 1}, {"_parameters": {}, "_buffers": {}, "_modules": {"a": 1}}])
def test_modules_without_what_modules_have_are_refused(state, tmp_path):
    made = nn.ReLU()
    made.__dict__ = state
    torch.save(made, tmp_path / "odd.pkl")
    with pytest.raises(ValueError, match="is no pickled module"):
        read_modules(tmp_path / "odd.pkl", CLASSES)


def test_modules_in_a_circle_are_refused(tmp_path):
    made = nn.Sequential()
    made._modules["itself"] = made
    torch.save(made, tmp_path / "circle.pkl")
    with pytest.raises(ValueError, match="at most 10000 modules"):
        read_modules(tmp_path / "circle.pkl", CLASSES)
