"""Published files -> a model's folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from composer.cascade.assembling import carry_weights
from composer.cascade.stage import Stage
from composer.published import adm, alibaba, glide, karlo
from composer.published.engine import Converted, convert
from composer.published.family import Family, Needs
from composer.storage.files import printable, replacing_all, shorten_error
from composer.storage.folder import write_model
from composer.storage.pretrained import load_tensors, no_larger_than

FAMILIES: dict[str, Family] = {**glide.FAMILIES, **adm.FAMILIES, **karlo.FAMILIES, **alibaba.FAMILIES}
"""Name -> family."""


@dataclass(frozen=True)
class Published:
    """A published file, read and compared with a family's layout.

    Attributes:
        path: The file.
        name: The family.
        family: What is known of it.
        tensors: Its tensors, by the names that the family's layout has.
        spec: The configuration of a model with these weights.
    """

    path: Path
    name: str
    family: Family
    tensors: Mapping[str, Tensor]
    spec: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path, name: str, needs: Needs | None = None, size: int | None = None) -> "Published":
        """Reads a file, without running code that it may contain.

        Args:
            path: The file: safetensors, or a torch file of tensors.
            name: The family, see `FAMILIES`.
            needs: What the model needs besides.
            size: Side of its images, in pixels; None is the released size.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is another family's, damaged, or no file of tensors.
        """
        path = Path(path)
        if name not in FAMILIES:
            raise ValueError(f"expected a family of {', '.join(FAMILIES)}, found {printable(name)}")
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        family = FAMILIES[name]
        tensors = _without(load_tensors(path, lazily=True), family.prefix)
        if not family.recognises(tensors):
            raise ValueError(f"{path} is not a file of {name}: {_describe(tensors)}")
        try:
            spec = family.configure(tensors, size or family.size, needs or Needs())
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{path}: its tensors do not make a {name}: {shorten_error(error)}") from error
        return cls(path, name, family, tensors, spec)

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
            with no_larger_than(size, str(self.path), 1000 + 8 * len(tensors)), torch.device("meta"):
                weights = Stage.from_spec(self.spec["stages"][0]).weights()
            return convert(self._rows(weights, needs), tensors, weights.state_dict(), self.family.left)
        except ValueError as error:
            raise ValueError(f"{self.path} as {self.name}: {error}") from error

    def _rows(self, weights: nn.Module, needs: Needs | None) -> Any:
        return self.family.rows(weights, needs or Needs())


def import_model(
    files: Mapping[str, str | Path], out: str | Path, needs: Needs | None = None, name: str | None = None
) -> list[Converted]:
    """Makes a model of published weights; those of several stages become a cascade.

    Args:
        files: Family -> file, from the smallest images to the largest.
        out: The model's folder, which must not hold a model yet.
        needs: What the model needs besides.
        name: The model's name; None is the folder's.

    Returns:
        What was converted, one per file.

    Raises:
        FileNotFoundError: A file is not there.
        FileExistsError: The folder holds a model.
        ValueError: A file is not what it should be, see `Published`. Nothing has been written then.
    """
    out = Path(out)
    if (out / "config.json").exists():
        raise FileExistsError(f"{out} holds a model already: choose another folder")
    read = [Published.open(file, family, needs) for family, file in files.items()]
    for one in read:
        one.family.check(one.tensors, needs or Needs())
    done = [one.convert(needs) for one in read]
    config: dict[str, Any] = {"name": name or out.name, "stages": [], "decomposers": {}, "readers": {}}
    for one in read:
        config["stages"] += one.spec["stages"]
        config["decomposers"] |= one.spec["decomposers"]
        config["readers"] |= one.spec["readers"]
    weights = {one.spec["stages"][0]["file"]: made.tensors for one, made in zip(read, done, strict=True)}
    with replacing_all(out) as new:
        write_model(new, carry_weights(config, new), weights, _card(config["name"], read))
    return done


def recognise(path: str | Path) -> str:
    """Says what a file looks like.

    Raises:
        ValueError: It is damaged, or no file of tensors.
    """
    return _describe(load_tensors(Path(path), lazily=True))


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
        f"| `{one.spec['stages'][0]['file']}` | {one.path.name} | {one.family.about} | {one.compare()} |"
        for one in read
    ]
    licences = dict.fromkeys(f"- {one.name}: {one.family.licence}" for one in read)
    return "\n".join(
        [
            f"# {name}\n",
            "Published weights, renamed and reordered by `composer import`; not trained here.\n",
            "| stage | file | what | found |",
            "|---|---|---|---|",
            *rows,
            "\n## Licence of the weights\n",
            *licences,
            "",
        ]
    )
