"""Help at once, names that are found, and mistakes that are explained in a few lines."""

import ast
import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import composer
from composer.__main__ import main
from composer.commands.registry import COMMANDS, GROUPS
from composer.commands.signature import Parser
from composer.storage import finding
from composer.storage.finding import find_config
from tests.command_lines import options_of

ROOT = Path(__file__).parents[2]
TINY = (ROOT / "configs/tiny.yaml").read_text()
HEAVY = ("torch", "numpy", "lightning", "jsonargparse", "rich", "kornia", "open_clip", "PIL")

MISTAKES = {
    "compsoe": "no command compsoe (did you mean compose",
    "--plugins": "--plugins needs the names",
    "compose --dept a.png": "no option --dept (did you mean --depth?)",
    "compose --palette=a.png --steps many": "argument --steps: expected a whole number from 1 to 10,000, found 'many'",
    "compose --model nowhere --palette a.png": "expected a model folder",
    "compose --palette a.png --sheet gidance=1,2": "no option --gidance (did you mean --guidance or --autoguidance?)",
    "compose --palette a.png --sheet guidance": "an option and values for --sheet",
    "edit a.png": "this needs --region",
    "vary --seeds 0,1": "expected the picture before all options, found no picture",
    "evaluate --cuont 3": "no option --cuont (did you mean --count?)",
    "scenes": "required: --count, --out",
    "export a b c": "nothing here takes c",
    "fit": "fit needs -c CONFIG",
    "fit -c tinny": "there is no configuration tinny, neither a file nor an included one (did you mean tiny?)",
    "doctor composer_base": "did you mean paper/composer_base",
    "cache -c nothing-like-it --names palette": "the included ones are folder64, ",
}


def test_help_and_mistakes_load_nothing_heavy():
    """By what is loaded, not by the clock. One process answers for all commands."""
    probe = f"""
import contextlib, io, json, sys
from composer.__main__ import main
def said(words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            status = main(words)
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), [name for name in {HEAVY} if name in sys.modules]
from composer.commands.registry import COMMANDS
lines = ["--help", "--version", *(f"{{name}} --help" for name in COMMANDS), *{list(MISTAKES)}]
print(json.dumps({{line: said(line.split()) for line in lines}}))
"""
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert {line: heavy for line, (_, _, heavy) in found.items() if heavy} == {}
    for name in COMMANDS:
        status, text, _ = found[f"{name} --help"]
        assert status == 0 and text.startswith(f"usage: composer {name} ") and "examples:" in text
    assert "--semantics" in found["compose --help"][1] and "--mask" not in found["compose --help"][1]
    for line, says in MISTAKES.items():
        status, text, _ = found[line]
        assert status in (1, 2) and says in text and text.count("\n") <= 5, line


def test_the_overview_has_every_command_in_a_group_in_one_line(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line in GROUPS] == list(GROUPS)
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)
    assert all(run.about and len(line) < 130 for run, line in zip(COMMANDS.values(), lines, strict=False))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command):
    """Conditions are, all at once, by the title of their group."""
    actions = options_of(command)
    assert [action.dest for action in actions if not action.help and not action.dest.startswith("conditions.")] == []
    assert command != "train" or "folder" in [action.dest for action in actions]


def test_two_options_of_one_name_are_refused():
    parser = Parser("compose")
    parser.add_option("steps", int, "", None)
    with pytest.raises(ValueError, match="--steps is the name of two options here"):
        parser.add_option("conditions.steps", str, "", None)


def test_conditions_in_help_are_the_models_own(saved, capsys):
    with pytest.raises(SystemExit):
        main(["compose", "--model", str(saved), "--help"])
    shown = capsys.readouterr().out
    assert "--intensity" in shown and "--semantics" not in shown


def test_the_console_command_is_main():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["composer"].partition(":")
    assert getattr(importlib.import_module(module), name) is main


def test_processes_of_further_devices_repeat_the_whole_command(monkeypatch):
    from composer.training import cli

    monkeypatch.setattr(cli, "TrainingCLI", lambda plugins: None)
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/composer", "fit", "-c", "tiny"])
    monkeypatch.setenv("COMPOSER_PLUGINS", "")
    assert (
        main(["--plugins", "json", "fit", "-c", "tiny", "--config=paper/glide_base", "--trainer.max_steps", "3"]) == 0
    )
    configs = [str(ROOT / "configs" / name) for name in ("tiny.yaml", "paper/glide_base.yaml")]
    assert sys.argv == ["/somewhere/bin/composer", "fit", "-c", configs[0], f"--config={configs[1]}", *sys.argv[-2:]]
    assert sys.argv[-2:] == ["--trainer.max_steps", "3"]


