"""Combining tensors in blocks: y = s*x_0 + sum_i c_i*(x_i - x_0), in float32, rounded once.

In differences, so that equal inputs come back unchanged; one torch operation a step, so that no two of them are
fused and the result does not depend on the machine.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import torch

from xmerge.engine.blocks import BlockReader
from xmerge.engine.gram import InnerProducts
from xmerge.engine.reading import TORCH_DTYPES, OpenSources
from xmerge.engine.results import TensorResult
from xmerge.engine.shard import ShardWriter
from xmerge.engine.weighting import Weighting, average, multiply
from xmerge.errors import InvalidMergeError, NonfiniteInputError
from xmerge.interrupt import check_stop
from xmerge.methods import find_method
from xmerge.methods.contract import Axis, Coefficient, Gram
from xmerge.planning.memory import BLOCK_ELEMENTS
from xmerge.planning.plan import LostBias, MergePlan, Source, TensorPlan

DIGITS = 6
FLOAT32_DIGITS = 5
"""Of what was summed in float32, for the report alone; what decides a result is summed in float64."""

Products = tuple[float, float, float]
"""<y,y>, <y,b> and <b,b> of an output y and its base b."""


class Combiner:
    """Combines the tensors of one layer on one device, with buffers of one block."""

    def __init__(self, plan: MergePlan, sources: OpenSources, device: torch.device, block: int | None = None) -> None:
        self._plan = plan
        self._block = block or BLOCK_ELEMENTS[device.type]
        self._device = device
        self._reader = BlockReader(sources, self._block, device)
        self._buffers: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        self._tainted: dict[str, bool] = {}
        """Which tensors may hold NaN and infinity, because a source does and they are calculated with."""

    def combine(self, tensor: TensorPlan, shard: ShardWriter) -> TensorResult:
        """Write one merged tensor into its shard.

        Raises:
            NonfiniteInputError: An input holds NaN or infinity, and they are not to be calculated with.
            CheckpointError: A source cannot be read, or a folded gain cannot be divided by.
            InvalidMergeError: The output holds NaN or infinity, though no input did.
        """
        self._reader.open(tensor.sources)
        coefficients: Sequence[Coefficient]
        if tensor.coefficients is None:
            coefficients, gram = self._find_coefficients(tensor)
        else:
            coefficients, gram = tensor.coefficients, None
        squares, products = self._stream(tensor, coefficients, shard, measure=gram is None)
        if gram is not None:
            squares, products = _measure_by_gram(gram, [average(c) for c in coefficients], tensor.base)
        digits = FLOAT32_DIGITS if gram is None else DIGITS
        averages = [average(each) for each in coefficients]
        cosine, ratio = compare(products, digits)
        return TensorResult(
            name=tensor.name,
            coefficients=tuple(map(round_digits, averages)) if all(map(math.isfinite, averages)) else (),
            cosine=cosine,
            norm_ratio=ratio,
            donor_cosines=_donor_cosines(gram),
            bias_ratios=self._compare_biases(tensor, squares, digits),
        )

    def _find_coefficients(self, tensor: TensorPlan) -> tuple[Sequence[Coefficient], list[list[float]] | None]:
        """What the method gives when it sees the weights, and the Gram matrix if they are numbers made of it."""
        method, count = find_method(tensor.method), len(tensor.sources)
        products = InnerProducts(tensor.shape, count, functools.partial(self._read_wide, tensor), self._device)
        try:
            coefficients = method.coefficients(
                Gram(functools.partial(self._measure, tensor, products), has_base=tensor.has_base),
                count,
                dict(tensor.parameters),
            )
        except ValueError as error:
            labels = ", ".join(self._plan.models[source.model].label for source in tensor.sources)
            raise InvalidMergeError(
                f"{tensor.name} cannot be merged: {error}.",
                why=f"of {labels}.",
                remedy="change the values, or filter them to other tensors.",
            ) from None
        sliced = any(isinstance(each, torch.Tensor) for each in coefficients)
        return coefficients, None if sliced else products.whole

    def _measure(
        self, tensor: TensorPlan, products: InnerProducts, *, deltas: bool, axis: Axis
    ) -> list[list[torch.Tensor]]:
        found = products.measure(deltas=deltas, axis=axis)
        if not torch.isfinite(found).all() and tensor.on_nonfinite != "propagate":
            self._refuse_nonfinite_inputs(tensor)
        return [list(row) for row in found]

    def _read_wide(self, tensor: TensorPlan, columns: int) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """The blocks of all sources in float64, in whole rows of a length or in parts of one."""
        for start, count in self._blocks(tensor.elements, columns):
            wide = [self._buffer(f"wide{i}", torch.float64)[:count] for i in range(len(tensor.sources))]
            for source, out in zip(tensor.sources, wide, strict=True):
                self._reader.read(source, start, out)
            yield start, wide

    def _stream(
        self, tensor: TensorPlan, coefficients: Sequence[Coefficient], shard: ShardWriter, *, measure: bool
    ) -> tuple[list[float], Products | None]:
        """Combine block by block; with `measure`, <x,x> of the sources that is asked for, and the products."""
        squares, yy, yb = [0.0] * len(tensor.sources), 0.0, 0.0
        base = tensor.base if measure else None
        measured = list_measured(tensor) if measure else []
        weighting = Weighting(coefficients, tensor.elements, self._device)
        for start, count in self._blocks(tensor.elements, weighting.columns):
            inputs = [self._buffer(f"input{i}", torch.float32)[:count] for i in range(len(tensor.sources))]
            for source, out in zip(tensor.sources, inputs, strict=True):
                self._reader.read(source, start, out)
            y = self._sum(inputs, *weighting.cut(start, count), count)
            self._write(tensor, start, y, shard)
            for number in measured:
                squares[number] += torch.dot(inputs[number], inputs[number]).item()
            if base is not None:
                yy += torch.dot(y, y).item()
                yb += torch.dot(y, inputs[base]).item()
        return squares, None if base is None else (yy, yb, squares[base])

    def _sum(
        self, inputs: Sequence[torch.Tensor], coefficients: Sequence[Coefficient], total: Coefficient, count: int
    ) -> torch.Tensor:
        y = self._buffer("sum", torch.float32)[:count]
        if not inputs:
            return y.zero_()
        first = inputs[0]
        multiply(y.copy_(first), total)
        difference = self._buffer("difference", torch.float32)[:count]
        for x, coefficient in zip(inputs[1:], coefficients[1:], strict=True):
            # Subtracted, and a zero is never negative, because -0 + 0 is 0 and -0 - 0 is -0.
            if isinstance(coefficient, torch.Tensor):
                multiply(torch.sub(first, x, out=difference), coefficient).add_(0.0)
            else:
                torch.sub(*((first, x) if coefficient >= 0.0 else (x, first)), out=difference)
                difference.mul_(abs(coefficient))
            y.sub_(difference)
        return y

    def _write(self, tensor: TensorPlan, start: int, y: torch.Tensor, shard: ShardWriter) -> None:
        rounded = self._buffer("rounded", TORCH_DTYPES[tensor.dtype])[: y.numel()].copy_(y)
        if not math.isfinite(rounded.sum(dtype=torch.float32).item()):
            self._refuse_nonfinite(tensor, start, rounded)
        shard.write(tensor.name, start * rounded.element_size(), _bytes_of(rounded))

    def _refuse_nonfinite(self, tensor: TensorPlan, start: int, rounded: torch.Tensor) -> None:
        """Find out who is to blame for a NaN or an infinity; a large sum of finite numbers is nobody's fault."""
        bad = (~torch.isfinite(rounded)).nonzero()
        if bad.numel() == 0 or self._is_tainted(tensor):
            return
        at = start + int(bad[0])
        for number, source in enumerate(tensor.sources):
            block = self._buffer(f"input{number}", torch.float32)[: rounded.numel()]
            self._reader.read(source, start, block)
            if not torch.isfinite(block).all():
                raise self._nonfinite_input(tensor, number, start + int((~torch.isfinite(block)).nonzero()[0]))
        raise InvalidMergeError(
            f"{tensor.name} overflows {tensor.dtype} at element {at}.",
            why=f"{tensor.method} gives a number that {tensor.dtype} cannot hold.",
            remedy="write a wider 'out_dtype', such as bfloat16 or float32, or use smaller weights.",
        )

    def _is_tainted(self, tensor: TensorPlan) -> bool:
        """Whether NaN and infinity are calculated with, and a source holds some."""
        if tensor.on_nonfinite != "propagate":
            return False
        if tensor.name not in self._tainted:
            try:
                self._refuse_nonfinite_inputs(tensor)
                self._tainted[tensor.name] = False
            except NonfiniteInputError:
                self._tainted[tensor.name] = True
        return self._tainted[tensor.name]

    def _refuse_nonfinite_inputs(self, tensor: TensorPlan) -> None:
        """Find out which input is to blame for an inner product that is no number; very large numbers are not."""
        for number, source in enumerate(tensor.sources):
            for start, count in self._blocks(tensor.elements, tensor.elements):
                block = self._buffer("input0", torch.float32)[:count]
                self._reader.read(source, start, block)
                bad = (~torch.isfinite(block)).nonzero()
                if bad.numel():
                    raise self._nonfinite_input(tensor, number, start + int(bad[0]))

    def _nonfinite_input(self, tensor: TensorPlan, number: int, at: int) -> NonfiniteInputError:
        source = tensor.sources[number]
        name, element = self._reader.find_stored(source, at)
        return NonfiniteInputError(
            f"{self._plan.models[source.model].label} holds NaN or infinity in {name}, at element {element}.",
            where=f"for {tensor.name} of the output",
            remedy="repair the model, leave the tensor out with a filter, or say 'on_nonfinite: base'.",
        )

    def _compare_biases(self, tensor: TensorPlan, squares: Sequence[float], digits: int) -> tuple[float | None, ...]:
        """Norms of the biases that sources lose over those of the sources, whose squares are given."""
        return tuple(
            _compare_norms(self._square_biases(lost), squares[lost.source], digits) for lost in tensor.lost_biases
        )

    def _square_biases(self, lost: LostBias) -> float:
        """The sum of the squares of the biases that a weight loses."""
        sources = [Source(model=lost.model, pin="", segments=(bias,)) for bias in lost.biases]
        self._reader.open(sources)
        total = 0.0
        for source, bias in zip(sources, lost.biases, strict=True):
            for start, count in self._blocks(bias.elements, bias.elements):
                numbers = self._buffer("wide0", torch.float64)[:count]
                self._reader.read(source, start, numbers)
                total += torch.dot(numbers, numbers).item()
        return total

    def _blocks(self, elements: int, row: int) -> Iterator[tuple[int, int]]:
        """First element and size of each block: whole rows of a length, or parts of one that is longer than a block."""
        part = self._block // max(row, 1) * row or max(row, 1)
        for first in range(0, elements, part):
            last = min(first + part, elements)
            for start in range(first, last, self._block):
                check_stop()
                yield start, min(self._block, last - start)

    def _buffer(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        key = (name, dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(self._block, dtype=dtype, device=self._device)
        return self._buffers[key]


def round_digits(value: float, digits: int = DIGITS) -> float:
    """A measured value to the digits that every machine agrees on."""
    return float(f"{value:.{digits}g}")


def list_measured(tensor: TensorPlan) -> list[int]:
    """The sources whose norms are reported, or a part of what is: the base, and those that lose a bias."""
    lossy = {lost.source for lost in tensor.lost_biases}
    return [number for number in range(len(tensor.sources)) if number == tensor.base or number in lossy]


def compare(products: Products | None, digits: int) -> tuple[float | None, float | None]:
    """Cosine and norm ratio to the base; None where one of the two has no direction."""
    if products is None:
        return None, None
    yy, yb, bb = products
    if yy <= 0.0 or bb <= 0.0 or not all(map(math.isfinite, products)):
        return None, None
    cosine = max(-1.0, min(1.0, yb / math.sqrt(yy * bb)))
    return round_digits(cosine, digits), round_digits(math.sqrt(yy / bb), digits)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.cpu().view(torch.uint8).numpy().data


def _measure_by_gram(
    gram: Sequence[Sequence[float]], coefficients: Sequence[float], base: int | None
) -> tuple[list[float], Products | None]:
    """<x,x> of every source, and the products with the base."""
    n = range(len(coefficients))
    squares = [gram[i][i] for i in n]
    if base is None:
        return squares, None
    yy = math.fsum(coefficients[i] * coefficients[j] * gram[i][j] for i in n for j in n)
    yb = math.fsum(coefficients[i] * gram[i][base] for i in n)
    return squares, (yy, yb, squares[base])


def _compare_norms(square: float, other: float, digits: int) -> float | None:
    """A norm over another, from their squares; None where one is no number, or there is nothing to compare with."""
    if other <= 0.0 or not math.isfinite(square) or not math.isfinite(other):
        return None
    return round_digits(math.sqrt(square / other), digits)


def _donor_cosines(gram: Sequence[Sequence[float]] | None) -> tuple[float, ...]:
    if gram is None or any(gram[i][i] <= 0.0 or not all(map(math.isfinite, gram[i])) for i in range(len(gram))):
        return ()
    return tuple(round_digits(gram[0][i] / math.sqrt(gram[0][0] * gram[i][i])) for i in range(1, len(gram)))
