"""Colour palette: a smoothed CIELab histogram."""

import lzma
import re
from colorsys import hsv_to_rgb
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from composer.cascade.parts import lerp
from composer.decomposition import Batch, Decomposer
from composer.devices import with_float64
from composer.names import Kind
from composer.storage.files import write_atomically

HUES = (0.0, 0.0833, 0.166, 0.25, 0.333, 0.5, 0.56333, 0.666, 0.73, 0.803, 0.916)
LONGEST_SIDE = 241  # pixels to which a side is subsampled before counting
FLOOR = 1e-5  # shares below it count as none
SOFTNESS = 5.0  # CIELab units within which a pixel counts for several colours, for the gradient
NAMED = 6  # colours of a palette as a text
STRIPS = 64  # height and width of a preview, in pixels
USUAL = 11, 5, 4  # hues, saturations and lights of the included table, which takes seconds to compute
TABLE = Path(__file__).parent / "assets" / "palette.xz"


class Palette(Decomposer):
    """Share of the pixels near each of K colours, counted in CIELab and smoothed (Composer, section 2.1).

    Every pixel counts for the nearest colour of a fixed codebook; the counts are then smoothed over the codebook by a
    Gaussian in Lab. As in rayleigh (Karayev, github.com/sergeyk/rayleigh), which the paper cites, the Gaussian is
    normalised over its input colours, so a palette's sum is near 1 but not exactly 1.

    The codebook has, for every hue, `saturations` pale tones, the full colour, `lights` dark tones and `lights` - 1
    dark tones at saturation 0.4, and as many greys, from white to black: K = (hues + 1) (saturations + 2 lights).

    Args:
        hues: Number of hues; 11 are spaced perceptually as in rayleigh, any other number evenly.
        saturations: Number of tones of a hue between white and the full colour.
        lights: Number of tones of a hue between the full colour and black.
        sigma: Standard deviation of the smoothing, in CIELab units.

    Raises:
        ValueError: A number below 1, or more than 256 colours.
    """

    kind = Kind.APPEARANCE

    rgb: Float[Tensor, "k 3"]
    spread: Float[Tensor, "k k"]

    def __init__(self, hues: int = 11, saturations: int = 5, lights: int = 4, sigma: float = 10.0):
        super().__init__()
        self.shape = hues, saturations, lights
        if min(self.shape) < 1 or sigma <= 0 or (hues + 1) * (saturations + 2 * lights) > 256:
            raise ValueError(
                f"expected hues, saturations, lights >= 1, sigma > 0 and at most 256 colours, "
                f"found {hues}, {saturations}, {lights}, {sigma}"
            )
        rgb = _code(*self.shape)
        lab = _lab(rgb)
        weights = torch.exp((lab[:, None] - lab).square().sum(-1) / (-2 * sigma**2))
        self.register_buffer("rgb", rgb.float(), persistent=False)
        self.register_buffer("spread", (weights / weights.sum(1, keepdim=True)).float(), persistent=False)

    def forward(self, batch: Batch) -> Float[Tensor, "b k"]:
        """Counts and smooths the colours of `batch["image"]`, rounded to 8 bits.

        Sides longer than 240 pixels are first subsampled by an integer stride, as in rayleigh.
        """
        image = batch["image"]
        b = len(image)
        levels = (_thinned(image).float() * 127.5).add_(127.5).round_().clamp_(0, 255)
        r, g, blue = levels.unbind(1)
        index = torch.add(blue, torch.add(g, r, alpha=256), alpha=256).to(torch.int32)  # floats hold 24 bits exactly
        nearest = _table(*self.shape, image.device).index_select(0, index.flatten()).view_as(index).flatten(1)
        k = len(self.rgb)
        rows = torch.arange(0, b * k, k, dtype=torch.int32, device=image.device)
        counts = torch.bincount((nearest.to(torch.int32) + rows[:, None]).flatten(), minlength=b * k).view(b, k)
        return self._smooth(counts / nearest.shape[1]).to(image.dtype)

    def loss(self, wanted: Float[Tensor, "b k"], batch: Batch) -> Float[Tensor, " b"]:
        """The distance with soft counts over all near colours, as counting the nearest has no gradient."""
        rgb = (_thinned(batch["image"]).float() / 2 + 0.5).clamp(0.002, 1)  # the cube root is steep at black
        lab = _lab(rgb.flatten(2).mT)
        code = _lab(self.rgb)
        squares = (lab.square().sum(-1, keepdim=True) + code.square().sum(-1)).baddbmm(
            lab, code.mT.expand(len(lab), -1, -1), alpha=-2
        )
        shares = (squares / (-2 * SOFTNESS**2)).softmax(-1).mean(1)
        return self.distance(wanted, shares @ self.spread.T)

    def from_colours(self, colours: dict[str, float]) -> Float[Tensor, "1 k"]:
        """Builds the palette of an image with only these colours.

        Args:
            colours: Colour as "#rrggbb" -> weight >= 0 in any unit; the weights are normalised.

        Raises:
            ValueError: A key is not a colour, a weight is negative, or none is positive.
        """
        for colour, weight in colours.items():
            if not re.fullmatch("#[0-9a-fA-F]{6}", colour):
                raise ValueError(f"expected a colour like '#aa3311', found {colour!r}")
            if not 0 <= weight < float("inf"):
                raise ValueError(f"expected a weight of at least 0 for {colour}, found {weight}")
        weights = torch.tensor(list(colours.values()), dtype=torch.float64)
        if not weights.any():
            raise ValueError(f"expected at least one colour with a weight above 0, found {colours}")
        rgb = torch.tensor([list(bytes.fromhex(colour[1:])) for colour in colours], dtype=torch.float64) / 255
        nearest = torch.cdist(_lab(rgb), _lab(_code(*self.shape))).argmin(1)
        shares = torch.bincount(nearest, weights / weights.sum(), minlength=len(self.rgb))
        return self._smooth(shares[None].to(self.rgb))

    def from_text(self, text: str) -> Float[Tensor, "1 k"]:
        """Parses a palette such as ``"#aa3311 0.6, #224488 0.4"``; a missing weight is 1.

        Raises:
            ValueError: The text has another form.
        """
        colours: dict[str, float] = {}
        for part in text.split(","):
            found = re.fullmatch(r"\s*(#[0-9a-fA-F]{6})[\s:=]*(\d*\.?\d+)?\s*", part)
            if found is None:
                raise ValueError(f"expected colours and weights like '#aa3311 0.6, #224488 0.4', found {part!r}")
            colours[found[1]] = colours.get(found[1], 0) + float(found[2] or 1)
        return self.from_colours(colours)

    def to_text(self, value: Float[Tensor, "1 k"]) -> str | None:
        """Writes the `NAMED` largest colours, such as ``"#aa3311 0.6, #224488 0.4"``; None for one without colour."""
        shares, order = value[0].float().cpu().topk(min(NAMED, value.shape[1]))
        percent = (shares / shares.sum().clamp_min(FLOOR) * 100).round().int().tolist()
        codes = (self.rgb.cpu()[order] * 255).round().int().tolist()
        found = [(bytes(code).hex(), share) for code, share in zip(codes, percent, strict=True) if share > 0]
        return ", ".join(f"#{code} {share / 100:g}" for code, share in found) or None

    def preview(self, value: Float[Tensor, "b k"]) -> Float[Tensor, "b 3 h w"]:
        """Draws the colours above the 90th percentile as vertical strips, the largest first, as wide as their share.

        A palette without colour is white.
        """
        value = value.float()
        bound = with_float64(value).quantile(0.9, dim=1, keepdim=True)  # torch computes its position in float64
        value = value.where(value > bound.to(value.device), 0)
        shares, order = value.sort(dim=1, descending=True, stable=True)
        ends = shares.cumsum(1) / shares.sum(1, keepdim=True).clamp_min(FLOOR)
        columns = (torch.arange(STRIPS, device=value.device) + 0.5) / STRIPS
        strip = torch.searchsorted(ends, columns.expand(len(value), -1).contiguous()).clamp_max(value.shape[1] - 1)
        colours = self.rgb.to(value.device)[order.gather(1, strip)] * 2 - 1
        colours = colours.where(shares[:, :1, None] > 0, 1)
        return colours.mT[:, :, None].expand(-1, -1, STRIPS, -1)

    def distance(self, wanted: Float[Tensor, "b k"], got: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
        """Total variation of the two palettes, each scaled to sum 1: the share of the pixels to recolour, in [0, 1]."""
        p, q = (palette / palette.sum(1, keepdim=True).clamp_min(FLOOR) for palette in (wanted, got))
        return (p - q).abs().sum(1) / 2

    def interpolate(self, a: Float[Tensor, "b k"], b: Float[Tensor, "b k"], share: float) -> Float[Tensor, "b k"]:
        """Mixes the two sets of pixels: colours fade in and out, no hues shift (Composer, section 3.2)."""
        return lerp(a, b, share)

    def _smooth(self, shares: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        smooth = shares @ self.spread.T.to(shares)
        return smooth.where(smooth >= FLOOR, 0)


def _code(hues: int, saturations: int, lights: int) -> Float[Tensor, "k 3"]:
    """The colours of the codebook, hue by hue, greys last; float64 RGB in [0, 1]."""

    def steps(start: float, end: float, n: int) -> Tensor:
        return torch.linspace(start, end, n, dtype=torch.float64)

    hue = torch.tensor(HUES, dtype=torch.float64) if hues == len(HUES) else steps(0.0, 1.0, hues + 1)[:-1]
    one, dark = torch.ones(saturations + 1, dtype=torch.float64), steps(1.0, 0.2, lights + 2)[1:-1]
    saturation = torch.cat(
        [steps(0.0, 1.0, saturations + 2)[1:], torch.ones_like(dark), torch.full_like(dark[1:], 0.4)]
    )
    value = torch.cat([one, dark, dark[:-1]])
    tones = list(zip(saturation.tolist(), value.tolist(), strict=True))
    colours = torch.tensor([hsv_to_rgb(h, *tone) for h in hue.tolist() for tone in tones], dtype=torch.float64)
    greys = steps(1.0, 0.0, len(value))[:, None].expand(-1, 3)
    return torch.cat([colours, greys])


def _thinned(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
    h, w = image.shape[-2:]
    return image[..., :: h // LONGEST_SIDE + 1, :: w // LONGEST_SIDE + 1]


def _lab(rgb: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 3"]:
    """CIELab of sRGB in [0, 1], white point D65 at 2 degrees (CIE 15)."""
    from kornia.color import rgb_to_lab

    lab: Tensor = rgb_to_lab(rgb.mT[..., None])
    return lab[..., 0].mT


@cache
def _table(hues: int, saturations: int, lights: int, device: torch.device) -> UInt8[Tensor, " n"]:
    """Nearest colour of the codebook for each of the 256^3 8-bit colours, red slowest; 16 MiB, once per process."""
    if device.type != "cpu":
        return _table(hues, saturations, lights, torch.device("cpu")).to(device)
    if (hues, saturations, lights) == USUAL:
        return torch.from_numpy(np.frombuffer(bytearray(lzma.decompress(TABLE.read_bytes())), np.uint8))
    return compute_table(hues, saturations, lights)


def write_table() -> None:
    """Computes and writes the included table; called by `make palette`."""
    write_atomically(TABLE, lzma.compress(compute_table(*USUAL).numpy().tobytes()))


def compute_table(hues: int, saturations: int, lights: int) -> UInt8[Tensor, " n"]:
    """Computes the contents of `_table`.

    Exact without all distances: for a cube of 8^3 neighbours, only those colours of the codebook can be nearest that
    are at most twice the cube's radius further from its centre than the nearest one.
    """
    code, side, n = _lab(_code(hues, saturations, lights)), 8, 32
    axis = torch.arange(256, dtype=torch.float64) / 255
    table = torch.empty(n, side, n, side, n, side, dtype=torch.uint8)
    for i, red in enumerate(torch.split(axis, side)):
        lab = _lab(torch.cartesian_prod(red, axis, axis)).view(side, n, side, n, side, 3)
        lab = lab.permute(1, 3, 0, 2, 4, 5).reshape(n * n, side**3, 3)
        table[i] = _nearest(lab, code).view(n, n, side, side, side).permute(2, 0, 3, 1, 4)
    return table.flatten()


def _nearest(lab: Float[Tensor, "cubes n 3"], code: Float[Tensor, "k 3"]) -> UInt8[Tensor, "cubes n"]:
    """Index of the nearest colour of the codebook, for cubes of neighbouring colours."""
    centre = lab.mean(1, keepdim=True)
    radius = (lab - centre).square().sum(-1).amax(1, keepdim=True).sqrt()
    to_centre = torch.cdist(centre[:, 0], code)
    likely = to_centre <= to_centre.amin(1, keepdim=True) + 2 * radius + 1e-6
    numbers, nearest = likely.sum(1), torch.empty(lab.shape[:2], dtype=torch.uint8)
    for number in set(numbers.tolist()):
        cubes = (numbers == number).nonzero()[:, 0]
        index = likely[cubes].nonzero()[:, 1].view(-1, number)
        likely_code = code[index]
        squares = torch.baddbmm(likely_code.square().sum(-1)[:, None], lab[cubes], likely_code.mT, alpha=-2)
        nearest[cubes] = index.gather(1, squares.argmin(-1)).to(torch.uint8)
    return nearest
