"""MindFormers' names and packings, against numpy's word for them, and back again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import ckptconv
from ckptconv.dialects.mindformers import CORE, LEGACY, dialect_of
from ckptconv.errors import CkptconvError, UsageError
from ckptconv.families import find_family
from ckptconv.relations import Relation, Spec
from ckptconv.slots import columns, concat, rotary, rows, stacked, transposed
from ckptconv.slots.pack import every_expert, leaves, relate

Array = npt.NDArray[Any]

SIZES = {
    "vocab_size": 12,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "tie_word_embeddings": False,
}
GLM = {
    "padded_vocab_size": 12,
    "hidden_size": 8,
    "ffn_hidden_size": 6,
    "num_layers": 2,
    "num_attention_heads": 2,
    "kv_channels": 4,
    "multi_query_attention": True,
    "multi_query_group_num": 1,
    "add_qkv_bias": True,
}
LATENT = {
    **SIZES,
    "num_key_value_heads": 4,
    "q_lora_rank": 5,
    "kv_lora_rank": 3,
    "qk_nope_head_dim": 2,
    "qk_rope_head_dim": 2,
    "v_head_dim": 3,
    "n_routed_experts": 3,
    "n_shared_experts": 1,
    "moe_intermediate_size": 4,
    "first_k_dense_replace": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES,
    "qwen3": {**SIZES, "head_dim": 4},
    "qwen3_moe": {
        **SIZES,
        "head_dim": 4,
        "num_experts": 3,
        "moe_intermediate_size": 5,
        "norm_topk_prob": True,
    },
    "mixtral": {**SIZES, "num_local_experts": 3},
    "baichuan": {k: v for k, v in SIZES.items() if k != "num_key_value_heads"},
    "internlm2": SIZES,
    "chatglm": GLM,
    "deepseek_v3": LATENT,
    "gpt2": {"vocab_size": 12, "n_embd": 8, "n_layer": 2, "n_head": 4, "n_positions": 16},
    "bloom": {"vocab_size": 12, "hidden_size": 8, "n_layer": 2, "n_head": 4},
}
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"qkv_concat": True}),
    ("llama", {"qkv_concat": True, "qkv_layout": "contiguous", "mlp_layout": "contiguous"}),
    ("qwen2", {"qkv_concat": True}),
    ("qwen2", {"dialect": "core"}),
    ("qwen3", {}),
    ("qwen3", {"qkv_layout": "contiguous", "mlp_layout": "contiguous"}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {"experts": "sequential"}),
    ("mixtral", {}),
    ("mixtral", {"experts": "grouped", "qkv_concat": True}),
    ("baichuan", {}),
    ("internlm2", {}),
    ("chatglm", {}),
    ("chatglm", {"qkv_concat": True}),
    ("deepseek_v3", {}),
    ("deepseek_v3", {"mla": "split", "experts": "sequential"}),
    ("deepseek_v3", {"dialect": "legacy"}),
    ("deepseek_v3", {"dialect": "legacy", "experts": "grouped"}),
    ("gpt2", {}),
    ("bloom", {}),
]


def model(folder: Path, family: str) -> dict[str, Array]:
    """Write a Hugging Face model of random numbers."""
    config = {"model_type": family, **CONFIGS[family]}
    found = find_family(family)
    assert found is not None
    rng = np.random.default_rng(7)
    tensors = {
        name: rng.standard_normal(shape, np.float32)
        for name, shape, optional in found.expected(config)
        if not optional
    }
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


def written(folder: Path) -> dict[str, Array]:
    found = ckptconv.open(folder)
    return {name: found.read(name) for name in found}


@pytest.mark.parametrize(("family", "form"), FORMS)
def test_every_form_comes_back_bit_for_bit(tmp_path: Path, family: str, form: Mapping[str, Any]) -> None:
    tensors = model(tmp_path / "hf", family)
    ckptconv.convert(tmp_path / "hf", tmp_path / "ms", to="mindformers", **form)
    layout = {k: v for k, v in form.items() if k.endswith("_layout")}
    ckptconv.convert(tmp_path / "ms", tmp_path / "back", config=str(tmp_path / "hf"), **layout)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[n], tensors[n]) for n in tensors)


def made(tmp_path: Path, family: str, **form: Any) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return a model's tensors under Hugging Face's names, and under MindFormers'."""
    tensors = model(tmp_path / "hf", family)
    ckptconv.convert(tmp_path / "hf", tmp_path / "ms", to="mindformers", **form)
    return tensors, written(tmp_path / "ms")


