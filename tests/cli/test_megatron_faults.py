"""Runs of ranks that are incomplete, mixed up or unknown are refused by name, with nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptconv
from megatron_layouts import tensors_of, write_model
from running import fails, loaded, succeeds

CONFIG: dict[str, Any] = dict(
    model_type="llama", vocab_size=10, hidden_size=8, intermediate_size=12, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, head_dim=3, max_position_embeddings=32, rms_norm_eps=1e-6,
    rope_theta=1e4, hidden_act="silu", initializer_range=0.02,
)  # fmt: skip
EXPERTS: dict[str, Any] = CONFIG | dict(
    model_type="qwen3_moe", num_experts=4, moe_intermediate_size=6, num_experts_per_tok=2
)
STEP, FILE = "iter_0000001", "model_optim_rng.pt"
NAMES = ["mp_rank_00_000", "mp_rank_00_001", "mp_rank_01_000", "mp_rank_01_001"]
Rank = dict[str, Any]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", CONFIG, tensors_of(CONFIG))


@pytest.fixture
def run(tmp_path: Path, model: Path) -> Path:
    """A run of two tensor-parallel ranks on two stages, that may be spoilt."""
    ckptconv.convert(
        model,
        tmp_path / "run",
        to="megatron",
        sizes={"tp": 2, "pp": 2},
        dialect="core-local",
        vocab_divisible=1,
    )
    return tmp_path / "run"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def change(run: Path, name: str, how: Callable[[Rank], object], step: str = STEP) -> None:
    """Change what a rank's file holds."""
    path = run / step / name / FILE
    rank = torch.load(path, weights_only=False)
    how(rank)
    torch.save(rank, path)


def change_all(run: Path, how: Callable[[Rank], object]) -> None:
    for path in sorted((run / STEP).iterdir()):
        change(run, path.name, how)


def merged(run: Path, out: Path, *flags: object) -> None:
    """The run must become the model."""
    succeeds("megatron-merge", run, out, "--quiet", *flags)
    assert all(torch.equal(t, torch.tensor(tensors_of(CONFIG)[n])) for n, t in loaded(out).items())


def test_the_run_is_sound(run: Path, out: Path) -> None:
    merged(run, out, "--tp", 2, "--pp", 2)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_rank(run: Path, out: Path, name: str) -> None:
    shutil.rmtree(run / STEP / name)
    fails(4, "megatron-merge", run, out, naming=(name, "missing", "tp 2, pp 2"), out=out)


def test_an_empty_rank_folder(run: Path, out: Path) -> None:
    (run / STEP / NAMES[2] / FILE).unlink()
    fails(1, "megatron-merge", run, out, naming=(NAMES[2], FILE), out=out)


@pytest.mark.parametrize(
    ("how", "what"),
    [
        (lambda r: r.update(iteration=7), "iteration is 7"),
        (lambda r: r.update(checkpoint_version=1.0), "checkpoint_version is 1.0"),
        (lambda r: setattr(r["args"], "hidden_size", 16), "args.hidden_size is 16"),
        (lambda r: setattr(r["args"], "num_layers", 6), "args.num_layers is 6"),
        (lambda r: setattr(r["args"], "tensor_model_parallel_size", 4), "tensor_model_parallel_size is 4"),
    ],
)
def test_a_rank_of_another_save(run: Path, out: Path, how: Callable[[Rank], object], what: str) -> None:
    change(run, NAMES[3], how)
    fails(4, "megatron-merge", run, out, naming=(NAMES[3], "another save", what), out=out)


def test_a_rank_of_another_shape(run: Path, out: Path) -> None:
    key = "decoder.layers.0.self_attention.linear_proj.weight"
    change(run, NAMES[2], lambda r: r["model"].update({key: torch.zeros(8, 5)}))
    fails(
        4, "megatron-merge", run, out, naming=("decoder.layers.0.self_attention.linear_proj.weight",), out=out
    )


