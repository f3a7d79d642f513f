"""Every Megatron, ModelLink and MindSpeed-LLM checkpoint becomes its true model, and that its ranks again.

``CKPTCONV_MEGATRON_CASES=DIR[:DIR]`` checks other folders of cases instead.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_cases import Case, find_cases, model_of, rank_files, read_rank_file
from running import loaded, succeeds

_CASES = find_cases()
_OTHERS = "CKPTCONV_MEGATRON_CASES" in os.environ
# Stored by the source model; transformers computes them from the config.
_BUFFERS = re.compile(r".*\.rotary(_pos)?_emb\.inv_freq")
_VOCABULARY = ("word_embeddings", "output_layer")


@pytest.fixture(params=_CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    found = request.param
    assert isinstance(found, Case)
    return found


def _config(case: Case) -> dict[str, Any]:
    values = json.loads((case.hf / "config.json").read_text())
    assert isinstance(values, dict)
    return values


def _merge(case: Case, out: Path, *flags: object) -> None:
    succeeds("megatron-merge", case.run, out, "--quiet", *flags)


@pytest.mark.skipif(_OTHERS, reason="other cases")
def test_every_way_of_naming_and_cutting_is_among_the_cases() -> None:
    names = {str(case) for case in _CASES}
    wanted = (
        "local", "te", "legacy", "oldv0", "oldv1", "uneven", "accte", "vpp", "te1x", "mtp", "grouped",
        "leggrouped", "etp1", "mmsplit", "tpext", "noop", "dualpipev", "list", "v131", "pad8", "gemma2",
        "chatglm3", "baichuan2",
        "internlm2", "qwen1", "phi3", "glm45", "tied", "dsv2lite", "seedoss",
    )  # fmt: skip
    assert [w for w in wanted if not any(w in n for n in names)] == []
    assert len(names) == 53


def test_merged_ranks_are_the_model(case: Case, tmp_path: Path) -> None:
    _merge(case, tmp_path / "out", "--config", case.hf)
    expected, found = loaded(case.hf), loaded(tmp_path / "out")
    absent = [n for n in expected if n not in found]
    assert all(_BUFFERS.fullmatch(n) for n in absent), absent
    layers = _config(case).get("num_hidden_layers") or 0
    for name in found.keys() - expected.keys():  # transformers does not save what predicts further tokens
        match = re.match(r"model\.layers\.(\d+)\.", name)
        assert match is not None and int(match[1]) >= layers and "mtp" in str(case), name
    for name in expected.keys() & found.keys():
        assert found[name].dtype == expected[name].dtype, name
        assert found[name].shape == expected[name].shape, name
        assert torch.equal(found[name], expected[name]), name


def test_replicas_are_compared(case: Case, tmp_path: Path) -> None:
    result = succeeds(
        "megatron-merge", case.run, tmp_path / "out", "--config", case.hf, "--dry-run", "--json"
    )
    steps = json.loads(result.out)["steps"]
    compared = [s["what"] for s in steps if s["kind"] == "compare"]
    ranks = {f.split("/")[1].split("_")[2] for f in rank_files(case.run)}
    if len(ranks) > 1:
        assert any("norm" in name or "ln_" in name for name in compared)


def test_the_model_split_like_the_ranks_is_the_ranks(case: Case, tmp_path: Path) -> None:
    out, model = tmp_path / "out", case.hf
    if "mtp" in str(case) and "v2_" not in str(case):  # the model beside it lacks these layers
        _merge(case, tmp_path / "model", "--config", case.hf)
        model = tmp_path / "model"
    succeeds("megatron-split", model, out, "--like", case.run, "--quiet")
    files = [f for f in rank_files(case.run) if f.endswith(("model_optim_rng.pt", "model_rng.pt"))]
    assert rank_files(out) == files
    tracker = "latest_checkpointed_iteration.txt"
    assert (out / tracker).read_text().strip() == (case.run / tracker).read_text().strip()
    config = _config(case)
    vocabulary = config.get("vocab_size") or config["padded_vocab_size"]
    for file in files:
        expected, found = read_rank_file(case.run / file), read_rank_file(out / file)
        rank = int(file.split("mp_rank_")[1][:2])
        assert list(found) == [k for k in expected if k in found], file
        _same_model(model_of(found), model_of(expected), rank, vocabulary)
        _same_arguments(found, expected)
        for key in ("checkpoint_version", "iteration"):
            assert found.get(key) == expected.get(key), key


def _same_model(found: dict[str, Any], expected: dict[str, Any], rank: int, vocabulary: int) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        other = found[name]
        assert type(other) is type(value), name
        if not isinstance(value, torch.Tensor):
            continue
        assert other.dtype == value.dtype, name
        if name.endswith("_extra_state"):
            continue
        assert other.shape == value.shape, name
        if any(v in name for v in _VOCABULARY) and value.dim() == 2:  # rows beyond the vocabulary are padding
            true = max(0, min(len(value), vocabulary - rank * len(value)))
            other, value = other[:true], value[:true]
        assert torch.equal(other, value), name


def _same_arguments(found: dict[str, Any], expected: dict[str, Any]) -> None:
    ours, theirs = (vars(x["args"]) if "args" in x else {} for x in (found, expected))
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        if isinstance(value, (bool, int, float, str, list, tuple, dict, type(None))):
            assert ours[name] == value or value != value, name


@pytest.mark.parametrize("case", [c for c in _CASES if "shards" not in c.path], ids=str)
def test_merged_models_reproduce_the_logits(case: Case, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    _merge(case, tmp_path / "out")  # config.json comes from the arguments
    truth = torch.load(case.logits, weights_only=True)
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert not info["unexpected_keys"] or "mtp" in str(case)
    with torch.no_grad():
        logits = model(truth["input_ids"]).logits
    assert torch.allclose(logits, truth["logits"], rtol=0, atol=1e-5)
