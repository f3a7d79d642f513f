"""Quantising in blocks gives the codes and scales that published tools make of the same values."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptconv
import quantised
from ckptconv.errors import FormatError, UsageError
from ckptconv.numbers.codecs.encode import e4m3_codes

LAYER = "model.layers.0."
FORMS = ("fp8-block", "fp8-block-ue8m0")


def wanted(values, *, powers):
    """DeepSeek's arithmetic, block by block, in torch."""
    rows, columns = values.shape
    scales = torch.zeros(-(-rows // 128), -(-columns // 128))
    codes = torch.zeros(values.shape, dtype=torch.float8_e4m3fn)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
            block = values[at].float()
            scale = block.abs().amax().clamp(min=1e-4) / 448
            if powers:
                scale = torch.exp2(torch.ceil(torch.log2(scale)))
            scales[i, j] = scale
            codes[at] = (block / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes, scales


def model(folder, dtype=torch.bfloat16):
    """A model whose blocks end at its edges, with empty, tiny and large ones."""
    g = torch.Generator().manual_seed(3)
    _, values = quantised.tensors_of("fp8-block")
    for name in values:
        if name.startswith(LAYER) and "norm" not in name:
            drawn = torch.randn(values[name].shape, generator=g) * 0.05
            drawn[:8, :8] = 0
            drawn[-3:] *= torch.logspace(-6, 1, drawn.shape[1])
            values[name] = drawn.to(dtype)
    values[f"{LAYER}mlp.down_proj.weight"][:, 128:] = 0
    quantised.plain(folder, values)
    return values


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_codes_and_scales_are_those_of_published_tools(tmp_path, form, dtype):
    values = model(tmp_path / "m", dtype)
    ckptconv.convert(tmp_path / "m", tmp_path / "out", quantize=form)
    got = load_file(tmp_path / "out" / "model.safetensors")
    for name in quantised.LINEARS:
        weight = f"{LAYER}{name}.weight"
        codes, scales = wanted(values[weight], powers=form == FORMS[1])
        assert torch.equal(got[weight].view(torch.uint8), codes.view(torch.uint8)), weight
        assert torch.equal(got[f"{weight}_scale_inv"], scales)
    others = [n for n in values if not n.startswith(LAYER) or "norm" in n]
    assert all(torch.equal(got[n], values[n]) and got[n].dtype == values[n].dtype for n in others)
    assert len(got) == len(others) + 2 * len(quantised.LINEARS)
    says = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert says["weight_block_size"] == [128, 128] and says["quant_method"] == "fp8"
    assert says.get("scale_fmt") == ("ue8m0" if form == FORMS[1] else None)
    assert says["modules_to_not_convert"] == ["model.embed_tokens", "lm_head"] or set(
        says["modules_to_not_convert"]
    ) == {"model.embed_tokens", "lm_head"}


def test_every_value_is_rounded_as_torch_does():
    g = torch.Generator().manual_seed(0)
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    between = (codes[1:] + codes[:-1]) / 2
    edges = torch.cat(
        [codes, between, torch.nextafter(between, codes[1:]), torch.nextafter(between, codes[:-1])]
    )
    values = torch.cat(
        [edges, -edges, torch.randn(20000, generator=g) * 100, torch.randn(20000, generator=g) / 99]
    )
    out = np.empty(values.shape, np.uint8)
    e4m3_codes(values.numpy().copy(), out)
    assert np.array_equal(out, values.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy())


@pytest.mark.parametrize("form", FORMS)
def test_the_values_of_a_model_in_this_form_become_it_again(tmp_path, form):
    model(tmp_path / "m")
    ckptconv.convert(tmp_path / "m", tmp_path / "q", quantize=form)
    ckptconv.convert(tmp_path / "q", tmp_path / "v", dequantize=True)
    ckptconv.convert(tmp_path / "v", tmp_path / "again", quantize=form)
    ckptconv.convert(tmp_path / "again", tmp_path / "w", dequantize=True)
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("v", "w"))
    assert all(torch.equal(one[n], two[n]) for n in one)
    if form == FORMS[0]:
        one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("q", "again"))
        assert all(
            torch.equal(one[n].reshape(-1).view(torch.uint8), two[n].reshape(-1).view(torch.uint8))
            for n in one
        )


def test_ranks_are_quantised_as_their_model_is(tmp_path):
    model(tmp_path / "m")
    ckptconv.convert(tmp_path / "m", tmp_path / "ranks", to="megatron", tp=2)
    for source in ("m", "ranks"):
        ckptconv.convert(
            tmp_path / source, tmp_path / f"{source}-q", quantize="fp8-block", config=str(tmp_path / "m")
        )
    one, two = (load_file(tmp_path / f"{n}-q" / "model.safetensors") for n in ("m", "ranks"))
    assert one.keys() == two.keys()
    assert all(
        torch.equal(one[n].reshape(-1).view(torch.uint8), two[n].reshape(-1).view(torch.uint8)) for n in one
    )


@pytest.mark.parametrize("tile", [1 << 10, 1 << 22])
def test_verify_computes_codes_and_scales_again(tmp_path, tile, monkeypatch):
    from ckptconv.verify import compare

    model(tmp_path / "m")
    ckptconv.convert(tmp_path / "m", tmp_path / "q", quantize="fp8-block")
    monkeypatch.setattr(compare, "tile_bytes", lambda options: tile)
    assert ckptconv.verify_roundtrip(tmp_path / "m", tmp_path / "q").ok
    path = tmp_path / "q" / "model.safetensors"
    held = load_file(path)
    for end in ("weight", "weight_scale_inv"):
        name = f"{LAYER}mlp.up_proj.{end}"
        changed = held[name].clone()
        changed.reshape(-1).view(torch.uint8)[-1] ^= 1
        save_file({**held, name: changed}, path, {"format": "pt"})
        found = ckptconv.verify_roundtrip(tmp_path / "m", tmp_path / "q")
        assert [m.tensor for m in found.mismatches] == [name]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_quantised(tmp_path, value):
    values = model(tmp_path / "m")
    values[f"{LAYER}mlp.up_proj.weight"][130, 17] = value
    quantised.plain(tmp_path / "m", values)
    with pytest.raises(FormatError, match=r"up_proj.* rows 128 to 159 of column 17"):
        ckptconv.convert(tmp_path / "m", tmp_path / "q", quantize="fp8-block")


def test_what_cannot_be_quantised_is_said(tmp_path):
    model(tmp_path / "m")
    with pytest.raises(UsageError, match="safetensors"):
        ckptconv.plan(tmp_path / "m", quantize="fp8-block", format="bin")
    with pytest.raises(UsageError, match="quantize"):
        ckptconv.plan(tmp_path / "m", quantize="fp8-block", to="megatron")
    with pytest.raises(UsageError, match="quantize"):
        ckptconv.plan(tmp_path / "m", quantize="int4")