def test_a_rank_of_another_dtype(run: Path, out: Path) -> None:
    change(
        run,
        NAMES[2],
        lambda r: r.update(model={k: v.bfloat16() for k, v in r["model"].items() if v is not None}),
    )
    fails(4, "megatron-merge", run, out, naming=("bfloat16", NAMES[2]), out=out)


def test_a_tensor_one_rank_lacks(run: Path, out: Path) -> None:
    change(run, NAMES[3], lambda r: r["model"].pop("decoder.layers.1.mlp.linear_fc2.weight"))
    fails(
        4,
        "megatron-merge",
        run,
        out,
        naming=("decoder.layers.1.mlp.linear_fc2.weight", NAMES[1], NAMES[3]),
        out=out,
    )


def test_a_tensor_all_ranks_lack(run: Path, out: Path) -> None:
    for name in (NAMES[1], NAMES[3]):
        change(run, name, lambda r: r["model"].pop("decoder.layers.1.mlp.linear_fc2.weight"))
    fails(4, "megatron-merge", run, out, out=out, naming=("layers.3.mlp.down",))


def test_a_number_of_layers_that_is_not_that_of_the_arguments(run: Path, out: Path) -> None:
    change_all(run, lambda r: setattr(r["args"], "num_layers", 5))
    fails(
        4, "megatron-merge", run, out, out=out,
        naming=("hold 4 layers", "num_layers says 5", "stage 0: 2", "stage 1: 2"),
    )  # fmt: skip


def test_a_stage_of_another_run(run: Path, out: Path) -> None:
    for name in (NAMES[1], NAMES[3]):
        shutil.copyfile(run / STEP / name.replace("_001", "_000") / FILE, run / STEP / name / FILE)
    fails(4, "megatron-merge", run, out, out=out)


def add_value_head(rank: Rank) -> None:
    rank["model"]["value_head.weight"] = torch.arange(8.0)[None]


def test_an_unknown_key(run: Path, out: Path, tmp_path: Path) -> None:
    for name in (NAMES[1], NAMES[3]):
        change(run, name, add_value_head)
    message = fails(4, "megatron-merge", run, out, naming=("value_head.weight",), out=out)
    assert "--drop" in message and "--rename" in message
    merged(run, out, "--drop", "value_head.*")
    rules = tmp_path / "rules.txt"
    rules.write_text("value_head.weight = score.weight\n")
    succeeds("megatron-merge", run, tmp_path / "renamed", "--rename", rules, "--quiet")
    found = loaded(tmp_path / "renamed")
    assert torch.equal(found["score.weight"], torch.arange(8.0)[None])
    assert len(found) == len(tensors_of(CONFIG)) + 1


def test_an_unknown_key_of_several_shapes(run: Path, out: Path) -> None:
    change(run, NAMES[1], lambda r: r["model"].update({"reward.weight": torch.ones(1, 8)}))
    change(run, NAMES[3], lambda r: r["model"].update({"reward.weight": torch.ones(2, 8)}))
    fails(4, "megatron-merge", run, out, naming=("reward.weight",), out=out)
    merged(run, out, "--drop", "reward.weight*")


def test_unknown_keys_that_differ_are_no_replicas(run: Path, out: Path, tmp_path: Path) -> None:
    change(run, NAMES[1], add_value_head)
    change(run, NAMES[3], lambda r: r["model"].update({"value_head.weight": torch.ones(1, 8)}))
    rules = tmp_path / "rules.txt"
    rules.write_text("value_head.weight = score.weight\n")
    fails(3, "megatron-merge", run, out, "--rename", rules, naming=("score.weight",), out=out)


@pytest.mark.parametrize(("flag", "said"), [("--tp", 2), ("--pp", 2), ("--ep", 1)])
def test_sizes_that_are_not_the_checkpoints(run: Path, out: Path, flag: str, said: int) -> None:
    size = flag.removeprefix("--")
    fails(
        4, "megatron-merge", run, out, flag, 4, out=out,
        naming=(f"{size} {said}", f"{flag} says 4", "leave the flag out"),
    )  # fmt: skip
    fails(4, "convert", run, out, "--to", "hf", f"--source-{size}", 4, naming=(f"{size} {said}",), out=out)


