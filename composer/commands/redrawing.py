"""Draws the picture of a recipe again, and says whether it is the same."""

from typing import Any

import numpy as np

from composer.cascade.cascade import Cascade
from composer.commands.request import Request
from composer.images.reading import File, PictureFile
from composer.images.sheet import read_recipe, read_written, save_png
from composer.storage.files import list_written, reserved
from composer.tasks.recipe import changes_since, draw_recipe, edited, frame_of
from composer.terminal import note, say, steps_bar


def redraw_png(model: Cascade, request: Request, png: PictureFile) -> None:
    """Draws a recipe's picture again.

    Args:
        model: The one that the recipe names.
        request: Says where to, and gives the picture that was edited where the recipe is an edit's.
        png: Carries the recipe.

    Raises:
        ValueError: The recipe is an edit's, and there is no picture, or another one.
    """
    found, files = read_recipe(png), request.files
    if request.model.precision is not None:
        found["precision"] = request.model.precision
    before, limited = _pixels(png), not files.no_limits
    picture: Any
    if "edit" in found:
        if not request.images:
            raise ValueError(f"{files.from_png} is an edit of {edited(found)}: give the picture that was edited, too")
        frame, soften = frame_of(found, PictureFile(request.images[0]), limited)
        picture = frame.paste(draw_recipe(model, found, steps_bar("drawing"), frame, limited), soften)[0]
    else:
        picture = draw_recipe(model, found, steps_bar("drawing"), limited=limited)[0].cpu()
    with reserved(files.out, [png.path.name]) as (path,):
        save_png(path, picture, None if files.no_recipe else found)
    same, says = compare(before, _pixels(path))
    say(list_written([path]))
    if same:
        say(f"{path.name}: the same, {says}")
        return
    reasons = changes_since(model, found)
    if "precision" not in found:
        reasons.append("the recipe does not say with which --precision")
    note(f"warning: {path.name} is not the same: {'; '.join([says, *reasons])}")


def compare(before: np.ndarray, after: np.ndarray) -> tuple[bool, str]:
    """Whether two pictures are the same up to rounding, and how far they differ, in words."""
    if before.shape != after.shape or before.dtype != after.dtype:
        return False, "it has another size or other pixels than it was drawn with"
    off = np.abs(after.astype(np.int64) - before)
    count, top, most = int((off > 0).sum()), 255 if before.dtype == np.uint8 else 65535, int(off.max())
    if not count:
        return True, "bit for bit"
    if most * 255 <= top:
        return True, f"up to rounding ({count} value{'s' * (count > 1)} by {'up to ' * (most > 1)}{most}/{top})"
    return False, f"{count} of {off.size} values differ, by up to {most}/{top}"


def _pixels(png: File) -> np.ndarray:
    return np.array(read_written(png))
