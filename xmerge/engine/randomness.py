"""Random numbers that have a place: each follows from what it is for and where it stands, and from nothing else."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from xmerge.engine.reading import TORCH_DTYPES
from xmerge.interrupt import check_stop
from xmerge.planning.plan import TensorPlan
from xmerge.values import canonical_json

Mask: TypeAlias = NDArray[np.bool_]
Places: TypeAlias = NDArray[np.intp]
Numbers: TypeAlias = NDArray[np.float64]

GOLDEN = 0x9E3779B97F4A7C15
STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
"""SplitMix64: how far its state moves, and by what it is shifted and multiplied."""

STATES_EVERY = 2**22
"""How many numbers of mergekit's stream lie between two states of it that are remembered: 2.5 kB each."""


class Dice(Protocol):
    """Numbers from 0 to 1 that one donor draws for one tensor, one for each element, and what they decide."""

    def keep(self, probability: float, start: int, count: int) -> Mask:
        """Which of consecutive elements are kept: those whose number is below a probability."""
        ...

    def keep_by_rank(self, middle: float, spread: float, start: int, donor: torch.Tensor, base: torch.Tensor) -> Mask:
        """Which elements of whole rows are kept, where the probability grows evenly with the rank in the row.

        Args:
            middle: The probability in the middle of a row.
            spread: How far those of its smallest and its largest number are from that.
            start: The place of the first element.
            donor: [rows, row] in float32.
            base: The same; the magnitudes of the differences are ranked, equal ones by their place.
        """
        ...


def make_dice(tensor: TensorPlan) -> Mapping[int, Dice]:
    """The dice of each source of a tensor that draws random numbers."""
    draws = tensor.draws
    if draws is None:
        return {}
    if draws.starts:
        dtype = TORCH_DTYPES[draws.dtype]
        starts = enumerate(draws.starts)
        return {number: SequentialDice(draws.seed, start, dtype) for number, start in starts if start is not None}
    donors = enumerate(draws.donors)
    return {number: CounterDice(draws.seed, tensor.name, donor) for number, donor in donors if donor}


