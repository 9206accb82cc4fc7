"""Objects as phrases and boxes."""

import re
from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from composer.decomposition import Batch
from composer.scenes.captions import with_article

from ._clip import DEFAULT_MODEL, DEFAULT_WEIGHTS, ClipDecomposer
from .instances import GOLDEN, InstanceMaps, hue_to_rgb
from .tokens import captions_device

Row = Sequence[tuple[str, Sequence[float]]]
"""Phrases, each with its box, left, top, right, bottom, or a point, from the left and from the top."""

FORM = "a red cube: 0.1,0.3,0.4,0.7; a blue ball: 0.6,0.5,0.8,0.8"
POINT = 2  # numbers of a point: from the left and from the top; a box has four
PART = re.compile(r"(.*):\s*([^:]*)", re.DOTALL)
REMEMBERED = 10_000  # phrases, about 30 MB
SAME = 0.05  # relative distance below which two embeddings are the same phrase's: float16 and batches round less
OVERLAP = 0.5  # share of the smaller of two boxes beyond which a person is told
SIDE = 256  # height and width of a preview, in pixels


class Objects(ClipDecomposer):
    """Phrases, each with the box that it fills, for `conditions.Grounding` (GLIGEN, Li et al. 2023, section 4.1).

    A phrase's embedding is that of its end in CLIP's text tower, after the last norm and before the projection, as in
    GLIGEN's code. Objects come from data (``batch["boxes"]``: per row a list of phrases and boxes, such as
    ``[("a red cube", (0.1, 0.3, 0.4, 0.7))]``: left, top, right, bottom, in shares of the image), from a person, or
    from a picture, where there is a detector. An empty phrase in data stands for an unknown one. A point, such as a
    keypoint, stands as a box whose sides are 0.

    Args:
        model: See `ClipDecomposer`.
        weights: See `ClipDecomposer`.
        slots: Objects that a row has room for; 30 in GLIGEN.
        detector: Finds objects in pictures, such as `RFDETR` or `YOLO`; of more than `slots` the largest are taken.
            None reads no pictures.

    Raises:
        ValueError: `slots` is below 1.
    """

    boxed = True

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        weights: str = DEFAULT_WEIGHTS,
        slots: int = 30,
        detector: InstanceMaps | None = None,
    ):
        super().__init__(model, weights)
        if slots < 1:
            raise ValueError(f"expected at least 1 slot, found {slots}")
        self.slots, self.detector = slots, detector
        self._embeddings: dict[str, Tensor] = {}  # of the latest phrases: data repeats them, and previews name them

    def can_read(self, batch: Batch) -> bool:
        return "boxes" in batch or (self.detector is not None and "image" in batch)

    def forward(self, batch: Batch) -> Float[Tensor, "b n d5"]:
        """Embeds the phrases of `batch["boxes"]`, or of what is detected in the images.

        Returns:
            Per slot the box, the phrase's embedding, and 1 where there is an object; zeros where there is none.

        Raises:
            ValueError: A row has more objects than slots, a box is outside of the image or has no area, or a point is
                outside.
        """
        given: list[Row] = [row or () for row in batch["boxes"]] if "boxes" in batch else self._detect(batch)
        rows = [self._check(row) for row in given]
        device = captions_device(batch)
        known = self._embed(["", *(phrase for row in rows for phrase, _ in row)], device)
        value = torch.zeros(len(rows), self.slots, known[""].shape[0] + 5, device=device)
        for i, row in enumerate(rows):
            for slot, (phrase, box) in enumerate(row):
                value[i, slot] = torch.cat([value.new_tensor(box), known[phrase], value.new_ones(1)])
        return value

    def from_text(self, text: str) -> Float[Tensor, "1 n d5"]:
        """Reads objects such as ``a red cube: 0.1,0.3,0.4,0.7; a blue ball: 0.6,0.5``, the latter with a point.

        Raises:
            ValueError: The text has another form, a phrase is empty, or see `forward`.
        """
        value: Tensor = self({"boxes": [_parse(text)]})
        return value

    def unread(self, text: str) -> tuple[str, ...]:
        """Lists the lost words of each phrase, see `Tokens.unread`."""
        return tuple(word for phrase, _ in _parse(text) for word in super(Objects, self).unread(phrase))

    def doubts(self, text: str) -> tuple[str, ...]:
        """Names the pairs of boxes that share more than half of the smaller one."""
        pairs = combinations([(phrase, box) for phrase, box in _parse(text) if len(box) > POINT], 2)
        return tuple(
            f"the boxes of {a!r} and {b!r} overlap by more than half of the smaller one"
            for (a, first), (b, second) in pairs
            if _area(_shared(first, second)) > OVERLAP * min(_area(first), _area(second))
        )

    def preview(self, value: Float[Tensor, "b n d5"]) -> Float[Tensor, "b 3 h w"]:
        """Draws each box in its own colour, with its phrase.

        A representation has no words: of a phrase that this decomposer has not read itself the number is drawn.
        """
        return torch.stack([self._draw(row) for row in value.detach().float().cpu()]).to(value.device)

    def distance(self, wanted: Float[Tensor, "b n d5"], got: Float[Tensor, "b n d5"]) -> Float[Tensor, " b"]:
        """1 minus the mean intersection over union of the boxes, in [0, 1]; 0 where both rows are empty.

        Objects of the same phrase are matched so that the mean is largest; one without a partner counts 0.
        """
        _, overlaps = self.match(wanted, got)
        most = torch.maximum(_real(wanted).sum(1), _real(got).sum(1))
        return torch.where(most > 0, 1 - overlaps.sum(1) / most.clamp(min=1), 0)

    def match(
        self, wanted: Float[Tensor, "b n d5"], got: Float[Tensor, "b m d5"]
    ) -> tuple[Bool[Tensor, "b n"], Float[Tensor, "b n"]]:
        """Matches objects of the same phrase, as many as there are, so that their boxes overlap most.

        Returns:
            Which of the wanted objects have a partner, wherever it is; and the intersection over union of their boxes,
            0 without a partner. Where one is a point, it is 1 if the point lies in the other, 0 if not.
        """
        pairs = [_match(*row) for row in zip(wanted.detach().cpu(), got.detach().cpu(), strict=True)]
        found, overlaps = (torch.stack(column).to(wanted.device) for column in zip(*pairs, strict=True))
        return found, overlaps

    def _detect(self, batch: Batch) -> list[Row]:
        assert self.detector is not None
        size = batch["image"].new_tensor([*batch["image"].shape[:-3:-1]]).cpu()
        rows: list[Row] = []
        for image, (category, ids) in zip(batch["image"], self.detector(batch), strict=True):
            found = []
            for number in ids[ids > 0].unique():
                mask = ids == number
                places = mask.nonzero().cpu()
                box = torch.cat([places.amin(0).flip(0) / size, (places.amax(0).flip(0) + 1) / size])
                name = self.detector.describe(int(category[mask][0].round()), image[:, mask].T)
                found.append((len(places), (with_article(name), box.tolist())))
            largest = sorted(found, key=lambda one: one[0], reverse=True)
            rows.append([one for _, one in largest[: self.slots]])
        return rows

    def _check(self, row: Row) -> list[tuple[str, tuple[float, float, float, float]]]:
        """The same objects, with points as boxes whose sides are 0."""
        if len(row) > self.slots:
            raise ValueError(f"expected at most {self.slots} objects, as many as there are slots, found {len(row)}")
        return [(phrase, _box(phrase, place)) for phrase, place in row]

    def _embed(self, phrases: Sequence[str], device: torch.device) -> dict[str, Float[Tensor, " d"]]:
        """Phrase -> embedding; zeros for ""."""
        if len(self._embeddings) > REMEMBERED:
            self._embeddings.clear()
        if new := [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._embeddings]:
            words, _, mask = self._clip.encode_text(new, device)
            ends = mask.sum(1).long() - 1
            self._embeddings |= zip(new, words[torch.arange(len(new)), ends].float(), strict=True)
        return {phrase: self._embeddings[phrase].to(device) for phrase in phrases}

    def _draw(self, value: Float[Tensor, "n d5"]) -> Float[Tensor, "3 h w"]:
        from PIL import Image, ImageDraw, ImageFont
        from torchvision.transforms.functional import pil_to_tensor

        picture, font = Image.new("RGB", (SIDE, SIDE), "#f4f1ea"), ImageFont.load_default(SIDE / 18)
        pen = ImageDraw.Draw(picture)
        for number, row in enumerate(value[value[:, -1] > 0.5]):
            red, green, blue = (int(140 * c) for c in hue_to_rgb(torch.tensor([[[number * GOLDEN % 1]]])).flatten())
            left, top, right, bottom = ((row[:4] * (SIDE - 1)).round().int()).tolist()
            if _points(row[None, :4]).item():
                pen.ellipse((left - 4, top - 4, left + 4, top + 4), fill=(red, green, blue))
            else:
                pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=(red, green, blue), width=2)
            words = self._phrase(row[4:-1]) or f"object {number + 1}"
            pen.text((left + 4, top + 3), words, fill=(red, green, blue), font=font)
        drawn: Tensor = pil_to_tensor(picture).float() / 127.5 - 1
        return drawn

    def _phrase(self, embedding: Float[Tensor, " d"]) -> str:
        """The phrase of an embedding, if it was read here; "" if not."""
        for phrase, known in reversed(self._embeddings.items()):
            if _same(known[None].cpu(), embedding[None]).item():
                return phrase
        return ""