def test_virtual_chunks_that_are_not_the_checkpoints(run: Path, out: Path) -> None:
    fails(4, "megatron-merge", run, out, "--vpp", 2, naming=("1 virtual chunks", "--vpp says 2"), out=out)


def test_arguments_are_missing(run: Path, out: Path, model: Path) -> None:
    change_all(run, lambda r: r.pop("args"))
    fails(4, "megatron-merge", run, out, naming=("config.json", "--config"), out=out)
    result = succeeds("megatron-merge", run, out, "--config", model)
    assert "tp 2" in result.err and "pp 2" in result.err and "folders' names" in result.err
    merged(run, out, "--overwrite", "--config", model, "--tp", 2, "--pp", 2)
    fails(4, "megatron-merge", run, out.with_name("wrong"), "--config", model, "--tp", 2, "--ep", 2)
    result = succeeds(
        "convert", run, out, "--to", "hf", "--overwrite", "--config", model, "--source-tp", 2,
        "--source-pp", 2,
        "--source-ep", 1,
    )  # fmt: skip
    assert "folders' names" not in result.err


def test_one_number_may_be_the_expert_rank(tmp_path: Path, out: Path) -> None:
    moe = write_model(tmp_path / "moe", EXPERTS, tensors_of(EXPERTS))
    ckptconv.convert(moe, tmp_path / "run", to="megatron", sizes={"tp": 2, "ep": 2}, vocab_divisible=1)
    change_all(tmp_path / "run", lambda r: r.pop("args"))
    result = succeeds("megatron-merge", tmp_path / "run", out, "--config", moe)
    assert "ep 2" in result.err and "pp 1" in result.err
    assert all(torch.equal(t, torch.tensor(tensors_of(EXPERTS)[n])) for n, t in loaded(out).items())


def test_replicas_that_differ(run: Path, out: Path) -> None:
    key = "decoder.layers.0.input_layernorm.weight"
    change(run, NAMES[2], lambda r: r["model"][key].add_(1))
    fails(3, "megatron-merge", run, out, naming=("model.layers.0.input_layernorm.weight", NAMES[2]), out=out)
    assert not (out / "config.json").exists()
    fails(
        3, "convert", run, out.with_name("ranks"), "--to", "megatron", "--pp", 2, naming=(key,)
    )  # fmt: skip
    assert list(out.with_name("ranks").rglob("*.pt")) == []
    assert not (out.with_name("ranks") / "latest_checkpointed_iteration.txt").exists()


def test_heads_tied_by_the_arguments_that_differ(tmp_path: Path, out: Path) -> None:
    config = CONFIG | {"tie_word_embeddings": True}
    tied = write_model(tmp_path / "tied", config, tensors_of(config))
    ckptconv.convert(tied, tmp_path / "run", to="megatron", sizes={"pp": 2}, vocab_divisible=1)
    succeeds("megatron-merge", tmp_path / "run", tmp_path / "sound", "--quiet")
    assert "lm_head.weight" not in loaded(tmp_path / "sound")
    change(tmp_path / "run", NAMES[1], lambda r: r["model"]["output_layer.weight"].add_(1))
    fails(3, "megatron-merge", tmp_path / "run", out, naming=("model.embed_tokens.weight",), out=out)


