"""Factors of adapters are told from weights, cut as their weights ask, and taken apart expert by expert."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptconv.dialects.assemble import assemble
from ckptconv.dialects.core import CORE_LOCAL
from ckptconv.dialects.factors import (
    factor_cut,
    factor_of,
    own_name,
    unpack_factor,
    with_implied,
    without_weights,
)
from ckptconv.errors import PlanError
from ckptconv.families import find_family
from ckptconv.parallel import Cut, Grid
from ckptconv.planning.adapters.carry import carried
from ckptconv.relations import LowRank, Relation, Spec

QKV = "decoder.layers.0.self_attention.linear_qkv"


@pytest.mark.parametrize(
    ("name", "weight", "part", "adapter"),
    [
        (f"{QKV}.lora_A.default.weight", f"{QKV}.weight", "A", "default"),
        (f"{QKV}.lora_B.weight", f"{QKV}.weight", "B", ""),
        (f"{QKV}.lora_b.other.weight", f"{QKV}.weight", "B", "other"),
        (f"{QKV}.lora_a", f"{QKV}.weight", "A", ""),
        (f"{QKV}.mindpet_delta_lora_b", f"{QKV}.weight", "B", ""),
        (f"{QKV}.tk_delta_lora_a", f"{QKV}.weight", "A", ""),
        ("m.experts.linear_fc1.lora_A.weight3", "m.experts.linear_fc1.weight3", "A", ""),
    ],
)
def test_names(name: str, weight: str, part: str, adapter: str) -> None:
    found = factor_of(name)
    assert found is not None
    assert (found.weight, found.part, found.adapter) == (weight, part, adapter)
    assert factor_of(found.name()) == found


@pytest.mark.parametrize(
    "name", [f"{QKV}.weight", f"{QKV}.lora_A", f"{QKV}.lora_C.weight", f"{QKV}.lora_B.bias"]
)
def test_other_names(name: str) -> None:
    assert factor_of(name) is None


def test_own_names() -> None:
    assert own_name(f"base_model.model.{QKV}.base_layer.weight") == f"{QKV}.weight"
    assert own_name(f"{QKV}.weight") == f"{QKV}.weight"


def test_cuts() -> None:
    assert factor_cut(Cut(0, 2), "B") == Cut(0, 2)
    assert factor_cut(Cut(0, 2), "A") == Cut()
    assert factor_cut(Cut(1), "A") == Cut(1)
    assert factor_cut(Cut(1), "B") == Cut()
    assert factor_cut(Cut(), "A") == factor_cut(Cut(), "B") == Cut()


def test_weights_are_implied() -> None:
    factors = {
        f"{QKV}.lora_A.weight": Spec((2, 8), "float32"),
        f"{QKV}.lora_B.weight": Spec((6, 2), "float32"),
    }
    assert with_implied(factors)[f"{QKV}.weight"] == Spec((6, 8), "float32")
    assert without_weights(factors)
    assert not without_weights({**factors, f"{QKV}.weight": Spec((6, 8), "float32")})
    assert not without_weights({"embedding.weight": Spec((6, 8), "float32")})


def gathered(relation: Relation, left: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Carry out a relation on arrays; every pair, so that a later copy must agree with an earlier one."""
    made = {n: np.full(s.numel, np.nan, np.float32) for n, s in relation.right.items()}
    for pair in relation.pairs:
        size, a, b = pair.aligned()
        for index in product(*(range(n) for n in size)):
            value = left[pair.left.tensor].reshape(-1)[
                pair.left.offset + sum(i * s for i, s in zip(index, a, strict=True))
            ]
            at = pair.right.offset + sum(i * s for i, s in zip(index, b, strict=True))
            old = made[pair.right.tensor][at]
            assert np.isnan(old) or old == value
            made[pair.right.tensor][at] = value
    return {n: v.reshape(relation.right[n].shape) for n, v in made.items()}


