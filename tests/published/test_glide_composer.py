"""From trained models to Composer: the commands in the configurations' heads, performed at tiny size."""

import copy
import json
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
from composer.cascade.assembling import from_run
from composer.cascade.stage import Stage
from composer.published import FAMILIES, Needs
from composer.training.cli import Configuration
from composer.training.stage import StageTraining
from conditions.gate import Gate
from tests.decomposers.test_clip_decomposers import tiny, write_folder
from tests.published import layouts as own
from tests.published.test_importing import BASE, MERGES, RELEASED

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*LeafSpec:FutureWarning", "ignore:The '.*_dataloader' does not have"
)
ROOT = Path(__file__).parents[2]
FIRST = "denoiser.network.first.weight"
SIZE = 16
KEPT = ("caption", "semantics", "palette", "sketch", "intensity", "mask")
"""The conditions that need no detector."""

SMALL = {"in_dim": 64, "hidden": 8}
"""Of conditions whose configuration says these: a tiny CLIP, and narrow convolutions."""

CAPTIONS = ["a red cube", "red on red"]
NETWORK = {"width": 32, "multipliers": [1, 1, 2], "blocks": 1, "attention": [4]}
FEW = f"--let.size {SIZE} --data.batch_size 2 --data.workers 0 --trainer.accumulate_grad_batches 1 --ema.decay 0.5 "
FEW += "--trainer.accelerator cpu --trainer.devices 1 --trainer.precision 32-true --trainer.enable_progress_bar false "
FEW += "--trainer.limit_val_batches 0 --trainer.num_sanity_val_steps 0 --model.warmup_steps 1 --trainer.max_steps "
VALIDATED = " --trainer.limit_val_batches 1 --trainer.val_check_interval 3"
VALIDATED += " --grid.count 1 --grid.samples 1 --grid.steps 2"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with captioned pictures, merges, and a CLIP whose embeddings have 64 channels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["composer"])
    monkeypatch.setenv("COMPOSER_PLUGINS", "")
    for i, part in enumerate(("train", "train", "val")):
        path = tmp_path / "photos" / part / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_mandelbrot((24 + i, 24), (-2, -1 - i / 4, 1, 1), 30).convert("RGB").save(path)
        path.with_suffix(".txt").write_text(CAPTIONS[i % 2])
    (tmp_path / "merges.txt").write_text("\n".join(MERGES) + "\n", encoding="utf-8")
    write_folder(tiny(True, embed_dim=64), tmp_path / "clip", True, embed_dim=64)
    return tmp_path


@pytest.fixture
def starts(monkeypatch):
    """What each warm start of a `fit` changes, see `changes`."""
    found, own_start = [], StageTraining.on_train_start

    def start(self):
        own_start(self)
        if self.start_from is not None:
            found.append(changes(self, Cascade.load(self.start_from)))

    monkeypatch.setattr(StageTraining, "on_train_start", start)
    return found


@torch.no_grad()
def changes(training, old):
    """How far the estimated noise, of standard deviation 1, is from that of the model that a training starts from.

    Returns:
        The largest difference with the conditions that the old model has; with all; and with all and open gates.
    """
    image = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = {"image": image, "caption": CAPTIONS, "seed": torch.tensor([1, 2])}
    reps = dict(training.trainer.datamodule.decomposition(batch))
    assert reps.keys() == training.conditions.keys()
    denoiser, conditions = (copy.deepcopy(module).eval() for module in (training.denoiser, training.conditions))
    (stage,) = old.stages
    known = {name: reps[name] for name in stage.conditions}
    want = noise(stage.denoiser, stage.conditions, known, image)
    assert want.std() > 0.05  # a model that draws something
    differences = [(noise(denoiser, conditions, given, image) - want).abs().max().item() for given in (known, reps)]
    for module in conditions.modules():
        if isinstance(module, Gate):
            module.logarithm.zero_()
    return *differences, (noise(denoiser, conditions, reps, image) - want).abs().max().item()


def noise(denoiser, conditions, reps, image):
    """What a denoiser takes for noise, at three levels."""
    made = []
    for level in (0.1, 3.0, 100.0):
        x = image + level * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
        estimate = denoiser(x, torch.full((len(image),), level), conditions(reps, (SIZE, SIZE)))
        made.append((x - estimate) / level)
    return torch.stack(made)


def cut(path, let, **caption):
    """Writes a configuration anew, with a tiny network and CLIP and without the conditions that need a detector."""
    config = yaml.safe_load((ROOT / path).read_text())
    model, data = config["model"]["init_args"], config["data"]
    config["let"] |= let
    model["denoiser"]["init_args"]["network"]["init_args"] |= NETWORK
    conditions = {name: spec for name, spec in model["conditions"].items() if name in KEPT}
    for name, spec in conditions.items():
        stated = spec["init_args"]
        stated |= {key: value for key, value in SMALL.items() if stated.get(key) in (768, 64)}
        stated |= caption if name == "caption" else {}
    model["conditions"] = conditions
    if "train_only" in model:
        model["train_only"] = [name for name in model["train_only"] if name in (*conditions, "first")]
    data["decomposers"] = {name: spec for name, spec in data["decomposers"].items() if name in conditions}
    for spec in data["decomposers"].values():
        if spec["class_path"] in ("Caption", "Semantics"):
            spec.setdefault("init_args", {})["weights"] = "clip"
        if spec["class_path"] == "Tokens":
            spec["init_args"]["merges"] = "merges.txt"
    data.pop("readers", None)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(yaml.safe_dump(config, sort_keys=False))


