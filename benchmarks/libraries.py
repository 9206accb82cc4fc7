"""Image operations that are written out, beside what OpenCV, scikit-image, SciPy, kornia and torchvision have.

`compare` gives the rows of `benchmarks/decompose.py`: each library does what the written-out function does, as nearly
as it can, on a photograph and on noise. Those that a library has replaced
are written out here alone.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import kornia
import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from skimage import color, data, measure, segmentation
from skimage.morphology import skeletonize
from torch import Tensor
from torch.nn import functional as F
from torchvision import io as codecs
from torchvision.transforms.v2 import functional as vision

from composer.cascade.degradation import Degradation, _blurred
from composer.cascade.low_res import GaussianBlur
from composer.images.reading import fit
from composer.images.sheet import from_pil, to_pil
from composer.scenes.reader import without_flecks
from decomposers import mask, sketch
from decomposers.instances import hue_to_rgb, outlines

Call = Callable[[], Tensor | np.ndarray]


@dataclass(frozen=True)
class Operation:
    """A function that is written out, and the same by libraries; all give arrays of one shape.

    Args:
        what: What it does.
        written: The function.
        theirs: The same by each library.
        used: The library that Composer uses, if any.
    """

    what: str
    written: Call
    theirs: Mapping[str, Call]
    used: str = ""


def compare(rounds: int) -> list[dict[str, str | float]]:
    """Times all in turns: the median of the rounds, ms of processor time; and how far the results are apart."""
    cv2.setNumThreads(1)
    rows: list[dict[str, str | float]] = []
    for operation in operations():
        calls = {"written out": operation.written, **operation.theirs}
        found = {name: np.asarray(call(), dtype=np.float64) for name, call in calls.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(_ms(call))
        ours = statistics.median(times["written out"])
        for name in operation.theirs:
            theirs, gap = statistics.median(times[name]), np.abs(found[name] - found["written out"])
            row: dict[str, str | float] = {"what": operation.what, "by": name, "used": name == operation.used}
            row |= {"written_out_ms": ours, "theirs_ms": theirs, "ratio": theirs / ours}
            rows.append(row | {"largest_difference": float(gap.max()), "mean_difference": float(gap.mean())})
    return rows


def _ms(call: Call) -> float:
    """Processor time of one call, of as many as take 10 ms together."""
    start, calls = time.process_time(), 0
    while (spent := time.process_time() - start) < 0.01:
        call()
        calls += 1
    return spent / calls * 1e3


def operations() -> list[Operation]:
    """Everything on 256 x 256 pixels but where it says otherwise."""
    picture = from_pil(Image.fromarray(data.astronaut()[:256, 100:356]))
    both = torch.stack([picture, torch.rand(picture.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1])
    return [*_colours(both), *_blurs(both), *_lines(both), *_sizes(both), *_masks()]


def _rows(x: Tensor) -> list[np.ndarray]:
    """Pictures as OpenCV has them, (h w c) each."""
    return [np.ascontiguousarray(row.permute(1, 2, 0).numpy()) for row in x]


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    """The way back: (b c h w)."""
    return np.stack([np.atleast_3d(row).transpose(2, 0, 1) for row in rows])


def _colours(x: Tensor) -> list[Operation]:
    unit = (x + 1) / 2
    last, rows, hue = unit.movedim(1, -1).contiguous(), _rows(unit), unit[:, 0] * 0.999
    hsv = torch.stack([hue, torch.ones_like(hue), torch.ones_like(hue)], 1)
    turned = torch.stack([hue * math.tau, torch.ones_like(hue), torch.ones_like(hue)], 1)
    degrees = _rows(hsv * torch.tensor([360.0, 1, 1])[:, None, None])
    luma = torch.tensor([0.2126, 0.7152, 0.0722])
    return [
        Operation(
            "CIELab of sRGB",
            lambda: _written_lab(last).movedim(-1, 1),
            {
                "scikit-image": lambda: np.moveaxis(color.rgb2lab(last.numpy()), -1, 1),
                "kornia": lambda: kornia.color.rgb_to_lab(unit),
                "OpenCV": lambda: _stack([cv2.cvtColor(row, cv2.COLOR_RGB2Lab) for row in rows]),
            },
            used="kornia",
        ),
        Operation(
            "RGB of a hue",
            lambda: hue_to_rgb(hue),
            {
                "scikit-image": lambda: np.moveaxis(color.hsv2rgb(hsv.movedim(1, -1).numpy()), -1, 1),
                "kornia": lambda: kornia.color.hsv_to_rgb(turned),
                "OpenCV": lambda: _stack([cv2.cvtColor(row, cv2.COLOR_HSV2RGB) for row in degrees]),
            },
        ),
        Operation(
            "grey by luma",
            lambda: torch.bmm(luma.expand(2, 1, 3), x.flatten(2)).view(2, 1, *x.shape[2:]),
            {"kornia": lambda: kornia.color.rgb_to_grayscale(x, luma)},
        ),
        Operation(
            "to 8 bits",
            lambda: np.stack([np.asarray(to_pil(row)) for row in x]),
            {"torchvision": lambda: np.stack([np.asarray(vision.to_pil_image(row)) for row in unit])},
        ),
    ]


def _written_lab(rgb: Tensor) -> Tensor:
    """CIELab of sRGB, colours last."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
    xyz = linear @ (linear.new_tensor(to_xyz) / linear.new_tensor([[0.95047], [1.0], [1.08883]])).T
    x, y, z = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116).unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _blurs(x: Tensor) -> list[Operation]:
    small, rows = x[..., ::4, ::4].contiguous(), _rows(x)
    few, edge = _rows(small), {"borderType": cv2.BORDER_REPLICATE}
    line = np.array(sketch._gaussian(2.0), np.float32)
    lines = torch.from_numpy(line)[None]
    n = len(line)
    unclip, jpeg = GaussianBlur(), Degradation(quality=95)
    return [
        Operation(
            "blur of the sketch",
            lambda: sketch._blur(x, 2.0),
            {
                "kornia": lambda: kornia.filters.filter2d_separable(x, lines, lines, "replicate"),
                "torchvision": lambda: vision.gaussian_blur(x, [n, n], [2.0, 2.0]),
                "OpenCV": lambda: _stack([cv2.sepFilter2D(row, -1, line, line, **edge) for row in rows]),
                "SciPy": lambda: ndimage.gaussian_filter(x.numpy(), (0, 0, 2, 2), mode="nearest", radius=n // 2),
            },
        ),
        Operation(
            "unCLIP's blur, 64 px",
            lambda: unclip.corrupt(small, torch.ones(2), [0, 0]),
            {
                "kornia": lambda: kornia.filters.gaussian_blur2d(small, 3, (0.6, 0.6), "replicate"),
                "torchvision": lambda: vision.gaussian_blur(small, [3, 3], [0.6, 0.6]),
                "OpenCV": lambda: _stack([cv2.GaussianBlur(row, (3, 3), 0.6, **edge) for row in few]),
            },
        ),
        Operation(
            "slanting blur, 64 px",
            lambda: _blurred(small[:1], 1.4, 0.7, 0.5),
            {
                "kornia": lambda: kornia.filters.filter2d(small[:1], _kernel(1.4, 0.7, 0.5)[None], "replicate"),
                "OpenCV": lambda: _stack([cv2.filter2D(few[0], -1, _kernel(1.4, 0.7, 0.5).numpy(), **edge)]),
            },
        ),
        Operation(
            "JPEG at 95, 64 px",
            lambda: jpeg._compress(small[:1], 1.0, torch.Generator())[0],
            {
                "torchvision": lambda: _torchvision_jpeg(small[0]),
                "OpenCV": lambda: _opencv_jpeg(small[0]),
                "kornia": lambda: _kornia_jpeg(small[:1]),
            },
        ),
    ]


def _kernel(long: float, short: float, angle: float) -> Tensor:
    """The weights of `_blurred`."""
    r = math.ceil(3 * long)
    grid = torch.meshgrid(*[torch.arange(-r, r + 1.0)] * 2, indexing="ij")
    along = grid[1] * math.cos(angle) + grid[0] * math.sin(angle)
    across = grid[0] * math.cos(angle) - grid[1] * math.sin(angle)
    weights = torch.exp(-((along / long) ** 2 + (across / short) ** 2) / 2)
    return weights / weights.sum()


def _lines(x: Tensor) -> list[Operation]:
    contrast, normal = sketch._contrast(x, 1.5)
    h, w = x.shape[2:]
    rows, columns = np.mgrid[:h, :w].astype(np.float32)
    ink = torch.tanh((contrast - sketch.THRESHOLD).clamp_min(0) * sketch.GAIN)
    ridge = (contrast >= sketch._sides(contrast, normal).amax(1, keepdim=True)) & (ink > sketch.FAINTEST)
    strong, thinned = ink * ridge, (ink > sketch.FAINTEST).numpy()
    pieces = (x[:, 0] > 0.3).numpy()

    drawings = [
        (sign * n[0].numpy() + columns, sign * n[1].numpy() + rows, c.numpy())
        for n, c in zip(normal, contrast[:, 0], strict=True)
        for sign in (1, -1)
    ]

    def by_opencv() -> np.ndarray:
        options = {"interpolation": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_REPLICATE}
        return np.stack([cv2.remap(c, at_x, at_y, **options) for at_x, at_y, c in drawings]).reshape(2, 2, h, w)

    def by_scipy() -> np.ndarray:
        read = ndimage.map_coordinates
        sides = [read(c, [at_y, at_x], order=1, mode="nearest") for at_x, at_y, c in drawings]
        return np.stack(sides).reshape(2, 2, h, w)

    return [
        Operation(
            "reading beside a pixel", lambda: sketch._sides(contrast, normal), {"OpenCV": by_opencv, "SciPy": by_scipy}
        ),
        Operation(
            "long lines",
            lambda: sketch._long_lines(strong, 16),
            {"OpenCV": lambda: _long_by_opencv(strong, 16), "scikit-image": lambda: _long_by_skimage(strong, 16)},
        ),
        Operation(
            "thinning",
            lambda: contrast >= sketch._sides(contrast, normal).amax(1, keepdim=True),
            {"scikit-image": lambda: np.stack([skeletonize(row[0])[None] for row in thinned])},
        ),
        Operation(
            "without flecks",
            lambda: np.stack([without_flecks(row) for row in pieces]),
            {"OpenCV": lambda: np.stack([_flecks_by_opencv(row) for row in pieces])},
        ),
    ]


def _long_by_opencv(ink: Tensor, smallest: int) -> np.ndarray:
    found = []
    for drawing in ink[:, 0].numpy():
        n, labels, stats, _ = cv2.connectedComponentsWithStats((drawing > sketch.FAINTEST).astype(np.uint8))
        keep = stats[:, cv2.CC_STAT_AREA] >= smallest
        keep &= np.bincount(labels[drawing > sketch.SURE], minlength=n) > 0
        keep[0] = False
        found.append(keep[labels][None])
    return np.stack(found)


def _long_by_skimage(ink: Tensor, smallest: int) -> np.ndarray:
    found = []
    for drawing in ink[:, 0].numpy():
        labels = measure.label(drawing > sketch.FAINTEST, connectivity=2)
        keep = np.bincount(labels.ravel()) >= smallest
        keep &= np.bincount(labels[drawing > sketch.SURE], minlength=len(keep)) > 0
        keep[0] = False
        found.append(keep[labels][None])
    return np.stack(found)


def _flecks_by_opencv(mask: np.ndarray) -> np.ndarray:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    found: np.ndarray = mask & (stats[:, cv2.CC_STAT_AREA] >= 4)[labels]
    return found


def _sizes(x: Tensor) -> list[Operation]:
    rows = _rows(x)
    byte = ((x + 1) * 127.5).round().byte()
    return [
        Operation(
            "resizing to 64 px",
            lambda: fit(x, (64, 64)),
            {
                "torchvision": lambda: vision.resize(x, [64, 64], vision.InterpolationMode.BICUBIC).clamp(-1, 1),
                "kornia": lambda: kornia.geometry.resize(x, (64, 64), "bicubic", antialias=True).clamp(-1, 1),
                "OpenCV, by area": lambda: _stack(
                    [cv2.resize(row, (64, 64), interpolation=cv2.INTER_AREA) for row in rows]
                ),
                "Pillow, 8 bits": lambda: torch.stack(
                    [from_pil(vision.to_pil_image(p).resize((64, 64), Image.Resampling.BICUBIC)) for p in byte]
                ),
            },
        )
    ]


def _masks() -> list[Operation]:
    y, x = np.mgrid[:512, :512] / 512
    region = torch.from_numpy(((y - 0.5) ** 2 + (x - 0.4) ** 2 < 0.1) & ~((y - 0.6) ** 2 + (x - 0.3) ** 2 < 0.01))
    soft, byte = region[None, None].float(), region.numpy().astype(np.uint8)
    labels = measure.label(data.coins()[:256, :256] > 110)
    ids = torch.from_numpy(labels)[None]

    return [
        Operation(
            "soft edge of 8 px, 512 px",
            lambda: _eroded(soft, 8)[0, 0],
            {
                "SciPy": lambda: ndimage.distance_transform_cdt(byte, "chessboard").clip(max=9) / 9,
                "OpenCV": lambda: np.minimum(cv2.distanceTransform(byte, cv2.DIST_C, 3), 9) / 9,
            },
            used="SciPy",
        ),
        Operation(
            "outlines of instances",
            lambda: outlines(ids),
            {"scikit-image": lambda: (segmentation.find_boundaries(labels, mode="inner") & (labels > 0))[None]},
        ),
        Operation(
            "nearest piece of each pixel",
            lambda: _nearest(labels),
            {"scikit-image": lambda: segmentation.expand_labels(labels, 512)},
        ),
        Operation(
            "strokes of a mask, 64 px",
            lambda: np.stack([mask._walk(torch.Generator().manual_seed(seed)) > 0.5 for seed in range(4)]),
            {"OpenCV": lambda: np.stack([_walk_by_opencv(seed) for seed in range(4)])},
        ),
    ]


def _eroded(region: Tensor, radius: int) -> Tensor:
    """A region's edge made soft by counting erosions."""
    depth = region.clone()
    for _ in range(radius):
        region = -F.max_pool2d(-F.pad(region, (1, 1, 1, 1), mode="replicate"), 3, 1)
        depth += region
    return depth / (radius + 1)


def _nearest(labels: np.ndarray) -> np.ndarray:
    """As `group_instances` does it."""
    at = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    nearest: np.ndarray = labels[tuple(at)]
    return nearest


def _walk_by_opencv(seed: int) -> np.ndarray:
    """The same walk, drawn as thick lines on nine sheets, as OpenCV's don't wrap round."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, n: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    n, radius = int(uniform(4.0, 13.0)), uniform(0.04, 0.14)
    heading = uniform(0.0, math.tau) + uniform(-1.2, 1.2, n).cumsum(0)
    step = torch.stack([heading.sin(), heading.cos()], 1) * uniform(0.1, 0.3, n)[:, None]
    points = torch.cat([start := uniform(0.0, 1.0, 2)[None], start + step.cumsum(0)]).numpy() * 64 - 0.5
    points = points - np.floor(points.min(0) / 64) * 64
    side = 64 * (int(points.max() + 64 * 0.28) // 64 + 2)
    sheet = np.zeros((side, side), np.uint8)
    fixed = np.round((points[:, ::-1] + 64) * 16).astype(np.int32)
    cv2.polylines(sheet, [fixed], False, 1, max(1, round(float(radius) * 128)), cv2.LINE_8, 4)
    strokes: np.ndarray = sheet.reshape(side // 64, 64, side // 64, 64).max((0, 2)) > 0
    return strokes


def _torchvision_jpeg(image: Tensor) -> Tensor:
    byte = ((image + 1) * 127.5).round().clamp(0, 255).byte()
    image = codecs.decode_jpeg(codecs.encode_jpeg(byte, 95))
    return image.float() / 127.5 - 1


def _opencv_jpeg(image: Tensor) -> np.ndarray:
    byte = ((image.permute(1, 2, 0).flip(2) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    _, file = cv2.imencode(".jpg", byte, [cv2.IMWRITE_JPEG_QUALITY, 95])
    bgr = np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR))
    return bgr[..., ::-1].transpose(2, 0, 1) / 127.5 - 1


def _kornia_jpeg(image: Tensor) -> Tensor:
    unit: Tensor = kornia.enhance.jpeg_codec_differentiable(image / 2 + 0.5, torch.tensor([95.0]))
    return unit[0] * 2 - 1