@given(
    experts=st.integers(1, 3),
    hidden=st.integers(1, 4),
    inner=st.integers(1, 4),
    rank=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_experts_of_one_tensor(experts: int, hidden: int, inner: int, rank: int, seed: int) -> None:
    """The product of each expert's factors is that of its part of the memory."""
    rng = np.random.default_rng(seed)
    shapes = {
        "1": ((hidden, rank * experts), (rank, experts * inner), hidden, inner),
        "2": ((experts * inner, rank), (rank * experts, hidden), inner, hidden),
    }
    for which, (a_shape, b_shape, into, out) in shapes.items():
        names = {p: f"x.mlp.experts.weight{which}_lora_{p}" for p in "ab"}
        arrays = {
            names["a"]: rng.integers(-9, 9, a_shape).astype(np.float32),
            names["b"]: rng.integers(-9, 9, b_shape).astype(np.float32),
        }
        specs = {n: Spec(v.shape, "float32") for n, v in arrays.items()}
        found: dict[str, np.ndarray] = {}
        for name in names.values():
            relation = unpack_factor(name, name, specs)
            assert relation is not None
            relation.check()
            found |= {k.rpartition(":")[2]: v for k, v in gathered(relation, arrays).items()}
        a = arrays[names["a"]].reshape(experts, into, rank)
        b = arrays[names["b"]].reshape(experts, rank, out)
        for e in range(experts):
            stem = f"x.mlp.experts.linear_fc{which}.lora_"
            np.testing.assert_array_equal(
                found[f"{stem}B.weight{e}"] @ found[f"{stem}A.weight{e}"], (a[e] @ b[e]).T
            )


def test_experts_of_other_ranks_are_refused() -> None:
    a, b = "x.mlp.experts.weight1_lora_a", "x.mlp.experts.weight1_lora_b"
    with pytest.raises(PlanError, match="other factor"):
        unpack_factor(a, a, {a: Spec((4, 6), "float32")})
    with pytest.raises(PlanError, match="same rank"):
        unpack_factor(a, a, {a: Spec((4, 5), "float32"), b: Spec((2, 8), "float32")})


@given(
    tp=st.sampled_from((1, 2, 4)),
    groups=st.sampled_from((4, 8)),
    per_group=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_products_follow_their_weights(tp: int, groups: int, per_group: int, seed: int) -> None:
    """The product of what ranks hold, gathered as weights are, is the product of the factors carried over."""
    hidden, head, rank, inner = 8, 2, 2, 12
    config = {
        "hidden_size": hidden, "num_attention_heads": groups * per_group, "num_key_value_heads": groups,
        "head_dim": head, "intermediate_size": inner, "vocab_size": 8, "num_hidden_layers": 1,
    }  # fmt: skip
    family = find_family("llama")
    assert family is not None
    rng = np.random.default_rng(seed)
    modules = {
        "self_attention.linear_qkv": ((per_group + 2) * groups * head // tp, hidden, "B"),
        "self_attention.linear_proj": (hidden, groups * per_group * head // tp, "A"),
        "mlp.linear_fc1": (2 * inner // tp, hidden, "B"),
        "mlp.linear_fc2": (hidden, inner // tp, "A"),
    }
    grid = Grid(tp=tp)
    arrays: dict[str, np.ndarray] = {}
    held = {r: {0: dict[str, Spec]()} for r in grid.ranks()}
    for module, (rows, columns, cut) in modules.items():
        stem = f"decoder.layers.0.{module}"
        shared = {"A": rng.integers(-4, 5, (rank, columns)), "B": rng.integers(-4, 5, (rows, rank))}
        for r in held:
            own = {p: rng.integers(-4, 5, v.shape) if p == cut else v for p, v in shared.items()}
            values = {
                f"{stem}.lora_A.default.weight": own["A"],
                f"{stem}.lora_B.default.weight": own["B"],
                f"{stem}.weight": own["B"] @ own["A"],
            }
            for name, value in values.items():
                arrays[f"{r.tp}:{name}"] = value.astype(np.float32)
                held[r][0][name] = Spec(value.shape, "float32")
    made = assemble(grid, held, CORE_LOCAL, lambda r, v, name: f"{r.tp}:{name}")
    made.relation.check()
    assert made.unknown == ()
    whole = made.relation.right
    weights = [n for n in whole if factor_of(n) is None]
    terms = {
        n: (
            LowRank(
                n.replace("weight", "lora_A.default.weight"),
                n.replace("weight", "lora_B.default.weight"),
                1.0,
            ),
        )
        for n in weights
    }
    dims = family.dims(config)
    table = family.table(config)
    found, _ = made.table.named(weights)
    slots = made.table.relation(whole, found, dims, "config")
    here, _ = table.holding(slots.right)
    outer = table.relation(table.specs(here, slots.right, dims), here, dims, "llama").invert()
    merged = gathered(made.relation.select(weights).compose(slots).compose(outer), arrays)

    factors = {n: s for n, s in whole.items() if n not in weights}
    relation, products = carried(terms, {**outer.right, **factors}, made.table, table, dims)
    relation.check()
    values = gathered(made.relation, arrays)
    given_ = {**merged, **{n: values[n] for n in factors}}
    right = gathered(relation, given_)
    assert products.keys() == merged.keys()
    for name, (term,) in products.items():
        assert not term.transposed
        np.testing.assert_array_equal(right[term.b] @ right[term.a], merged[name])
