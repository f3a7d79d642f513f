"""Make the seeds of each fuzzing target: small real files, and files that use what real ones seldom do."""

from __future__ import annotations

import collections
import io
import json
import lzma
import pickle
import tarfile
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tensorflow_models import block, entry, number

__all__ = ["CORPUS", "LARGEST", "SMALL", "distributed", "seeds"]

FIXTURES = Path(__file__).parent.parent.parent / "fixtures"
CORPUS = Path(__file__).parent / "corpus"
LARGEST = 24 << 10
"""Bytes of the largest seed."""
SMALL = 4 << 10
"""Bytes of the largest seed where one input takes long: a fuzzer must get through many."""


class _Plain:
    """An object with state."""

    def __init__(self) -> None:
        self.a, self.b = 1, [2.5, "x"]


class _Items(list[int]):
    """A list subclass: appends after a call."""


def _values() -> list[Any]:
    return [
        {"module": {"w": 1.5, b"k": (1, 2, 3, 4)}, 3: None, (1, "a"): {1, 2}, "f": frozenset({"a", 1})},
        collections.OrderedDict(a=1, b=[]),
        collections.defaultdict(list, {"a": [1]}),
        [1 << 70, -5, 1e300, "\u20ac", b"\xff" * 3, bytearray(b"abc"), True, complex(1, 2), 300, 70_000],
        _Plain(),
        _Items([1, 2]),
    ]


def _unpickler() -> Iterator[bytes]:
    for value in _values():
        for protocol in range(6):
            yield pickle.dumps(value, protocol)
    import torch

    for data in _torch():
        if data.startswith(b"PK"):  # zipfile would miss the checksums that were not computed
            yield torch._C.PyTorchFileReader(io.BytesIO(data)).get_record("data.pkl")
    yield distributed()[0]


def _torch() -> Iterator[bytes]:
    import torch

    tied = torch.arange(6.0)
    values = [
        {"w": torch.ones(2, 3), "b": torch.arange(4, dtype=torch.int64), "t": tied, "u": tied.view(2, 3).t()},
        {"model": {"x": torch.zeros(0, 3), "h": torch.ones(2, dtype=torch.bfloat16)}, "iteration": 3,
         "args": {"a": 1}, "checkpoint_version": 3.0},
        torch.nn.Linear(2, 2),
    ]  # fmt: skip
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)  # a changed pickle is not refused for its checksum
    try:
        for value in values:
            for zipped in (True, False):
                buffer = io.BytesIO()
                torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
                yield buffer.getvalue()
    finally:
        torch.serialization.set_crc32_options(computed)
    for path in sorted(FIXTURES.glob("deepspeed/*/ckpt/*/*.pt")):
        if path.stat().st_size <= LARGEST:
            yield path.read_bytes()


def _protobuf() -> Iterator[bytes]:
    for path in sorted(FIXTURES.glob("mindspore/**/*.ckpt")):
        if path.stat().st_size <= LARGEST // 2:
            yield path.read_bytes()
    for path in sorted(FIXTURES.glob("mindspore/**/*strategy*.json")):
        yield path.read_bytes()


def _safetensors() -> Iterator[bytes]:
    from safetensors.numpy import save

    yield save({"a": np.ones((2, 3), np.float32), "b": np.zeros(3, np.int8)}, {"format": "pt"})
    yield save({"": np.ones((), np.float16), "\u20ac": np.ones((1, 0, 4), np.uint64)})
    yield save({})
    for path in sorted(FIXTURES.glob("mindspore/raw_*/*.safetensors")):
        if path.stat().st_size <= LARGEST // 2:
            yield path.read_bytes()


@cache
def distributed() -> tuple[bytes, bytes]:
    """Save a small distributed checkpoint; return its metadata and its one file of records."""
    import torch
    import torch.distributed.checkpoint as saver

    state = {"a": torch.arange(6.0).view(2, 3), "b": {"c": torch.ones(2, dtype=torch.bfloat16)}, "step": 7}
    with tempfile.TemporaryDirectory() as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            saver.save(state, checkpoint_id=folder, no_dist=True)
        return (Path(folder) / ".metadata").read_bytes(), (Path(folder) / "__0_0.distcp").read_bytes()


