"""Dropping and renaming: rules say what they do, and a rule that does nothing is a mistake."""

from __future__ import annotations

import pytest

from ckptconv.errors import PlanError, UsageError
from ckptconv.relations import Spec
from ckptconv.relations.rename import names_relation, parse_renames

TENSORS = {n: Spec((2, 3), "float32") for n in ("a.0.w", "a.11.w", "a.b.w", "head")}


def _names(drops: list[str], rules: str) -> list[str]:
    relation, _ = names_relation(TENSORS, drops, parse_renames(rules))
    relation.check()
    return list(relation.right)


def test_nothing_to_do() -> None:
    assert _names([], "") == list(TENSORS)


def test_a_star_is_digits_and_nothing_else() -> None:
    assert _names([], "a.*.w = layers.*.weight") == ["layers.0.weight", "layers.11.weight", "a.b.w", "head"]


def test_the_first_rule_that_matches_applies() -> None:
    assert _names([], "a.0.w = first\na.*.w = rest.*") == ["first", "rest.11", "a.b.w", "head"]


def test_several_stars_keep_their_order() -> None:
    tensors = {"l.1.e.22.w": Spec((1,), "float32")}
    assert list(names_relation(tensors, [], parse_renames("l.*.e.*.w = x.*.y.*"))[0].right) == ["x.1.y.22"]


def test_a_dot_is_a_dot() -> None:
    with pytest.raises(UsageError, match="matches no tensor"):
        _names([], "a_0_w = x")


def test_names_may_be_swapped() -> None:
    assert _names([], "head = a.b.w\na.b.w = head") == ["a.0.w", "a.11.w", "head", "a.b.w"]


def test_drop_is_a_glob_over_the_old_name() -> None:
    assert _names(["a.*"], "head = lm_head") == ["lm_head"]
    assert _names(["a.?.w"], "") == ["a.11.w", "head"]


def test_dropped_elements_carry_the_reason() -> None:
    relation, renamed = names_relation(TENSORS, ["head"], [])
    assert [(d.box.tensor, d.box.numel, d.reason) for d in relation.left_only] == [("head", 6, "--drop head")]
    assert "head" not in renamed


@pytest.mark.parametrize("rules", ["a.*.w = same", "head = a.b.w"])
def test_two_tensors_cannot_share_a_name(rules: str) -> None:
    with pytest.raises(PlanError, match="two tensors"):
        _names([], rules)


@pytest.mark.parametrize(
    ("drops", "rules"), [(["nothing*"], ""), ([], "b.* = c.*"), (["a.*"], "a.*.w = x.*")]
)
def test_a_rule_that_matches_nothing_is_a_mistake(drops: list[str], rules: str) -> None:
    with pytest.raises(UsageError, match="matches no tensor"):
        _names(drops, rules)


@pytest.mark.parametrize("text", ["a", "a =", "= b", "a.* = b.*.*"])
def test_a_line_that_is_no_rule_is_named_by_number(text: str) -> None:
    with pytest.raises(UsageError, match="line 3"):
        parse_renames(f"# comment\n\n{text}\n")