def _parse(text: str) -> list[tuple[str, list[float]]]:
    row = []
    for part in text.strip().removesuffix(";").split(";"):
        found = PART.fullmatch(part.strip())
        numbers = [] if found is None else found[2].split(",")
        if found is None or len(numbers) not in (POINT, 4):
            raise ValueError(
                f"expected objects like '{FORM}', each a phrase and its box or a point such as 0.3,0.5, with a space "
                f"after the colon; found {part.strip()!r}"
            )
        if not found[1].strip():
            raise ValueError(f"expected a phrase before the box {found[2]}, found none")
        try:
            row.append((found[1].strip(), [float(number) for number in numbers]))
        except ValueError:
            raise ValueError(f"expected a box of four numbers from 0 to 1, found {found[2]!r}") from None
    return row


def _box(phrase: str, place: Sequence[float]) -> tuple[float, float, float, float]:
    """A box, or a point as a box whose sides are 0; both have to lie in the image."""
    if len(place) == POINT:
        x, y = place
        if not (0 <= x <= 1 and 0 <= y <= 1) or x == y == 0:
            raise ValueError(
                f"expected the point of {phrase!r} as its place from the left and from the top, in shares of the image "
                f"from 0 to 1 and not 0,0, which stands for an unknown place; found {x:g},{y:g}"
            )
        return x, y, x, y
    left, top, right, bottom = place
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(
            f"expected the box of {phrase!r} as left,top,right,bottom in shares of the image from 0 to 1, left "
            f"below right and top below bottom; found {left:g},{top:g},{right:g},{bottom:g}"
        )
    return left, top, right, bottom


