"""TensorFlow's classes load what is written for them, and torch's compute the same from what they save.

``make test-frameworks`` runs these tests in an environment of their own, with transformers 4.57, the last
release with TensorFlow, and Keras 2.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tensorflow = pytest.importorskip("tensorflow")

import torch  # noqa: E402
import transformers  # noqa: E402

import ckptconv  # noqa: E402

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]

SMALL = dict(vocab_size=72, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
CASES: dict[str, dict[str, Any]] = {
    "AlbertForMaskedLM": {**SMALL, "embedding_size": 16},
    "BartForConditionalGeneration": dict(
        vocab_size=72, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
        bos_token_id=0, eos_token_id=1, pad_token_id=2, decoder_start_token_id=0,
    ),
    "BertForMaskedLM": SMALL,
    "BertModel": SMALL,
    "ElectraForPreTraining": {**SMALL, "embedding_size": 8},
    "GPT2LMHeadModel": dict(vocab_size=72, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1),
    "ResNetForImageClassification": dict(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], num_channels=3, layer_type="basic"
    ),
    "T5ForConditionalGeneration": dict(
        vocab_size=72, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, decoder_start_token_id=0,
    ),
}  # fmt: skip


def config_of(name: str) -> Any:
    return getattr(transformers, name).config_class(**CASES[name])


def inputs(name: str) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    if "Image" in name:
        return {"pixel_values": rng.standard_normal((1, 3, 32, 32)).astype(np.float32)}
    ids = rng.integers(3, 70, (1, 7))
    both = "Conditional" in name
    return {"input_ids": ids, **({"decoder_input_ids": ids[:, :5]} if both else {})}


def computed(model: Any, name: str, as_tensor: Any) -> Any:
    return np.asarray(model(**{k: as_tensor(v) for k, v in inputs(name).items()})[0])


def of_torch(folder: Path, name: str) -> Any:
    model, found = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(found[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        return computed(model.eval(), name, torch.tensor)


def saved_by_tensorflow(name: str, folder: Path, **options: Any) -> Any:
    """Save a fresh model of random weights; return what it computes."""
    model = getattr(transformers, f"TF{name}")(config_of(name))
    model.build_in_name_scope()
    rng = np.random.default_rng(0)
    for weight in model.weights:
        values = rng.normal(0, 0.3, weight.shape)
        weight.assign(np.abs(values) + 0.1 if "variance" in weight.name else values)
    model.save_pretrained(folder, **options)
    return computed(model, name, tensorflow.constant)


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize(
    "options",
    [{}, {"max_shard_size": "9KB"}, {"safe_serialization": True}],
    ids=["h5", "shards", "safetensors"],
)
def test_torch_computes_what_tensorflow_did(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    expected = saved_by_tensorflow(name, tmp_path / "source", **options)
    ckptconv.convert(tmp_path / "source", tmp_path / "out")
    assert np.abs(of_torch(tmp_path / "out", name) - expected).max() < 1e-3


@pytest.mark.parametrize("size", ["5GB", "9KB"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_tensorflow_computes_what_torch_did(tmp_path: Path, name: str, size: str) -> None:
    model = getattr(transformers, name)(config_of(name))
    model.save_pretrained(tmp_path / "source")
    ckptconv.convert(tmp_path / "source", tmp_path / "out", format="h5", max_shard_size=size)
    cls = getattr(transformers, f"TF{name}")
    made, found = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(found[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = of_torch(tmp_path / "source", name)
    assert np.abs(computed(made, name, tensorflow.constant) - expected).max() < 1e-3
