"""The results of a cascade: tensors that can be saved with their recipes and are displayed in notebooks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composer.cascade.recipe import Origin
from composer.images.sheet import png, save_png, sheet, to_pil
from composer.storage.files import reserved

ACROSS = 4
"""Images in each row of the sheet that a notebook shows."""


class Images(Tensor):
    """Images that a model drew, (b 3 h w) in [-1, 1]; or a single one of them, (3 h w), such as ``images[0]``.

    They are a tensor like any other, and what is computed from them is a plain tensor. As long as the values are
    untouched they know their seeds, and ``images.save("out.png")`` writes a recipe from which they can be drawn again.
    """

    origin: Origin
    rows: tuple[int, ...]
    _drawn_version: int

    @classmethod
    def of(cls, images: Tensor, origin: Origin, rows: tuple[int, ...]) -> "Images":
        """Marks a tensor as images.

        Args:
            images: (b 3 h w), or (3 h w), in [-1, 1].
            origin: How they were drawn.
            rows: Which of the pictures of `origin` each of them is.
        """
        made = images.as_subclass(cls)
        made.origin, made.rows, made._drawn_version = origin, rows, _version(images)
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @property
    def seeds(self) -> list[int]:
        """The seed of each image."""
        return [self.origin.seeds[row] for row in self.rows]

    def recipes(self) -> list[dict[str, Any]] | None:
        """The recipe of each image, as plain JSON values.

        Returns:
            None where no recipe draws them again: they were changed in place, enlarged from an image, or drawn so that
            part of an image stays.
        """
        if _version(self) != self._drawn_version or not self.origin.can_be_redrawn:
            return None
        return [self.origin.recipe(row) for row in self.rows]

    def save(self, path: str | Path, recipe: bool = True) -> list[Path]:
        """Saves each image as a PNG: a single one as ``out.png``, several as ``out_seed0.png``, ``out_seed1.png``.

        Nothing is overwritten: where a file exists, all of them get a number, such as ``out-2.png``.

        Args:
            path: The file; missing folders are made.
            recipe: Whether each PNG carries its recipe (see `recipes`): ``composer compose --from-png`` draws it again,
                `report` measures it.

        Returns:
            The files.

        Raises:
            ValueError: It names a folder, or another kind of file than a PNG.
            OSError: It cannot be written.
        """
        path = Path(path)
        if path.is_dir():
            raise ValueError(f'expected a file to save to, found the folder {path}: save("{path / "out.png"}")')
        if path.suffix.lower() not in ("", ".png"):
            raise ValueError(
                f"expected a PNG, which keeps every pixel and the recipe, found {path}: save as "
                f"{path.with_suffix('.png').name}, or in other formats by images[0].pil().save({path.name!r})"
            )
        names = [f"{path.stem}.png"] if len(self.rows) == 1 else [f"{path.stem}_seed{seed}.png" for seed in self.seeds]
        recipes = (self.recipes() if recipe else None) or []
        with reserved(path.parent, names) as paths:
            for i, (file, image) in enumerate(zip(paths, self._listed(), strict=True)):
                save_png(file, image, recipes[i] if recipes else None)
        return paths

    def pil(self) -> Any:
        """Rounds to 8 bits for Pillow: ``images.pil()`` is a list of pictures, ``images[0].pil()`` a single one."""
        pictures = [to_pil(image) for image in self._listed()]
        return pictures[0] if self.ndim == 3 else pictures

    def cpu(self, *args: Any, **kwargs: Any) -> "Images":
        """The same on the CPU."""
        return self._same(super().cpu(*args, **kwargs))

    def __getitem__(self, index: Any) -> Any:
        """An image by its number, or some of them by a slice; any other index gives a plain tensor."""
        chosen = super().__getitem__(index)
        if self.ndim == 4 and type(index) in (int, slice):
            rows = self.rows[index]
            return self._same(chosen, (rows,) if isinstance(rows, int) else rows)
        return chosen

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def _listed(self) -> list[Tensor]:
        plain = self.as_subclass(Tensor)
        return list(plain) if self.ndim == 4 else [plain]

    def _same(self, images: Tensor, rows: tuple[int, ...] | None = None) -> "Images":
        """The same images, elsewhere or fewer; changed ones stay changed."""
        made = Images.of(images, self.origin, self.rows if rows is None else rows)
        if _version(self) != self._drawn_version:
            made._drawn_version = -1
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> "Images":
        return self._same(self.as_subclass(Tensor).clone())

    def __reduce_ex__(self, protocol: Any) -> Any:
        plain: Any = self.as_subclass(Tensor)  # so that files hold what any PyTorch reads
        return plain.__reduce_ex__(protocol)

    def __repr__(self) -> str:  # type: ignore[override]
        h, w = self.shape[-2:]
        seeds = ", ".join(map(str, self.seeds[:8])) + (", ..." if len(self.rows) > 8 else "")
        return f"Images({' x '.join(map(str, self.shape))}: {w} x {h} px, seed{'s' * (len(self.rows) > 1)} {seeds})"

    def _repr_png_(self) -> bytes:
        """What a notebook shows: the image, or a sheet of several."""
        images, seeds = self._listed(), self.seeds
        rows = [slice(i, i + ACROSS) for i in range(0, len(images), ACROSS)]
        labels = [f"seed{'s' * (len(seeds[row]) > 1)} {', '.join(map(str, seeds[row]))}" for row in rows]
        return png(to_pil(images[0]) if len(images) == 1 else sheet([images[row] for row in rows], labels))


def _version(tensor: Tensor) -> int:
    """Counts changes in place; tensors of inference mode do not count them."""
    return 0 if tensor.is_inference() else tensor._version
