"""Registering methods, and what is known of them before any weight is read."""

import math
from collections.abc import Sequence
from typing import Annotated

import pytest
import torch

from tests.methods.grams import gram_of, know_gram
from xmerge.errors import ConfigError
from xmerge.methods import contract, find_method, list_methods
from xmerge.methods.contract import Coefficient, Gram, GramUnknownError, PerModel, Range, merge_method


def test_methods_are_listed_by_name():
    """The list of methods is in the order of their names, and each is found by its own."""
    names = [method.name for method in list_methods()]
    assert names == sorted(names)
    assert {"linear", "passthrough", "slerp", "task_arithmetic"} <= set(names)
    assert all(find_method(name).name == name for name in names)


def test_an_unknown_method_is_refused_with_the_nearest():
    """A method that does not exist is told with one of a like name, or with all there are."""
    with pytest.raises(ConfigError, match=r"^there is no merge method 'liner'; did you mean 'linear'\?$"):
        find_method("liner")
    with pytest.raises(ConfigError, match=r"^there is no merge method 'zzz'; valid here: \w+(, \w+)*\.$") as caught:
        find_method("zzz")
    assert ", linear, " in caught.value.what


def test_a_decorated_function_is_a_method(monkeypatch: pytest.MonkeyPatch):
    """One decorator makes a method of a function; a `_` at the end of a name lets it be a word of Python."""
    monkeypatch.setattr(contract, "_found", {})

    @merge_method(base="required", inputs=(2, 3), version=4)
    def yield_(
        gram: Gram,
        count: int,
        *,
        lambda_: Annotated[float, Range("how much", 0.0, 2.0)],
        weight: Annotated[PerModel, Range("of each")] = (1.0,),
        flip: Annotated[bool, Range("or not")] = True,
    ) -> Sequence[float]:
        """Do something.

        y = x
        """
        return [lambda_, *weight[1:]] if flip else weight

    method = contract._found["yield"]
    assert (method.base, method.inputs, method.version, method.summary) == ("required", (2, 3), 4, "Do something.")
    assert [(each.name, each.per_model, each.is_switch, each.default) for each in method.parameters] == [
        ("lambda", False, False, None),
        ("weight", True, False, 1.0),
        ("flip", False, True, 1.0),
    ]
    assert method.coefficients(Gram(), 2, {"lambda": 0.5, "weight": [3, 4], "flip": True}) == (0.5, 4.0)
    assert method.parameter("lambda") is method.parameters[0]
    assert method.parameter("lambda_") is None


def test_two_methods_of_one_name_are_a_mistake(monkeypatch: pytest.MonkeyPatch):
    """A file that takes the name of another's method does not silently replace it."""
    monkeypatch.setattr(contract, "_found", dict(contract._found))
    find_method("linear")

    def linear(gram: Gram, count: int) -> Sequence[float]:
        """Not the one."""
        return [1.0] * count

    with pytest.raises(ValueError, match=r"there is a method 'linear' already, in xmerge\.methods\.linear"):
        merge_method(base="as_input", inputs=(1, None))(linear)


def test_weights_that_were_not_read_cannot_be_looked_at():
    """A Gram matrix that nobody has computed refuses to answer, so that a method that asks is known to depend on it."""
    with pytest.raises(GramUnknownError):
        Gram().dot(0, 0)
    with pytest.raises(GramUnknownError):
        Gram().norm(0)
    with pytest.raises(GramUnknownError):
        Gram().deltas.slices(-1)


def test_a_gram_matrix_knows_norms():
    """The norm of an input is the root of its product with itself."""
    gram = know_gram([[9.0, 2.0], [2.0, 0.0]])
    assert (gram.norm(0), gram.dot(1, 0), gram.norm(1)) == (3.0, 2.0, 0.0)


def test_task_vectors_have_a_gram_matrix_of_their_own():
    """`deltas` are the products of the differences from input 0, and a method knows whether that is a base."""
    gram = gram_of([[1.0, 0.0], [4.0, 4.0], [1.0, 2.0]], has_base=True)
    assert (gram.deltas.norm(1), gram.deltas.dot(1, 2), gram.deltas.norm(0)) == (5.0, 8.0, 0.0)
    assert gram.has_base
    assert gram.deltas.has_base
    assert not Gram().has_base


def test_slices_are_rows_or_columns():
    """Along the last axis a matrix has one product for each row, along the first one for each column."""
    gram = gram_of([torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])])
    assert gram.slices(-1).norm(0).tolist() == [[5.0], [1.0], [10.0]]
    assert gram.slices(0).dot(0, 0).tolist() == [[45.0, 81.0]]
    assert gram.slices(None).norm(0).tolist() == [[math.sqrt(126.0)]]


def test_a_coefficient_of_one_slice_is_a_number(monkeypatch: pytest.MonkeyPatch):
    """What a method gives for one slice is a number, and what it gives for several stays one for each."""
    monkeypatch.setattr(contract, "_found", {})

    @merge_method(base="as_input", inputs=(1, None))
    def lengths(gram: Gram, count: int) -> Sequence[Coefficient]:
        """The lengths of rows."""
        return [gram.slices(-1).norm(i) for i in range(count)]

    (one,) = contract._found["lengths"].coefficients(gram_of([[3.0, 4.0]]), 1, {})
    assert (one, type(one)) == (5.0, float)
    (two,) = contract._found["lengths"].coefficients(gram_of([torch.tensor([[3.0, 4.0], [0.0, 1.0]])]), 1, {})
    assert isinstance(two, torch.Tensor)
    assert two.tolist() == [[5.0], [1.0]]


@pytest.mark.parametrize(
    ("spec", "inside", "outside", "text"),
    [
        (Range("x"), [-1e30, 0.0, 1e30], [math.nan], "any number"),
        (Range("x", 0.0), [0.0, 1e30], [-1e-9, math.nan], "0 or more"),
        (Range("x", 0.0, 1.0), [0.0, 0.5, 1.0], [-0.1, 1.1, math.nan], "0 to 1"),
        (Range("x", most=1.0), [-5.0, 1.0], [1.5, math.nan], "1 or less"),
        (Range("x", 1, whole=True), [1.0, 7.0], [0.0, 1.5, math.nan], "a whole number, 1 or more"),
        (Range("x", whole=True), [-1.0, 0.0], [0.5, math.nan], "a whole number"),
    ],
)
def test_a_range_says_what_it_holds(spec: Range, inside: list[float], outside: list[float], text: str):
    """A range includes its ends, holds nothing that is not a number, and reads as words."""
    assert all(value in spec for value in inside)
    assert not any(value in spec for value in outside)
    assert str(spec) == text
