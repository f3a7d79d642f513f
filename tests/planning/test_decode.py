"""A quantised source becomes the values its codes and scales stand for, or stays what it is as a whole."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptconv
import quantised
from ckptconv.errors import CkptconvError, FormatError, MismatchError, PlanError

LAYER = "model.layers.0."


def same(a, b):
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))
    )


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("kind", quantised.KINDS)
def test_values_are_code_times_scale_rounded_once(tmp_path, kind):
    wanted = quantised.model(tmp_path / "q", kind, shards=3)
    ckptconv.convert(tmp_path / "q", tmp_path / "out", dequantize=True)
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert got.keys() == wanted.keys()
    assert [n for n in wanted if not same(got[n], wanted[n])] == []
    config = config_of(tmp_path / "out")
    assert "quantization_config" not in config
    beside = {p.name for p in (tmp_path / "out").iterdir()}
    assert beside == {"model.safetensors", "config.json", "generation_config.json"}


@pytest.mark.parametrize(
    "kind", ["fp8-block", "gptq4-order", "nf4-nested", "ct-int3-zeros", "modelopt-nvfp4"]
)
def test_small_tiles_give_the_same_values(tmp_path, kind, monkeypatch):
    """What a tile begins or ends in - a row, a block, a word, a byte - does not matter."""
    from ckptconv.engine import local

    wanted = quantised.model(tmp_path / "q", kind)
    monkeypatch.setattr(local, "tile_bytes", lambda options: 1 << 10)
    ckptconv.convert(tmp_path / "q", tmp_path / "out", dequantize=True)
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert [n for n in wanted if not same(got[n], wanted[n])] == []


def test_a_dtype_is_what_values_are_rounded_to_from_float32(tmp_path):
    stored, values = quantised.tensors_of("fp8-block")
    quantised.write(tmp_path / "q", stored, quantised.KINDS["fp8-block"][1])
    name = f"{LAYER}mlp.up_proj.weight"
    scale = quantised.spread(stored[name + "_scale_inv"], stored[name].shape, (64, 64))
    for dtype in (torch.float32, torch.float16):
        out = tmp_path / str(dtype)[6:]
        ckptconv.convert(tmp_path / "q", out, dtype=str(dtype)[6:])
        assert same(load_file(out / "model.safetensors")[name], (stored[name].float() * scale).to(dtype))
    assert values[name].dtype == torch.bfloat16


def test_to_hugging_face_it_goes_as_it_is_and_that_is_said(tmp_path):
    for kind in ("fp8-block", "gptq4-beside", "modelopt-fp8", "nf4"):
        source, out = tmp_path / kind, tmp_path / f"{kind}-out"
        quantised.model(source, kind)
        plan = ckptconv.plan(source)
        assert any(level == "info" and "quantised: " in text for level, text in plan.notes)
        warned = [text for level, text in plan.notes if level == "warning" and "tokenizer" not in text]
        assert ["ModelOpt" in text for text in warned] == [True] * (kind == "modelopt-fp8")
        ckptconv.convert(source, out)
        before, after = (load_file(p / "model.safetensors") for p in (source, out))
        assert all(same(before[n], after[n]) for n in before) and before.keys() == after.keys()
        assert config_of(source) == config_of(out)
        for mark in source.glob("*quant*.json"):
            assert (out / mark.name).read_bytes() == mark.read_bytes()


def test_other_targets_get_values_by_themselves(tmp_path):
    values = quantised.model(tmp_path / "q", "fp8-block", shards=3)
    quantised.plain(tmp_path / "p", values)
    for to, sizes in (("megatron", {"tp": 2}), ("torch_dist", {"tp": 2}), ("mindformers", {})):
        for source in ("q", "p"):
            ckptconv.convert(tmp_path / source, tmp_path / to / source, to=to, sizes=sizes)
        files = [p for p in sorted((tmp_path / to / "q").rglob("*")) if p.is_file()]
        assert files
        for path in files:
            assert (
                path.read_bytes()
                == (tmp_path / to / "p" / path.relative_to(tmp_path / to / "q")).read_bytes()
            )


def test_a_tensor_of_ranks_may_be_quantised_in_parts(tmp_path):
    stored, values = quantised.tensors_of("fp8-block")
    for end in ("self_attn.k_proj.weight", "mlp.up_proj.weight"):
        name = LAYER + end
        del stored[f"{name}_scale_inv"]
        stored[name] = values[name]
    quantised.write(tmp_path / "q", stored, quantised.KINDS["fp8-block"][1])
    quantised.plain(tmp_path / "p", values)
    for source in ("q", "p"):
        ckptconv.convert(tmp_path / source, tmp_path / f"{source}-out", to="megatron", tp=2)
    files = [p for p in sorted((tmp_path / "q-out").rglob("*")) if p.is_file()]
    assert files
    for path in files:
        assert path.read_bytes() == (tmp_path / "p-out" / path.relative_to(tmp_path / "q-out")).read_bytes()
    assert ckptconv.verify_roundtrip(tmp_path / "q", tmp_path / "q-out").ok


@pytest.mark.parametrize("pattern", ["*scale_inv", "*q_proj.weight", "*.weight_scale_inv"])
def test_dropping_scales_never_leaves_codes_as_weights(tmp_path, pattern):
    quantised.model(tmp_path / "q", "fp8-block")
    with pytest.raises(PlanError, match="codes and scales are one weight"):
        ckptconv.plan(tmp_path / "q", drop=(pattern,))
    if "scale" in pattern:
        with pytest.raises(CkptconvError, match="match"):
            ckptconv.plan(tmp_path / "q", drop=(pattern,), dequantize=True)
    ckptconv.plan(tmp_path / "q", drop=("*q_proj*",))


@pytest.mark.parametrize(
    "kind", ["fp8-block", "ct-int4", "gptq4", "awq", "nf4-nested", "ct-nvfp4", "bnb-int8"]
)
def test_a_missing_or_misshapen_part_is_named(tmp_path, kind):
    stored, _ = quantised.tensors_of(kind)
    settings = quantised.KINDS[kind][1]
    module = f"{LAYER}mlp.down_proj."
    parts = [n for n in stored if n.startswith(module) and not n.endswith(("weight_format", "quant_map"))]
    for name in parts:
        quantised.write(tmp_path / "q", {n: t for n, t in stored.items() if n != name}, settings)
        with pytest.raises(PlanError, match="down_proj"):
            ckptconv.plan(tmp_path / "q", dequantize=True)
        quantised.write(tmp_path / "q", {**stored, name: torch.cat([stored[name].reshape(-1)] * 3)}, settings)
        with pytest.raises(PlanError, match="down_proj"):
            ckptconv.plan(tmp_path / "q", dequantize=True)
        shutil.rmtree(tmp_path / "q")


def test_codes_and_scales_that_are_no_numbers_are_reported(tmp_path):
    stored, _ = quantised.tensors_of("fp8-block")
    settings = quantised.KINDS["fp8-block"][1]
    name = f"{LAYER}mlp.up_proj.weight"
    codes = stored[name].clone()
    codes.view(torch.uint8)[100, 7] = 0xFF
    quantised.write(tmp_path / "nan", {**stored, name: codes}, settings)
    with pytest.raises(FormatError, match=r"up_proj\.weight\[100, 7\]: the code 0xff"):
        ckptconv.convert(tmp_path / "nan", tmp_path / "out", dequantize=True)
    scales = stored[name + "_scale_inv"].clone()
    scales[0, 0] = float("inf")
    quantised.write(tmp_path / "inf", {**stored, name + "_scale_inv": scales}, settings)
    with pytest.raises(FormatError, match="a scale is inf"):
        ckptconv.convert(tmp_path / "inf", tmp_path / "out", dequantize=True)
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("kind", ["gptq4-order", "ct-int4-order"])
@pytest.mark.parametrize("value", [-7, 3, 2**31 - 1])
def test_an_index_that_lies_is_reported(tmp_path, kind, value):
    stored, _ = quantised.tensors_of(kind)
    name = next(n for n in stored if n.endswith(("q_proj.g_idx", "q_proj.weight_g_idx")))
    stored[name][5] = value
    quantised.write(tmp_path / "q", stored, quantised.KINDS[kind][1])
    with pytest.raises(FormatError, match="is of group"):
        ckptconv.convert(tmp_path / "q", tmp_path / "out", dequantize=True)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("awq", {"version": "gemv"}, "gemv"),
        ("awq", {"version": "marlin"}, "marlin"),
        ("gptq4", {"checkpoint_format": "marlin"}, "marlin"),
        ("gptq4", {"is_marlin_format": True}, "marlin"),
        ("gptq4", {"quant_method": "hqq"}, "hqq"),
        ("ct-int4", {"format": "marlin-24"}, "marlin-24"),
        ("ct-int4", {"transform_config": {"config_groups": {"u": {}}}}, "rotations"),
        ("ct-int4", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24"),
    ],
)
def test_other_layouts_are_refused_by_name(tmp_path, kind, change, said):
    stored, _ = quantised.tensors_of(kind)
    quantised.write(tmp_path / "q", stored, {**quantised.KINDS[kind][1], **change})
    with pytest.raises(PlanError, match=said):
        ckptconv.plan(tmp_path / "q", dequantize=True)
    with pytest.raises(PlanError, match=said):
        ckptconv.plan(tmp_path / "q", to="megatron")
    ckptconv.plan(tmp_path / "q")  # as it is


def test_fnuz_has_other_values(tmp_path):
    stored, _ = quantised.tensors_of("fp8-block")
    stored = {n: t.view(torch.float8_e4m3fnuz) if t.dtype == quantised.FP8 else t for n, t in stored.items()}
    quantised.write(tmp_path / "q", stored, quantised.KINDS["fp8-block"][1])
    with pytest.raises(PlanError, match="fnuz"):
        ckptconv.plan(tmp_path / "q", to="megatron")


def test_packed_integers_without_a_word_about_them_are_not_guessed(tmp_path):
    quantised.model(tmp_path / "q", "gptq4")
    config = config_of(tmp_path / "q")
    del config["quantization_config"]
    (tmp_path / "q" / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlanError, match="no file says how"):
        ckptconv.plan(tmp_path / "q", dtype="bfloat16")


def test_codes_alone_are_never_cast(tmp_path):
    stored, _ = quantised.tensors_of("fp8-block")
    bare = {n: t for n, t in stored.items() if not n.endswith("_scale_inv")}
    quantised.write(tmp_path / "q", bare, {})
    for asked in ({"dtype": "bfloat16"}, {"to": "megatron"}, {"dequantize": True}):
        with pytest.raises(PlanError, match=r"float8|scale"):
            ckptconv.plan(tmp_path / "q", **asked)


def test_a_config_that_speaks_of_codes_beside_plain_weights_is_made_true(tmp_path):
    values = quantised.model(tmp_path / "q", "fp8-block")
    config = (tmp_path / "q" / "config.json").read_text()
    quantised.plain(tmp_path / "p", values)
    (tmp_path / "p" / "config.json").write_text(config)
    ckptconv.convert(tmp_path / "p", tmp_path / "out")
    assert "quantization_config" not in config_of(tmp_path / "out")


def test_settings_inside_the_text_config_are_found(tmp_path):
    wanted = quantised.model(tmp_path / "q", "ct-int4")
    config = config_of(tmp_path / "q")
    config["text_config"] = {"quantization_config": config.pop("quantization_config")}
    (tmp_path / "q" / "config.json").write_text(json.dumps(config))
    ckptconv.convert(tmp_path / "q", tmp_path / "out", dequantize=True)
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert all(same(got[n], wanted[n]) for n in wanted)
    assert config_of(tmp_path / "out")["text_config"] == {}


def test_scales_of_activations_are_left_out(tmp_path):
    stored, values = quantised.tensors_of("fp8-static")
    one = torch.ones(())
    ends = ("self_attn.q_proj.input_scale", "self_attn.k_scale", "self_attn.v_proj.v_scale")
    quantised.write(
        tmp_path / "q", {**stored, **{LAYER + e: one.clone() for e in ends}}, quantised.KINDS["fp8-static"][1]
    )
    ckptconv.convert(tmp_path / "q", tmp_path / "out", dequantize=True)
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == values.keys()


def test_scales_of_caches_alone_are_kept_or_left_out(tmp_path):
    _, values = quantised.tensors_of("fp8-static")
    scales = {f"{LAYER}self_attn.{n}_scale": torch.ones(()) for n in "kv"}
    settings = {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}}
    quantised.write(tmp_path / "q", {**values, **scales}, settings)
    ckptconv.convert(tmp_path / "q", tmp_path / "as-is")
    assert load_file(tmp_path / "as-is" / "model.safetensors").keys() == {*values, *scales}
    assert config_of(tmp_path / "as-is") == config_of(tmp_path / "q")
    ckptconv.convert(tmp_path / "q", tmp_path / "out", dequantize=True)
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == values.keys()
    assert "quantization_config" not in config_of(tmp_path / "out")


def test_experts_of_gpt_oss_are_turned(tmp_path):
    g = torch.Generator().manual_seed(0)
    experts, out, groups = 3, 40, 2
    blocks = torch.randint(0, 256, (experts, out, groups, 16), generator=g).to(torch.uint8)
    scales = torch.randint(118, 124, (experts, out, groups), generator=g).to(torch.uint8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    (tmp_path / "q").mkdir()
    config = {"model_type": "unknown_moe", "quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "q" / "config.json").write_text(json.dumps(config))
    save_file({f"{name}_blocks": blocks, f"{name}_scales": scales}, tmp_path / "q" / "model.safetensors")
    ckptconv.convert(tmp_path / "q", tmp_path / "out", dequantize=True)
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()
    wanted = (quantised.E2M1[codes] * torch.exp2(scales.float() - 127)[..., None]).flatten(-2)
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert same(got[name], wanted.transpose(1, 2).bfloat16().contiguous())


@pytest.mark.parametrize(
    ("to", "asked"), [("hf", {"dequantize": True}), ("hf", {}), ("megatron", {}), ("dcp", {})]
)
@pytest.mark.parametrize("kind", ["fp8-block", "gptq4"])
def test_verify_computes_it_again_and_finds_a_flip_in_codes_and_scales(tmp_path, kind, to, asked):
    quantised.model(tmp_path / "q", kind)
    ckptconv.convert(tmp_path / "q", tmp_path / "out", to=to, **asked)
    assert ckptconv.verify_roundtrip(tmp_path / "q", tmp_path / "out").ok
    path = tmp_path / "q" / "model.safetensors"
    held = load_file(path)
    for end in (
        ("weight_scale_inv", "weight") if kind == "fp8-block" else ("scales", "qweight", "qzeros", "g_idx")
    ):
        name = f"{LAYER}mlp.down_proj.{end}"
        changed = held[name].clone()
        changed.reshape(-1).view(torch.uint8)[{"scales": 1, "weight_scale_inv": 2}.get(end, 0)] ^= 1
        save_file({**held, name: changed}, path, {"format": "pt"})
        found = ckptconv.verify_roundtrip(tmp_path / "q", tmp_path / "out")
        assert not found.ok and "down_proj" in found.mismatches[0].tensor


@pytest.mark.parametrize("to", ["hf", "megatron"])
def test_verify_finds_out_what_values_were_rounded_to(tmp_path, to):
    quantised.model(tmp_path / "q", "fp8-block")
    ckptconv.convert(tmp_path / "q", tmp_path / "out", to=to, dtype="float16")
    assert ckptconv.verify_roundtrip(tmp_path / "q", tmp_path / "out").ok


def test_diff_compares_values(tmp_path):
    values = quantised.model(tmp_path / "q", "ct-int4")
    quantised.plain(tmp_path / "p", values)
    assert ckptconv.diff(tmp_path / "q", tmp_path / "p").ok
    name = f"{LAYER}mlp.up_proj.weight"
    values[name][3, 4] += 1
    quantised.plain(tmp_path / "p", values)
    found = ckptconv.diff(tmp_path / "q", tmp_path / "p")
    assert [t.name for t in found.tensors if t.count] == [name] and not found.ok


def test_explain_names_codes_and_scales(tmp_path):
    quantised.model(tmp_path / "q", "fp8-block", shards=3)
    name = f"{LAYER}mlp.up_proj.weight"
    found = ckptconv.explain(tmp_path / "q", name)
    assert found.quantised == "fp8 blocks of 64 x 64" and found.dtype == "bfloat16"
    assert {p.role: p.stored for p in found.pieces} == {"codes": name, "scales": name + "_scale_inv"}
    assert all(p.ranges for p in found.pieces)
    raw = ckptconv.explain(tmp_path / "q", name + "_scale_inv")
    assert raw.dtype == "float32" and not raw.quantised


def test_a_lora_adapter_is_added_to_values(tmp_path):
    values = quantised.model(tmp_path / "q", "nf4")
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn((4, 96), generator=g), torch.randn((96, 4), generator=g)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text(
        json.dumps(
            {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
        )
    )
    stem = f"base_model.model.{LAYER}self_attn.q_proj.lora_"
    save_file({f"{stem}A.weight": a, f"{stem}B.weight": b}, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(PlanError, match="bitsandbytes, 4 bit") as found:
        ckptconv.plan(tmp_path / "q", adapter=tmp_path / "a")
    assert 'lora="adapter"' in str(found.value.hint) and "dequantize=True" in str(found.value.hint)
    ckptconv.convert(tmp_path / "q", tmp_path / "out", adapter=tmp_path / "a", dequantize=True)
    got = load_file(tmp_path / "out" / "model.safetensors")[f"{LAYER}self_attn.q_proj.weight"]
    wanted = values[f"{LAYER}self_attn.q_proj.weight"].float() + b @ a
    assert torch.allclose(got.float(), wanted, atol=0.02, rtol=0.01)


def test_memory_stays_flat_and_the_source_is_watched(tmp_path):
    quantised.model(tmp_path / "q", "fp8-block")
    plan = ckptconv.plan(tmp_path / "q", dequantize=True)
    assert plan.digest() == ckptconv.plan(tmp_path / "q", dequantize=True).digest()
    path = tmp_path / "q" / "model.safetensors"
    held = load_file(path)
    name = f"{LAYER}mlp.up_proj.weight_scale_inv"
    save_file({**held, name: held[name] * 2}, path, {"format": "pt"})
    assert plan.digest() != ckptconv.plan(tmp_path / "q", dequantize=True).digest()
    assert isinstance(MismatchError("x"), CkptconvError)
