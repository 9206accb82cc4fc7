"""From trained models to Composer, as the heads of three configurations tell it, at tiny size."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from composer import Cascade
from composer.__main__ import main
from composer.training.stage import StageTraining
from tests.decomposers.test_clip_decomposers import tiny, write_folder
from tests.published import layouts as own
from tests.published.test_importing import BASE, MERGES

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*LeafSpec:FutureWarning", "ignore:The '.*_dataloader' does not have"
)
ROOT = Path(__file__).parents[2]
SIZE = 16
NEW = ("semantics", "palette", "sketch", "intensity", "mask")
CAPTIONS = ("a red cube", "red on red")
FEW = f"--let.size {SIZE} --data.batch_size 2 --data.workers 0 --trainer.accumulate_grad_batches 1 "
FEW += "--trainer.accelerator cpu --trainer.devices 1 --trainer.precision 32-true --trainer.limit_val_batches 0 "
FEW += "--trainer.num_sanity_val_steps 0 --trainer.enable_progress_bar false --model.warmup_steps 1 --ema.decay 0.9 "


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with pictures and captions, merges and a CLIP of 64 channels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["composer"])
    monkeypatch.setenv("COMPOSER_PLUGINS", "")
    for i, part in enumerate(("train", "train", "train", "val")):
        path = tmp_path / "photos" / part / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_mandelbrot((24 + i, 24), (-2, -1 - i / 4, 1, 1), 30).convert("RGB").save(path)
        path.with_suffix(".txt").write_text(CAPTIONS[i % 2])
    (tmp_path / "merges.txt").write_text("\n".join(MERGES) + "\n", encoding="utf-8")
    write_folder(tiny(True, embed_dim=64), tmp_path / "clip", True, embed_dim=64)
    return tmp_path


@pytest.fixture
def starts(monkeypatch):
    """Of every `fit`: how far its first estimates of the noise are from those of the model that it starts from."""
    found, own_start = [], StageTraining.on_train_start

    def start(self):
        own_start(self)
        if self.start_from is not None:
            found.append(difference(self, Cascade.load(self.start_from)))

    monkeypatch.setattr(StageTraining, "on_train_start", start)
    return found


def difference(model, old):
    """The largest, over noise levels, with what the old model reads; then with all that the new one reads."""
    image = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = {"image": image, "caption": list(CAPTIONS), "seed": torch.tensor([1, 2])}
    reps = dict(model.trainer.datamodule.decomposition(batch))
    assert reps.keys() == model.conditions.keys()
    (stage,) = old.stages
    known = {name: value for name, value in reps.items() if name in stage.conditions}
    want = noise(stage.denoiser, stage.conditions, known, image)
    model.eval()
    differences = tuple((noise(model.denoiser, model.conditions, r, image) - want).abs().max() for r in (known, reps))
    model.train()
    assert want.std() > 0.1  # it is no network of zeros
    return tuple(float(d) for d in differences)


@torch.no_grad()
def noise(denoiser, conditions, reps, image):
    """What a denoiser takes for the noise, which has a standard deviation of 1."""
    estimates = []
    for level in (0.1, 1.0, 10.0, 100.0):
        sigma = torch.full((len(image),), level)
        x = image + level * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
        estimates.append((x - denoiser(x, sigma, conditions(reps, (SIZE, SIZE)))) / level)
    return torch.stack(estimates)


def cut(path, let, network, caption=None):
    """A configuration of the same kind, with a tiny network and without what needs a detector's weights."""
    config = yaml.safe_load((ROOT / path).read_text())
    model, data = config["model"]["init_args"], config["data"]
    config["let"] |= let
    model["denoiser"]["init_args"]["network"]["init_args"] |= network
    kept = [name for name in model["conditions"] if name in ("caption", *NEW)]
    model["conditions"] = {name: model["conditions"][name] for name in kept}
    if model.get("train_only"):
        model["train_only"] = [name for name in model["train_only"] if name in (*kept, "first")]
    for name, in_dim in (("caption", "in_dim"), ("semantics", "in_dim")):
        if in_dim in model["conditions"].get(name, {"init_args": {}})["init_args"]:
            model["conditions"][name]["init_args"][in_dim] = 64
    model["conditions"].get("caption", {"init_args": {}})["init_args"].update(caption or {})
    data["decomposers"] = {name: data["decomposers"][name] for name in kept}
    for spec in data["decomposers"].values():
        arguments = spec.setdefault("init_args", {})
        if spec["class_path"] in ("Caption", "Semantics"):
            arguments["weights"] = "clip"
        if "merges" in arguments:
            arguments["merges"] = "merges.txt"
    data["readers"] = {}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(yaml.safe_dump(config, sort_keys=False))


def perform(path, **more):
    """Runs the commands of a configuration's head, with more words for each kind of command, in turn."""
    head = (ROOT / path).read_text().partition("let:")[0].replace("\\\n#", "")
    for line in re.findall(r"^#   composer (.*?)(?:  #.*)?$", head, re.MULTILINE):
        command, *words = shlex.split(line)
        added = more.get(command, "")
        assert main([command, *words, *shlex.split(added if isinstance(added, str) else added.pop(0))]) == 0, line


def weights_of(folder):
    (stage,) = Cascade.load(folder).stages
    return stage.weights().state_dict()


def moved(old, new, where):
    """Whether weights have changed, by name."""
    return {name: not torch.equal(old[name], new[name]) for name in old if name.startswith(where)}


def test_glide_becomes_composer(here, starts):
    torch.save(own.fill(BASE), "base.pt")
    network = {"width": 32, "multipliers": [1, 1, 2], "blocks": 1, "attention": [4]}
    caption = {"vocabulary_size": 257 + len(MERGES), "width": 64, "layers": 2, "heads": 1, "length": 16}
    cut("configs/glide_composer.yaml", {"vector_dim": 128, "token_dim": 64}, network, caption)
    fits = [FEW + "--trainer.max_steps 50", FEW + "--trainer.max_steps 3"]
    perform("configs/glide_composer.yaml", **{"import": "--merges merges.txt"}, fit=fits, compose="--steps 2")
    print(starts)
