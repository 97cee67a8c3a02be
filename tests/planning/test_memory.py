"""What memory a merge takes."""

from __future__ import annotations

from xmerge.planning.memory import estimate_buffers

SLERP = "merge_method: slerp\nbase_model: base\nmodels: [{model: base}, {model: donor}]\nparameters: {t: 0.5}\n"
COPY = "merge_method: passthrough\nmodels: [{model: base}]\n"


def test_memory_does_not_grow_with_the_model(bench):
    """Models of another width need the same buffers, and bytes that are only copied need none."""
    needed = []
    for width in (8, 64):
        for name in ("base", "donor"):
            bench.write(name, hidden_size=width)
        needed.append(estimate_buffers(bench.plan(SLERP)))
    assert needed[0] == needed[1] > 0
    assert estimate_buffers(bench.plan(COPY)) == 0
