"""The tasks as commands: what each makes of what its parser, in `task_parsers`, was given."""

from composer.commands.drawing import Given, Make
from composer.commands.options import STRENGTH, askable, bar
from composer.tasks import papers as tasks
from composer.tasks.composition import Composition, Source, require
from composer.tasks.papers import Labelled

MAX_TERMS = 64
"""Captions to follow or to lead away from, of which each takes as long as the picture's own."""


def _compose(given: Given) -> Labelled:
    o, cascade = given.options, given.cascade
    prompts = [*(_weighted(text, 3.0, 1) for text in o.also), *(_weighted(text, 1.0, -1) for text in o.never)]
    if len(prompts) > MAX_TERMS:
        raise ValueError(f"expected at most {MAX_TERMS} captions of --and and --not, found {len(prompts)}")
    if not (given.asked[0].parts or prompts or o.start):
        raise ValueError(f"nothing asked: give at least one of {', '.join(f'--{n}' for n in askable(cascade))}")
    made = []
    for label, row in given.rows:
        if o.prior is not None:
            row = tasks.text_to_image(cascade, row.sources.get("caption", ""), given.prior(o.prior, row)) | row
        if prompts:
            row = tasks.combine(cascade, row, prompts)
        if o.start is not None:
            path, time = _start(o.start)
            row = tasks.redraw(cascade, Source(cascade.open(given.inputs.file(path)), Composition()), row, time)
        made.append((label, row))
    return made


def _start(text: str) -> tuple[str, float]:
    """``rough.png:0.7`` -> ("rough.png", 0.7)."""
    path, _, time = text.rpartition(":")
    try:
        return path, float(time)
    except ValueError as error:
        raise ValueError(f"expected a picture and a time in (0, 1], such as rough.png:0.7, found {text!r}") from error


def _weighted(text: str, weight: float, sign: int) -> tuple[str, float]:
    """``a red cube:2`` -> ("a red cube", 2.0)."""
    found = STRENGTH.fullmatch(text)
    if found is None or found[2] is None or found[3] or found[5]:
        return text, sign * weight
    return found[1], sign * float(found[2])


def _kept(given: Given) -> Labelled:
    return given.under([("", given.sources[0].pick(*given.options.keep))])


def _vary(given: Given) -> Labelled:
    o = given.options
    made = tasks.variations(given.cascade, given.sources[0], o.keep, o.from_latent, given.steps, bar("inverting"))
    return given.under([("", made)])


def _interpolate(given: Given) -> Labelled:
    o, (a, b) = given.options, given.sources
    found = tasks.interpolations(
        given.cascade, a, b, o.frames, o.between, o.keep, o.from_latents, given.steps, bar("inverting")
    )
    return given.under(found)


def _reconfigure(given: Given) -> Labelled:
    if not given.only.parts:
        options = ", ".join(f"--{name}" for name in askable(given.cascade))
        raise ValueError(f"nothing changed: give at least one of {options}")
    keep, steps = given.options.keep, given.steps
    return [("", tasks.reconfigure(given.cascade, given.sources[0], given.only, keep, steps, bar("inverting")))]


def _translate(given: Given) -> Labelled:
    o = given.options
    if not o.to:
        raise ValueError("translate needs --to: what the picture is to show")
    made = tasks.translate(given.cascade, given.sources[0], o.to, o.keep, given.steps, bar("inverting"))
    return given.under([("", made)])


def _repose(given: Given) -> Labelled:
    o, (source, pose), steps = given.options, given.sources, given.steps
    made = tasks.pose_transfer(given.cascade, source, pose, o.keep, o.take, steps, bar("inverting"))
    return given.under([("", made)])


def _colorize(given: Given) -> Labelled:
    o = given.options
    require(given.cascade, "intensity", "palette", task="colorization")
    if not o.palette:
        raise ValueError("colorize needs --palette: a picture's file, or colours like '#aa3311 0.6, #224488 0.4'")
    palettes = [given.inputs.value("palette", value) for value in o.palette]
    found = tasks.colorize(given.cascade, given.sources[0], palettes, o.frames, o.keep)
    return [(label, composition | given.asked[0].drop("palette")) for label, composition in found]


def _restyle(given: Given) -> Labelled:
    o, (content, style) = given.options, given.sources
    return given.under([("", tasks.style_transfer(given.cascade, content, style, o.strength, o.keep, o.take))])


def _try_on(given: Given) -> Labelled:
    wearer, garment = given.sources
    return given.under([("", tasks.try_on(given.cascade, wearer, garment, given.options.keep))])


def _turn(given: Given) -> Labelled:
    o, source = given.options, given.sources[0]
    if not (o.before and o.after):
        raise ValueError("turn needs --before and --after: what the picture shows, and what it is to show")
    found = tasks.text_difference(
        given.cascade, source, o.before, o.after, o.shares, o.keep, given.steps, bar("inverting")
    )
    return given.under(found)


def _reconstruct(given: Given) -> Labelled:
    o, (mean, components) = given.options, given.inputs.components(given.options.pca)
    found = tasks.truncated(given.cascade, given.sources[0], mean, components, o.components, o.keep)
    return given.under(found)


TASKS: dict[str, Make] = {
    "compose": _compose,
    "edit": _kept,
    "outpaint": _kept,
    "vary": _vary,
    "interpolate": _interpolate,
    "reconfigure": _reconfigure,
    "translate": _translate,
    "repose": _repose,
    "colorize": _colorize,
    "restyle": _restyle,
    "try-on": _try_on,
    "turn": _turn,
    "reconstruct": _reconstruct,
}
"""Name of a command -> the task."""