def test_fused_query_lies_by_group_and_gate_row_by_row(tmp_path: Path) -> None:
    hf, ms = made(tmp_path, "llama", qkv_concat=True)
    at = "model.layers.1.self_attn"
    q, k, v = (hf[f"{at}.{n}_proj.weight"] for n in "qkv")
    want = np.concatenate([q[:4], k[:2], v[:2], q[4:], k[2:], v[2:]])
    assert np.array_equal(ms["model.layers.1.attention.w_qkv.weight"], want)
    gate, up = (hf[f"model.layers.1.mlp.{n}_proj.weight"] for n in ("gate", "up"))
    want = np.stack([gate, up], 1).reshape(12, 8)
    assert np.array_equal(ms["model.layers.1.feed_forward.w_gate_hidden.weight"], want)


def test_contiguous_layouts_are_concatenations(tmp_path: Path) -> None:
    hf, ms = made(tmp_path, "qwen3", qkv_layout="contiguous", mlp_layout="contiguous")
    q, k, v = (hf[f"model.layers.0.self_attn.{n}_proj.weight"] for n in "qkv")
    assert np.array_equal(ms["decoder.layers.0.self_attention.linear_qkv.weight"], np.concatenate([q, k, v]))
    gate, up = (hf[f"model.layers.0.mlp.{n}_proj.weight"] for n in ("gate", "up"))
    assert np.array_equal(ms["decoder.layers.0.mlp.linear_fc1.weight"], np.concatenate([gate, up]))


def test_grouped_experts_are_one_tensor_declared_as_each_model_does(tmp_path: Path) -> None:
    for family, shape, inner in (("qwen3_moe", (24, 10), 5), ("deepseek_v3", (8, 24), 4)):
        (tmp_path / family).mkdir()
        hf, ms = made(tmp_path / family, family)
        at = "model.layers.1.mlp.experts"
        first = ms["decoder.layers.1.mlp.experts.weight1"]
        assert first.shape == shape
        cube = first.reshape(3, 8, 2 * inner)
        second = ms["decoder.layers.1.mlp.experts.weight2"].reshape(3, inner, 8)
        for e in range(3):
            gate, up, down = (hf[f"{at}.{e}.{n}_proj.weight"] for n in ("gate", "up", "down"))
            assert np.array_equal(cube[e], np.concatenate([gate, up]).T)
            assert np.array_equal(second[e], down.T)


def test_stacked_experts_of_mixtral_and_of_gmm(tmp_path: Path) -> None:
    for form, axes in (({}, (0, 1)), ({"experts": "grouped"}, (1, 0))):
        folder = tmp_path / str(len(form))
        folder.mkdir()
        hf, ms = made(folder, "mixtral", **form)
        for name in ("w1", "w2", "w3"):
            stack = ms[f"model.layers.0.feed_forward.ffn.{name}.weight"]
            for e in range(3):
                whole = hf[f"model.layers.0.block_sparse_moe.experts.{e}.{name}.weight"]
                assert np.array_equal(stack[e], whole.transpose(axes))


def test_old_models_store_projections_input_first(tmp_path: Path) -> None:
    for family in ("gpt2", "bloom"):
        (tmp_path / family).mkdir()
    hf, ms = made(tmp_path / "gpt2", "gpt2")
    query, _, value = np.split(hf["transformer.h.0.attn.c_attn.weight"], 3, -1)
    at = "backbone.blocks.0"
    assert np.array_equal(ms[f"{at}.attention.dense1.weight"], query.T)
    assert np.array_equal(ms[f"{at}.attention.dense3.weight"], value.T)
    assert np.array_equal(ms[f"{at}.attention.projection.weight"], hf["transformer.h.0.attn.c_proj.weight"])
    assert np.array_equal(ms[f"{at}.output.mapping.weight"], hf["transformer.h.0.mlp.c_fc.weight"])
    hf, ms = made(tmp_path / "bloom", "bloom")
    fused = hf["transformer.h.1.self_attention.query_key_value.weight"].reshape(4, 3, 2, 8)
    at = "transformer.blocks.1"
    assert np.array_equal(ms[f"{at}.attention.dense2.weight"], fused[:, 1].reshape(8, 8))
    dense = hf["transformer.h.1.self_attention.dense.weight"]
    assert np.array_equal(ms[f"{at}.attention.projection.weight"], dense.T)
    up = hf["transformer.h.1.mlp.dense_h_to_4h.weight"]
    assert np.array_equal(ms[f"{at}.output.mapping.weight"], up.T)