def test_multi_token_prediction_named_by_the_config_alone(tmp_path: Path, out: Path) -> None:
    config = EXPERTS | dict(
        model_type="deepseek_v3", q_lora_rank=10, kv_lora_rank=6, qk_nope_head_dim=4, qk_rope_head_dim=2,
        v_head_dim=3, n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1, head_dim=2,
        num_key_value_heads=4, num_nextn_predict_layers=0,
    )  # fmt: skip
    v3 = write_model(tmp_path / "v3", config, tensors_of(config))
    ckptconv.convert(v3, tmp_path / "run", to="megatron", sizes={"tp": 2}, vocab_divisible=1)
    named = tmp_path / "named"
    named.mkdir()
    (named / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    result = succeeds("megatron-merge", tmp_path / "run", out, "--config", named)
    assert "names 1 layers for multi-token prediction, of which the checkpoint holds 0" in result.err
    result = succeeds("megatron-merge", tmp_path / "run", tmp_path / "plain", "--config", v3)
    assert "multi-token" not in result.err


def test_the_vocabulary_is_unknown(run: Path, out: Path) -> None:
    def forget(rank: Rank) -> None:
        args: dict[str, Any] = rank["args"].__dict__
        args.update(dict.fromkeys([k for k in args if "vocab" in k or "tokenizer" in k]))

    change_all(run, forget)
    fails(4, "megatron-merge", run, out, naming=("--vocab-size",), out=out)
    merged(run, out, "--vocab-size", 10)
    fails(4, "megatron-merge", run, out.with_name("more"), "--vocab-size", 99, naming=("embed",))


def test_padding_rows_go(tmp_path: Path, model: Path, out: Path) -> None:
    ckptconv.convert(model, tmp_path / "run", to="megatron", sizes={"tp": 2}, vocab_divisible=16)
    merged(tmp_path / "run", out)


def test_the_tracker_names_an_iteration_that_is_not_there(run: Path, out: Path) -> None:
    tracker = run / "latest_checkpointed_iteration.txt"
    tracker.write_text("50")
    fails(1, "megatron-merge", run, out, naming=("iter_0000050", tracker.name), out=out)
    merged(run, out, "--iteration", 1)
    fails(2, "megatron-merge", run, out.with_name("b"), "--iteration", 50, naming=("no step 50", STEP))
    tracker.write_text("soon")
    fails(1, "megatron-merge", run, out.with_name("c"), naming=("'soon'",))


def test_the_newest_iteration_without_a_tracker(run: Path, out: Path) -> None:
    (run / "latest_checkpointed_iteration.txt").unlink()
    shutil.copytree(run / STEP, run / "iter_0000010")
    for name in NAMES:
        change(run, name, lambda r: r["model"].clear(), STEP)
    merged(run, out)


def test_a_release(run: Path, out: Path) -> None:
    (run / STEP).rename(run / "release")
    (run / "latest_checkpointed_iteration.txt").write_text("release")
    merged(run, out)
    merged(run / "release", out.with_name("b"))


@pytest.mark.parametrize("inside", [STEP, f"{STEP}/{NAMES[2]}", f"{STEP}/{NAMES[2]}/{FILE}"])
def test_a_place_inside_the_run_is_enough(run: Path, out: Path, inside: str) -> None:
    merged(run / inside, out)


def test_two_layouts_in_one_folder(run: Path, out: Path) -> None:
    shutil.copytree(run / STEP / NAMES[0], run / STEP / "mp_rank_02_000")
    fails(
        4,
        "megatron-merge",
        run,
        out,
        naming=("mp_rank_02_000 is no rank of tp 2, pp 2", "two saves"),
        out=out,
    )
    shutil.rmtree(run / STEP / "mp_rank_02_000")
    shutil.copytree(run / STEP / NAMES[0], run / STEP / "mp_rank_00")
    fails(4, "megatron-merge", run, out, naming=("mp_rank_00 is no rank",), out=out)


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.99])
def test_a_rank_file_cut_off(run: Path, out: Path, keep: float) -> None:
    path = run / STEP / NAMES[1] / FILE
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    fails(1, "megatron-merge", run, out, naming=(NAMES[1],), out=out)


def test_ranks_without_a_model(run: Path, out: Path) -> None:
    change_all(run, lambda r: r.pop("model"))
    fails(1, "megatron-merge", run, out, naming=("no model", "checkpoint_version"), out=out)


def test_ranks_with_an_empty_model(run: Path, out: Path) -> None:
    change_all(run, lambda r: r["model"].clear())
    fails(1, "megatron-merge", run, out, naming=("no model",), out=out)


def test_masters_have_no_names(run: Path, out: Path) -> None:
    fails(4, "megatron-merge", run, out, "--weights", "master", naming=("masters",), out=out)


# Splitting