def test_plugins_lie_where_people_work(monkeypatch, tmp_path):
    """A console command does not look into the current folder by itself, as `python -m` does."""
    from composer.training import cli

    (tmp_path / "orchard.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "argv", ["composer"])
    monkeypatch.setenv("COMPOSER_PLUGINS", "")
    monkeypatch.setattr(cli, "TrainingCLI", cli.import_classes)
    assert main(["--plugins", "orchard", "fit", "-c", "tiny"]) == 0
    assert sys.modules.pop("orchard").__file__ == str(tmp_path / "orchard.py")


def test_configurations_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / "configs/tiny.yaml"
    for name in ("tiny", "tiny.yaml", "configs/tiny.yaml"):
        assert find_config(name) == shipped
    assert find_config("paper/composer_base") == ROOT / "configs/paper/composer_base.yaml"
    assert find_config(str(shipped)) == shipped
    Path("tiny.yaml").write_text("a file goes first")
    assert find_config("tiny") == find_config("tiny.yaml") == Path("tiny.yaml")


def test_an_installed_package_brings_its_configurations(tmp_path, monkeypatch):
    """As a wheel lays them out: inside the package, nothing beside it."""
    monkeypatch.chdir(tmp_path)
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"configs": "composer/configs"}
    installed = tmp_path / "site-packages/composer/configs/mine.yaml"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    monkeypatch.setattr(finding, "_PACKAGE", installed.parents[1])
    assert find_config("mine") == installed
    with pytest.raises(FileNotFoundError, match=r"did you mean mine\?"):
        find_config("mind")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("batch_size: 16", "batchsize: 16", "no key data.batchsize (did you mean data.batch_size"),
        ("max_steps: 300", "max_step: 300", "no key trainer.max_step (did you mean trainer.max_steps"),
        ("ema: {decay", "emma: {decay", "no key emma.decay (did you mean ema.decay?)"),
        (
            "learning_rate",
            "lerning_rate",
            "no key lerning_rate in composer.training.StageTraining (did you mean learning_r",
        ),
        ("{length: 48", "{lenght: 48", "no key lenght in decomposers.Tokens (did you mean length?)"),
        ("batch_size: 16", "batch_size: many", "data.batch_size: expected int, found many"),
        ("width: 32", "width: wide", "model.denoiser.network.width (composer.UNet): expected int, found wide"),
        ("class_path: Palette", "class_path: Pallete", "data.decomposers: no class Pallete (did you mean Palette?)"),
        ("class_path: StageTraining", "class_path: Stagetraining", "model: no class Stagetraining (did you mean Stage"),
        ("class_path: Palette", "class_path: os.system", "importing os.system is not allowed; --plugins MODULE allows"),
        ("in_dim: 156, ", "", "model.conditions (conditions.Vector): the following arguments are required: in_dim"),
        ("  batch_size: 16\n", "", "the following arguments are required: data.batch_size"),
        ("seed_everything: 0", "seed_everything: 0: 1", "Problems parsing config: mapping values are not allowed"),
        ("size: ${let.size}", "size: ${let.sze}", "let.sze"),
    ],
)
def test_a_mistake_in_a_configuration_takes_a_few_lines(tmp_path, monkeypatch, capsys, old, new, says):
    monkeypatch.setattr(sys, "argv", ["composer"])
    assert old in TINY
    path = tmp_path / "mine.yaml"
    path.write_text(TINY.replace(old, new, 1))
    assert main(["fit", "-c", str(path), f"--trainer.default_root_dir={tmp_path}"]) in (1, 2)
    shown = capsys.readouterr().err
    assert says in shown and shown.count("\n") <= 5 and len(shown) < 800
    number = next((i for i, line in enumerate(path.read_text().splitlines(), 1) if new and new.strip() in line), 0)
    assert f"{path}, line {number}: " in shown or number == 0 or "no key" not in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data.batchsize", "3"], "no key data.batchsize (did you mean data.batch_size"),
        (["--trainer.max_steps", "three"], "trainer.max_steps: expected int, found three"),
    ],
)
def test_a_mistake_in_an_option_of_fit_takes_a_few_lines(monkeypatch, tmp_path, capsys, words, says):
    monkeypatch.setattr(sys, "argv", ["composer"])
    assert main(["fit", "-c", "tiny", f"--trainer.default_root_dir={tmp_path}", *words]) == 2
    shown = capsys.readouterr().err
    assert says in shown and shown.count("\n") <= 5