def test_split_latent_projections(tmp_path: Path) -> None:
    hf, ms = made(tmp_path, "deepseek_v3", mla="split")
    whole = hf["model.layers.0.self_attn.kv_b_proj.weight"].reshape(4, 5, 3)
    at = "decoder.layers.0.self_attention"
    assert np.array_equal(ms[f"{at}.linear_kv_nope.weight"], whole[:, :2].reshape(8, 3))
    assert np.array_equal(ms[f"{at}.linear_v.weight"], whole[:, 2:].reshape(12, 3))
    both = [hf[f"model.layers.0.self_attn.{n}.weight"] for n in ("q_a_proj", "kv_a_proj_with_mqa")]
    assert np.array_equal(ms[f"{at}.linear_qkv.weight"], np.concatenate(both))


def apply(relation: Relation, name: str, parts: Mapping[str, Array]) -> Array:
    """Fill the packed tensor element by element."""
    out = np.full(relation.left[name].numel, -1.0)
    for pair in relation.pairs:
        size, left, right = pair.aligned()
        for index in np.ndindex(*size):
            to = pair.left.offset + sum(i * s for i, s in zip(index, left, strict=True))
            at = pair.right.offset + sum(i * s for i, s in zip(index, right, strict=True))
            out[to] = parts[pair.right.tensor].reshape(-1)[at]
    return out.reshape(relation.left[name].shape)


@given(experts=st.integers(1, 4), a=st.integers(1, 4), b=st.integers(1, 4))
def test_views_and_stacks_are_numpys(experts: int, a: int, b: int) -> None:
    slot = "layers.0.moe.experts.{e}"
    fc1 = transposed(concat(f"{slot}.gate", f"{slot}.up"))
    for view, shape in ((rows, (experts * a, 2 * b)), (columns, (a, experts * 2 * b))):
        pack = every_expert(view(stacked(fc1)), {"experts": experts})
        assert not isinstance(pack, str)
        rng = np.random.default_rng(0)
        parts = {n: rng.standard_normal((b, a)) for n in leaves(pack)}
        made = relate("w", pack, {n: Spec((b, a), "float64") for n in parts}, {})
        made.check()
        names = [
            (slot.replace("{e}", str(e)) + ".gate", slot.replace("{e}", str(e)) + ".up")
            for e in range(experts)
        ]
        want = np.stack([np.concatenate([parts[g], parts[u]]).T for g, u in names]).reshape(shape)
        assert np.array_equal(apply(made, "w", parts), want)


@given(heads=st.integers(1, 4), half=st.integers(1, 3), columns_=st.integers(1, 3))
def test_rearranged_rotary_takes_even_rows_of_a_head_first(heads: int, half: int, columns_: int) -> None:
    whole = np.random.default_rng(1).standard_normal((heads * 2 * half, columns_))
    made = relate("w", rotary("heads", "q"), {"q": Spec(whole.shape, "float64")}, {"heads": heads})
    made.check()
    cube = whole.reshape(heads, 2 * half, columns_)
    want = np.concatenate([cube[:, 0::2], cube[:, 1::2]], 1).reshape(whole.shape)
    assert np.array_equal(apply(made, "w", {"q": whole}), want)


def test_names_tell_the_dialect_and_its_form() -> None:
    spec = Spec((8, 8), "float32")
    names = ["model.tok_embeddings.embedding_weight", "model.layers.0.attention.w_qkv.weight"]
    assert dialect_of(names) is LEGACY
    assert LEGACY.told(dict.fromkeys(names, spec)).names == {"qkv_concat"}
    core = ["embedding.word_embeddings.weight", "decoder.layers.0.self_attention.linear_kvb.weight"]
    assert dialect_of(core) is CORE
    assert CORE.told(dict.fromkeys(core, spec)).names == {"mla"}
    assert dialect_of(["fc.weight", "fc.bias"]) is None


def test_flags_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    model(tmp_path / "hf", "llama")
    for form in ({"dialect": "core-te"}, {"mla": "split"}, {"format": "bin"}):
        with pytest.raises(UsageError):
            ckptconv.plan(tmp_path / "hf", to="mindformers", **form)
    with pytest.raises(CkptconvError, match="ckpt"):
        ckptconv.plan(tmp_path / "hf", format="ckpt")
