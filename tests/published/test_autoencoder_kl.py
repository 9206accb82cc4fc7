"""The KL autoencoder in diffusers' layout: diffusers' own network with random weights is the oracle."""

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from composer.__main__ import main
from composer.networks.autoencoder import Autoencoder
from composer.networks.dvae import DVAE
from composer.published import FAMILIES, Needs, import_model
from composer.published.autoencoder_kl import RENAMED
from composer.published.engine import convert, revert
from composer.published.importing import Published

WEIGHTS = "diffusion_pytorch_model.safetensors"


def diffusers_autoencoder(widths=(32, 64), blocks=1, channels=4):
    torch.manual_seed(0)
    made = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=blocks,
        latent_channels=channels,
    ).eval()
    for name, value in made.named_parameters():
        if "norm" in name:  # ones and zeros by default, which hide a mistaken order
            value.data += 0.3 * torch.randn_like(value)
    return made


@pytest.fixture
def theirs(tmp_path):
    made = diffusers_autoencoder()
    made.save_pretrained(tmp_path / "vae")
    return made


@pytest.mark.parametrize(
    ("widths", "blocks", "channels"), [((32, 64, 64), 2, 3), ((32, 32, 64, 128), 2, 4), ((32,), 1, 16)]
)
@torch.no_grad()
def test_it_computes_what_diffusers_computes(tmp_path, widths, blocks, channels):
    theirs = diffusers_autoencoder(widths, blocks, channels)
    theirs.save_pretrained(tmp_path / "vae")
    import_model({"autoencoder-kl": tmp_path / "vae" / WEIGHTS}, tmp_path / "ours")
    ours, theirs = Autoencoder.load(tmp_path / "ours").double(), theirs.double()  # float32 rounds by up to 2e-5
    assert (ours.channels, ours.factor) == (channels, 2 ** (len(widths) - 1))
    image = torch.rand(2, 3, 32, 48, dtype=torch.float64) * 2 - 1
    found = theirs.encode(image).latent_dist
    mean, log_variance = ours.moments(image)
    assert (mean - found.mean).abs().max() < 1e-9 < mean.std()
    assert (log_variance - found.logvar).abs().max() < 1e-9 < log_variance.std()
    latents = torch.randn_like(mean)
    scaled = ours.encode(image, latents)
    assert (scaled - 0.18215 * (found.mean + found.std * latents)).abs().max() < 1e-9
    assert (ours.encode(image) - 0.18215 * found.mode()).abs().max() < 1e-9
    images = ours.decode(0.18215 * latents)
    assert (images - theirs.decode(latents).sample).abs().max() < 1e-9 < images.std()


def test_files_of_before_diffusers_018_are_read(theirs, tmp_path):
    file = tmp_path / "vae" / WEIGHTS
    old = load_file(file)
    for before, after in RENAMED.items():
        old = {name.replace(after, before): x for name, x in old.items()}
    assert sum(".query." in name for name in old) == 4
    save_file(old, tmp_path / "old.safetensors")
    import_model({"autoencoder-kl": file}, tmp_path / "new")
    import_model({"autoencoder-kl": tmp_path / "old.safetensors"}, tmp_path / "ours")
    new, ours = (Autoencoder.load(tmp_path / name).state_dict() for name in ("new", "ours"))
    assert all(torch.equal(ours[name], new[name]) for name in new)


def test_every_tensor_of_a_released_size_has_its_place():
    with torch.device("meta"):
        theirs = diffusers_autoencoder((128, 256, 512, 512), 2)
        tensors = theirs.state_dict()
        family = FAMILIES["autoencoder-kl"]
        config = family.configure(tensors, 0, Needs())["autoencoders"][0]["init_args"]
        ours = Autoencoder(**config)
    count = (len(tensors), sum(x.numel() for x in tensors.values()))
    assert count in family.released.values()
    assert (ours.multipliers, ours.blocks, ours.factor, ours.channels) == ((1, 2, 4, 4), 2, 8, 4)
    convert(family.rows(ours, Needs()), tensors, ours.state_dict())


def test_weights_become_theirs_again(theirs, tmp_path):
    read = Published.open(tmp_path / "vae" / WEIGHTS, "autoencoder-kl")
    rows = FAMILIES["autoencoder-kl"].rows(Autoencoder(**read.spec["autoencoders"][0]["init_args"]), Needs())
    back, own = revert(rows, read.convert().tensors), theirs.state_dict()
    assert back.keys() == own.keys() and all(torch.equal(back[name], own[name]) for name in own)


def test_the_command_says_what_it_found_and_the_folder_is_no_dvae(theirs, tmp_path, capsys):
    file = str(tmp_path / "vae" / WEIGHTS)
    assert not main(["import", file, "--as", "autoencoder-kl-sdxl", "--out", str(tmp_path / "ours")])
    capsys.readouterr()
    assert Autoencoder.load(tmp_path / "ours").scale == 0.13025
    with pytest.raises(ValueError, match=r"expected the name of a DVAE, found '.*Autoencoder'"):
        DVAE.load(tmp_path / "ours")
    assert main(["import", file, "--as", "dvae", "--check"])
