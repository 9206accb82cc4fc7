"""Published files -> a model's folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from composer.cascade.assembling import carry_weights
from composer.cascade.stage import Stage
from composer.networks.stored import Stored
from composer.prior.interface import Prior
from composer.published import adm, alibaba, autoencoder_kl, diffusers_layout, diffusers_prior, dvae, glide, karlo
from composer.published.engine import Converted, convert
from composer.published.family import Family, Needs
from composer.published.pickled import read_modules
from composer.storage.building import build
from composer.storage.files import printable, replacing_all, shorten_error
from composer.storage.folder import write_model
from composer.storage.pretrained import load_tensors, no_larger_than

FAMILIES: dict[str, Family] = {
    **glide.FAMILIES,
    **adm.FAMILIES,
    **karlo.FAMILIES,
    **diffusers_layout.FAMILIES,
    **diffusers_prior.FAMILIES,
    **alibaba.FAMILIES,
    **dvae.FAMILIES,
    **autoencoder_kl.FAMILIES,
}
"""Name -> family."""

Files = str | Path | Sequence[str | Path]
"""A file, or all files that a network is made of, in the order of `Family.parts`."""


@dataclass(frozen=True)
class Published:
    """A published network, read and compared with a family's layout.

    Attributes:
        paths: Its files.
        name: The family.
        family: What is known of it.
        tensors: Its tensors, by the names that the family's layout has.
        spec: The configuration of a model with these weights.
    """

    paths: tuple[Path, ...]
    name: str
    family: Family
    tensors: Mapping[str, Tensor]
    spec: dict[str, Any]

    @classmethod
    def open(cls, files: Files, name: str, needs: Needs | None = None, size: int | None = None) -> "Published":
        """Reads a network's files, without running code that they may contain.

        Args:
            files: The files: safetensors, or torch files of tensors; the dVAE's, pickled modules, end in ``.pkl``.
            name: The family, see `FAMILIES`.
            needs: What the model needs besides.
            size: Side of its images, in pixels; None is the released size.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: One is another family's, damaged, or no file of tensors; or there are too few or too many.
        """
        family = find_family(name)
        paths = tuple(Path(file) for file in ([files] if isinstance(files, str | Path) else files))
        if len(paths) != len(family.parts):
            wanted, found = "; ".join(family.parts.values()), ", ".join(map(str, paths))
            raise ValueError(f"{name} is made of {len(family.parts)} files, in this order: {wanted}. Found {found}")
        if absent := [path for path in paths if not path.is_file()]:
            raise FileNotFoundError(f"there is no file {absent[0]}")
        first = _without(_load(paths[0]), family.prefix)
        if not family.recognises(first):
            raise ValueError(f"{paths[0]} is not a file of {name}: {_describe(first)}")
        read = [first, *map(_load, paths[1:])]
        pairs = zip(family.parts, read, strict=True)
        tensors = {part + family.rename(key): x for part, one in pairs for key, x in one.items()}
        where = " and ".join(map(str, paths))
        try:
            spec = family.configure(tensors, size or family.size, needs or Needs())
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{where}: these tensors do not make a {name}: {shorten_error(error)}") from error
        return cls(paths, name, family, tensors, spec)

    @property
    def kind(self) -> str:
        """What the model consists of: ``stages``, ``priors`` or ``autoencoders``."""
        return next(kind for kind in ("stages", "priors", "autoencoders") if kind in self.spec)

    @property
    def file(self) -> str:
        """The file of its weights in the model's folder."""
        return str(self.spec[self.kind][0]["file"])

    @property
    def values(self) -> int:
        """Number of its values."""
        return sum(x.numel() for x in self.tensors.values())

    def compare(self) -> str:
        """Says whether it is a released network, by its numbers of tensors and values."""
        own = (len(self.tensors), self.values)
        files = [file for file, released in self.family.released.items() if released == own]
        count = f"{own[0]} tensors, {own[1]:,} values"
        if files:
            return f"{count}, as in {' and '.join(files)}"
        known = ", ".join(f"{file} has {n} and {values:,}" for file, (n, values) in self.family.released.items())
        return f"{count}: the layout of {self.name} in another size ({known})"

    def convert(self, needs: Needs | None = None, shapes_only: bool = False) -> Converted:
        """Converts its tensors.

        Args:
            needs: What the model needs besides.
            shapes_only: Whether to compare names and shapes only, without the memory for a result.

        Raises:
            FileNotFoundError: Something that the model needs is not on this machine.
            ValueError: A tensor is missing, left over, or of another shape.
        """
        tensors = {k: x.to("meta") for k, x in self.tensors.items()} if shapes_only else self.tensors
        size = sum(x.nbytes for x in self.tensors.values())
        try:
            with no_larger_than(size, str(self.paths[0]), 1000 + 8 * len(tensors)), torch.device("meta"):
                weights = network_of(self.spec)
            rows = self.family.rows(weights, needs or Needs())
            return convert(rows, tensors, weights.state_dict(), self.family.left)
        except ValueError as error:
            raise ValueError(f"{' and '.join(map(str, self.paths))} as {self.name}: {error}") from error


