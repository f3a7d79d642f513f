"""The architecture is found from facts and slots, or left open where they do not decide."""

from __future__ import annotations

import pytest

from ckptconv.facts.facts import read_facts
from ckptconv.facts.value import Fact
from ckptconv.families import find_family
from ckptconv.families.detect import fitting, observed
from training_args import MEGATRON, V1, V2, trained

# The converter writes the defaults of ModelLink's command line for what it does not set.
MISLED = {
    "v1_dsv2_mc_gg_ep2": [],  # norm_topk_prob
    "v1_gemma_mc_tp2pp1": ["llama"],  # activation, norm offset, scaled embedding
}
# Same weights, same computation, other names: the one that is meant if nothing is said.
STANDS_FOR = {"baichuan": "llama", "internlm2": "llama", "phi3": "llama", "qwen": "qwen2"}


@pytest.mark.parametrize("name", [*MEGATRON, *V1])
def test_training_arguments_and_slots_decide(name: str) -> None:
    case = trained(name)
    own = case.config["model_type"]
    expected = MISLED.get(name, [STANDS_FOR.get(own, own)])
    assert [f.name for f in fitting(read_facts(case.args), case.slots)] == expected


@pytest.mark.parametrize("name", V2)
def test_a_model_type_decides_at_once(name: str) -> None:
    case = trained(name)
    assert fitting(read_facts(case.args), ()) == [find_family(case.config["model_type"])]


def llama() -> tuple[dict[str, Fact], set[str]]:
    case = trained("llama")
    return dict(read_facts(case.args)), set(case.slots)


def names(facts: dict[str, Fact], slots: set[str]) -> list[str]:
    return [f.name for f in fitting(facts, slots)]


def test_mistral_only_with_a_window() -> None:
    facts, slots = llama()
    facts["window"] = Fact(4096, "args.window_size")
    assert names(facts, slots)[0] == "mistral"
    assert "llama" not in names(facts, slots)


@pytest.mark.parametrize("slot", ["layers.*.attn.sinks", "layers.*.mtp", "mtp.*.eh_proj"])
def test_a_slot_without_a_place_speaks_against(slot: str) -> None:
    facts, slots = llama()
    assert names(facts, slots | {slot}) == []


@pytest.mark.parametrize("slot", ["final_norm", "layers.*.attn.k", "layers.*.mlp.gate"])
def test_so_does_a_tensor_that_is_missing(slot: str) -> None:
    facts, slots = llama()
    assert names(facts, slots - {slot}) == []


def test_tensors_go_before_arguments() -> None:
    facts, slots = llama()
    biases = {f"layers.*.attn.{part}.bias" for part in "qkv"}
    assert names(facts, slots | biases) == ["qwen2"]
    assert observed(facts, slots | biases)["qkv_bias"] == Fact(True, "the checkpoint's tensors")
    facts["qkv_bias"] = Fact(True, "args.add_qkv_bias")
    assert names(facts, slots) == ["llama"]


def test_a_copy_of_the_embedding_is_no_head() -> None:
    case = trained("llama_tied")
    assert "head" not in case.slots
    assert names(dict(read_facts(case.args)), {*case.slots, "head"}) == ["llama"]


def test_qwen2_has_no_heads_of_another_width() -> None:
    case = trained("qwen2")
    facts = {**read_facts(case.args), "head_dim": Fact(16, "args.kv_channels")}
    assert names(facts, set(case.slots)) == ["seed_oss"]


def test_an_exact_gelu_is_llamas_too_but_a_layer_norm_is_not() -> None:
    facts, slots = llama()
    assert names({**facts, "norm_kind": Fact("LayerNorm", "args.normalization")}, slots) == []
    assert names({**facts, "embed_scaled": Fact(True, "args.input_embeds_norm")}, slots) == []


def test_a_layer_for_multi_token_prediction_has_the_slots_of_any() -> None:
    case = trained("deepseek_v3_mtp")
    mtp = {s.replace("layers", "mtp", 1) for s in case.slots if s.startswith("layers.")}
    own = {f"mtp.*.{part}" for part in ("enorm", "hnorm", "eh_proj", "norm")}
    assert names(dict(read_facts(case.args)), {*case.slots, *mtp, *own}) == ["deepseek_v3"]
