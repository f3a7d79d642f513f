"""Metadata alone proves that a conversion loses nothing, also for a model of 70 billion parameters."""

from __future__ import annotations

from dataclasses import replace
from time import process_time

import pytest

from ckptconv.containers.torch.rankfile import tensor_key
from ckptconv.dialects import DIALECTS
from ckptconv.dialects.assemble import assemble
from ckptconv.dialects.spread import Layout, spread
from ckptconv.dtypes import dtype
from ckptconv.families import find_family
from ckptconv.parallel import Grid, stage_layers
from ckptconv.relations import Box, Constant, Pair, Relation, Spec
from ckptconv.slots.translate import from_slots, to_slots
from ckptconv.verify.proof import prove

LLAMA_70B = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28_672,
    "tie_word_embeddings": False,
}


def relation_of(config: dict[str, object], tp: int, pp: int) -> Relation:
    """Relate the tensors of Megatron's ranks to Hugging Face's, as a merge does."""
    family = find_family("llama")
    assert family is not None
    dims = family.dims(config)
    grid = Grid(tp, pp, 1, 1, tp, False, False)
    tensors = {n: Spec(s, "bfloat16") for n, s, optional in family.expected(config) if not optional}
    slots = to_slots(tensors, family.table(config), dims, what="config").right
    dialect = next(d for d in DIALECTS if d.name == "core-te")
    vocab = -(-dims["vocab"] // (128 * tp)) * 128 * tp
    layout = Layout(grid, stage_layers(grid, dims["layers"]), dialect, vocab=vocab)
    held = spread(layout, slots, dims).held
    joined = assemble(grid, held, dialect, lambda r, v, n: tensor_key(grid.folder(r), v, 1, n))
    inner = to_slots(joined.relation.right, joined.table, dims, what="ranks")
    relation = joined.relation.compose(inner)
    return relation.compose(from_slots(relation.right, family.table(config), dims, who="llama"))


def test_a_70b_layout_is_proved_in_two_seconds() -> None:
    relation = relation_of(LLAMA_70B, 8, 4)
    assert len(relation.left) > 3000 and len(relation.right) == 723
    begin = process_time()
    proof, wrong = prove([relation], {}, {})
    seconds = process_time() - begin
    assert not wrong and proof.complete and proof.invertible
    assert proof.pairs == len(relation.pairs)
    assert seconds < 2


SMALL = {**LLAMA_70B, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 8, "vocab_size": 300,
         "intermediate_size": 96, "head_dim": 8}  # fmt: skip


@pytest.fixture(scope="module")
def small() -> Relation:
    return relation_of(SMALL, 2, 2)


def test_a_pair_that_is_missing_is_named(small: Relation) -> None:
    at = next(i for i, p in enumerate(small.pairs) if p.right.tensor == "model.layers.1.mlp.up_proj.weight")
    _, wrong = prove([replace(small, pairs=small.pairs[:at] + small.pairs[at + 1 :])], {}, {})
    assert [m.kind for m in wrong] == ["metadata"]
    assert "model.layers.1.mlp.up_proj.weight" in wrong[0].text and "covered by no pair" in wrong[0].text


def test_a_pair_that_doubles_is_named(small: Relation) -> None:
    extra = Pair(Box.interval(small.pairs[0].left.tensor, 0, 1), Box.interval("model.norm.weight", 0, 1))
    _, wrong = prove([replace(small, pairs=(*small.pairs, extra))], {}, {})
    assert "model.norm.weight" in wrong[0].text and "covered twice" in wrong[0].text


def test_what_has_no_inverse_is_named(small: Relation) -> None:
    casts = {
        "a": (dtype("float32"), dtype("bfloat16")),
        "b": (dtype("bfloat16"), dtype("float32")),
    }
    proof, wrong = prove([small], casts, {"model.norm.weight": (Constant(1.0),)})
    assert not wrong and proof.complete and not proof.invertible
    assert proof.one_way == ("1 tensor: something is added", "1 tensor: rounded")
