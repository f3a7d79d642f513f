"""The stand-ins of benchmarks/sparse, shrunk, are like what is really written: names, shapes, files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptconv
from ckptconv.readers.registry import open_checkpoint
from ckptconv.relations import Spec

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sparse = pytest.importorskip("sparse")

CONFIG: dict[str, Any] = {
    **sparse.MODELS["deepseek-v3"],
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 8,
    "kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
}  # fmt: skip
PARALLEL = sparse.Parallel(2, 2, 4, 2)


def model(folder: Path) -> Path:
    """Write the model that is stood in for."""
    import ml_dtypes

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    from sparse.models import parameters

    save_file(
        {
            n: np.zeros(s, np.float32 if n.endswith("correction_bias") else ml_dtypes.bfloat16)
            for n, s in parameters(CONFIG).items()
        },
        folder / "model.safetensors",
    )
    return folder


def held(run: Path) -> dict[str, Spec]:
    return dict(open_checkpoint(run).relation.left)


def test_ranks_of_megatron(tmp_path: Path) -> None:
    sparse.write_ranks(tmp_path / "made", CONFIG, PARALLEL)
    ckptconv.convert(
        model(tmp_path / "hf"), tmp_path / "real", to="megatron", sizes={"tp": 2, "pp": 2, "ep": 4, "etp": 2}
    )
    assert held(tmp_path / "made") == held(tmp_path / "real")
    back = ckptconv.plan(tmp_path / "made")
    assert {t.name for f in back.files for t in f.layout.tensors} == set(ckptconv.open(tmp_path / "hf"))


def test_torch_dist(tmp_path: Path) -> None:
    sparse.write_torch_dist(tmp_path / "made", CONFIG, PARALLEL)
    ckptconv.convert(model(tmp_path / "hf"), tmp_path / "real", to="torch_dist", sizes={"tp": 2})
    made, real = (open_checkpoint(tmp_path / n).relation for n in ("made", "real"))
    assert made.right == real.right
    assert len(list((tmp_path / "made").glob("iter_*/*.distcp"))) > 16
    back = ckptconv.plan(tmp_path / "made")
    assert {t.name for f in back.files for t in f.layout.tensors} == set(ckptconv.open(tmp_path / "hf"))


def test_zero_3(tmp_path: Path) -> None:
    sparse.write_zero3(tmp_path / "made", CONFIG, 16)
    back = ckptconv.plan(tmp_path / "made")
    assert {t.name: t.shape for f in back.files for t in f.layout.tensors} == {
        n: i.shape for n, i in ckptconv.open(model(tmp_path / "hf")).items()
    }
    assert len(back.stored) == 1
    assert len(back.inputs) >= 16