class CounterDice:
    """Numbers that depend on (seed, tensor, donor) and on the element's place, and not on what was drawn before.

    The number of element p is (b + r) / 256. b is byte p of a stream of Philox 4x64 (Salmon et al. 2011), r is the p-th
    number of SplitMix64 (Steele et al. 2014), which is only computed where b does not decide alone.
    """

    def __init__(self, seed: int, tensor: str, donor: str) -> None:
        digest = hashlib.sha256(canonical_json([seed, tensor, donor]).encode()).digest()
        self._philox = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
        self._origin = self._philox.state
        self._word = 0
        """Which 64-bit word comes next."""
        self._offset = np.uint64(int.from_bytes(digest[16:24], "little"))

    def keep(self, probability: float, start: int, count: int) -> Mask:
        """As `Dice` says."""
        level = math.floor(probability * 256)
        drawn = self._draw_bytes(start, count)
        kept: Mask = drawn < level
        if level != probability * 256:
            near = np.flatnonzero(drawn == level)
            kept[near] = self._draw_rest(start, near) < probability * 256 - level
        return kept

    def keep_by_rank(self, middle: float, spread: float, start: int, donor: torch.Tensor, base: torch.Tensor) -> Mask:
        """As `Dice` says."""
        row, low = donor.shape[1], middle - spread
        if row < 2 or not spread:
            return self.keep(middle, start, donor.numel())
        drawn = self._draw_bytes(start, donor.numel())
        first, last = math.floor(low * 256), math.floor((middle + spread) * 256)
        kept: Mask = drawn < first
        # The rank counts only where the number lies between the probabilities of the two ends.
        near = drawn - np.uint8(first) <= last - first
        places, ranks = rank_in_rows((donor - base).abs_().cpu().numpy(), near)
        numbers = (drawn[places] + self._draw_rest(start, places)) / 256
        kept[places] = numbers < low + ranks * (2 * spread / (row - 1))
        return kept

    def _draw_bytes(self, start: int, count: int) -> NDArray[np.uint8]:
        first, last = start // 8, -(-(start + count) // 8)
        if first != self._word:
            # One step of its counter gives four words.
            self._philox.state = self._origin
            self._philox.advance(first // 4)
            self._philox.random_raw(first % 4, output=False)
        words = self._philox.random_raw(last - first).astype("<u8", copy=False)
        self._word = last
        return words.view(np.uint8)[start - first * 8 :][:count]

    def _draw_rest(self, start: int, places: Places) -> Numbers:
        mixed = places.astype(np.uint64)
        mixed += np.uint64(start + 1)
        mixed *= np.uint64(GOLDEN)
        mixed += self._offset
        for shift, factor in STEPS:
            mixed ^= mixed >> np.uint64(shift)
            mixed *= np.uint64(factor)
        mixed >>= np.uint64(11)
        return mixed.astype(np.float64) * 2.0**-53


class SequentialDice:
    """The numbers that torch's generator on a CPU gives to Bernoulli draws, from a place of its stream on."""

    def __init__(self, seed: int, origin: int, dtype: torch.dtype) -> None:
        """Begin where others have drawn `origin` numbers; probabilities are computed in a dtype, as mergekit does."""
        self._seed, self._origin, self._dtype = seed, origin, dtype
        self._twister = np.random.MT19937(0)
        self._place = -1

    def keep(self, probability: float, start: int, count: int) -> Mask:
        """As `Dice` says."""
        rounded = torch.tensor([probability], dtype=_find_work_dtype(self._dtype))
        return self._fall_below(rounded.double().numpy(), start, count)

    def keep_by_rank(self, middle: float, spread: float, start: int, donor: torch.Tensor, base: torch.Tensor) -> Mask:
        """As `Dice` says, and with mergekit's roundings, ranks included."""
        row = donor.shape[1]
        if row < 2:
            return self.keep(middle, start, donor.numel())
        magnitudes = (donor.cpu().to(self._dtype) - base.cpu().to(self._dtype)).abs_()
        ranks = magnitudes.argsort(dim=1).argsort(dim=1).to(_find_work_dtype(self._dtype)).add_(1)
        # In bfloat16 the last rank is rounded like the others.
        shares = ranks.sub_(1).div_(ranks.max())
        probabilities = shares.mul_(2).mul_(spread).add_(middle - spread)
        return self._fall_below(probabilities.double().numpy().reshape(-1), start, donor.numel())

    def _fall_below(self, probabilities: Numbers, start: int, count: int) -> Mask:
        place = self._origin + start
        if place != self._place:
            self._twister.state = _replay(self._seed, place)
        self._place = place + count
        drawn = self._twister.random_raw(count) & np.uint64(0xFFFFFF)
        # A number is 24 bits over 2**24, so that this compares exactly.
        kept: Mask = drawn < np.ceil(probabilities * 2.0**24)
        return kept


def rank_in_rows(magnitudes: NDArray[np.float32], wanted: Mask) -> tuple[Places, Places]:
    """The places of some numbers, and the rank of each in its row, from 0 for the smallest.

    Of equal numbers the first ranks lowest.

    Args:
        magnitudes: [rows, row], none below 0, and no row of 2**31.
        wanted: [rows * row], which numbers.
    """
    row = magnitudes.shape[1]
    # One sort of whole words: a number's bits, which are ordered as it is, its column, and whether it is wanted.
    keys = magnitudes.view(np.uint32).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(0, 2 * row, 2, dtype=np.uint64)
    keys |= wanted.reshape(magnitudes.shape)
    keys.sort(axis=1)
    lower = keys.astype(np.uint32).reshape(-1)
    found = np.flatnonzero(lower & np.uint32(1))
    ranks = found % row
    return found - ranks + (lower[found] >> np.uint32(1)), ranks


_remembered: dict[int, dict[int, Any]] = {}
"""Seed -> place -> state of mergekit's stream there, so that a layer need not draw again what others have drawn."""


def _replay(seed: int, place: int) -> Any:
    """The state of torch's generator when so many numbers have been drawn."""
    states = _remembered.setdefault(seed, {0: _seed_twister(seed)})
    at = max(each for each in list(states) if each <= place)
    twister = np.random.MT19937(0)
    twister.state = states[at]
    while at < place:
        step = min(STATES_EVERY - at % STATES_EVERY, place - at)
        check_stop()
        twister.random_raw(step, output=False)
        at += step
        if at % STATES_EVERY == 0:
            states[at] = twister.state
    return twister.state


def _seed_twister(seed: int) -> Any:
    """The first state of a Mersenne twister, as its authors seed it; of a seed torch takes 32 bits."""
    words = [seed & 0xFFFFFFFF]
    for number in range(1, 624):
        words.append((1812433253 * (words[-1] ^ (words[-1] >> 30)) + number) & 0xFFFFFFFF)
    return {"bit_generator": "MT19937", "state": {"key": np.array(words, dtype=np.uint32), "pos": 624}}


def _find_work_dtype(dtype: torch.dtype) -> torch.dtype:
    """What mergekit draws in, on a CPU."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
