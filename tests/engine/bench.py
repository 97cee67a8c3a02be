"""One tensor on the bench: sources written to files, a plan of a single layer, and the engine's parts around it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from xmerge.checkpoints.checkpoint import read_local_shard
from xmerge.engine.reading import TORCH_DTYPES, OpenSources
from xmerge.engine.results import TensorResult
from xmerge.engine.rules import RuleMerger
from xmerge.engine.shard import ShardWriter
from xmerge.methods import find_method
from xmerge.methods.contract import Gram, GramUnknownError
from xmerge.planning.plan import Draws, LayerPlan, MergePlan, PlannedModel, Segment, Source, TensorPlan

FILE = "model.safetensors"
NAME = "out"
DTYPES = {torch_dtype: name for name, torch_dtype in TORCH_DTYPES.items()}


class Bench:
    """Sources in files, and what the engine makes of them.

    Args:
        folder: Where to work.
        sources: For each source its pieces, one after another; a tensor alone is one piece.
    """

    def __init__(self, folder: Path, sources: Sequence[torch.Tensor | Sequence[torch.Tensor]]) -> None:
        self.folder = folder
        self.pieces = [[each] if isinstance(each, torch.Tensor) else list(each) for each in sources]
        self.folders = [folder / f"model{number}" for number in range(len(self.pieces))]
        for place, pieces in zip(self.folders, self.pieces, strict=True):
            place.mkdir(parents=True, exist_ok=True)
            named = {_name(number): piece.contiguous() for number, piece in enumerate(pieces)}
            save_file(named, place / FILE)

    @property
    def shape(self) -> tuple[int, ...]:
        """The output's: that of the first source, or one dimension where that is in several pieces."""
        whole, *more = self.pieces[0]
        return (sum(piece.numel() for piece in self.pieces[0]),) if more else tuple(whole.shape)

    def source(self, number: int, shift: float = 0.0) -> Source:
        """A source, with its pieces as segments."""
        _, entries, start = read_local_shard(self.folders[number] / FILE, FILE)
        stored = {entry.name: entry for entry in entries}
        sizes = [piece.numel() for piece in self.pieces[number]]
        segments = tuple(
            Segment(
                tensor=name,
                file=FILE,
                dtype=stored[name].dtype,
                offset=start + stored[name].begin,
                elements=sizes[index],
                at=sum(sizes[:index]),
            )
            for index, name in enumerate(map(_name, range(len(sizes))))
        )
        return Source(model=number, pin=f"pin{number}", segments=segments, shift=shift)

    def plan(
        self,
        method: str = "passthrough",
        *,
        dtype: str | None = None,
        shift: float = 0.0,
        has_base: bool = False,
        draws: Draws | None = None,
        **given: Any,
    ) -> MergePlan:
        """A plan that makes one tensor of all sources by a method with these parameters; without any, a copy.

        `has_base`: whether a method that can do without a base has the first source for it. `draws`: in place of those
        of seed 0 and of donors that are called by their numbers.
        """
        sources = tuple(self.source(number, shift) for number in range(len(self.pieces)))
        found = find_method(method)
        parameters: dict[str, Any] = {each.name: each.default for each in found.parameters}
        parameters = {
            each.name: (parameters[each.name],) * len(sources) if each.per_model else parameters[each.name]
            for each in found.parameters
        } | given
        coefficients: tuple[float, ...] | None = None
        with contextlib.suppress(GramUnknownError):
            coefficients = tuple(map(float, found.coefficients(Gram(has_base=has_base), len(sources), parameters)))
        tensor = TensorPlan(
            name=NAME,
            role=None,
            component=NAME,
            shape=self.shape,
            dtype=dtype or sources[0].segments[0].dtype,
            decision="merge" if given or shift or found.is_rule else "copy",
            reason="",
            method=method,
            method_version=1,
            parameters=tuple(sorted(parameters.items())),
            sources=sources,
            coefficients=coefficients,
            readings=1 if coefficients is not None else found.count_readings(parameters),
            base=0,
            has_base=has_base,
            draws=draws or Draws(seed=0, donors=("", *map(str, range(1, len(sources))))) if found.draws else None,
        )
        return self.plan_of([tensor])

    def plan_of(self, tensors: Sequence[TensorPlan]) -> MergePlan:
        """A plan of one layer."""
        models = []
        for number, place in enumerate(self.folders):
            shard, _, _ = read_local_shard(place / FILE, FILE)
            models.append(
                PlannedModel(
                    reference=place.name,
                    label=place.name,
                    folder=place,
                    repo=None,
                    commit=None,
                    pin=f"pin{number}",
                    kind="llama",
                    layers=1,
                    files=(FILE,),
                    bytes_used=0,
                    shards=((shard.file, shard.size, shard.header_sha256, shard.modified_ns),),
                    dropped=(),
                )
            )
        return MergePlan(
            method="linear",
            models=tuple(models),
            target=0,
            layers=(LayerPlan(label="layer 0", index=0, tensors=tuple(tensors)),),
            layer_map=((0,) * len(models),),
            config_text="{}",
            config_edits=(),
            side_files=(),
            side_files_digest="",
            chat_template=None,
            warnings=(),
            config_fingerprint="",
        )

    def combine(self, plan: MergePlan, block: int | None = None) -> tuple[torch.Tensor, TensorResult]:
        """What the engine makes of the plan's tensor, and what it says of it."""
        layer = plan.layers[0]
        path = self.folder / f"shard-{block}"
        path.unlink(missing_ok=True)
        with OpenSources(plan, layer, self.folders) as sources, ShardWriter(path, layer) as shard:
            result = RuleMerger(plan, sources, torch.device("cpu"), block).combine(layer.tensors[0], shard)
            shard.seal()
        return read_back(path)[NAME], result


def make(method: str, tensors: Sequence[torch.Tensor], block: int | None = None, **parameters: Any) -> torch.Tensor:
    """What the engine makes of whole tensors by a method, the base first where it has one."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), tensors)
        return bench.combine(bench.plan(method, **parameters), block)[0]


def _name(piece: int) -> str:
    """What a piece is called in its file, where the pieces stand in the reverse order."""
    return f"piece{9 - piece}"


def read_back(path: Path) -> Mapping[str, torch.Tensor]:
    """A shard as the reference library reads it."""
    from safetensors.torch import load

    return load(path.read_bytes())


def draw(seed: int, elements: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Normal numbers from a seed."""
    return torch.randn(elements, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal bit for bit, signs of zeros and all."""
    same = (one.dtype, one.shape) == (other.dtype, other.shape)
    return same and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