def find_family(name: str) -> Family:
    """Finds a family by its name.

    Raises:
        ValueError: There is none.
    """
    if name not in FAMILIES:
        raise ValueError(f"expected a family of {', '.join(FAMILIES)}, found {printable(name)}")
    return FAMILIES[name]


def network_of(spec: Mapping[str, Any]) -> nn.Module:
    """Builds what a configuration of one stage, prior or autoencoder stores the weights of, with fresh ones."""
    if "priors" in spec:
        return build(spec["priors"][0], Prior)
    if "autoencoders" in spec:
        return build(spec["autoencoders"][0], Stored)
    return Stage.from_spec(spec["stages"][0]).weights()


def share_out(files: Sequence[str], families: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Gives each family its files, in order.

    Raises:
        ValueError: A family is unknown or given twice, or their files are more or fewer than these.
    """
    if len(set(families)) < len(families):
        raise ValueError(f"expected each family of --as once, found {' '.join(families)}")
    counts = [len(find_family(name).parts) for name in families]
    if sum(counts) != len(files):
        made = ", ".join(f"{name} is made of {n}" for name, n in zip(families, counts, strict=True))
        raise ValueError(f"expected a family of --as for all files: {made}, found {len(files)} files")
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    return {name: tuple(files[end - n : end]) for name, n, end in zip(families, counts, ends, strict=True)}


def import_model(
    files: Mapping[str, Files], out: str | Path, needs: Needs | None = None, name: str | None = None
) -> list[Converted]:
    """Makes a model of published weights; those of several stages become a cascade.

    Args:
        files: Family -> its file or files, from the smallest images to the largest; or those of a prior or
            an autoencoder alone.
        out: The model's folder, which must not hold a model yet.
        needs: What the model needs besides.
        name: The model's name; None is the folder's.

    Returns:
        What was converted, one per family.

    Raises:
        FileNotFoundError: A file is not there.
        FileExistsError: The folder holds a model.
        ValueError: A file is not what it should be, see `Published`, or there is more beside a prior or an autoencoder.
            Nothing has been written then.
    """
    out = Path(out)
    if (out / "config.json").exists():
        raise FileExistsError(f"{out} holds a model already: choose another folder")
    read = [Published.open(file, family, needs) for family, file in files.items()]
    if len(read) > 1 and (alone := [one.name for one in read if one.kind != "stages"]):
        raise ValueError(f"{alone[0]} is a model of its own: import it alone, found {', '.join(files)}")
    for one in read:
        one.family.check(one.tensors, needs or Needs())
    done = [one.convert(needs) for one in read]
    config: dict[str, Any] = {"name": name or out.name}
    for one in read:
        for key, value in one.spec.items():
            config[key] = [*config.get(key, ()), *value] if key == one.kind else {**config.get(key, {}), **value}
    weights = {one.file: made.tensors for one, made in zip(read, done, strict=True)}
    with replacing_all(out) as new:
        write_model(new, carry_weights(config, new), weights, _card(config["name"], read))
    return done


def recognise(path: str | Path) -> str:
    """Says what a file looks like.

    Raises:
        ValueError: It is damaged, or no file of tensors.
    """
    return _describe(_load(Path(path)))


def _load(path: Path) -> Mapping[str, Tensor]:
    return read_modules(path, dvae.CLASSES) if path.suffix == ".pkl" else load_tensors(path, lazily=True)


def _without(tensors: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    """The same without a prefix that all names have."""
    if prefix and all(name.startswith(prefix) for name in tensors):
        return {name.removeprefix(prefix): x for name, x in tensors.items()}
    return tensors


def _describe(tensors: Mapping[str, Tensor]) -> str:
    alike = [name for name, family in FAMILIES.items() if family.recognises(_without(tensors, family.prefix))]
    first = ", ".join(printable(name[:60]) for name in list(tensors)[:3])
    count = f"it has {len(tensors)} tensors ({first}, ...)"
    return f"{count} and looks like {' or '.join(alike)}" if alike else f"{count} and looks like no known family"


def _card(name: str, read: Sequence[Published]) -> str:
    """The model card: where the weights come from, and what was tested."""
    rows = [
        f"| `{one.file}` | {', '.join(path.name for path in one.paths)} | {one.family.about} | {one.compare()} |"
        for one in read
    ]
    licences = dict.fromkeys(f"- {one.name}: {one.family.licence}" for one in read)
    return "\n".join(
        [
            f"# {name}\n",
            "Published weights, renamed and reordered by `composer import`; not trained here.\n",
            "| weights | made of | what | found |",
            "|---|---|---|---|",
            *rows,
            "\n## Licence of the weights\n",
            *licences,
            "",
        ]
    )
