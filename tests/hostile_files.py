"""Hostile models, recipes and configurations of checkpoints: a corpus in which each name says what is wrong."""

import copy
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from composer.cascade.recipe import pack
from composer.storage.folder import digest

ODD = [
    *(None, True, -1, 0, 1 << 31, 10**9, 10**18, 10**40, 1e308, float("nan"), float("inf"), -0.5, 0.3),
    *("", "..", "../../x", "/etc/passwd", "model:../../x", "asset:../../../x", "hub:a/b@main", "x" * 20_000),
    *("\x1b[2J\x1b]0;x\x07", "[red]a[/b]", "a\nb", "\u202e", "10", "nan"),
    *([], {}, [[]], [1] * 5000, {"class_path": "os.system"}, {"class_path": "decomposers.Palette"}, {"": 1}),
]
"""Values that stand where others are expected."""


def deep(levels: int) -> list:
    """Nested lists."""
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The way to every value of some JSON."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*path, key))


def changed(value: Any, path: tuple, new: Any) -> Any:
    """A copy in which one value is another; the way to it is made where it is missing."""
    if not path:
        return new
    made = copy.deepcopy(value)
    inner = made
    for key in path[:-1]:
        inner = inner.setdefault(key, {}) if isinstance(inner, dict) else inner[key]
    inner[path[-1]] = new
    return made


def without(value: Any, path: tuple) -> Any:
    """A copy without one value."""
    made = copy.deepcopy(value)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return made


def mutants(value: dict, seed: int, count: int) -> Iterator[tuple[str, Any]]:
    """Draws changes of some JSON: a value becomes an odd one, goes, or takes another's place."""
    draw = random.Random(seed)
    ways = [path for path in places(value) if path]
    for _ in range(count):
        path = draw.choice(ways)
        kind = draw.random()
        if kind < 0.7:
            new = draw.choice(ODD)
            yield f"{path} = {new!r}"[:120], changed(value, path, new)
        elif kind < 0.85:
            yield f"no {path}", without(value, path)
        else:
            other = draw.choice(ways)
            new = value
            for key in other:
                new = new[key]
            yield f"{path} = that of {other}", changed(value, path, copy.deepcopy(new))


