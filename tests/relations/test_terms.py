"""Terms that do not fit are refused by name, and a plan says what is added."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ckptconv.containers.base import FileLayout, Placed
from ckptconv.dtypes import BY_NAME
from ckptconv.errors import PlanError
from ckptconv.plans.plan import OutFile, Plan
from ckptconv.relations import Box, Constant, LowRank, Pair, Relation, Scaled, Spec, Term
from ckptconv.relations.terms import check_terms, operands

TENSORS = {
    "w": Spec((3, 5), "bfloat16"),
    "a": Spec((2, 5), "float32"),
    "b": Spec((3, 2), "float16"),
    "turned.a": Spec((2, 3), "float32"),
    "turned.b": Spec((5, 2), "float32"),
    "empty.a": Spec((0, 5), "float32"),
    "empty.b": Spec((3, 0), "float32"),
    "ids": Spec((3, 5), "int64"),
    "bias": Spec((3,), "float32"),
    "more": Spec((3,), "float32"),
}


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("w", LowRank("a", "b", 2.0)),
        ("w", LowRank("turned.a", "turned.b", 2.0, True)),
        ("w", Constant(1.0)),
        ("bias", Scaled("more", 0.5)),
    ],
)
def test_terms_that_fit(name: str, term: Term) -> None:
    check_terms(TENSORS, [name], {name: (term,)})


@pytest.mark.parametrize(
    ("name", "term", "naming"),
    [
        ("w", LowRank("a", "b", 2.0, True), ["w[3, 5]", "transposed", "b[3, 2]", "a[2, 5]"]),
        ("w", LowRank("turned.a", "turned.b", 2.0), ["w[3, 5]", "turned.b[5, 2]"]),
        ("w", LowRank("b", "a", 2.0), ["w[3, 5]"]),
        ("w", LowRank("a", "bias", 2.0), ["bias[3]"]),
        ("w", LowRank("empty.a", "empty.b", 2.0), ["empty.a[0, 5]"]),
        ("w", LowRank("a", "gone", 2.0), ["gone", "not in the checkpoint"]),
        ("w", LowRank("w", "b", 2.0), ["w[3, 5]"]),
        ("gone", Constant(1.0), ["gone", "not written"]),
        ("ids", Constant(1.0), ["ids", "int64"]),
        ("w", Scaled("ids", 1.0), ["ids", "int64"]),
        ("bias", LowRank("a", "b", 1.0), ["bias[3]"]),
        ("bias", Scaled("w", 1.0), ["bias[3]", "w[3, 5]"]),
    ],
)
def test_terms_that_do_not_fit(name: str, term: Term, naming: list[str]) -> None:
    with pytest.raises(PlanError) as caught:
        check_terms(TENSORS, [name], {name: (term,)})
    assert all(text in caught.value.message for text in naming), caught.value.message


def test_an_operand_is_not_written() -> None:
    with pytest.raises(PlanError, match="a is added to w and written as well"):
        check_terms(TENSORS, ["w", "a"], {"w": (LowRank("a", "b", 2.0),)})


def test_a_tensor_that_is_not_written_takes_no_term() -> None:
    with pytest.raises(PlanError, match="not written"):
        check_terms(TENSORS, ["bias"], {"w": (Constant(1.0),)})


def test_operands_are_named_once() -> None:
    terms = {"q": (LowRank("a", "q.b", 1.0), Constant(1.0)), "k": (LowRank("a", "k.b", 1.0),)}
    assert list(operands(terms)) == ["a", "q.b", "k.b"]


def plan_with(**fields: Any) -> Plan:
    tensors = {n: TENSORS[n] for n in ("w", "a", "b")}
    left = {f"{n}.stored": s for n, s in tensors.items()}
    pairs = tuple(Pair(Box.whole(f"{n}.stored", s.shape), Box.whole(n, s.shape)) for n, s in tensors.items())
    placed = Placed("w", BY_NAME["bfloat16"], (3, 5), 0)
    file = OutFile("model.safetensors", "safetensors", FileLayout(30, (), (placed,)))
    return Plan("run", "test", Relation(left, tensors, pairs), {}, {}, (file,), **fields)


def test_a_plan_says_what_is_added() -> None:
    plain = plan_with()
    merged = plan_with(terms={"w": (LowRank("a", "b", 2.0), Constant(1.0))})
    merged.relation.check()
    tensor = merged.to_dict()["files"][0]["tensors"][0]
    assert tensor["terms"] == [
        {"kind": "LowRank", "a": "a", "b": "b", "scale": 2.0, "transposed": False},
        {"kind": "Constant", "value": 1.0},
    ]
    others = [
        plan_with(terms={"w": terms})
        for terms in (
            (LowRank("a", "b", 2.5), Constant(1.0)),
            (LowRank("a", "b", 2.0), Constant(1.5)),
            (LowRank("a", "b", 2.0),),
            (Constant(1.0), LowRank("a", "b", 2.0)),
        )
    ]
    assert len({p.digest() for p in (plain, merged, *others)}) == 6
    assert replace(merged).digest() == merged.digest()


def test_a_plan_refuses_terms_that_do_not_fit() -> None:
    with pytest.raises(PlanError):
        plan_with(terms={"w": (LowRank("b", "a", 2.0),)})
