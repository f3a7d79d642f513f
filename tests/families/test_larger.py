"""A model that sees goes to ranks and back: its language model by a table, the other parts beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForImageTextToText

from running import assert_equal, fails, loaded, succeeds

pytestmark = pytest.mark.filterwarnings("ignore")
Fields = dict[str, Any]

TEXT: Fields = dict(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, head_dim=16,
)  # fmt: skip
DELTA: Fields = dict(
    layer_types=[*["linear_attention"] * 3, "full_attention"],
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
)  # fmt: skip
SEEN: Fields = dict(
    depth=2, hidden_size=16, num_heads=2, intermediate_size=24, patch_size=4, out_hidden_size=32,
    num_position_embeddings=16, deepstack_visual_indexes=[0, 1],
)  # fmt: skip
WINDOWS: Fields = dict(
    depth=2, hidden_size=16, num_heads=2, intermediate_size=24, patch_size=4, out_hidden_size=32,
    fullatt_block_indexes=[1], window_size=16,
)  # fmt: skip
TOWER: Fields = dict(
    model_type="clip_vision_model", hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, image_size=16, patch_size=8, projection_dim=16,
)  # fmt: skip
EXPERTS: Fields = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
MODELS: dict[str, Fields] = {
    "qwen3_vl": dict(text_config=TEXT, vision_config=SEEN),
    "qwen3_vl_moe": dict(text_config=TEXT | EXPERTS, vision_config=SEEN),
    "qwen3_5": dict(text_config=TEXT | DELTA, vision_config=SEEN),
    "qwen2_5_vl": dict(text_config=dict(TEXT, head_dim=8), vision_config=WINDOWS),
    "llava": dict(text_config=dict(TEXT, model_type="mistral"), vision_config=TOWER),
}
LAYOUTS = (["--tp", "2"], ["--pp", "2", "--vpp", "2"])


def saved(kind: str, folder: Path, fields: Fields | None = None) -> Path:
    """Save a tiny model whose tensors all differ."""
    config = transformers.CONFIG_MAPPING[kind](**(fields or MODELS[kind]), tie_word_embeddings=False)
    torch.manual_seed(len(kind))
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                one = tensor.ndim == 1 and name.endswith("weight")
                tensor.copy_(torch.randn(tensor.shape) * 0.1 + (1 if one else 0))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", MODELS)
def test_all_parts_come_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    hf = saved(kind, tmp_path / "hf")
    for i, layout in enumerate(LAYOUTS):
        ranks, out = tmp_path / f"ranks{i}", tmp_path / f"out{i}"
        succeeds("megatron-split", hf, ranks, *layout)
        succeeds("megatron-merge", ranks, out, "--config", hf)
        assert_equal(loaded(hf), loaded(out))
    succeeds("convert", hf, tmp_path / "dist", "--to", "torch_dist")
    succeeds("convert", tmp_path / "dist", tmp_path / "back", "--to", "hf", "--config", hf)
    assert_equal(loaded(hf), loaded(tmp_path / "back"))


def test_the_vision_model_has_megatrons_names_and_cuts(tmp_path: Path) -> None:
    hf = saved("qwen3_vl", tmp_path / "hf")
    succeeds("megatron-split", hf, tmp_path / "ranks", "--tp", "2")
    path = tmp_path / "ranks" / "iter_0000001" / "mp_rank_01" / "model_optim_rng.pt"
    model = torch.load(path, weights_only=False)["model"]
    whole = loaded(hf)
    qkv = whole["model.visual.blocks.1.attn.qkv.weight"].unflatten(0, (3, 2, 8))  # of 2 heads, 8 wide
    name = "vision_model.decoder.layers.1.self_attention.linear_qkv.weight"
    assert torch.equal(model[name], qkv[:, 1].flatten(0, 1))
    assert "language_model.decoder.layers.3.self_attention.linear_qkv.weight" in model


KIMI: Fields = dict(
    text_config=dict(
        model_type="deepseek_v3", vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8,
        qk_rope_head_dim=8, v_head_dim=8, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1,
        moe_intermediate_size=16, n_group=1, topk_group=1, first_k_dense_replace=1,
    ),
    vision_config=dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=4,
        pos_emb_height=4, pos_emb_width=4, pos_emb_time=2,
    ),
    projection_hidden_size=64,
)  # fmt: skip


def test_kimi_k25_has_the_names_that_are_published_and_not_those_of_transformers(tmp_path: Path) -> None:
    hf = saved("kimi_k25", tmp_path / "hf", KIMI)
    assert any(n.startswith("language_model.model.blocks.") for n in loaded(hf)), "right in this release?"
    model = AutoModelForImageTextToText.from_pretrained(hf, dtype=torch.bfloat16)
    held = {n: t.to(torch.bfloat16) for n, t in model.state_dict().items()}
    torch.save(held, tmp_path / "model.pt")
    for i, source in enumerate((tmp_path / "model.pt", hf)):
        # What is written is loaded by transformers, which reads both.
        said = succeeds("convert", source, tmp_path / f"out{i}", "--to", "hf", "--config", hf)
        assert "saves Kimi K2.5's language layers as 'blocks'" in said.err
    assert_equal(loaded(tmp_path / "out0"), loaded(tmp_path / "out1"))
    names = {n.partition(".0.")[0] for n in loaded(tmp_path / "out0") if ".0." in n and ".1." not in n}
    assert names == {"language_model.model.layers", "vision_tower.encoder.blocks", "mm_projector.proj"}
    succeeds("megatron-split", hf, tmp_path / "ranks", "--tp", "2", "--ep", "2")
    succeeds("megatron-merge", tmp_path / "ranks", tmp_path / "back", "--config", hf)
    assert_equal(loaded(tmp_path / "back"), loaded(tmp_path / "out0"))


def test_a_language_model_without_a_table_is_refused(tmp_path: Path) -> None:
    hf = saved("llava", tmp_path / "hf")
    config = hf / "config.json"
    config.write_text(config.read_text().replace('"mistral"', '"unheard_of"'))
    fails(4, "megatron-split", hf, tmp_path / "ranks", naming=("llava",), out=tmp_path / "ranks")
