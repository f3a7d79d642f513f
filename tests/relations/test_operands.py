"""What a tensor is made of is found to the last operand, and refused where it does not fit."""

from __future__ import annotations

import pytest

from ckptconv.errors import PlanError
from ckptconv.relations import Constant, LowRank, Mean, Scaled, Spec
from ckptconv.relations.terms import check_terms, concerning, operands

_TERMS = {
    "w": (Mean(("1/w", "2/w"), (0.5, 0.5)),),
    "1/w": (LowRank("a", "b", 2.0),),
    "2/w": (Constant(1.0), Scaled("c", 3.0)),
    "other": (Scaled("d", 1.0),),
}
_FLAT = Spec((4, 6), "float32")


def test_operands_of_operands_are_found_in_order() -> None:
    assert [*operands(_TERMS, ["w"])] == ["1/w", "2/w", "a", "b", "c"]
    assert operands(_TERMS).keys() == {"1/w", "2/w", "a", "b", "c", "d"}
    assert concerning(_TERMS, ["w"]).keys() == {"w", "1/w", "2/w"}
    assert concerning(_TERMS, ["other", "plain"]).keys() == {"other"}


def test_a_mean_is_of_tensors_of_one_shape_that_are_not_written() -> None:
    tensors = {"w": _FLAT, "1/w": _FLAT, "2/w": _FLAT}
    mean = {"w": (Mean(("1/w", "2/w"), (0.5, 0.5)),)}
    check_terms(tensors, ["w"], mean)
    check_terms(tensors, ["w"], {**mean, "1/w": (Constant(1.0),)})  # what it is made of may have terms
    for changed, written in (
        ({**tensors, "2/w": Spec((6, 4), "float32")}, ["w"]),
        ({**tensors, "2/w": Spec((4, 6), "int64")}, ["w"]),
        ({"w": _FLAT, "1/w": _FLAT}, ["w"]),
        (tensors, ["w", "2/w"]),
        (tensors, []),
    ):
        with pytest.raises(PlanError):
            check_terms(changed, written, mean)
