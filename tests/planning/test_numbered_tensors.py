"""Experts and heads with a tensor each, and one tensor that holds them all."""

import pytest

from xmerge.architecture import RolePart
from xmerge.planning.conversion import Piece, pair

COUNT, SIZE = 3, 8


def hold_all(role: str, axis: str, inner: str) -> RolePart:
    """One tensor for all."""
    return RolePart(role, 0, ((axis, COUNT, SIZE), (inner, SIZE, 1)), (COUNT, SIZE))


def hold_each(role: str, axis: str, inner: str) -> list[RolePart]:
    """A tensor for each."""
    return [RolePart(role, 0, ((inner, SIZE, 1),), (SIZE,), number, axis) for number in range(COUNT)]


KINDS = pytest.mark.parametrize(
    ("role", "axis", "inner"),
    [
        ("ffn_gate_exps_bias", "experts", "expert_ffn"),
        ("attn_q_norm", "heads", "head_dim"),
        ("attn_k_norm", "kv_heads", "head_dim"),
    ],
)


@KINDS
def test_a_tensor_for_all_is_made_of_a_tensor_for_each(role: str, axis: str, inner: str):
    """Each goes to its own place, and nothing is made where one of them is missing."""
    joined, each = hold_all(role, axis, inner), hold_each(role, axis, inner)
    assert pair(joined, each, None) == [Piece(number, 0, number * SIZE, ((SIZE, 1, 1),)) for number in range(COUNT)]
    assert pair(joined, each[:-1], None) is None


@KINDS
def test_a_tensor_for_each_is_taken_out_of_a_tensor_for_all(role: str, axis: str, inner: str):
    """Each comes from its own place, and one beyond the last comes from nowhere."""
    joined, each = hold_all(role, axis, inner), hold_each(role, axis, inner)
    for number, part in enumerate(each):
        assert pair(part, [joined], None) == [Piece(0, number * SIZE, 0, ((SIZE, 1, 1),))]
    beyond = RolePart(role, 0, ((inner, SIZE, 1),), (SIZE,), COUNT, axis)
    assert pair(beyond, [joined], None) is None


@KINDS
def test_numbered_tensors_meet_by_their_numbers(role: str, axis: str, inner: str):
    """Where both sides have a tensor for each, each gets the one of its number."""
    each = hold_each(role, axis, inner)
    for number, part in enumerate(each):
        assert pair(part, each, None) == [Piece(number, 0, 0, ((SIZE, 1, 1),))]


def test_a_norm_for_all_heads_is_no_norm_for_each():
    """One weight that every head shares does not fill a weight for each head, nor the other way round."""
    shared = RolePart("attn_q_norm", 0, (("head_dim", SIZE, 1),), (SIZE,))
    each = hold_each("attn_q_norm", "heads", "head_dim")
    assert pair(shared, each, None) is None
    assert pair(each[0], [shared], None) is None