def _dcp() -> Iterator[bytes]:
    yield distributed()[0]
    for name in ("dcp.tar.xz", "megatron_dist/cases.tar.xz"):
        with lzma.open(FIXTURES / name) as packed, tarfile.open(fileobj=packed) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file and member.name.endswith("/.metadata") and member.size <= LARGEST:
                    yield file.read()


def _hdf5() -> Iterator[bytes]:
    for name, data in _tensorflow():
        if name.endswith(".h5"):
            yield data


def _tf1() -> Iterator[bytes]:
    yield block([(b"", number(1, 1)), (b"bert/pooler/dense/kernel", entry((2, 8), 0, 64))])[:-5]
    yield block([(b"", number(1, 1)), (b"a", entry((), 0, 8, dtype=9)), (b"b", entry((3,), 8, 12))])[:-5]
    for name, data in _tensorflow():
        if name.endswith(".index"):
            yield data


def _tensorflow() -> Iterator[tuple[str, bytes]]:
    with lzma.open(FIXTURES / "tensorflow" / "cases.tar.xz") as packed, tarfile.open(fileobj=packed) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file and member.size <= LARGEST:
                yield member.name, file.read()


_CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 96, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "hidden_act": "silu",
    "tie_word_embeddings": False, "eos_token_id": [1, 2],
    "rope_scaling": {"rope_type": "linear", "factor": 2},
}  # fmt: skip
_MOE = {
    **_CONFIG, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True,
    "moe_intermediate_size": 16, "decoder_sparse_step": 1, "mlp_only_layers": [0], "sliding_window": None,
}  # fmt: skip


def _config() -> Iterator[bytes]:
    for config in (_CONFIG, _MOE, {**_MOE, "model_type": "deepseek_v3", "first_k_dense_replace": 1}):
        yield json.dumps(config).encode()


_YAML = b"""
seed: 0
base: &base {theta: 10000.0, rms_norm_eps: 1.0e-06}
model:
  arch: {type: LlamaForCausalLM}
  model_config:
    <<: *base
    type: LlamaConfig
    hidden_size: 32
    num_layers: 2
    num_heads: 4
    n_kv_heads: ~
    vocab_size: 96
    seq_length: 64
    multiple_of: 0x10
    extend_method: "PI"
    scaling_factor: 2.0
    moe_config: {expert_num: 4, num_experts_chosen: 2}
"""


def _yaml() -> Iterator[bytes]:
    yield _YAML
    yield b"- !!python/name:torch.float ''\n- &a [1, .inf, 'x']\n- *a\n- ? [1]\n  : |\n    text\n"


def _arguments() -> Iterator[bytes]:
    args = {
        "num_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "ffn_hidden_size": 64,
        "num_query_groups": 2,
        "group_query_attention": True, "vocab_size": 96, "padded_vocab_size": 128, "swiglu": True,
        "max_position_embeddings": 64, "normalization": "RMSNorm", "norm_epsilon": 1e-5, "rotary_base": 10000,
        "position_embedding_type": "rope", "add_bias_linear": False, "noop_layers": "1,3",
        "num_experts": None,
        "untie_embeddings_and_output_weights": True, "params_dtype": "bfloat16", "window_size": [7, 0],
        "moe_layer_freq": [0, 1, 1, 1], "use_rope_scaling": True, "rope_scaling_factor": 8.0,
    }  # fmt: skip
    yield json.dumps(args).encode()
    yield json.dumps({**args, "num_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 16}).encode()


_SEEDS = {
    "unpickler": _unpickler,
    "torch": _torch,
    "protobuf": _protobuf,
    "safetensors": _safetensors,
    "dcp": _dcp,
    "hdf5": _hdf5,
    "tf1": _tf1,
    "yaml": _yaml,
    "config": _config,
    "arguments": _arguments,
}


def seeds(target: str, largest: int = LARGEST) -> list[bytes]:
    """Return the seeds of a target, with the inputs that once found something."""
    found = [p.read_bytes() for p in sorted((CORPUS / target).glob("*"))]
    return found + sorted({s for s in _SEEDS[target]() if len(s) <= largest}, key=len)
