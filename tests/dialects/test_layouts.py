"""Any model laid out in any way and put together again is itself: from metadata alone, and in bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import ckptconv
from ckptconv.dialects import DIALECTS
from ckptconv.dialects.assemble import assemble
from ckptconv.dialects.spread import Layout, spread
from ckptconv.families import find_family
from ckptconv.parallel import Grid, stage_layers
from ckptconv.relations import Relation, Spec
from ckptconv.slots.translate import to_slots
from megatron_layouts import Drawn, flags_of, layouts, models, tensors_of, write_model

Array = npt.NDArray[np.float32]

_HEALTH = [HealthCheck.too_slow, HealthCheck.data_too_large]


def _assert_same(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    assert sorted(found) == sorted(expected)
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


def _whole(folder: Path) -> dict[str, Array]:
    return load_file(folder / "model.safetensors")


def _layout(drawn: Drawn, layers: int, vocab: int) -> Layout:
    options = drawn.options
    sizes, fold = options["sizes"], options["schedule"] == "dualpipev"
    extended = bool(options.get("extend_ep"))
    tp = sizes["tp"]
    grid = Grid(
        tp, sizes["pp"], 2 if fold else sizes.get("vpp", 1), sizes.get("ep", 1),
        1 if extended else sizes.get("etp", tp), extended, fold,
    )  # fmt: skip
    stages = stage_layers(
        grid, layers, counts=options.get("layers_per_stage"), noop=options.get("noop_layers", ())
    )
    dialect = next(d for d in DIALECTS if d.name == options["dialect"])
    unit = options.get("vocab_divisible")
    padded = None if unit is None else -(-vocab // (unit * tp)) * unit * tp
    experts = options.get("experts") or "sequential"
    return Layout(grid, stages, dialect, experts, options.get("mla") == "split", padded)


@settings(max_examples=150, suppress_health_check=_HEALTH)
@given(layouts())
def test_laid_out_and_put_together_is_the_identity(drawn: Drawn) -> None:
    family = find_family(drawn.config["model_type"])
    assert family is not None
    dims = family.dims(drawn.config)
    named = {n: Spec(t.shape, "float32") for n, t in tensors_of(drawn.config).items()}
    slots = to_slots(named, family.table(drawn.config), dims, what="config.json")
    slots.check()
    held = dict(slots.right)
    if "head" not in held and drawn.options["sizes"]["pp"] > 1 and not drawn.options["schedule"]:
        held["head"] = held["embed"]
    layout = _layout(drawn, dims["layers"], dims["vocab"])
    made = spread(layout, held, dims)
    assert set(made.held) == set(layout.grid.ranks())
    joined = assemble(layout.grid, made.held, layout.dialect, lambda rank, v, name: f"{rank} {v} {name}")
    joined.relation.check()
    assert joined.unknown == ()
    assert joined.relation.right == made.whole
    assert [list(n.values()) for n in joined.stages.values()] == [
        list(n.values()) for n in layout.stages.values()
    ]
    found, unknown = joined.table.named(joined.relation.right)
    assert unknown == []
    shards = joined.relation.compose(joined.table.relation(joined.relation.right, found, dims, "the model"))
    shards.check()
    assert shards.right == held
    round_trip: Relation = shards.invert().compose(shards)
    assert round_trip.is_identity()
    assert shards.compose(shards.invert()).is_identity()


@settings(max_examples=60, suppress_health_check=_HEALTH)
@given(layouts())
def test_split_and_merged_bytes_are_the_model(drawn: Drawn) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tensors = tensors_of(drawn.config)
        model = write_model(folder / "model", drawn.config, tensors)
        ckptconv.convert(model, folder / "ranks", to="megatron", **flags_of(drawn.options))
        ckptconv.convert(folder / "ranks", folder / "back", config=str(model))
        _assert_same(_whole(folder / "back"), tensors)


@st.composite
def _two_layouts(draw: st.DrawFn) -> tuple[Drawn, Drawn]:
    config = draw(models())
    return draw(layouts(config)), draw(layouts(config))


@settings(max_examples=40, suppress_health_check=_HEALTH)
@given(_two_layouts())
def test_ranks_laid_out_anew_are_those_of_the_model(both: tuple[Drawn, Drawn]) -> None:
    one, two = both
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tensors = tensors_of(one.config)
        model = write_model(folder / "model", one.config, tensors)
        ckptconv.convert(model, folder / "one", to="megatron", **flags_of(one.options))
        ckptconv.convert(model, folder / "two", to="megatron", **flags_of(two.options))
        ckptconv.convert(
            folder / "one", folder / "anew", to="megatron", config=str(model), **flags_of(two.options)
        )
        files = sorted(p.relative_to(folder / "two") for p in (folder / "two").rglob("*.pt"))
        assert sorted(p.relative_to(folder / "anew") for p in (folder / "anew").rglob("*.pt")) == files
        for file in files:
            direct, anew = (_flat(_load(folder / way / file)) for way in ("two", "anew"))
            assert list(direct) == list(anew)
            for key, value in direct.items():
                assert value is None or torch.equal(anew[key], value), f"{file} {key}"
        ckptconv.convert(folder / "anew", folder / "back", config=str(model))
        _assert_same(_whole(folder / "back"), tensors)


def _load(path: Path) -> dict[str, Any]:
    loaded = torch.load(path, weights_only=False)
    return {k: v for k, v in loaded.items() if k.startswith("model")}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


# What follows cuts tensors in plain numpy, by what Megatron's modules do with them.


def _rank(folder: Path, name: str) -> dict[str, Array]:
    loaded = _load(folder / "iter_0000001" / name / "model_optim_rng.pt")["model"]
    return {k: v.numpy() for k, v in loaded.items() if isinstance(v, torch.Tensor)}


def _split(folder: Path, kind: str, **options: Any) -> tuple[dict[str, Array], Path]:
    config = _CONFIGS[kind]
    tensors = tensors_of(config)
    model = write_model(folder / "model", config, tensors)
    ckptconv.convert(model, folder / "ranks", to="megatron", **options)
    return tensors, folder / "ranks"


_BASE: dict[str, Any] = dict(
    vocab_size=10, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=3, max_position_embeddings=32, rms_norm_eps=1e-6, rope_theta=1e4,
    hidden_act="silu", initializer_range=0.02,
)  # fmt: skip
_CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": {**_BASE, "model_type": "qwen2"},
    "qwen3_moe": {
        **_BASE, "model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 6,
        "num_experts_per_tok": 2,
    },
    "deepseek_v3": {
        **_BASE, "model_type": "deepseek_v3", "q_lora_rank": 10, "kv_lora_rank": 6, "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 2, "v_head_dim": 3, "n_routed_experts": 4, "n_shared_experts": 1,
        "moe_intermediate_size": 6, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0,
        "num_experts_per_tok": 2, "num_key_value_heads": 4, "head_dim": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("dialect", "norm"),
    [("core-local", "input_layernorm."), ("core-te", "self_attention.linear_qkv.layer_norm_")],
)
def test_a_rank_of_a_dense_model(dialect: str, norm: str, tmp_path: Path) -> None:
    tensors, ranks = _split(tmp_path, "qwen2", dialect=dialect, sizes={"tp": 2, "pp": 2}, vocab_divisible=4)
    found = _rank(ranks, "mp_rank_01_001")  # tensor rank 1, the second of two layers
    at = "model.layers.1."

    def qkv(kind: str) -> Array:
        """One query group a rank: two query heads, one key, one value."""
        q, k, v = (tensors[f"{at}self_attn.{p}_proj.{kind}"] for p in "qkv")
        return np.concatenate([q[6:12], k[3:6], v[3:6]])

    gate, up = tensors[f"{at}mlp.gate_proj.weight"], tensors[f"{at}mlp.up_proj.weight"]
    head = tensors["lm_head.weight"]
    layer = "decoder.layers.0."
    expected = {
        f"{layer}self_attention.linear_qkv.weight": qkv("weight"),
        f"{layer}self_attention.linear_qkv.bias": qkv("bias"),
        f"{layer}self_attention.linear_proj.weight": tensors[f"{at}self_attn.o_proj.weight"][:, 6:],
        f"{layer}mlp.linear_fc1.weight": np.concatenate([gate[6:], up[6:]]),
        f"{layer}mlp.linear_fc2.weight": tensors[f"{at}mlp.down_proj.weight"][:, 6:],
        f"{layer}{norm}weight": tensors[f"{at}input_layernorm.weight"],
        "decoder.final_layernorm.weight": tensors["model.norm.weight"],
        "output_layer.weight": np.concatenate([head[8:], np.repeat(head[-1:], 6, axis=0)]),
    }
    norms = ("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight")
    (mlp_norm,) = (n for n in found if n.endswith(norms))
    expected[mlp_norm] = tensors[f"{at}post_attention_layernorm.weight"]
    _assert_same(found, expected)
    first = _rank(ranks, "mp_rank_00_000")
    assert np.array_equal(first["embedding.word_embeddings.weight"], tensors["model.embed_tokens.weight"][:8])
    assert "output_layer.weight" not in first


def _gate_up(tensors: Mapping[str, Array], expert: int, part: slice) -> Array:
    at = f"model.layers.0.mlp.experts.{expert}."
    return np.concatenate([tensors[f"{at}{p}_proj.weight"][part] for p in ("gate", "up")])


def test_a_rank_of_experts(tmp_path: Path) -> None:
    tensors, ranks = _split(
        tmp_path, "qwen3_moe", dialect="core-local", sizes={"tp": 2, "ep": 2}, experts="sequential"
    )
    found = _rank(ranks, "mp_rank_01_001")  # experts 2 and 3, the second half of each
    half = slice(3, 6)
    for local, expert in enumerate((2, 3)):
        stem = f"decoder.layers.0.mlp.experts.local_experts.{local}."
        down = tensors[f"model.layers.0.mlp.experts.{expert}.down_proj.weight"]
        assert np.array_equal(found[f"{stem}linear_fc1.weight"], _gate_up(tensors, expert, half))
        assert np.array_equal(found[f"{stem}linear_fc2.weight"], down[:, half])
    assert np.array_equal(
        found["decoder.layers.0.mlp.router.weight"], tensors["model.layers.0.mlp.gate.weight"]
    )


def test_a_rank_of_whole_experts(tmp_path: Path) -> None:
    tensors, ranks = _split(
        tmp_path, "qwen3_moe", dialect="core-te", sizes={"tp": 2, "ep": 2, "etp": 1}, experts="grouped"
    )
    assert sorted(p.name for p in (ranks / "iter_0000001").iterdir()) == ["mp_rank_00_000", "mp_rank_01_001"]
    found = _rank(ranks, "mp_rank_01_001")
    whole = slice(0, 6)
    assert np.array_equal(
        found["decoder.layers.0.mlp.experts.linear_fc1.weight1"], _gate_up(tensors, 3, whole)
    )
    down = tensors["model.layers.0.mlp.experts.3.down_proj.weight"]
    assert np.array_equal(found["decoder.layers.0.mlp.experts.linear_fc2.weight1"], down)
    q = tensors["model.layers.0.self_attn.q_proj.weight"]
    assert np.array_equal(found["decoder.layers.0.self_attention.linear_qkv.weight"][:6], q[6:])


def test_a_rank_of_experts_in_one_tensor(tmp_path: Path) -> None:
    tensors, ranks = _split(
        tmp_path, "qwen3_moe", dialect="core-te", sizes={"tp": 2, "ep": 2}, experts="legacy-grouped"
    )
    found = _rank(ranks, "mp_rank_01_001")
    half = slice(3, 6)
    fc1 = np.stack([_gate_up(tensors, e, half).T for e in (2, 3)])  # [experts, hidden, gate and up]
    assert np.array_equal(found["decoder.layers.0.mlp.experts.weight1"], fc1.reshape(8, 12))
    downs = (tensors[f"model.layers.0.mlp.experts.{e}.down_proj.weight"] for e in (2, 3))
    fc2 = np.concatenate([d[:, half].T for d in downs])
    assert np.array_equal(found["decoder.layers.0.mlp.experts.weight2"], fc2)


def test_a_rank_of_experts_over_tensor_ranks(tmp_path: Path) -> None:
    tensors, ranks = _split(
        tmp_path,
        "qwen3_moe",
        dialect="mindspeed",
        sizes={"tp": 2, "ep": 2},
        experts="sequential",
        extend_ep=True,
    )
    found = _rank(ranks, "mp_rank_01_000")  # one expert a rank: expert rank 0, tensor rank 1
    fc1 = found["decoder.layers.0.mlp.experts.local_experts.0.linear_fc1.weight"]
    assert np.array_equal(fc1, _gate_up(tensors, 1, slice(0, 6)))


def _latent(tensors: Mapping[str, Array], name: str) -> Array:
    return tensors[f"model.layers.1.self_attn.{name}.weight"]


def test_a_rank_of_latent_attention(tmp_path: Path) -> None:
    tensors, ranks = _split(tmp_path, "deepseek_v3", dialect="core-local", sizes={"tp": 2})
    found = _rank(ranks, "mp_rank_01")
    at = "decoder.layers.1.self_attention."
    assert np.array_equal(found[f"{at}linear_q_down_proj.weight"], _latent(tensors, "q_a_proj"))
    assert np.array_equal(found[f"{at}linear_kv_down_proj.weight"], _latent(tensors, "kv_a_proj_with_mqa"))
    assert np.array_equal(found[f"{at}linear_q_up_proj.weight"], _latent(tensors, "q_b_proj")[12:])
    assert np.array_equal(found[f"{at}linear_kv_up_proj.weight"], _latent(tensors, "kv_b_proj")[14:])
    assert np.array_equal(found[f"{at}linear_proj.weight"], _latent(tensors, "o_proj")[:, 6:])
    assert np.array_equal(
        found["decoder.layers.1.mlp.router.expert_bias"],
        tensors["model.layers.1.mlp.gate.e_score_correction_bias"],
    )


def test_a_rank_of_split_latent_attention(tmp_path: Path) -> None:
    tensors, ranks = _split(tmp_path, "deepseek_v3", dialect="mindspeed", mla="split", sizes={"tp": 2})
    found = _rank(ranks, "mp_rank_01")
    at = "decoder.layers.1.self_attention."
    fused = np.concatenate([_latent(tensors, "q_a_proj"), _latent(tensors, "kv_a_proj_with_mqa")])
    assert np.array_equal(found[f"{at}linear_qkv.weight"], fused)
    q = _latent(tensors, "q_b_proj").reshape(4, 6, 10)[2:]  # the rank's two heads, 4 and 2 rows each
    kv = _latent(tensors, "kv_b_proj").reshape(4, 7, 6)[2:]
    assert np.array_equal(found[f"{at}linear_qk_nope.weight"], q[:, :4].reshape(8, 10))
    assert np.array_equal(found[f"{at}linear_qk_rope.weight"], q[:, 4:].reshape(4, 10))
    assert np.array_equal(found[f"{at}linear_kv_nope.weight"], kv[:, :4].reshape(8, 6))
    assert np.array_equal(found[f"{at}linear_v.weight"], kv[:, 4:].reshape(6, 6))


@pytest.mark.parametrize(
    ("kind", "counts", "vpp", "text"),
    [
        ("qwen2", (0, 2), 1, "E|t*2L"),
        ("qwen2", (1, 1), 1, "Et*1|t*1L"),
        ("qwen2", (1, 0, 1, 0), 2, "Et*1||t*1|L"),
        ("qwen2", (2, 0), 2, "Et*1||t*1|L"),  # one number a stage: its chunks share them
        ("deepseek_v3", (1, 1), 1, "Et*1|t*1mL"),
    ],
)
def test_an_uneven_pipeline_is_said_in_the_arguments(
    kind: str, counts: tuple[int, ...], vpp: int, text: str, tmp_path: Path
) -> None:
    config = _CONFIGS[kind] | ({"num_nextn_predict_layers": 1} if "m" in text else {})
    model = write_model(tmp_path / "model", config, tensors_of(config))
    sizes = {"pp": 2, "vpp": vpp}
    ckptconv.convert(model, tmp_path / "run", to="megatron", sizes=sizes, layers_per_stage=counts)
    path = tmp_path / "run" / "iter_0000001" / "mp_rank_00_000" / "model_optim_rng.pt"
    args = torch.load(path, weights_only=False)["args"]
    assert args.pipeline_model_parallel_layout == text
    ckptconv.convert(tmp_path / "run", tmp_path / "back")
    _assert_same(_whole(tmp_path / "back"), tensors_of(config))


def test_a_layout_of_mindspeed_does_not_outlive_it(tmp_path: Path) -> None:
    config = _CONFIGS["qwen2"]
    model = write_model(tmp_path / "model", config, tensors_of(config))
    ckptconv.convert(
        model, tmp_path / "fold", to="megatron", dialect="mindspeed", schedule="dualpipev", noop_layers=(0, 1)
    )
    ckptconv.convert(tmp_path / "fold", tmp_path / "run", to="megatron", sizes={"tp": 2})
    assert ckptconv.open(tmp_path / "run").checkpoint.layout == {"tp": 2, "pp": 1}
    ckptconv.convert(tmp_path / "run", tmp_path / "back")
    _assert_same(_whole(tmp_path / "back"), tensors_of(config))
