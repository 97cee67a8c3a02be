"""Reading: any piece of a source in any pieces, from files that are watched."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.bench import FILE, Bench, draw, same_bits
from tests.faults import fail_with
from xmerge import disk
from xmerge.engine.blocks import Buffers, SourceReader
from xmerge.engine.reading import OpenSources, stamp_files
from xmerge.errors import CheckpointError, SourceChangedError

CPU = torch.device("cpu")


@given(data=st.data(), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), block=st.integers(1, 20))
def test_how_a_source_is_cut_into_segments_does_not_matter(data, lengths, block):
    """Any window of a source reads the same from one segment as from many."""
    whole = draw(len(lengths), sum(lengths))
    start = data.draw(st.integers(0, len(whole) - 1))
    count = data.draw(st.integers(1, min(block, len(whole) - start)))
    out = torch.empty(count)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), [whole.split(lengths)])
        plan = bench.plan()
        with OpenSources(plan, plan.layers[0], bench.folders) as sources:
            SourceReader(bench.source(0), sources, Buffers(block, CPU)).read(start, out)
    assert same_bits(out, whole[start : start + count].float())


def test_short_reads_are_read_on(tmp_path, monkeypatch):
    """A system that gives a few bytes at a time gives all of them in the end."""
    values = draw(3, 50, torch.float32)
    bench = Bench(tmp_path, [values])
    plan, out, real = bench.plan(), torch.empty(50), disk.preadv
    monkeypatch.setattr(disk, "preadv", lambda file, views, at: real(file, [views[0][:3]], at))
    with OpenSources(plan, plan.layers[0], bench.folders) as sources:
        SourceReader(bench.source(0), sources, Buffers(50, CPU)).read(0, out)
    assert same_bits(out, values)


def test_a_file_that_cannot_be_opened_or_read_is_named(tmp_path, monkeypatch):
    """A missing shard and a failing disk are told with the model, the file and the tensor."""
    bench = Bench(tmp_path, [draw(1, 10)])
    plan, source = bench.plan(), bench.source(0)
    with OpenSources(plan, plan.layers[0], bench.folders) as sources:
        monkeypatch.setattr(disk, "preadv", fail_with(5))
        with pytest.raises(CheckpointError, match=r"model0/model\.safetensors cannot be read: Input/output") as caught:
            SourceReader(source, sources, Buffers(10, CPU)).read(0, torch.empty(10))
        monkeypatch.undo()
        assert caught.value.where == "piece9"
    (bench.folders[0] / FILE).unlink()
    with pytest.raises(CheckpointError, match=r"model0/model\.safetensors cannot be opened: No such file"):
        stamp_files(plan, plan.layers[0], bench.folders)


def test_a_file_that_was_replaced_after_the_plan_is_refused(tmp_path):
    """Another size or another time of change: it is not the file that was planned with."""
    bench = Bench(tmp_path, [draw(1, 10)])
    plan = bench.plan()
    path = bench.folders[0] / FILE
    os.utime(path, ns=(0, 0))
    with pytest.raises(SourceChangedError) as caught:
        stamp_files(plan, plan.layers[0], bench.folders)
    assert str(caught.value) == (
        "model0/model.safetensors changed since the plan was made.\n"
        "  do: leave the inputs alone during a merge, and run it again."
    )


def test_a_pipe_in_a_file_s_place_is_not_waited_for(tmp_path):
    """Whatever has come into a source's place since the plan, it is refused at once."""
    bench = Bench(tmp_path, [draw(1, 10)])
    plan, path = bench.plan(), bench.folders[0] / FILE
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SourceChangedError, match="changed since the plan was made"):
        stamp_files(plan, plan.layers[0], bench.folders)


def test_a_file_that_shrinks_under_the_reader_is_no_crash(tmp_path):
    """A source cut short by another process is an error in words, where a mapping would kill the process."""
    bench = Bench(tmp_path, [draw(1, 1000)])
    plan, source = bench.plan(), bench.source(0)
    with OpenSources(plan, plan.layers[0], bench.folders) as sources:
        os.truncate(bench.folders[0] / FILE, 500)
        with pytest.raises(SourceChangedError, match=r"model0/model\.safetensors ends before piece9 does"):
            SourceReader(source, sources, Buffers(1000, CPU)).read(0, torch.empty(1000))
        with pytest.raises(SourceChangedError, match="changed while it was read"):
            sources.check_unchanged()


def test_the_stamps_of_a_file_tell_its_replacement_apart(tmp_path):
    """A file of the same size and time under the same name has another stamp."""
    bench = Bench(tmp_path, [draw(1, 10)])
    plan, path = bench.plan(), bench.folders[0] / FILE
    before, stat = stamp_files(plan, plan.layers[0], bench.folders), path.stat()
    path.with_name("other").write_bytes(path.read_bytes())
    os.utime(path.with_name("other"), ns=(stat.st_atime_ns, stat.st_mtime_ns))
    path.with_name("other").rename(path)
    assert stamp_files(plan, plan.layers[0], bench.folders) != before