def split_fails(model: Path, out: Path, *flags: object, naming: tuple[str, ...], code: int = 4) -> None:
    fails(code, "megatron-split", model, out, *flags, naming=naming)
    assert not out.exists() or list(out.rglob("*.pt")) == []


def test_a_dialect_without_a_place_for_a_tensor(tmp_path: Path, out: Path) -> None:
    config = CONFIG | dict(
        model_type="gemma2", hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=4, sliding_window=8,
        tie_word_embeddings=True,
    )  # fmt: skip
    gemma = write_model(tmp_path / "gemma", config, tensors_of(config))
    naming = ("legacy", "no place", "post_norm", "--dialect")
    split_fails(gemma, out, "--dialect", "legacy", naming=naming)


def test_an_unknown_dialect(model: Path, out: Path) -> None:
    split_fails(model, out, "--dialect", "core", naming=("'core'", "core-local", "mindspeed"), code=2)


@pytest.mark.parametrize(
    ("flags", "naming"),
    [
        (("--tp", 3), ("4 attention heads in 2 query groups", "3 tensor parallel ranks", "--tp")),
        (("--pp", 3), ("4 layers cannot be divided over 3", "--layers-per-stage")),
        (("--pp", 2, "--vpp", 4), ("4 layers cannot be divided over 8",)),
        (("--pp", 2, "--layers-per-stage", "1,2"), ("4 layers are not [1, 2]",)),
        (("--pp", 2, "--layers-per-stage", "1,1,2"), ("4 layers are not [1, 1, 2]",)),
        (("--noop-layers", "7", "--dialect", "mindspeed"), ("no-op layers [7]",)),
        (("--tp", 2, "--etp", 4), ("4 does not divide tensor parallel size 2",)),
        (("--tp", 8), ("4 attention heads", "8 tensor parallel ranks")),
    ],
)
def test_layouts_that_do_not_divide(
    model: Path, out: Path, flags: tuple[object, ...], naming: tuple[str, ...]
) -> None:
    split_fails(model, out, *flags, naming=naming)


@pytest.mark.parametrize(
    ("flags", "naming"),
    [
        (("--ep", 3), ("4 experts cannot be divided over 3 ranks", "--ep")),
        (("--ep", 8), ("4 experts cannot be divided over 8",)),
        (
            ("--tp", 2, "--ep", 4, "--moe-tp-extend-ep", "--dialect", "mindspeed"),
            ("4 experts cannot be divided over 8",),
        ),
    ],
)
def test_experts_that_do_not_divide(
    tmp_path: Path, out: Path, flags: tuple[object, ...], naming: tuple[str, ...]
) -> None:
    moe = write_model(tmp_path / "moe", EXPERTS, tensors_of(EXPERTS))
    split_fails(moe, out, *flags, naming=naming)


def test_lists_that_are_none(model: Path, out: Path) -> None:
    split_fails(model, out, "--layers-per-stage", "3;1", naming=("--layers-per-stage",), code=2)
    split_fails(model, out, "--tp", 0, naming=("--tp",), code=2)


def test_like_something_else(model: Path, run: Path, out: Path, tmp_path: Path) -> None:
    split_fails(model, out, "--like", model, naming=("no checkpoint of ranks",), code=2)
    config = CONFIG | {"num_hidden_layers": 2}
    other = write_model(tmp_path / "other", config, tensors_of(config))
    split_fails(other, out, "--like", run, naming=("layers.2",))
    config = CONFIG | {"hidden_size": 16}
    other = write_model(tmp_path / "wider", config, tensors_of(config))
    split_fails(other, out, "--like", run, naming=("contradicts", "embedding.word_embeddings.weight"))


def test_a_model_with_more_than_the_target_has(tmp_path: Path, run: Path, out: Path) -> None:
    config = CONFIG | {"attention_bias": True}
    biased = write_model(tmp_path / "biased", config, tensors_of(config))
    split_fails(biased, out, "--like", run, naming=("no place", "attn.q.bias"))
    succeeds("megatron-split", biased, out, "--like", run, "--drop", "*.bias", "--quiet")
