"""Every YAML in configs/ builds, and what a YAML may not do is refused."""

import re
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import conditions  # noqa: F401 (short names in the YAMLs)
import decomposers  # noqa: F401
from composer.__main__ import main
from composer.training.cli import ModelAlone, TrainingCLI

CONFIGS = sorted(Path("configs").rglob("*.yaml"))
PAPERS = {
    "paper/composer_base": 2.0e9,
    "paper/composer_base_semantics": 2.0e9,
    "paper/composer_up256": 1.1e9,
    "paper/composer_up1024": 300e6,
    "paper/unclip_decoder": 3.5e9,
    "paper/unclip_up256": 700e6,
    "paper/unclip_up1024": 300e6,
    "paper/glide_base": 385_030_726,
    "paper/glide_up256": 398_361_286,
    "paper/ldm_text_to_image": 1.45e9,
    "imagen64": 2.0e9,
    "imagen256": 600e6,
    "imagen1024": 400e6,
}
"""Parameters as the papers print them; GLIDE's are those of the weights that it released."""


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["composer"])
    monkeypatch.setenv("COMPOSER_PLUGINS", "")


@cache
def built(path):
    """A configuration's head and its model, on the meta device."""
    return path.read_text().partition("model:")[0], ModelAlone(["-c", str(path)]).model


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_builds(path):
    head, model = built(path)
    assert f"composer fit -c {path}" in head
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("name", PAPERS)
def test_papers_sizes_are_theirs_within_3_percent(name):
    head, model = built(Path(f"configs/{name}.yaml"))
    count = sum(p.numel() for p in model.parameters())
    off = count / PAPERS[name] - 1
    assert abs(off) < 0.03 and (off == 0 or not name.startswith("paper/glide"))
    assert f"Expect: {count:,} parameters" in head
    assert name.startswith("paper/glide") or f"{abs(off):.1%} {'above' if off > 0 else 'below'} the paper's" in head


def test_composers_maps_enter_at_384_px_with_as_many_parameters():
    head, plain = built(path := Path("configs/paper/composer_base.yaml"))
    (words,) = re.findall(r"#   (--data\.source 384) --model\.conditions\.{sketch,depth}(.*)\n", head)
    option, value = words[1].split(" ", 1)
    changes = [(f"--model.conditions.{name}{option}", value.strip('"')) for name in ("sketch", "depth")]
    model = ModelAlone(["-c", str(path), *words[0].split(), *(word for pair in changes for word in pair)]).model
    for name in ("sketch", "depth"):
        assert model.conditions[name].example(1, (64, 64)).shape[2:] == (384, 384)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("name", ["glide_composer", "karlo_composer"])
def test_warm_starts_say_how_much_they_train(name):
    head, model = built(Path(f"configs/{name}.yaml"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    count = sum(p.numel() for p in model.parameters())
    assert f"Expect: {count:,} parameters, of them {trained:,} trained in part 1" in head


def tiny(tmp_path, **replacements):
    text = Path("configs/tiny.yaml").read_text()
    for old, new in replacements.items():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_values_are_stated_once(tmp_path):
    model = TrainingCLI(["-c", str(tiny(tmp_path)), "--let.vector_dim", "32"], run=False).model
    assert model.config["model"]["class_path"] == "composer.training.StageTraining"
    assert model.denoiser.network.vector_dim == 32
    assert model.conditions["palette"].to_vector[-1].out_features == 32


def run(capsys, *args):
    status: Any
    try:
        status = main(list(args))
    except SystemExit as exit:
        status = exit.code
    return status, f"{status}" + "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("class_path: Palette", "class_path: os.system", "os.system"),
        ("class_path: Palette", "class_path: Pallete", "Pallete"),
        ("class_path: StageTraining", "class_path: mine.Training", "not allowed"),
        ("batch_size: 16", "batch_size: ${oc.env:HOME}", "oc.env"),
        ("batch_size: 16", "batchsize: 16", "batchsize"),
    ],
)
def test_mistakes_are_explained(tmp_path, capsys, old, new, says):
    status, text = run(capsys, "fit", "-c", str(tiny(tmp_path, **{old: new})))
    assert status != 0 and says in text


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("decay_steps", "late", "model.decay_steps (composer.training.StageTraining): expected int, found late"),
        ("muon_rate", "fast", "model.muon_rate (composer.training.StageTraining): expected float, found fast"),
        ("decay_steps", "1", "decay_steps=1 must lie beyond warmup_steps"),
        ("noise_without_maps", "UNet", "model.noise_without_maps: expected a NoiseLevels, which UNet is not"),
        (
            "denoiser.init_args.network.init_args.blocks",
            "x",
            "model.denoiser.network.blocks (composer.UNet): expected int or Sequence, found x",
        ),
    ],
)
def test_the_whole_reason_is_said_where_several_types_are_allowed(tmp_path, capsys, option, value, says):
    """jsonargparse says what was found only after it has listed all types, on a line that is mostly too long."""
    status, text = run(capsys, "fit", "-c", str(tiny(tmp_path)), f"--model.init_args.{option}={value}")
    assert status == 2 and says in " ".join(text.split()) and "Union" not in text


def test_a_run_is_not_written_over(tmp_path, capsys):
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.write_bytes(b"something good")
    root = f"--trainer.default_root_dir={tmp_path / 'run'}"
    status, text = run(capsys, "fit", "-c", str(tiny(tmp_path)), root)
    assert status == 1 and "--ckpt_path last" in text and last.read_bytes() == b"something good"


def test_a_plugin_of_the_users_is_named_on_the_command_line(tmp_path, monkeypatch, capsys):
    package = tmp_path / "gardening"
    package.mkdir()
    package.joinpath("__init__.py").write_text(
        textwrap.dedent("""
        from decomposers import Intensity

        class Green(Intensity):
            pass
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tiny(tmp_path, **{"class_path: Intensity": "class_path: gardening.Green"})
    command = ("fit", "-c", str(path), f"--trainer.default_root_dir={tmp_path}", "--print_config")
    status, text = run(capsys, *command)
    assert status != 0 and "gardening" in text
    with pytest.raises(SystemExit) as exit:
        main(["--plugins", "gardening", *command])
    assert exit.value.code == 0 and "class_path: gardening.Green" in capsys.readouterr().out


def test_every_short_name_is_known_to_a_command():
    """In a process of its own, where no test has imported what the command does not."""
    code = """
import sys
from composer.cli import import_classes
import_classes([])
own = [vars(m) for name, m in sys.modules.items() if name.split(".")[0] in ("composer", "conditions", "decomposers")]
print(*{name for names in own for name, value in names.items() if isinstance(value, type)})
"""
    known = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    named = {name for path in CONFIGS for name in re.findall(r"\w: ([A-Z]\w+)(?=[,}\n ])", uncommented(path))}
    assert {"Degradation", "GaussianNoise", "Cosine", "UNet", "ImageFolder"} <= named
    assert named <= set(known)


def uncommented(path):
    return re.sub(r"#.*", "", path.read_text())


def test_help_is_quick():
    code = "import sys; from composer.__main__ import main; main(['--help']); assert 'lightning' not in sys.modules"
    help = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(command in help for command in ("fit", "validate", "compose", "evaluate"))
