"""What a plan computes does not grow with the number of layers, experts and ranks that are alike."""

from __future__ import annotations

import pytest

from ckptconv.errors import PlanError
from ckptconv.parallel import Cut, Shard, merge_shards
from ckptconv.relations import Relation, Spec, split
from ckptconv.relations import relation as relation_module
from ckptconv.relations.packing import in_turns


def model(experts: int, ranks: int, copies: int) -> Relation:
    """Return the shards of fused projections, with replicas, as whole ones."""
    spec = Spec((8, 6), "bfloat16")
    return Relation.union(
        merge_shards(
            f"e{e}",
            [Shard(f"r{r}.{c}/e{e}", spec, r) for c in range(copies) for r in range(ranks)],
            Cut(0, 2),
            ranks,
        )
        for e in range(experts)
    )


def apart(experts: int, ranks: int) -> Relation:
    """Return fused projections as gates and ups."""
    half = Spec((4 * ranks, 6), "bfloat16")
    return Relation.union(
        in_turns(f"e{e}", {f"gate{e}": half, f"up{e}": half}, groups=1) for e in range(experts)
    )


def test_pairs_grow_with_the_shards() -> None:
    for experts, ranks, copies in ((4, 2, 1), (64, 2, 1), (4, 16, 1), (4, 2, 16)):
        made = model(experts, ranks, copies).compose(apart(experts, ranks))
        made.check()
        assert len(made.pairs) == 2 * experts * ranks * copies
        assert sum(not p.left_copy for p in made.pairs) == 2 * experts * ranks


def test_tensors_that_are_alike_are_met_once(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[int] = []
    real = relation_module.meet
    monkeypatch.setattr(relation_module, "meet", lambda x, y: met.append(1) or real(x, y))
    counts = []
    for experts in (1, 8, 64):
        met.clear()
        model(experts, 4, 3).compose(apart(experts, 4))
        counts.append(len(met))
    assert counts[0] == counts[1] == counts[2]


def test_replicas_share_the_box_of_their_slice() -> None:
    made = model(1, 4, 8)
    assert len(made.pairs) == 32
    assert len({id(p.right) for p in made.pairs}) == 4


def test_a_digest_does_not_depend_on_the_order_and_tells_names_apart() -> None:
    spec = Spec((4, 4), "float32")
    made = split(["a", "b"], "w", spec, axis=0)
    turned = Relation(made.left, made.right, made.pairs[::-1])
    assert made.digest() == turned.digest()
    others = [
        split(["a", "c"], "w", spec, axis=0),
        split(["a", "b"], "w", spec, axis=1),
        split(["a' 'b", "b"], "w", spec, axis=0),
        split(["a", "b"], "w", Spec((4, 4), "bfloat16"), axis=0),
    ]
    assert len({made.digest(), *(o.digest() for o in others)}) == 5


def test_a_tensor_unlike_the_others_is_still_refused() -> None:
    made = model(16, 4, 2)
    lacking = [p for p in made.pairs if p.left.tensor not in ("r3.0/e9", "r3.1/e9")]
    with pytest.raises(PlanError, match="e9"):
        Relation(made.left, made.right, tuple(lacking)).check()
