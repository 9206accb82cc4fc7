"""The order of an epoch as a function of the place in it, which takes no memory per item."""

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import overload

import numpy as np
import torch

_ROUNDS = 6
_MASK = (1 << 64) - 1


class Bijection:
    """A keyed permutation of range(n), computed number by number.

    A balanced Feistel network over the next even number of bits, walked until it comes back into the range
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"): at most four steps on average.

    Args:
        n: Size of the range.
        key: Chooses the permutation.
    """

    def __init__(self, n: int, key: int):
        if n < 1:
            raise ValueError(f"expected a range of at least 1 number, found {n}")
        self.n, self.half = n, max(1, ((n - 1).bit_length() + 1) // 2)
        self.keys = [_mix(key + i * 0x9E3779B97F4A7C15) for i in range(1, _ROUNDS + 1)]

    def __call__(self, number: int) -> int:
        """Where a number of the range goes."""
        low = (1 << self.half) - 1
        while True:
            left, right = number >> self.half, number & low
            for key in self.keys:
                left, right = right, left ^ (_mix(right ^ key) & low)
            number = left << self.half | right
            if number < self.n:
                return number


def _mix(z: int) -> int:
    """The finaliser of SplitMix64 (Steele et al. 2014)."""
    z &= _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


class Order(Sequence[int]):
    """An order whose items are computed when they are asked for."""

    @abstractmethod
    def at(self, place: int) -> int:
        """The item at a place from 0 to the length - 1."""

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> list[int]: ...
    def __getitem__(self, place: int | slice) -> int | list[int]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(f"expected a place in 0..{len(self) - 1}, found {place}")
        return self.at(place)


class MixedOrder(Order):
    """An order of several datasets' items as one: each dataset in its own order, evenly spread over the epoch.

    Item k of a dataset with n items in an epoch stands at the time (2 k + 1) / 2 n. A dataset that has fewer begins
    again, in another order. Nothing is kept of an item.

    Args:
        orders: Key -> the order of a dataset.
        lengths: Of the datasets.
        counts: Items that each has in the epoch, at least its length.
        key: Chooses the orders.
    """

    def __init__(
        self,
        orders: Sequence[Callable[[int], Sequence[int]]],
        lengths: Sequence[int],
        counts: Sequence[int],
        key: int,
    ):
        self.lengths, self.counts, self.key = lengths, counts, key
        self.begins = [sum(counts[:i]) for i in range(len(counts) + 1)]
        self._order = lru_cache(2 * len(orders))(lambda i, turn: orders[i](_mix(key + _mix(i) + turn) >> 2))

    def __len__(self) -> int:
        return self.begins[-1]

    def at(self, place: int) -> int:
        for i, count in enumerate(self.counts):
            k = bisect_left(range(count), place, key=partial(self._place, i))
            if k < count and self._place(i, k) == place:
                turn, number = divmod(k, self.lengths[i])
                return self.begins[i] + self._order(i, turn)[number]
        raise AssertionError(f"no item at place {place}")

    def _place(self, i: int, k: int) -> int:
        """How many items of all datasets come before item k of dataset i; equal times go by the datasets' order."""
        own, total = self.counts[i], 0
        for j, other in enumerate(self.counts):
            ahead = (2 * k + 1) * other - own + (0 if j < i else -1)  # 2 own k' <= this: those k' come before
            total += k if j == i else min(other, max(0, ahead // (2 * own) + 1))
        return total


class WindowedOrder(Order):
    """An order of items that lie in shards: shards are permuted, then the items of each few shards among each other.

    A reader that follows it has few shards open at a time. Memory is that of a few numbers per shard.

    Args:
        counts: Items of each shard; items are numbered shard after shard.
        window: How many shards' items are permuted together.
        key: Chooses the order.
    """

    def __init__(self, counts: Sequence[int], window: int, key: int):
        sizes = np.asarray(counts, dtype=np.int64)
        order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(key)).numpy()
        self.first = (np.cumsum(sizes) - sizes)[order]  # the number of the first item of each shard, in this order
        self.begin = np.concatenate([[0], np.cumsum(sizes[order])])  # the place at which each shard's items begin
        self.window, self.key = window, key

    def __len__(self) -> int:
        return int(self.begin[-1])

    def at(self, place: int) -> int:
        window = self._shard_at(place) // self.window
        begin = int(self.begin[window * self.window])
        end = int(self.begin[min((window + 1) * self.window, len(self.first))])
        place = begin + Bijection(end - begin, self.key + window)(place - begin)
        shard = self._shard_at(place)
        return int(self.first[shard]) + place - int(self.begin[shard])

    def _shard_at(self, place: int) -> int:
        """The number, in this order, of the shard that a place falls into."""
        return int(np.searchsorted(self.begin, place, side="right")) - 1