def _points(boxes: Float[Tensor, "n 4"]) -> Bool[Tensor, " n"]:
    """Which boxes are points."""
    return (boxes[:, :2] == boxes[:, 2:]).all(1)


def _overlaps(a: Float[Tensor, "n 4"], b: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    """Intersection over union; of a point 1 where it lies in the other, else 0."""
    from torchvision.ops import box_iou

    pointed = _points(a)[:, None] | _points(b)
    first, last = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    return torch.where(pointed, (first <= last).all(2).to(a), box_iou(a, b).nan_to_num())


def _shared(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """The box that two boxes share; its right may be left of its left."""
    return [*map(max, a[:2], b[:2]), *map(min, a[2:], b[2:])]


def _area(box: Sequence[float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _same(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Tensor:
    """(n m) bool: which embeddings are of the same phrase."""
    norms = torch.maximum(a.norm(dim=1)[:, None], b.norm(dim=1))
    return torch.cdist(a, b) <= SAME * norms


def _real(value: Float[Tensor, "*b n d5"]) -> Bool[Tensor, "*b n"]:
    """Which slots have an object."""
    return value[..., -1] > 0.5


def _match(wanted: Float[Tensor, "n d5"], got: Float[Tensor, "m d5"]) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
    """See `Objects.match`, of one row."""
    from scipy.optimize import linear_sum_assignment

    found, overlaps = torch.zeros(len(wanted), dtype=torch.bool), torch.zeros(len(wanted))
    slots = _real(wanted).nonzero().flatten()
    a, b = wanted[slots].float(), got[_real(got)].float()
    same, shared = _same(a[:, 4:-1], b[:, 4:-1]), _overlaps(a[:, :4], b[:, :4])
    first, second = linear_sum_assignment((same * (1 + shared)).numpy(), maximize=True)  # the 1 makes all pairs count
    found[slots[first]] = same[first, second]
    overlaps[slots[first]] = (same * shared)[first, second]
    return found, overlaps