def test_a_plugin_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["composer"])
    monkeypatch.setenv("COMPOSER_PLUGINS", "")
    assert main(["--plugins", "orchard", "fit", "-c", "tiny"]) == 1
    assert "--plugins names orchard, which is neither here nor installed" in capsys.readouterr().err


@pytest.mark.parametrize("stub", sorted((ROOT / "composer").rglob("__init__.pyi")), ids=lambda path: path.parent.name)
def test_public_names_come_from_where_the_stub_says(stub):
    package = importlib.import_module(".".join(stub.parent.relative_to(ROOT).parts))
    nodes = ast.parse(stub.read_text()).body
    stated = {alias.asname: (node.module, alias.name) for node in nodes for alias in node.names}
    assert sorted(stated) == sorted(package.__all__) and set(package.__all__) <= set(dir(package))
    for name, (module, own) in stated.items():
        assert name == own and getattr(package, name) is getattr(
            importlib.import_module(f"{package.__name__}.{module}"), own
        )
    with pytest.raises(AttributeError, match="Casade"):
        package.Casade  # noqa: B018


def test_a_training_imports_what_its_short_names_stand_for(monkeypatch):
    from composer.training.cli import import_classes

    for name in composer.__all__:  # type: ignore[attr-defined]  # not in its stub
        monkeypatch.delitem(vars(composer), name, raising=False)
    import_classes([])
    assert set(composer.__all__) <= set(vars(composer))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("edit a.png --region 0,0,1,1 --soften 1000000000", "--soften: expected a whole number from 0 to 256"),
        ("compose --steps 1000000000", "--steps: expected a whole number from 1 to 10,000, found '1000000000'"),
        ("compose --steps 1e400", "--steps: expected a whole number from 1 to"),
        (f"compose --steps {'9' * 5000}", "--steps: expected a whole number from 1 to"),
        ("compose --guidance nan", "--guidance: expected a number from -1000 to 1000, found 'nan'"),
        ("compose --guidance inf", "--guidance: expected a number from -1000 to 1000, found 'inf'"),
        ("compose --eta 2", "--eta: expected a number from 0 to 1, found '2'"),
        ("compose --size 100000x100000", "--size: expected WIDTHxHEIGHT in pixels, such as 384x256, at most 16,384"),
        ("compose --size 16000x16000", "and 64 megapixels, found '16000x16000'"),
        ("compose --size 0x16", "--size: expected WIDTHxHEIGHT"),
        ("compose --size ²x16", "--size: expected WIDTHxHEIGHT"),
        ("compose --stage base:steps=1000000000", "--stage: expected a whole number from 1 to 10,000"),
        ("compose --stage base:guidance=nan", "--stage: expected a number from -1000 to 1000, found 'nan'"),
        ("compose --seeds 99999999999999999999", "--seeds: expected a whole number"),
        (f"compose --seeds {','.join(['0'] * 10_001)}", "--seeds: expected at most 10,000 values, found 10,001"),
        ("compose --best-of 1000000000", "--best-of: expected a whole number from 1 to 1,000"),
        ("compose --weights palette=nan", "--weights: expected a number from 0 to 1000"),
        (
            f"compose --sheet seed={','.join(['0'] * 40)} steps={','.join(['1'] * 40)}",
            "expected at most 1,000 settings on a sheet, found 1,600",
        ),
        ("interpolate a.png b.png --frames 1000000000", "--frames: expected a whole number from 2 to 10,000"),
        ("scenes --count 100000000000 --out a", "--count: expected a whole number from 1 to 100,000,000"),
        ("evaluate --seed 99999999999999999999", "--seed: expected a whole number from 0 to 1,000,000,000"),
        ("evaluate --n 1000000000", "--n: expected a whole number from 1 to 1,000"),
        ("compose --precision \x1b[31m", "invalid choice: '\\x1b[31m'"),
        ("vary a.png --device [red]", "argument --device: invalid choice: '[red]'"),
    ],
)
def test_counts_and_sizes_have_bounds(capsys, line, says):
    assert main(line.split(" ")) in (1, 2)
    shown = capsys.readouterr().err
    assert says in shown and shown.count("\n") <= 5 and len(shown) < 1500
