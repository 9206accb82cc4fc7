"""From named representations to a U-Net's inputs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from composer.decomposition import Representations
from composer.storage.building import Buildable

TokenMask = Bool[Tensor, "b n"] | Float[Tensor, "b n"]
"""Which tokens may be attended to, or with which weight: e^score times the weight enters the softmax."""

Keep = dict[str, Tensor]
"""Name -> (b,) bool; False drops that condition for that row."""


@dataclass(frozen=True)
class Port:
    """How one field of a `Conditioning` behaves.

    Attributes:
        joined: The axis along which two contributions are concatenated, 1 for lists of tokens; None if they add.
        placed: Whether its last two axes are the rows and columns of the image.
    """

    joined: int | None = None
    placed: bool = False

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b if self.joined is None else torch.cat([a, b], dim=self.joined)

    def pad(self, x: Tensor, n: int) -> Tensor:
        """Pads the concatenated axis with zeros to length n; zeros in a mask mean masked."""
        if self.joined is None:
            return x
        return F.pad(x, (0, 0) * (x.ndim - 1 - self.joined) + (0, n - x.shape[self.joined]))


ADDED = {"port": Port()}
JOINED = {"port": Port(joined=1)}
PLACED = {"port": Port(placed=True)}


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """The inputs of a U-Net, in four ports. A monoid under ``+``: vectors and maps add, tokens and objects concatenate.

    A fifth port, `origin`, is read by a residual denoiser, not by the network. To add a port, add a field with such
    metadata: how it is added, expanded, cropped, stacked and dropped follows from it.

    Attributes:
        vector: (b d) added to the embedding of the noise level.
        tokens: (b n c) concatenated to the keys and values of attention.
        token_mask: (b n) True where a token may be attended to; or its weight in attention, 0 to 1.
        spatial: (b k h w) concatenated to the noisy image.
        objects: (b m e) tokens of objects and their boxes, which the pixels attend to in layers of their own.
        object_mask: (b m) True where there is an object.
        origin: (b 3 h w) the previous stage's image, enlarged; origins add.
        keys_values: What `UNet.prepare` computed from `tokens`, one (2 b heads n d) per layer; not part of the sum.
        object_keys_values: The same, computed from `objects`.
    """

    vector: Float[Tensor, "b d"] | None = field(default=None, metadata=ADDED)
    tokens: Float[Tensor, "b n c"] | None = field(default=None, metadata=JOINED)
    token_mask: TokenMask | None = field(default=None, metadata=JOINED)
    spatial: Float[Tensor, "b k h w"] | None = field(default=None, metadata=PLACED)
    objects: Float[Tensor, "b m e"] | None = field(default=None, metadata=JOINED)
    object_mask: Bool[Tensor, "b m"] | None = field(default=None, metadata=JOINED)
    origin: Float[Tensor, "b 3 h w"] | None = field(default=None, metadata=PLACED)
    keys_values: tuple[Tensor, ...] | None = None
    object_keys_values: tuple[Tensor, ...] | None = None

    @classmethod
    def ports(cls) -> dict[str, Port]:
        """Name -> port, for every field that is a port."""
        return {f.name: f.metadata["port"] for f in fields(cls) if "port" in f.metadata}

    def to_dict(self) -> dict[str, Any]:
        """Name -> tensor, for the ports that are not None."""
        return {name: x for name in self.ports() if (x := getattr(self, name)) is not None}

    def change(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """Applies a function to every port that is not None; drops what was computed from them."""
        changed: dict[str, Any] = {name: change(x) for name, x in self.to_dict().items()}
        return type(self)(**changed)

    def __add__(self, other: "Conditioning") -> "Conditioning":
        ports, mine, others = self.ports(), self.to_dict(), other.to_dict()
        both: dict[str, Any] = {name: ports[name].add(mine[name], others[name]) for name in mine.keys() & others.keys()}
        return type(self)(**mine | others | both)

    def expand(self, b: int) -> "Conditioning":
        """Repeats a single row b times; b rows stay as they are."""
        return self.change(lambda x: _expand(x, b))

    def crop(self, rows: slice, columns: slice) -> "Conditioning":
        """Crops the maps to a rectangle; the other ports stay."""
        ports = self.ports()
        return replace(self, **{n: x[..., rows, columns] for n, x in self.to_dict().items() if ports[n].placed})


def _expand(x: Tensor, b: int) -> Tensor:
    if len(x) == b:
        return x
    if len(x) != 1:
        raise ValueError(f"expected 1 or {b} rows of a conditioning, found {len(x)}")
    return x.expand(b, *x.shape[1:])


def stack(parts: Sequence[Conditioning], b: int) -> Conditioning:
    """Stacks conditionings of b rows each along the batch.

    Missing ports become zeros; shorter token lists are padded with masked tokens.
    """
    given, kind = [part.expand(b).to_dict() for part in parts], type(parts[0])
    stacked: dict[str, Any] = {}
    for name, port in kind.ports().items():
        known = [rows[name] for rows in given if name in rows]
        if known:
            n = 0 if port.joined is None else max(x.shape[port.joined] for x in known)
            nothing = torch.zeros_like(port.pad(known[0], n))
            stacked[name] = torch.cat([port.pad(rows[name], n) if name in rows else nothing for rows in given])
    return kind(**stacked)


class Condition(nn.Module, Buildable, ABC):
    """Adapts one representation to one or more ports.

    The contract: a dropped row contributes exactly nothing, that is a zero vector, masked tokens, a zero map. Where
    `has_null` is set, it contributes what a null value does instead, such as an empty caption: networks that were
    trained like that know no other absence.

    Attributes:
        always: Whether joint dropout never drops it: an upsampler needs the image that it enlarges.
        has_null: Whether a dropped row, and an image without this representation, is read as a null value.

    Args:
        dropout: Probability that joint dropout removes this condition from a row.
    """

    always = False
    has_null: bool = False

    def __init__(self, dropout: float = 0.5):
        super().__init__()
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is a probability, found {dropout}")
        self.dropout = dropout

    @abstractmethod
    def forward(self, value: Tensor, keep: Bool[Tensor, " b"], size: tuple[int, int]) -> Conditioning:
        """Computes the ports from a representation.

        Args:
            value: (b ...) the representation.
            keep: False drops this condition for that row.
            size: Height and width of the image to come, in pixels.
        """

    @abstractmethod
    def example(self, b: int, size: tuple[int, int]) -> Tensor:
        """Makes b dummy representations that `forward` takes, for images of that height and width.

        On torch's default device, so that a model can be tried out without data or decomposers, or on the meta device.
        """

    @abstractmethod
    def silence(self, channels: int | None = None) -> None:
        """Zeroes its last layers, so that it contributes exactly nothing until it is trained.

        This is how a new condition is added to a trained model: training starts from the unchanged model; the gradient
        reaches the last layers in the first step, the layers before them from the second step on.

        Args:
            channels: How many channels of a map to zero, counted from the first; None is all. The others are those
                that only new columns of a network's first layer read: these columns are zero, and the two would
                never train if both were.

        Raises:
            ValueError: It makes tokens without a gate, which take part in attention's softmax even if they are zero;
                or it can't be added to a model for another reason.

        Reference: ControlNet's zero convolutions (Zhang et al. 2023, section 3.1).
        """

    @torch.no_grad()
    def try_out(self, size: tuple[int, int]) -> Conditioning:
        """Runs the condition on one `example`, to see which ports it fills."""
        return self._run_example(size, keep=True)

    def without(self, size: tuple[int, int]) -> Conditioning:
        """What one dropped row contributes."""
        return self._run_example(size, keep=False)

    def _run_example(self, size: tuple[int, int], keep: bool) -> Conditioning:
        with torch.device(next((p.device for p in self.parameters()), torch.get_default_device())):
            made: Conditioning = self(self.example(1, size), torch.full((1,), keep), size)
        return made


@torch.no_grad()
def zero(layer: nn.Module, channels: int | None = None) -> None:
    """Fills a layer's parameters with zeros; only those of the first output channels where `channels` says so."""
    for parameter in layer.parameters():
        parameter[:channels].zero_()