def sealed_folder(folder: Path) -> None:
    """Writes the manifest anew: its hashes are no protection, whoever changes a file changes them too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    (folder / "manifest.json").write_text(json.dumps({p.relative_to(folder).as_posix(): digest(p) for p in files}))


def model_like(honest: Path, folder: Path, config: Any = None, files: dict[str, bytes] | None = None) -> Path:
    """A copy of a model with another configuration and other files."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(honest, folder)
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    for name, data in (files or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    sealed_folder(folder)
    return folder


STAGE = ("stages", 0)
NETWORK = (*STAGE, "denoiser", "init_args", "network", "init_args")
TENSORS = {"a": torch.zeros(3)}


def configurations(config: dict) -> Iterator[tuple[str, Any]]:
    """Hostile configurations of a model, made from an honest one."""
    value: Any

    def but(path: tuple, new: Any) -> Any:
        return changed(config, path, new)

    for value in ([], 1, None, "x", {}, {"format": 1}, {"format": 1, "stages": {}}, {"format": 1, "stages": [1]}):
        yield f"it is {value!r}", value
    yield "NaN", json.dumps(but((*STAGE, "sampling", "guidance"), float("nan")))
    yield "not JSON", "{"
    yield "not UTF-8", "\udcff"
    yield "no text", ""
    yield "a BOM", "\ufeff{}"
    yield "nested deeply", '{"format":1,"stages":' + "[" * 100_000 + "]" * 100_000 + "}"
    yield "nested", but(("x",), deep(500))
    yield "arguments nested", but((*NETWORK, "width"), deep(500))
    yield "a number of 5,000 digits", json.dumps(config)[:-1] + f', "x": {"1" * 5000}}}'
    yield "a number of 4,000 digits", json.dumps(config)[:-1] + f', "format": {"1" * 4000}}}'
    yield "a large file", json.dumps(config)[:-1] + f', "x": "{"x" * 5_000_000}"}}'
    yield "20,000 stages", but(("stages",), config["stages"] * 20_000)
    yield "the same stage twice", but(("stages",), config["stages"] * 2)
    yield "no stage", but(("stages",), [])
    for name in (
        "..",
        "../x",
        "a/b",
        "/tmp/x",
        "",
        ".",
        "a b",
        "x" * 300,
        "\x1b[2J",
        "[/b]",
        "é",
        "a\x00b",
        "out",
        "model",
    ):
        spec = config["decomposers"]["palette"]
        yield f"a decomposer {name!r}"[:60], but(("decomposers", name), spec)
        yield f"a reader {name!r}"[:60], but(("readers", name), spec)
        yield (
            f"a condition {name!r}"[:60],
            but((*STAGE, "conditions", name), config["stages"][0]["conditions"]["palette"]),
        )
    for file in (
        "../x.safetensors",
        "/tmp/x.safetensors",
        "base",
        "a/b.safetensors",
        "..",
        "",
        ".safetensors",
        1,
        None,
    ):
        yield f"a file {file!r}", but((*STAGE, "file"), file)
    for value in (10**6, 65_536, -1, [], {}, 0.5, True):
        yield f"width {value!r}", but((*NETWORK, "width"), value)
    for key in ("width", "vector_dim", "token_dim", "spatial_dim", "head_dim", "blocks", "channels"):
        for value in (10**9, 0, "x", None):
            yield f"{key} {value!r}", but((*NETWORK, key), value)
    yield "10,000 levels", but((*NETWORK, "multipliers"), [1] * 1999)
    yield "wide levels", but((*NETWORK, "multipliers"), [1, 10_000])
    yield "a million blocks", but((*NETWORK, "blocks"), 1_000_000)
    yield "attention everywhere", but((*NETWORK, "attention"), "1234")
    for size in (0, -16, 10**9, 8192, 4096, 15, "16", True, None, 16.0):
        yield f"size {size!r}", but((*STAGE, "size"), size)
    for key, value in (
        *(("steps", 0), ("steps", 10**9), ("steps", "4"), ("steps", None), ("steps", 1.5), ("steps", True)),
        *(("guidance", "x"), ("guidance", 1e300), ("guidance", None), ("sampler", "evil"), ("sampler", ["heun"])),
        *(("guidance_interval", [1]), ("guidance_interval", [0.9, 0.1]), ("guidance_interval", "ab"), ("eta", 7)),
        *(("percentile", 2), ("percentile", "x"), ("tile", 1), ("tile", -8), ("tile", 10**9), ("unknown", 1)),
    ):
        yield f"{key} {value!r}", but((*STAGE, "sampling", key), value)
    for path in (
        "os.system",
        "builtins.exec",
        "composer.Cascade",
        "composer.storage.folder.Path",
        "decomposers",
        ".",
        "",
        1,
        None,
    ):
        yield f"class {path!r}", but(("decomposers", "palette", "class_path"), path)
    yield "a class of another kind", but((*STAGE, "denoiser", "class_path"), "decomposers.Palette")
    yield "a class that is abstract", but(("decomposers", "palette", "class_path"), "composer.Decomposer")
    for argument in (
        "/etc/hostname",
        "model:../../secret.txt",
        "model:/etc/hostname",
        "asset:../../setup.py",
        "~",
        "..",
    ):
        tokens = {"class_path": "decomposers.Tokens", "init_args": {"words": argument}}
        yield f"words {argument}", but(("readers", "intensity"), tokens)
    everywhere = ("hub:a/b@main", "model:.", "a\x00b")
    for kind in ("Semantics", "SceneDepth", "Depth", "RFDETR", "DexiNed", "T5", "YOLO"):
        further = ("hub:a/b", "openai", "http://a.b/c", "x" * 3000) if kind == "Semantics" else ()
        for weights in (*everywhere, *further):
            named = {"class_path": f"decomposers.{kind}", "init_args": {"weights": weights}}
            yield f"{kind} {weights}"[:60], but(("readers", "intensity"), named)
    for model in ("hf-hub:a/b", "local-dir:/", "roberta-ViT-B-32", "ViT-H-14", "\x1b[2J", 3, None):
        for kind in ("Semantics", "TimmFeatures"):
            named = {
                "class_path": f"decomposers.{kind}",
                "init_args": {"model": model, "weights": "model:base.safetensors"},
            }
            yield f"{kind} {model!r}", but(("readers", "intensity"), named)
    for length in (10**6, -1, 1, "x", None):
        named = {"class_path": "decomposers.Tokens", "init_args": {"length": length}}
        yield f"captions of {length!r} pieces", but(("readers", "intensity"), named)
    text = {"vocabulary_size": 10**7, "width": 4096, "layers": 1, "heads": 1, "vector_dim": 32, "token_dim": 16}
    for own in (
        text,
        text | {"layers": 10**7, "width": 8, "vocabulary_size": 8},
        text | {"length": 10**7},
        text | {"heads": 0},
    ):
        yield (
            f"a text transformer {own}"[:100],
            but((*STAGE, "conditions", "palette"), {"class_path": "conditions.TextTransformer", "init_args": own}),
        )


FILES: dict[str, dict[str, bytes]] = {
    "an empty file of weights": {"base.safetensors": b""},
    "weights that are text": {"base.safetensors": b"hello" * 100},
    "weights with a long header": {"base.safetensors": (1 << 40).to_bytes(8, "little") + b"{}"},
    "weights with a header that is no JSON": {"base.safetensors": (8).to_bytes(8, "little") + b"x" * 8},
    "weights of another network": {"base.safetensors": save(TENSORS)},
    "weights with strange names": {"base.safetensors": save({"\x1b[2J[red]": torch.zeros(3), "../x": torch.zeros(1)})},
    "a pickle": {"base.safetensors": b"\x80\x04cos\nsystem\n(S'id'\ntR."},
}


def hostile_folders(honest: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Hostile models, whose files are wrong rather than their configuration."""
    for name, files in FILES.items():
        yield name, model_like(honest, folder, files=files)
    for name, manifest in (
        ("is a list", []),
        ("is a number", 1),
        ("is empty", {}),
        ("lists numbers", {"config.json": 1}),
        ("leads out", {"../secret.txt": "0" * 64}),
        ("is absolute", {"/etc/hostname": "0" * 64}),
        ("lists a folder", {".": "0" * 64}),
        ("lists a device", {"/dev/zero": "0" * 64}),
        ("has a long name", {"x" * 5000: "0" * 64}),
        ("has a strange name", {"\x1b[2J[/b]": "0" * 64}),
        ("has a NUL", {"a\x00b": "0" * 64}),
        ("lists 100,000 files", {str(i): "0" * 64 for i in range(100_000)}),
    ):
        model_like(honest, folder)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        yield f"a manifest that {name}", folder
    model_like(honest, folder)
    (folder / "manifest.json").write_text("[" * 100_000)
    yield "a manifest nested deeply", folder
    for name in ("config.json", "base.safetensors", "manifest.json"):
        model_like(honest, folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        yield f"a pipe in the place of {name}", folder
    for name, target in (
        ("config.json", "/dev/zero"),
        ("base.safetensors", "../secret.txt"),
        ("manifest.json", "/dev/zero"),
    ):
        model_like(honest, folder)
        (folder / name).unlink()
        (folder / name).symlink_to(target)
        yield f"a link in the place of {name}", folder
    model_like(honest, folder)
    (folder / "words").mkdir()
    os.mkfifo(folder / "words" / "words.txt")
    config = json.loads((honest / "config.json").read_text())
    tokens = {"class_path": "decomposers.Tokens", "init_args": {"words": "model:words/words.txt"}}
    (folder / "config.json").write_text(json.dumps(changed(config, ("readers", "intensity"), tokens)))
    sealed_folder(folder)
    yield "a pipe of words", folder
    (folder / "words" / "words.txt").unlink()
    (folder / "words" / "words.txt").symlink_to("/etc/hostname")
    sealed_folder(folder)
    yield "a link to words elsewhere", folder


def recipes(found: dict) -> Iterator[tuple[str, Any]]:
    """Hostile recipes, made from an honest one."""
    value: Any

    def but(path: tuple, new: Any) -> Any:
        return changed(found, path, new)

    stage = next(iter(found["stages"]))
    sampling = ("stages", stage)
    for value in ({}, {"format": 2}, {"format": 10**30}, {"format": [1]}, {"model": 1}):
        yield f"it is {value}", value
    for key in found:
        yield f"no {key}", without(found, (key,))
    for key, value in (
        *(("steps", 0), ("steps", 10**9), ("steps", 10**6), ("steps", "9"), ("steps", -1), ("steps", 2.5)),
        *(("guidance", 1e300), ("guidance", "x"), ("guidance", None), ("sampler", "evil"), ("sampler", 1)),
        *(("tile", 10**9), ("tile", 1), ("percentile", 9), ("eta", -1), ("guidance_interval", [2, 1]), ("evil", 1)),
    ):
        yield f"{key} {value!r}", but((*sampling, key), value)
    yield "another stage", but(("stages", "evil"), found["stages"][stage])
    yield "a stage [red]", but(("stages",), {"[red]": found["stages"][stage]})
    yield "no stages", but(("stages",), {})
    for size in (
        [10**5, 10**5],
        [60_000, 60_000],
        [0, 0],
        [16],
        [16, 16, 16],
        "ab",
        [16.5, 16],
        [-16, 16],
        [15, 17],
        [4096, 4096],
    ):
        yield f"size {size}", but(("size",), size)
    for seed in (1 << 63, -(1 << 70), 10**40, 1.5, "0", None, True, []):
        yield f"seed {str(seed)[:30]}", but(("seed",), seed)
    held = next(iter(found["representations"].values()))
    for count in (33, 100_000):
        yield f"{count} further terms", but(("also",), [[{"palette": held}, 0.1]] * count)
    for also in (
        [[{"palette": held}, 1e300]],
        [[{"palette": "nothing"}, 1]],
        [[{"evil": held}, 1]],
        [1],
        {},
        [[[], 1]],
    ):
        yield f"also {also}"[:80], but(("also",), also)
    for strength in (
        {},
        {"weight": -1},
        {"weight": float("nan")},
        {"interval": [1, 0]},
        {"region": "x"},
        {"region": held},
        1,
    ):
        whole = {"weight": 1.0, "interval": [0, 1], "region": None}
        made = {**whole, **strength} if isinstance(strength, dict) and strength else strength
        yield f"strength {strength}", but(("strengths",), {"palette": made})
    yield "a strength for nothing", but(("strengths",), {"evil": {"weight": 1.0, "interval": [0, 1], "region": None}})
    for text in ("", "!!", "A" * 1000, "x" * 7_000_000, 1, None, [], pack({})):
        yield f"tensors {str(text)[:20]}", but(("tensors",), text)
    bomb = pack({held: torch.zeros(1, 1, 5000, 5000)})
    yield "tensors that unpack to 100 MB", but(("tensors",), bomb)
    for name, value in (
        ("no row", torch.zeros(0, 156)),
        ("of two rows", torch.zeros(2, 156)),
        ("short", torch.zeros(1, 3)),
        ("a number", torch.tensor(1.0)),
        ("a map", torch.zeros(1, 1, 8, 8)),
        ("NaN", torch.full((1, 156), float("nan"))),
        ("infinite", torch.full((1, 156), float("inf"))),
        ("huge", torch.full((1, 156), 3e38)),
        ("complex", torch.zeros(1, 156, dtype=torch.complex64)),
        ("of numbers that are whole", torch.full((1, 156), 1 << 40)),
        ("boolean", torch.zeros(1, 156, dtype=torch.bool)),
        ("of many dimensions", torch.zeros(1, *[1] * 20)),
        ("a wide map", torch.zeros(1, 1, 3000, 3000)),
        ("empty", torch.zeros(1, 0)),
    ):
        tensors = pack({held: value})
        bare = but(("tensors",), tensors) | {"wanted": {}, "representations": {}}
        for where, use in (
            *(("representations", {"palette": held}), ("wanted", {"palette": held})),
            *(("start", [held, 0.5]), ("latent", held)),
        ):
            yield f"{where} {name}", bare | {where: use}
    for start in ([held], [held, 2], [held, -1], ["nothing", 0.5], 1, {}):
        yield f"start {start}", but(("start",), start)
    for sources in (1, [], {"palette": 1}, {"palette": "x" * 200_000}, {"\x1b[2J": "\x1b]0;x\x07[/b]"}):
        yield f"sources {str(sources)[:40]}", but(("sources",), sources)
    yield "away [red]", but(("away",), {"[red]": held})
    for model in (
        1,
        {},
        {"sha256": 1},
        {"sha256": "../x"},
        {"sha256": "0" * 64, "name": "\x1b[2J[/b]"},
        {"sha256": "0" * 64},
    ):
        yield f"model {model}", but(("model",), model)
    for key, value in (
        *(("versions", [1]), ("versions", {"torch": {"a": 1}}), ("versions", {"torch": "\x1b[2J"})),
        *(
            ("device", 7),
            ("precision", 7),
            ("precision", "[/b]"),
            ("autoguidance", {"sha256": "x"}),
            ("autoguidance", 1),
        ),
    ):
        yield f"{key} {value!r}", but((key,), value)
    yield "nested", but(("sources",), deep(900))


def edit_recipes(found: dict) -> Iterator[tuple[str, Any]]:
    """Hostile recipes of an edit, made from an honest one."""
    for key, value in (
        *(("soften", 10**9), ("soften", -1), ("soften", "2"), ("soften", 1e5), ("soften", 100_000), ("soften", None)),
        *(("sides", [10**5] * 4), ("sides", [1, 1]), ("sides", [-5, 0, 0, 0]), ("sides", "abcd"), ("sides", [0] * 4)),
        *(("sides", [60_000] * 4), ("sides", [1e308] * 4), ("sides", [0.1] * 4)),
        *(("region", ""), ("region", 1), ("region", pack({"evil": torch.zeros(1, 1, 4, 4)}))),
        *(("region", pack({"region": torch.zeros(40, 50)})), ("region", pack({"region": torch.zeros(1, 1, 4, 4)}))),
        *(
            ("region", pack({"region": torch.zeros(1, 1, 40, 50)})),
            ("region", pack({"region": torch.ones(1, 3, 40, 50)})),
        ),
        *(
            ("original", 1),
            ("original", "../x"),
            ("original", ""),
            ("name", 1),
            ("name", "\x1b[2J[/b]"),
            ("name", "x" * 5000),
        ),
    ):
        yield f"{key} {str(value)[:30]}", changed(found, ("edit", key), value)
    for edit in (1, [], {}, None, "x"):
        yield f"an edit {edit!r}", changed(found, ("edit",), edit)


def run_configurations(config: dict) -> Iterator[tuple[str, Any]]:
    """Hostile configurations of a checkpoint, made from an honest one."""
    value: Any

    def but(path: tuple, new: Any) -> Any:
        return changed(config, path, new)

    endless: dict = {}
    endless["model"] = endless
    for value in (
        None,
        1,
        [],
        "x",
        {},
        {"model": 1},
        {"model": {}, "data": {}},
        {"model": {"init_args": {}}, "data": {}},
    ):
        yield f"it is {value!r}", value
    yield "endless", endless
    yield "nested", but(("model", "init_args", "denoiser"), deep(200))
    own = ("model", "init_args")
    for key in config["model"]["init_args"]:
        yield f"no {key}", without(config, (*own, key))
    for key, value in (
        *(("size", "16"), ("size", 10**9), ("size", None), ("size", "../../x"), ("conditions", []), ("conditions", 1)),
        *(("denoiser", 1), ("denoiser", {}), ("denoiser", {"class_path": "os.system", "init_args": {"command": "id"}})),
        *(("prior", {}), ("prior", 1), ("prior", {"class_path": "composer.DiffusionPrior", "init_args": {}})),
        ("conditions", {"../../x": config["model"]["init_args"]["conditions"]["palette"]}),
    ):
        yield f"{key} {str(value)[:60]}", but((*own, key), value)
    for name in ("..", "../../x", "/tmp/x", "\x1b[2J", "[/b]", "low_res"):
        yield f"a decomposer {name!r}", but(("data", "decomposers", name), {"class_path": "decomposers.Palette"})
        spec = config["model"]["init_args"]["conditions"]["palette"]
        made = but(("data", "decomposers", name), {"class_path": "decomposers.Palette"})
        yield f"a condition and decomposer {name!r}", changed(made, (*own, "conditions", name), spec)
    for width in (10**9, 65_536, 0, "x"):
        yield f"width {width}", but((*own, "denoiser", "init_args", "network", "init_args", "width"), width)
    for readers in (1, [], {"palette": 1}, {"palette": {"class_path": "os.system"}}):
        yield f"readers {readers}", but(("data", "readers"), readers)