def perform(path, fits, **more):
    """Runs the commands of a configuration's head, each with further words."""
    head = (ROOT / path).read_text().partition("let:")[0].replace("\\\n#", "")
    fits = [FEW + str(steps) for steps in fits]
    for line in re.findall(r"^#   composer (.*)$", head, re.MULTILINE):
        command, *words = shlex.split(line)
        assert main([command, *words, *shlex.split(fits.pop(0) if command == "fit" else more.get(command, ""))]) == 0
    assert not fits


def released(shapes):
    """Random weights, of norms about 1, which let more of the rest through."""
    tensors = own.fill(shapes)
    return {name: x + (x.ndim == 1 and name.endswith("weight")) for name, x in tensors.items()}


def weights(folder):
    (stage,) = Cascade.load(folder).stages
    return stage.weights().state_dict()


def test_glide_becomes_composer(here, starts):
    torch.save(released(BASE), "base.pt")
    text = {"vocabulary_size": 257 + len(MERGES), "width": 64, "layers": 2, "heads": 1, "length": 16}
    cut("configs/glide_composer.yaml", {"vector_dim": 128, "token_dim": 64, "spatial_dim": 8}, **text)
    more = {"import": "--merges merges.txt", "compose": "--steps 2"}
    perform("configs/glide_composer.yaml", (50, "3" + VALIDATED), **more)
    (known, every, opened), (again, _, _) = starts
    assert known < 1e-5 and 0 < every < 1e-3 and opened > 100 * every and again < 1e-5
    glide, first, second = (weights(f"models/{name}") for name in ("glide", "glide_composer1", "glide_composer"))
    frozen = [name for name in glide if not name.startswith("denoiser.network.first")]
    assert all(torch.equal(first[name], glide[name]) for name in frozen)
    assert first[FIRST][:, 3:].any() and not torch.equal(first[FIRST][:, :3], glide[FIRST])
    assert all(first[name].any() for name in first.keys() - glide.keys())
    assert not any(torch.equal(second[name], first[name]) for name in frozen if name.endswith("conv1.weight"))
    assert Path("out/compose_seed0.png").is_file() and any(Path("runs/glide_composer2/samples").iterdir())


def test_karlo_becomes_composer(here, starts):
    shapes = own.karlo_decoder(32, (1, 1, 2), 1, (4,), clip=64, words=64, context=24)
    torch.save({"state_dict": released(shapes)}, "decoder-ckpt-step=01000000-of-01000000.ckpt")
    cut("configs/karlo_composer.yaml", {"vector_dim": 128, "token_dim": 24, "spatial_dim": 8})
    perform("configs/karlo_composer.yaml", (2, 1), **{"import": "--clip clip", "compose": "--steps 2"})
    (known, every, opened), (again, _, _) = starts
    assert known < 1e-5 and 0 < every < 1e-3 and opened > 100 * every and again < 1e-5
    old, new = (weights(f"models/{name}") for name in ("karlo", "karlo_composer"))
    assert torch.equal(new["conditions.caption.nothing"], old["conditions.caption.nothing"])
    assert not torch.equal(new["conditions.semantics.nothing"], old["conditions.semantics.nothing"])


def test_composers_two_phases(here, starts):
    ports = {"vector_dim": 128, "token_dim": 64}
    for name in ("composer_base_semantics", "composer_base"):
        cut(f"configs/paper/{name}.yaml", ports)
    perform("configs/paper/composer_base.yaml", ("20 --model.learning_rate 0.01", 2))
    ((known, every, opened),) = starts
    assert known < 1e-5 and 0 < every < 1e-3 and opened > 100 * every


@pytest.mark.parametrize(
    ("name", "family", "layout"),
    [("glide_composer", "glide-base", "glide_base"), ("karlo_composer", "karlo-decoder", "karlo_decoder")],
)
def test_the_configurations_are_of_the_released_networks(name, family, layout, monkeypatch):
    """All that importing says of them; besides their sizes, what shapes don't show, such as heads and noise levels."""
    monkeypatch.setattr(sys, "argv", ["composer"])
    monkeypatch.setenv("COMPOSER_PLUGINS", "")
    theirs = {key: torch.empty(shape, device="meta") for key, shape in RELEASED[layout].items()}
    published = FAMILIES[family].configure(theirs, 64, Needs())
    cli = Configuration(["-c", str(ROOT / f"configs/{name}.yaml")])
    ours = from_run(json.loads(cli.parser.dump(cli.config, format="json")), name, {})
    for key, spec in published["decomposers"].items():
        assert stated(spec).items() <= stated(ours["decomposers"][key]).items()
    old, new = (spec["stages"][0] for spec in (published, ours))
    for key, spec in old["conditions"].items():
        assert stated(spec, "dropout").items() <= stated(new["conditions"][key], "dropout").items()
    with torch.device("meta"):
        want, got = (Stage.from_spec(stage).weights().state_dict() for stage in (old, new))
    assert {key for key in want if got[key].shape != want[key].shape} == {FIRST}
    old, new = old["denoiser"], new["denoiser"]
    assert stated(old, "network", "noise").items() <= stated(new, "network", "noise").items()
    want, got = (spec["init_args"]["noise"]["class_path"].rpartition(".")[2] for spec in (old, new))
    assert want == got
    want, got = (stated(spec["init_args"]["network"], "spatial_dim") for spec in (old, new))
    assert {key: got[key] for key in want} == want


def stated(spec, *but):
    """The arguments that a specification states, except some."""
    return {key: value for key, value in spec["init_args"].items() if key not in but}
