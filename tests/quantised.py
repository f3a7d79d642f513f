"""Make tiny quantised models whose values are known, by packing codes one after the other."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
Made = tuple[Tensors, torch.Tensor]
"""What a weight is stored as, by the ends of names, and its values."""

FP8 = torch.float8_e4m3fn
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
HIDDEN, INNER, HEADS, KV, VOCAB = 96, 160, 4, 2, 48

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "head_dim": HIDDEN // HEADS,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "eos_token_id": 1,
}
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def pack(codes: torch.Tensor, bits: int, *, dense: bool = True) -> torch.Tensor:
    """Pack each row of unsigned codes into words of 32 bits, the low bits first."""
    rows = []
    for row in codes.tolist():
        if dense:
            number = sum(c << i * bits for i, c in enumerate(row))
            words = [number >> 32 * i & 0xFFFFFFFF for i in range(-(-len(row) * bits // 32))]
        else:
            each = 32 // bits
            parts = [row[i : i + each] for i in range(0, len(row), each)]
            words = [sum(c << i * bits for i, c in enumerate(part)) for part in parts]
        rows.append([w - (1 << 32) if w >= 1 << 31 else w for w in words])
    return torch.tensor(rows, dtype=torch.int32)


def spread(scales: torch.Tensor, shape: Iterable[int], block: tuple[int, int]) -> torch.Tensor:
    """Return the scale of each element."""
    rows, columns = shape
    index = torch.arange(rows)[:, None] // block[0], torch.arange(columns)[None, :] // block[1]
    return scales[index]


def draw_scales(shape: tuple[int, ...], g: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=g) * 0.02 + 0.001


def draw_codes(shape: tuple[int, int], g: torch.Generator, bits: int) -> torch.Tensor:
    return torch.randint(0, 1 << bits, shape, generator=g)


def fp8_codes(shape: tuple[int, ...], g: torch.Generator) -> torch.Tensor:
    codes = torch.randint(0, 256, shape, generator=g).to(torch.uint8)
    codes[(codes & 127) == 127] = 1
    return codes.view(FP8)


def fp8(
    block: tuple[int, int] | None,
    name: str,
    *,
    scale: torch.dtype = torch.float32,
    exponents: bool = False,
    shape: tuple[int, ...] | None = None,
    target: torch.dtype = torch.bfloat16,
    codes: Callable[..., torch.Tensor] = fp8_codes,
    zeros: bool = False,
) -> Callable[[tuple[int, int], torch.Generator], Made]:
    def make(size: tuple[int, int], g: torch.Generator) -> Made:
        rows, columns = size
        height, width = block or size
        height, width = height or rows, width or columns
        held = codes(size, g)
        tiles = (-(-rows // height), -(-columns // width))
        if exponents:
            stored = torch.randint(117, 124, tiles, generator=g).to(torch.uint8)
            values = torch.exp2(stored.float() - 127)
            stored = stored if scale is torch.uint8 else values.to(scale)
        else:
            stored = draw_scales(tiles, g).to(scale)
            values = stored.float()
        number = held.float()
        made = {"weight": held, name: stored if shape is None else stored.reshape(shape)}
        if zeros:
            made["weight_zero_point"] = torch.randint(-5, 6, tiles, generator=g).to(torch.int8)
            number = number - spread(made["weight_zero_point"].float(), size, (height, width))
        return made, (number * spread(values, size, (height, width))).to(target)

    return make


def int8_codes(shape: tuple[int, ...], g: torch.Generator) -> torch.Tensor:
    return torch.randint(-128, 128, shape, generator=g).to(torch.int8)


def llm_int8(size: tuple[int, int], g: torch.Generator) -> Made:
    codes, scales = int8_codes(size, g), draw_scales((size[0],), g)
    form = torch.zeros((), dtype=torch.uint8)
    values = (codes.float() * scales[:, None] / 127).half()
    return {"weight": codes, "SCB": scales, "weight_format": form}, values


def packed(bits: int, group: int | None, *, zeros: bool = False, dense: bool = True, order: bool = False):  # type: ignore[no-untyped-def]
    def make(size: tuple[int, int], g: torch.Generator) -> Made:
        rows, columns = size
        width = group or columns
        codes = draw_codes(size, g, bits)
        groups = -(-columns // width)
        scales = draw_scales((rows, groups), g).bfloat16()
        number = torch.arange(columns) // width
        if order:
            number = number[torch.randperm(columns, generator=g)]
        zero = torch.full((rows, groups), 1 << bits - 1)
        made = {
            "weight_packed": pack(codes, bits, dense=dense),
            "weight_scale": scales,
            "weight_shape": torch.tensor(size),
        }
        if zeros:
            zero = draw_codes((rows, groups), g, bits)
            made["weight_zero_point"] = pack(zero.T, bits, dense=dense).T.contiguous()
        if order:
            made["weight_g_idx"] = number.int()
        values = ((codes - zero[:, number]).float() * scales.float()[:, number]).bfloat16()
        return made, values

    return make


def gptq(bits: int, group: int | None, *, plus: int = 1, order: bool = False, index: bool = True):  # type: ignore[no-untyped-def]
    def make(size: tuple[int, int], g: torch.Generator) -> Made:
        out, columns = size
        width = group or columns
        codes, groups = draw_codes((out, columns), g, bits), -(-columns // width)
        zero = draw_codes((groups, out), g, bits)
        scales = draw_scales((groups, out), g).half()
        number = torch.arange(columns) // width
        if order:
            number = number[torch.randperm(columns, generator=g)]
        made = {
            "qweight": pack(codes, bits).T.contiguous(),
            "qzeros": pack(zero, bits),
            "scales": scales,
            "g_idx": number.int(),
        }
        if not index:
            del made["g_idx"]
        values = (codes.T - zero[number] - plus).float() * scales.float()[number]
        return made, values.T.half()

    return make


def awq(size: tuple[int, int], g: torch.Generator) -> Made:
    out, columns = size
    codes, groups = draw_codes((columns, out), g, 4), -(-columns // 32)
    zero, scales = draw_codes((groups, out), g, 4), draw_scales((groups, out), g).half()
    number = torch.arange(columns) // 32
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])

    def words(wide: torch.Tensor) -> torch.Tensor:
        return pack(wide.reshape(len(wide), -1, 8)[:, :, order].reshape(len(wide), -1), 4)

    made = {"qweight": words(codes), "qzeros": words(zero), "scales": scales}
    values = (codes - zero[number]).float() * scales.float()[number]
    return made, values.T.half()


def bnb(kind: str, *, nested: bool) -> Callable[[tuple[int, int], torch.Generator], Made]:
    def make(size: tuple[int, int], g: torch.Generator) -> Made:
        numel = size[0] * size[1]
        codes = draw_codes((1, numel), g, 4).flatten()
        table = torch.sort(torch.rand(16, generator=g) * 2 - 1).values
        runs = -(-numel // 64)
        state: dict[str, Any] = {
            "quant_type": kind,
            "blocksize": 64,
            "dtype": "bfloat16",
            "shape": list(size),
        }
        made = {"weight": (codes[::2] * 16 + codes[1::2]).to(torch.uint8)[:, None], "weight.quant_map": table}
        if nested:
            few = torch.randint(0, 256, (runs,), generator=g).to(torch.uint8)
            outer, inner = draw_scales((-(-runs // 256),), g), torch.rand(256, generator=g)
            state |= {"nested_blocksize": 256, "nested_offset": 0.01, "nested_dtype": "float32"}
            scales = inner[few.long()] * outer.repeat_interleave(256)[:runs] + 0.01
            made |= {"weight.absmax": few, "weight.nested_absmax": outer, "weight.nested_quant_map": inner}
        else:
            scales = draw_scales((runs,), g)
            made["weight.absmax"] = scales
        text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        made[f"weight.quant_state.bitsandbytes__{kind}"] = text
        values = table[codes] * scales.repeat_interleave(64)[:numel]
        return made, values.bfloat16().reshape(size)

    return make


def fp4(group: int, *, whole: str | None = None, prefix: str = "weight_packed"):  # type: ignore[no-untyped-def]
    def make(size: tuple[int, int], g: torch.Generator) -> Made:
        rows, columns = size
        codes, groups = draw_codes(size, g, 4), -(-columns // group)
        made = {prefix: (codes[:, ::2] + 16 * codes[:, 1::2]).to(torch.uint8)}
        if whole is None:
            scales = torch.randint(117, 124, (rows, groups), generator=g).to(torch.uint8)
            each = torch.exp2(scales.float() - 127)
        else:
            scales = (torch.rand((rows, groups), generator=g) * 100 + 1).to(FP8)
            one = torch.rand(1, generator=g) * 100 + 20
            if whole == "weight_scale_2":
                one = 1 / one
            each = scales.float() / one if whole == "weight_global_scale" else scales.float() * one
            made[whole] = one if whole == "weight_global_scale" else one.reshape(())
        made["weight_scale"] = scales
        return made, (E2M1[codes] * spread(each, size, (1, group))).bfloat16()

    return make


def _compressed(form: str, bits: int, kind: str, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": "channel", "group_size": None}
    group = {"targets": ["Linear"], "weights": {**weights, **more}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


def _packed(bits: int, group: int | None, **more: Any) -> dict[str, Any]:
    strategy = {"strategy": "group", "group_size": group} if group else {}
    return _compressed("pack-quantized", bits, "int", **strategy, **more)


_BLOCK = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [64, 64]}
_SPLIT = {**_BLOCK, "scale_fmt": "ue8m0"}
_BF16 = torch.bfloat16
_MODELOPT = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "fp8-block": (fp8((64, 64), "weight_scale_inv"), _BLOCK),
    "fp8-block-bf16": (fp8((64, 64), "weight_scale_inv", scale=_BF16), _BLOCK),
    "fp8-block-u8": (fp8((64, 64), "weight_scale_inv", scale=torch.uint8, exponents=True), _SPLIT),
    "fp8-block-e8m0": (
        fp8((64, 64), "weight_scale_inv", scale=torch.float8_e8m0fnu, exponents=True),
        _SPLIT,
    ),
    "fp8-rows-32": (
        fp8((1, 32), "weight_scale_inv", scale=torch.uint8, exponents=True),
        {**_SPLIT, "weight_block_size": [1, 32]},
    ),
    "fp8-tensor": (
        fp8(None, "weight_scale_inv", scale=_BF16, shape=()),
        {"quant_method": "fp8", "weight_block_size": None},
    ),
    "fp8-static": (fp8(None, "weight_scale", shape=(1,)), {"quant_method": "fp8"}),
    "fbgemm": (fp8((1, 0), "weight_scale"), {"quant_method": "fbgemm_fp8"}),
    "modelopt-fp8": (fp8(None, "weight_scale", shape=()), {"hf_quant_config.json": _MODELOPT}),
    "modelopt-nvfp4": (
        fp4(16, whole="weight_scale_2", prefix="weight"),
        {"hf_quant_config.json": {"quantization": {"quant_algo": "NVFP4", "group_size": 16}}},
    ),
    "ct-fp8-rows": (
        fp8((1, 0), "weight_scale", scale=_BF16),
        _compressed("float-quantized", 8, "float"),
    ),
    "ct-fp8-block": (
        fp8((64, 64), "weight_scale", target=torch.float32),
        _compressed("float-quantized", 8, "float", strategy="block", block_structure=[64, 64]),
    ),
    "ct-int8": (
        fp8((1, 0), "weight_scale", scale=_BF16, codes=int8_codes),
        _compressed("int-quantized", 8, "int"),
    ),
    "ct-int8-asym": (
        fp8((1, 0), "weight_scale", scale=_BF16, codes=int8_codes, zeros=True),
        _compressed("int-quantized", 8, "int", symmetric=False),
    ),
    "bnb-int8": (llm_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True, "dtype": "float16"}),
    **{f"ct-int{b}": (packed(b, 32), _packed(b, 32)) for b in range(2, 9)},
    **{
        f"ct-int{b}-old": (
            packed(b, 32, dense=False, zeros=True),
            _packed(b, 32, symmetric=False),
        )
        for b in (3, 4, 5, 6, 7)
    },
    "ct-int4-rows": (packed(4, None), _packed(4, None)),
    "ct-int4-zeros": (packed(4, 32, zeros=True), _packed(4, 32, symmetric=False)),
    "ct-int3-zeros": (packed(3, 32, zeros=True), _packed(3, 32, symmetric=False)),
    "ct-int4-order": (
        packed(4, 32, zeros=True, order=True),
        _packed(4, 32, symmetric=False, actorder="group"),
    ),
    "ct-nvfp4": (
        fp4(16, whole="weight_global_scale"),
        _compressed("nvfp4-pack-quantized", 4, "float", strategy="tensor_group", group_size=16),
    ),
    "ct-mxfp4": (fp4(32), _compressed("mxfp4-pack-quantized", 4, "float", strategy="group", group_size=32)),
    **{
        f"gptq{b}": (gptq(b, 32), {"quant_method": "gptq", "bits": b, "group_size": 32}) for b in (2, 3, 4, 8)
    },
    "gptq4-all": (gptq(4, None), {"quant_method": "gptq", "bits": 4, "group_size": -1}),
    "gptq4-order": (
        gptq(4, 32, order=True),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True},
    ),
    "gptq4-old": (
        gptq(4, 32, index=False),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False},
    ),
    "mxfp8": (
        fp8((1, 32), "weight_scale", scale=torch.uint8, exponents=True),
        {"quant_method": "modelopt", "quant_algo": "MXFP8"},
    ),
    "gptq4-v2": (
        gptq(4, 32, plus=0),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"},
    ),
    "gptq4-beside": (
        gptq(4, 32),
        {"quantize_config.json": {"bits": 4, "group_size": 32, "desc_act": False, "sym": True}},
    ),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
    "awq-beside": (
        awq,
        {"quant_config.json": {"w_bit": 4, "q_group_size": 32, "version": "GEMM", "zero_point": True}},
    ),
    "nf4": (bnb("nf4", nested=False), {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "nf4-nested": (bnb("nf4", nested=True), {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "fp4-nested": (bnb("fp4", nested=True), {"quant_method": "bitsandbytes", "load_in_4bit": True}),
}


def tensors_of(kind: str, seed: int = 0) -> tuple[Tensors, Tensors]:
    """Return the tensors of a quantised model, and those of the same as values."""
    make, _ = KINDS[kind]
    g = torch.Generator().manual_seed(zlib.crc32(kind.encode()) + seed)
    norms = ("input_layernorm", "post_attention_layernorm")
    plain = {f"model.layers.0.{n}.weight": torch.ones(HIDDEN, dtype=_BF16) for n in norms}
    plain["model.norm.weight"] = torch.ones(HIDDEN, dtype=_BF16)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        plain[name] = torch.randn((VOCAB, HIDDEN), generator=g).bfloat16()
    stored, values = dict(plain), dict(plain)
    for name, size in LINEARS.items():
        made, value = make(size, g)
        stored |= {f"model.layers.0.{name}.{end}": t for end, t in made.items()}
        values[f"model.layers.0.{name}.weight"] = value
    return stored, values


def write(folder: Path, stored: Tensors, settings: dict[str, Any], *, shards: int = 1) -> None:
    """Write a quantised model, its settings in config.json or in the files they name."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {**CONFIG, "dtype": settings.get("dtype", "bfloat16")}
    inside = {k: v for k, v in settings.items() if not k.endswith(".json") and k != "dtype"}
    if inside:
        config["quantization_config"] = inside
    for name, content in settings.items():
        if name.endswith(".json"):
            (folder / name).write_text(json.dumps(content))
    (folder / "config.json").write_text(json.dumps(config))
    stored = {n: t.contiguous() for n, t in stored.items()}
    if shards == 1:
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        return
    files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    mapped = {n: files[i % shards] for i, n in enumerate(sorted(stored))}
    for file in files:
        save_file({n: stored[n] for n, f in mapped.items() if f == file}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": mapped}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def model(folder: Path, kind: str, *, shards: int = 1, seed: int = 0) -> Tensors:
    """Write a quantised model; return its values."""
    stored, values = tensors_of(kind, seed)
    write(folder, stored, KINDS[kind][1], shards=shards)
    return values


def plain(folder: Path, values: Tensors) -> None:
    """Write a model of values."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "dtype": "bfloat16"}))
    save_file({n: t.contiguous() for n, t in values.items()}, folder / "model.safetensors", {"format": "pt"})
