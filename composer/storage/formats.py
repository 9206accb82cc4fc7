"""Schemas of model files, run configurations and recipes: names, types, ranges, sizes.

All of them may come from untrusted sources. They are validated completely before anything is built, read or written.
"""

import re
from collections.abc import Mapping
from typing import Any, get_args

from composer.names import SEMANTICS, TEXT, SamplerName
from composer.storage.schema import (
    NAME,
    Check,
    depending_on,
    each,
    items,
    number,
    one_of,
    optional,
    plain,
    record,
    table,
    text,
    whole,
)

MAX_JSON = 4_000_000
"""Maximum size in bytes of a model's configuration, and of its manifest."""

MAX_STEPS = 1000
"""Maximum number of a model's sampling steps."""

MAX_SIDE = 2048
"""Maximum side in pixels of a stage's images."""

FILE = text(120, r"[A-Za-z0-9_]+\.safetensors", "a plain file name such as base.safetensors")
ARGUMENTS = plain(largest=10_000_000, most=2_000)
SPEC = record({"class_path": text(200)}, {"init_args": optional(table(ARGUMENTS))})
INTERVAL = each(number(0, 1), number(0, 1))
SHA256 = text(64, r"[0-9a-f]{64}|", "a SHA-256")

HUB_NAME = re.compile(r"(?!.*\.\.)(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)
"""``owner/name`` or ``owner/name@revision``, a model of the Hugging Face hub."""

_SETTINGS: dict[str, Check] = {
    "sampler": one_of(*get_args(SamplerName)),
    "steps": whole(1, 1_000_000),
    "guidance": number(-1000, 1000),
    "eta": number(0, 1),
    "percentile": optional(number(0, 1)),
    "augmentation": number(0, 1),
    "tile": optional(whole(1, 65_536)),
}
_INTERVAL: dict[str, Check] = {"guidance_interval": optional(INTERVAL)}  # the first recipes lack it
SAMPLING = record({}, {**_SETTINGS, **_INTERVAL, "steps": whole(1, MAX_STEPS)}, closed=True)

_TOKEN_SETTINGS: dict[str, Check] = {
    "temperature": number(1e-6, 1e6),
    "top_k": optional(whole(1, 1_000_000)),
    "guidance": number(-1000, 1000),
}
TOKEN_SAMPLING = record({}, _TOKEN_SETTINGS, closed=True)

STAGE = depending_on(
    "tokens",
    record(
        {
            "file": FILE,
            "size": whole(1, MAX_SIDE),
            "tokens": SPEC,
            "autoencoder": SPEC,
            "conditions": items(text(100, NAME.pattern, "a name"), 1, 1),
        },
        {"sampling": TOKEN_SAMPLING},
    ),
    record(
        {"file": FILE, "size": whole(1, MAX_SIDE), "denoiser": SPEC, "conditions": table(SPEC)},
        {"sampling": SAMPLING, "low_res": SPEC, "codec": SPEC},
    ),
)

_BASE = record({"name": text(200, rf"\w[\w.-]*|{HUB_NAME.pattern}", "a model's name"), "sha256": SHA256})
_ABOUT: dict[str, Check] = {"format": whole(0, 1_000_000), "name": text(200)}
_STAGES = record(
    {"stages": items(STAGE, 0, 16)},
    {**_ABOUT, "decomposers": table(SPEC), "readers": table(SPEC), "source": whole(1, MAX_SIDE), "base": _BASE},
)
_PRIORS = record(
    {
        "priors": items(
            record({"class_path": text(200)}, {"init_args": optional(table(ARGUMENTS)), "file": FILE}), 1, 1
        ),
        "decomposers": record({TEXT: SPEC}, {SEMANTICS: SPEC}),
    },
    {**_ABOUT, "source": whole(1, MAX_SIDE)},
)
_AUTOENCODERS = record(
    {
        "autoencoders": items(
            record({"class_path": text(200), "file": FILE}, {"init_args": optional(table(ARGUMENTS))}), 1, 1
        )
    },
    _ABOUT,
)
_RUN = record(
    {
        "model": record(
            {
                "init_args": record(
                    {},
                    {
                        "size": whole(1, MAX_SIDE),
                        "conditions": table(ARGUMENTS),
                        "prior": SPEC,
                        "autoencoder": SPEC,
                        "codec": optional(SPEC),
                        "tokens": SPEC,
                        "condition": text(100, NAME.pattern, "a name"),
                    },
                )
            }
        ),
        "data": record(
            {"decomposers": table(ARGUMENTS)},
            {"readers": optional(table(ARGUMENTS)), "source": optional(whole(1, MAX_SIDE))},
        ),
    }
)
_MANIFEST = table(text(64, r"[0-9a-f]{64}", "a SHA-256"), most=10_000, named=None)

_HELD = table(text(64))
_RECIPE = record(
    {
        "model": record({"sha256": SHA256}, {"name": text(200)}),
        "seed": whole(-(1 << 63), (1 << 63) - 1),
        "stages": table(
            depending_on(
                "temperature", record(_TOKEN_SETTINGS, closed=True), record(_SETTINGS, _INTERVAL, closed=True)
            ),
            16,
        ),
        "size": optional(each(whole(1, 65_536), whole(1, 65_536))),
        "sources": table(text(100_000), named=None),
        "representations": _HELD,
        "wanted": _HELD,
        "strengths": table(
            record({"weight": number(0, 1000), "interval": INTERVAL, "region": optional(text(64))}),
        ),
        "away": optional(_HELD),
        "also": items(each(_HELD, number(-1000, 1000)), 0, 1000),
        "latent": optional(text(64)),
        "start": optional(each(text(64), number(0, 1))),
        "tensors": text(100_000_000),
    },
    {
        "autoguidance": optional(record({"sha256": SHA256}, {"name": text(200)})),
        "precision": optional(text(20)),
        "device": optional(text(40)),
        "versions": table(text(100), named=None),
    },
)
_EDIT = record(
    {
        "edit": record(
            {
                "original": text(80),
                "region": text(100_000_000),
                "soften": whole(0, 1_000_000),
                "sides": optional(items(number(0, 65_536), 4, 4)),
            },
            {"name": text(1000)},
        )
    }
)


def check_model(config: Any, where: str = "the model's configuration") -> None:
    """Checks the configuration of a model of stages.

    Raises:
        ValueError: It is not valid, or two stages share a file.
    """
    _STAGES(config, where)
    files = [stage["file"] for stage in config["stages"]]
    if len(set(files)) < len(files):
        raise ValueError(f"{where}: expected a file for each stage, found {', '.join(files)}")


def check_names(groups: Mapping[str, Any]) -> None:
    """Checks groups of specifications: their names become folders.

    Raises:
        ValueError: A name or a specification is not valid.
    """
    table(table(SPEC))(groups, "the model's configuration")


def check_prior(config: Any, where: str = "the prior's configuration") -> None:
    """Checks the configuration of a prior.

    Raises:
        ValueError: It is not valid.
    """
    _PRIORS(config, where)


def check_autoencoder(config: Any, where: str = "the autoencoder's configuration") -> None:
    """Checks the configuration of an autoencoder.

    Raises:
        ValueError: It is not valid.
    """
    _AUTOENCODERS(config, where)


def check_run(config: Any, where: str = "the checkpoint's configuration") -> None:
    """Checks the parts of a checkpoint's configuration from which a model is built.

    Raises:
        ValueError: It is not valid.
    """
    _RUN(config, where)


def check_manifest(manifest: Any, where: str) -> None:
    """Checks a model's manifest.

    Raises:
        ValueError: It is not a mapping from names to SHA-256.
    """
    _MANIFEST(manifest, where)


def check_recipe(found: Mapping[str, Any]) -> None:
    """Checks a recipe, except for its edit.

    Raises:
        ValueError: It is not a valid recipe.
    """
    _RECIPE(found, "the recipe")


def check_edit(found: Mapping[str, Any]) -> None:
    """Checks the part of a recipe that says what was edited.

    Raises:
        ValueError: There is none, or it is not valid.
    """
    if "edit" not in found:
        raise ValueError("the recipe is not that of an edit")
    _EDIT(found, "the recipe")
