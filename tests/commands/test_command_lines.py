"""250 odd command lines, the same every time: each ends well or in one error of a few lines, and harms nothing."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import command_lines
from tests.conftest import TINY, talkative
from tests.hostility import run

COUNT = int(os.environ.get("COMPOSER_COMMAND_LINES", "250"))
CHUNKS = 5
CONFIG = (Path(__file__).parents[2] / "configs/tiny.yaml").read_text(encoding="utf-8")
DRAWING: tuple[str, ...] = (
    "compose",
    "edit",
    "outpaint",
    "vary",
    "interpolate",
    "reconfigure",
    "translate",
    "repose",
    "colorize",
)
DRAWING += ("restyle", "try-on", "turn", "reconstruct")
NEEDED = {name: ["--palette", "#aa3311"] for name in ("compose", "colorize", "reconfigure")}
NEEDED |= {name: ["--keep", "palette"] for name in ("vary", "repose", "restyle", "translate")}
NEEDED |= {"edit": ["--region", "0.2,0.2,0.7,0.8"], "interpolate": ["--between", "palette", "--frames", "2"]}
BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


def write_files(folder):
    """Files, folders and other things as a stranger may name them."""
    folder.mkdir()
    talkative(TINY).save(folder / "model", "# tiny\n")
    picture = folder / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(picture)
    for raw in (b"run [red].png", b"[bold] :x:.png", b"\x1b[31m.png", b"\xff\xfe.png"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + raw)).write_bytes(picture.read_bytes())
    texts = {"empty.png": "", "text.png": "hello", "bad.json": "[" * 100_000, "bad.yaml": "a: [\n", "bomb.yaml": BOMB}
    texts |= {
        "deep.yaml": "[" * 20_000,
        "self.yaml": "a: &a [*a]\n",
        "prompts.csv": "Prompts,Category\n[red],<b>\na,b\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (folder / "tiny.yaml").write_text(CONFIG)
    for name in ("pipe.png", "pipe.yaml", "pipe.csv"):
        os.mkfifo(folder / name)
    for name in ("images", "piped", "listed"):
        (folder / name).mkdir()
        (folder / name / "a.png").write_bytes(picture.read_bytes())
    os.mkfifo(folder / "piped/a.txt")
    (folder / "listed/metadata.jsonl").write_text("\n")


def things(folder):
    picture, model = str(folder / "a.png"), str(folder / "model")
    good = {"": picture, "images": picture, "palette": "#aa3311", "intensity": picture, "start": f"{picture}:0.5"}
    good |= {"model": model, "autoguidance": model, "parts": f"base={model}", "prior": "scenes_prior_ar"}
    good |= {"config": str(folder / "tiny.yaml"), "data": str(folder / "images"), "folder": str(folder / "images")}
    good |= {
        "prompts": str(folder / "prompts.csv"),
        "card": str(folder / "prompts.csv"),
        "out": "out",
        "json": "o.json",
    }
    good |= {"region": "0.2,0.2,0.7,0.8", "by": "0,0,0.5,0", "size": "32x32", "stages": "base:steps=1", "until": "base"}
    good |= {"steps": "1", "weights": "palette=1", "sheet": "steps=1", "keep": "palette", "names": "palette"}
    good |= {"to": "a cat", "before": "a", "after": "b", "caption": "a cat", "metrics": "adherence", "seeds": "0"}
    odd = [str(path) for path in sorted(folder.rglob("*")) if folder / "model" not in path.parents]
    odd += ["/dev/zero", "/dev/null", "/", "/nowhere/x.png", "tiny", "scenes256", f"base={model}"]
    always = {name: ["--model", model, "--steps", "1", *NEEDED.get(name, ())] for name in DRAWING}
    always |= {
        "report": ["--model", model],
        "decompose": ["--model", model],
        "evaluate": ["--count", "2", "--steps", "1"],
    }
    always |= {"evaluate-prior": ["--model", model, "--count", "2", "--pictures", "0"]}
    always |= {"evaluate-autoencoder": ["--count", "2", "--size", "16"]}
    always |= {"scenes": ["--count", "2", "--size", "16", "--workers", "0"], "caption": ["--weights", "/nowhere"]}
    always |= {name: ["--trainer.max_steps", "0", "--trainer.limit_val_batches", "0"] for name in ("fit", "validate")}
    return command_lines.Things(good, odd, always)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command_lines")
    write_files(folder / "given")
    return folder


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_odd_command_lines_keep_the_promises(files, chunk):
    broken = []
    for i, words in enumerate(command_lines.lines(COUNT // CHUNKS, chunk, things(files / "given"))):
        outcome = run(words, files / "out" / f"{chunk}_{i}", seconds=30)
        if outcome.broken:
            broken.append((words, outcome.broken, outcome.err[-500:]))
    assert not broken, f"{len(broken)} of {COUNT // CHUNKS}, such as {broken[0]}"


def test_the_lines_are_the_same_every_time_and_reach_every_command(files):
    given = things(files / "given")
    drawn = list(command_lines.lines(2000, 0, given))
    assert drawn == list(command_lines.lines(2000, 0, given)) != list(command_lines.lines(2000, 1, given))
    reached = {word for words in drawn for word in words[:3] if word in command_lines.COMMANDS}
    assert reached == set(command_lines.COMMANDS) - set(command_lines.LONG)
