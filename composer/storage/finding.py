"""Finds models and configurations by name, and reads configurations; light, for the command line."""

from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from composer.mistakes import did_you_mean
from composer.storage.files import finish_replacing, printable
from composer.storage.formats import HUB_NAME, MAX_JSON, check_autoencoder, check_model, check_prior
from composer.storage.schema import read_json

FORMAT = 1
"""Format number of model folders."""

Kind: TypeAlias = Literal["stages", "priors", "autoencoders"]
"""What a model's folder consists of."""

_KINDS = {
    "stages": (check_model, "a model with stages: composer.Cascade.load reads it"),
    "priors": (check_prior, "a prior: composer.Prior.load reads it, --prior names it"),
    "autoencoders": (
        check_autoencoder,
        "an autoencoder: composer.networks.dvae.DVAE.load or composer.networks.autoencoder.Autoencoder.load reads it",
    ),
}

_PACKAGE = Path(__file__).parents[1]


def find_model(folder: str | Path, network: bool = False) -> Path:
    """Finds the folder of a model: a local one, an included one, or one on the Hugging Face hub.

    Args:
        folder: The model's folder, its name, or ``owner/name@revision`` on the hub. A local folder of that name
            takes precedence.
        network: Whether a model that is not in the hub's cache may be downloaded.

    Raises:
        NotFetched: The hub has no such model, cannot be reached, or only a part of the model is on this machine.
        ValueError: The model on the hub is refused: see `composer.storage.hub`.
    """
    path = Path(folder)
    shipped = _PACKAGE / "assets" / path
    if shipped.is_dir() and not (path / "manifest.json").is_file():
        return shipped
    on_hub = HUB_NAME.fullmatch(path.as_posix())
    if on_hub is None or path.exists():
        return path
    from composer.storage.hub import fetch_model

    return fetch_model(on_hub["repo"], on_hub["revision"], network) or path


def require_model(folder: Path) -> None:
    """Checks that a folder holds a model, and finishes a write that was interrupted.

    Raises:
        FileNotFoundError: It does not.
    """
    finish_replacing(folder)
    if not (folder / "manifest.json").is_file():
        hint = "; if it is a model on the Hugging Face hub, allow its download: --allow-network, in Python network=True"
        raise FileNotFoundError(
            f"expected a model folder with config.json and manifest.json at {folder}; "
            "`composer export RUN OUT` makes one of a training run"
            + (hint if HUB_NAME.fullmatch(folder.as_posix()) and not folder.exists() else "")
        )


def kind_of(folder: Path) -> Kind:
    """What a model's folder consists of; ``stages`` where its configuration does not say.

    Raises:
        FileNotFoundError: There is no model.
        ValueError: The configuration is not JSON.
    """
    require_model(folder)
    config = read_json(folder / "config.json", MAX_JSON)
    known: tuple[Kind, ...] = get_args(Kind)
    return next((kind for kind in known if isinstance(config, dict) and kind in config), "stages")


def read_config(folder: Path, parts: Kind = "stages") -> dict[str, Any]:
    """Reads the configuration of a model's folder.

    Args:
        folder: The model's.
        parts: What the model must consist of.

    Raises:
        FileNotFoundError: There is no model.
        ValueError: The format or kind of model differs, or the configuration is not valid.
    """
    require_model(folder)
    path = folder / "config.json"
    config = read_json(path, MAX_JSON)
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a mapping with {parts}, found {type(config).__name__}")
    if config.get("format") != FORMAT:
        found = printable(str(config.get("format"))[:40])
        raise ValueError(f"expected a model of format {FORMAT}, found {found}: update the package")
    if parts not in config:
        found = next((about for kind, (_, about) in _KINDS.items() if kind in config), "none")
        raise ValueError(f"expected a model with {parts} at {folder}, found {found}")
    _KINDS[parts][0](config, str(path))
    return config


def askable_conditions(model: str | Path, network: bool = False) -> list[str]:
    """Lists the conditions that a user can set, read from the model's configuration alone.

    Not the mask, which comes from an edit's region, nor the small image, which comes from the previous stage.

    Args:
        model: A model's folder or name, see `find_model`.
        network: See `find_model`.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: The format or kind of model differs.
    """
    stages = read_config(find_model(model, network))["stages"]
    every = dict.fromkeys(name for stage in stages for name in stage["conditions"])
    return [name for name in every if name not in ("mask", "low_res")]


def shipped_configs() -> Path:
    """Returns the folder of the configurations: inside an installed package, or beside the packages in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def find_config(name: str) -> Path:
    """Finds a training's configuration.

    Args:
        name: A file, or the name of an included configuration, such as ``tiny`` or ``paper/composer_base``;
            ``.yaml`` may be left out. A file takes precedence.

    Raises:
        FileNotFoundError: Neither exists.
    """
    folder = shipped_configs()
    short = name.removeprefix("configs/").removesuffix(".yaml")
    candidates = [Path(name), Path(f"{name}.yaml"), folder / f"{short}.yaml"]
    for path in candidates:
        if path.is_file():
            return path
    known = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    near = did_you_mean(short, known) or f"; the included ones are {', '.join(known)}"
    raise FileNotFoundError(f"there is no configuration {name}, neither a file nor an included one{near}")
