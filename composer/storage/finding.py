"""Finds models and configurations by name, and reads what a model says of itself; light, for the command line."""

from pathlib import Path
from typing import Any, Literal

from composer.mistakes import did_you_mean
from composer.storage.files import finish_replacing, printable
from composer.storage.formats import HUB_NAME, MAX_JSON, check_model, check_prior
from composer.storage.schema import read_json

FORMAT = 1
"""Of a model's folder."""

_PACKAGE = Path(__file__).parents[1]


def find_model(folder: str | Path, network: bool = False) -> Path:
    """The folder of a model, of one that the package ships under that name, or of one of the Hugging Face hub.

    Args:
        folder: The model's folder, its name, or ``owner/name@revision`` on the hub. A folder here of that name goes
            before the hub.
        network: A model of the hub that is not on this machine yet may be fetched.

    Raises:
        NotFetched: The hub has no such model, cannot be reached, or only a part of the model is on this machine.
        ValueError: The model on the hub is none that is fetched: see `composer.storage.hub`.
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
    """Makes sure that a folder holds a model, a whole one also where a process was killed while it wrote.

    Raises:
        FileNotFoundError: It does not.
    """
    finish_replacing(folder)
    if not (folder / "manifest.json").is_file():
        hint = "; if it is a model of the Hugging Face hub, let it be fetched: --allow-network, in Python network=True"
        raise FileNotFoundError(
            f"expected a model folder with config.json and manifest.json at {folder}; "
            "`composer export RUN OUT` makes one of a training run"
            + (hint if HUB_NAME.fullmatch(folder.as_posix()) and not folder.exists() else "")
        )


def read_config(folder: Path, parts: Literal["stages", "priors"] = "stages") -> dict[str, Any]:
    """Reads the configuration of a model's folder.

    Args:
        folder: The model's.
        parts: What the model has to consist of.

    Raises:
        FileNotFoundError: There is no model.
        ValueError: The format or the kind of model is another, or the configuration is not of this format.
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
        found = "a prior: composer.Prior.load reads it, --prior names it" if "priors" in config else "none"
        raise ValueError(f"expected a model with {parts} at {folder}, found {found}")
    (check_model if parts == "stages" else check_prior)(config, str(path))
    return config


def askable_conditions(model: str | Path, network: bool = False) -> list[str]:
    """The conditions that a person may ask a model for, read from its configuration alone.

    The mask comes from an edit's region, and the smaller image from the stage before.

    Args:
        model: A model's folder or name, see `find_model`.
        network: See `find_model`.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: The format or the kind of model is another.
    """
    stages = read_config(find_model(model, network))["stages"]
    every = dict.fromkeys(name for stage in stages for name in stage["conditions"])
    return [name for name in every if name not in ("mask", "low_res")]


def shipped_configs() -> Path:
    """The folder of the configurations: inside an installed package, beside the packages in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def find_config(name: str) -> Path:
    """Finds a training's configuration.

    Args:
        name: A file, or the name of a configuration that is shipped, such as ``tiny`` or ``paper/composer_base``;
            ``.yaml`` may be left out. A file goes before what is shipped.

    Raises:
        FileNotFoundError: There is neither.
    """
    folder = shipped_configs()
    short = name.removeprefix("configs/").removesuffix(".yaml")
    candidates = [Path(name), Path(f"{name}.yaml"), folder / f"{short}.yaml"]
    for path in candidates:
        if path.is_file():
            return path
    known = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    near = did_you_mean(short, known) or f"; the ones that are shipped: {', '.join(known)}"
    raise FileNotFoundError(f"no configuration {name}: no file has that name, and none that is shipped{near}")