def fill_captions(
    value: Float[Tensor, "b n d"], nothing: Float[Tensor, "k d"], keep: Bool[Tensor, " b"], sentence: bool
) -> Float[Tensor, "b m d"]:
    """Puts a null encoding in place of dropped captions; the shorter of the two is padded with zeros.

    Args:
        value: Encoded captions, whose last channel is 1 where an entry is real.
        nothing: The null encoding.
        keep: False where a row is dropped.
        sentence: Whether the last entry is the sentence's, and stays the last.
    """
    nothing = nothing.to(value).expand(len(value), -1, -1)
    longest = max(value.shape[1], nothing.shape[1])

    def pad(x: Tensor) -> Tensor:
        last = x.shape[1] - sentence
        return torch.cat([F.pad(x[:, :last], (0, 0, 0, longest - x.shape[1])), x[:, last:]], 1)

    return torch.where(keep[:, None, None], pad(value), pad(nothing))


class ConditionSet(nn.ModuleDict):
    """Named conditions, and joint dropout (Composer, section 2.3).

    Args:
        conditions: One adapter per representation name, in the order of their tokens.
        drop_all: Share of the rows that lose every condition.
        keep_all: Share of the rows that keep every condition.
        keep_one: Share of the rows that keep exactly one. Not in the paper, whose rule does this in 0.4 % of the rows
            if there are eight conditions.
        keep_two_global: Share of the rows that keep exactly two of the conditions without a map, such as a caption and
            a palette. Not in the paper.
        weights: Name -> relative probability that a condition is among those one or two; 1 by default.

    Raises:
        ValueError: The shares sum to more than 1, or the weights are not positive or not of these conditions.
    """

    def __init__(
        self,
        conditions: Mapping[str, Condition],
        drop_all: float = 0.1,
        keep_all: float = 0.1,
        keep_one: float = 0.0,
        keep_two_global: float = 0.0,
        weights: Mapping[str, float] | None = None,
    ):
        super().__init__(dict(conditions))
        shares = {
            "drop_all": drop_all, "keep_all": keep_all, "keep_one": keep_one, "keep_two_global": keep_two_global,
        }  # fmt: skip
        if min(shares.values()) < 0 or sum(shares.values()) > 1 + 1e-9:
            raise ValueError(f"expected shares of the rows that sum to at most 1, found {shares}")
        self.weights = {name: 1.0 for name, c in self.named() if not c.always}
        if unknown := sorted((weights or {}).keys() - self.weights.keys()):
            raise ValueError(f"expected weights of {', '.join(self.weights)}; found {', '.join(unknown)}")
        self.weights |= weights or {}
        if any(weight <= 0 for weight in self.weights.values()):
            raise ValueError(f"expected weights above 0, found {weights}")
        if keep_two_global and len(self.weights.keys() - self.maps) < 2:
            raise ValueError("keep_two_global needs two conditions without a map: set it to 0")
        self.drop_all, self.keep_all = drop_all, keep_all
        self.keep_one, self.keep_two_global = keep_one, keep_two_global

    def named(self) -> Iterator[tuple[str, Condition]]:
        for name, condition in self.items():
            assert isinstance(condition, Condition)
            yield name, condition

    @cached_property
    def maps(self) -> frozenset[str]:
        """Names of the conditions that make a map (the papers call them local), found by running each on an example."""
        return frozenset(name for name, c in self.named() if c.try_out((64, 64)).spatial is not None)

    def draw_keep(
        self,
        b: int,
        device: torch.device,
        generator: torch.Generator | None = None,
        known: Mapping[str, Bool[Tensor, " b"]] | None = None,
        among: tuple[int, int] | None = None,
    ) -> Keep:
        """Draws which rows keep which condition: none, all, one, two global ones, or each at its own rate.

        Drawn on the CPU, so that a step's draws are the same on every device.

        Args:
            b: Rows.
            device: Of the result.
            generator: Of the draws.
            known: Name -> rows that have that representation, for names that some rows lack. The one or two
                conditions that a row keeps are chosen among those it has; it has no other effect.
            among: The first row's place among the rows of a step, and their number: each process of several draws for
                all of them and takes its own. None if these are all.
        """
        first, total = among or (0, b)

        def uniform(*columns: int) -> Tensor:
            return torch.rand(total, *columns, generator=generator)[first : first + b]

        u = uniform()
        none, every = u < self.drop_all, u >= 1 - self.keep_all
        drawn = {name: uniform() >= c.dropout for name, c in self.named()}
        if self.keep_one or self.keep_two_global:
            one = ~none & (u < self.drop_all + self.keep_one)
            two = ~none & ~one & (u < self.drop_all + self.keep_one + self.keep_two_global)
            few = self._draw_few(one, two, known or {}, uniform(len(self.weights)))
            drawn |= {name: few[name].where(one | two, drawn[name]) for name in few}
        return {name: (drawn[name] & ~none | every | c.always).to(device) for name, c in self.named()}

    def _draw_few(
        self,
        one: Bool[Tensor, " b"],
        two: Bool[Tensor, " b"],
        known: Mapping[str, Bool[Tensor, " b"]],
        u: Float[Tensor, "b k"],
    ) -> Keep:
        """Draws one condition for some rows, two global ones for others, by weight and without replacement.

        Takes the smallest of exponential variables whose rates are the weights (Efraimidis and Spirakis 2006).
        """
        rates = torch.tensor([*self.weights.values()]).repeat(len(one), 1)
        for column, name in enumerate(self.weights):
            if name in known:
                rates[~known[name].cpu(), column] = 0
            if two.any() and name in self.maps:
                rates[two, column] = 0
        arrival = -(1 - u).log() / rates
        place = arrival.argsort(1).argsort(1)
        kept = (place < (one + 2 * two)[:, None]) & arrival.isfinite()
        return dict(zip(self.weights, kept.unbind(1), strict=True))

    def keep_only(self, names: Collection[str], b: int, device: torch.device) -> Keep:
        """Keeps the named conditions, and those that are never dropped, in all b rows."""
        return {n: torch.full((b,), n in names or c.always, device=device) for n, c in self.named()}

    def forward(self, reps: Representations, size: tuple[int, int], keep: Keep | None = None) -> Conditioning:
        """Sums the contributions of all conditions.

        Args:
            reps: Representations; names that are missing are absent for every row.
            size: Height and width of the image to come, in pixels.
            keep: Which rows keep which condition; None keeps every row.

        Raises:
            KeyError: `reps` names something that this set has no condition for.
        """
        unknown = sorted(reps.keys() - self.keys())
        if unknown:
            raise KeyError(f"no condition named {', '.join(unknown)}; this model has {', '.join(sorted(self.keys()))}")
        total, b = Conditioning(), max((len(value) for value in reps.values()), default=1)
        for name, condition in self.named():
            if name in reps:
                value = reps[name]
                rows = torch.ones(len(value), dtype=torch.bool, device=value.device) if keep is None else keep[name]
                skips = rows.device.type == "cpu" and not condition.has_null
                total = total + (partial(_kept, condition) if skips else condition)(value, rows, size)
            elif condition.has_null:
                total = total + condition.without(size).expand(b)
        return total


def _kept(condition: Condition, value: Tensor, keep: Bool[Tensor, " b"], size: tuple[int, int]) -> Conditioning:
    """Computes only the kept rows and leaves the others zero: the same result at lower cost.

    Not on a GPU, where shapes that depend on values stall, and computing a dropped row costs next to nothing.
    """
    part: Conditioning = condition(value[keep], keep[keep], size)
    if keep.all():
        return part

    return part.change(lambda x: x.new_zeros((len(keep), *x.shape[1:])).index_put((keep,), x))
