"""What MindFormers 2.1 saves: experts of three axes, buffers, masters, layouts that are null, adapters."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from running import ROOT, assert_equal, ckptconv, loaded, succeeds

CASES = ("deepseekv3_gmm_bf16", "qwen3moe_mcore_bf16")
EXPERTS = 4
ENTRY = "0000000-0000001.safetensors"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("pairs")
    with tarfile.open(ROOT / "fixtures/mindspore/pairs.tar.xz") as archive:
        for member in archive.getmembers():
            if member.name.startswith(CASES):
                archive.extract(member, folder, filter="data")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def hf(pairs: Path) -> Path:
    return pairs / "qwen3moe_mcore_bf16/hf"


@pytest.fixture
def graph(pairs: Path) -> Tensors:
    """The model as graph mode saves it, experts in two axes."""
    return load_file(pairs / "qwen3moe_mcore_bf16/ms/mcore_interleaved.safetensors")


def apart(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Give experts an axis of their own, and every layer with experts its counts of tokens and steps."""
    made = {}
    for name, t in tensors.items():
        module, _, leaf = name.rpartition(".experts.")
        made[name] = t.reshape(EXPERTS, -1, t.shape[-1]) if leaf in ("weight1", "weight2") else t
        if leaf == "weight1":
            made[f"{module}.tokens_per_expert"] = torch.arange(EXPERTS, dtype=torch.float32)
            made[f"{module}.router.global_tokens_per_expert"] = torch.ones(EXPERTS)
            made[f"{module}.router.ga_steps"] = torch.ones(1)
    return made


def save(folder: Path, tensors: Tensors, optimizer: Tensors | None = None) -> Path:
    """Save an iteration: the weights, and what the optimizer holds beside them."""
    iteration = folder / "iteration_00000005"
    iteration.mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("5")
    (iteration / "common.json").write_text(json.dumps({"global_step": 5, "consumed_samples": 40}))
    save_file(tensors, iteration / f"model-{ENTRY}", {"format": "ms"})
    if optimizer is not None:
        save_file(optimizer, iteration / f"opt-{ENTRY}", {"format": "ms"})
    return folder


def masters(tensors: Tensors) -> Tensors:
    """Return masters that round to other weights, and moments."""
    made: Tensors = {f"main_param.{n}": t.float() * 1.25 + 2**-12 for n, t in tensors.items()}
    return made | {f"adam_{k}.{n}": torch.full(t.shape, 7.0) for n, t in tensors.items() for k in "mv"}


def test_experts_of_three_axes_become_the_model(hf: Path, graph: Tensors, tmp_path: Path) -> None:
    run = save(tmp_path / "run", apart(graph))
    succeeds("mindformers-to-hf", run, tmp_path / "out", "--config", hf, "--qkv-layout", "grouped")
    assert_equal(loaded(tmp_path / "out"), loaded(hf))
    succeeds("verify-roundtrip", run, tmp_path / "out", "--config", hf, "--qkv-layout", "grouped")


def test_experts_of_three_axes_are_written_like_a_checkpoint_that_has_them(
    hf: Path, graph: Tensors, tmp_path: Path
) -> None:
    like = save(tmp_path / "like", apart(graph))
    succeeds("hf-to-mindformers", hf, tmp_path / "out", "--like", like)
    (made,) = (tmp_path / "out").rglob("*.safetensors")
    assert_equal(load_file(made), {n: t for n, t in apart(graph).items() if n in graph})


def test_the_bias_beside_the_experts_is_the_routers(pairs: Path, tmp_path: Path) -> None:
    case, run = pairs / "deepseekv3_gmm_bf16", tmp_path / "run"
    tensors: Tensors = {}
    for file in (case / "ms").glob("*.safetensors"):
        tensors |= load_file(file)
    moved = {n.replace(".router.expert_bias", ".expert_bias"): t for n, t in tensors.items()}
    assert moved.keys() != tensors.keys()
    save(run, moved)
    succeeds("mindformers-to-hf", run, tmp_path / "out", "--config", case / "hf")
    got, want = loaded(tmp_path / "out"), loaded(case / "hf")
    assert_equal(got, {n: t.to(got[n].dtype) for n, t in want.items()})


def test_masters_are_left_out_or_take_the_place_of_the_weights(
    hf: Path, graph: Tensors, tmp_path: Path
) -> None:
    beside = {n: t for n, t in masters(graph).items() if n != "main_param.output_layer.weight"}
    run = save(tmp_path / "run", graph, beside)
    for flags in ((), ("--weights", "model")):
        out = tmp_path / f"model{len(flags)}"
        succeeds("mindformers-to-hf", run, out, "--config", hf, *flags)
        assert_equal(loaded(out), loaded(hf))
    out = tmp_path / "master"
    result = succeeds("mindformers-to-hf", run, out, "--config", hf, "--weights", "master")
    assert "1 tensors have no master (output_layer.weight)" in result.err
    want = {n: t.float() * 1.25 + 2**-12 for n, t in loaded(hf).items() if n != "lm_head.weight"}
    got = loaded(out)
    assert torch.equal(got.pop("lm_head.weight").bfloat16(), loaded(hf)["lm_head.weight"])
    assert_equal(got, want)


def test_masters_that_are_not_there_or_do_not_fit_are_refused(
    hf: Path, graph: Tensors, tmp_path: Path
) -> None:
    run = save(tmp_path / "none", graph)
    result = ckptconv("mindformers-to-hf", run, tmp_path / "o", "--config", hf, "--weights", "master")
    assert result.code == 4 and "holds no fp32 masters" in result.err
    run = save(tmp_path / "odd", graph, {"main_param.output_layer.weight": torch.ones(3, 3)})
    result = ckptconv("mindformers-to-hf", run, tmp_path / "o", "--config", hf, "--weights", "master")
    assert result.code == 4 and "main_param.output_layer.weight is [3, 3]" in result.err
    assert not (tmp_path / "o").exists()


def test_masters_go_along_with_the_optimizer(graph: Tensors, tmp_path: Path) -> None:
    run = save(tmp_path / "run", graph, masters(graph))
    succeeds("convert", run, tmp_path / "out", "--to", "mindformers", "--format", "safetensors")
    (made,) = (tmp_path / "out").rglob("*.safetensors")
    assert_equal(load_file(made), graph | masters(graph))


def metadata(tensors: Tensors, file: Mapping[str, int]) -> dict[str, Any]:
    """Return the metadata of tensors that are whole, each on the rank that is said to save it."""
    return {
        "state_dict_metadata": {
            n: {
                "properties": {"dtype": "BFloat16", "replica_id": 0},
                "global_shape": list(t.shape),
                "axis_fragmentations": [1] * t.dim(),
                "layout": None,
                "chunk": [{"global_offset": [0] * t.dim(), "local_shape": list(t.shape)}],
            }
            for n, t in tensors.items()
        },
        "storage_data": {
            str((n, (0,) * t.dim())): [
                {"file_name": f"model-{file[n]:07d}-0000002", "storage_rank": file[n], "rank_group": [0, 1]}
            ]
            for n, t in tensors.items()
        },
    }


def test_plain_tensors_balanced_over_ranks_have_no_layout(hf: Path, graph: Tensors, tmp_path: Path) -> None:
    tensors = apart(graph) | masters(apart(graph))
    rank = {n: i % 2 for i, n in enumerate(tensors)}
    iteration = tmp_path / "run/iteration_00000005"
    iteration.mkdir(parents=True)
    for r in (0, 1):
        held = {n: t for n, t in tensors.items() if rank[n] == r}
        save_file(held, iteration / f"model-{r:07d}-0000002.safetensors", {"format": "ms"})
    (iteration / "metadata.json").write_text(json.dumps(metadata(tensors, rank)))
    succeeds("mindformers-to-hf", tmp_path / "run", tmp_path / "out", "--config", hf)
    assert_equal(loaded(tmp_path / "out"), loaded(hf))
    flags = ("--config", hf, "--weights", "master")
    succeeds("mindformers-to-hf", tmp_path / "run", tmp_path / "master", *flags)
    want = {n: t.float() * 1.25 + 2**-12 for n, t in loaded(hf).items()}
    assert_equal(loaded(tmp_path / "master"), want)


# Adapters


QKV = "decoder.layers.0.self_attention.linear_qkv"
PROJ = "decoder.layers.1.self_attention.linear_proj"
GROUPED = "decoder.layers.1.mlp.experts"
ALPHA, RANK = 8, 2
MANIFEST = {
    "format": "mindformers_pynative_lora_adapter_v1",
    "lora_config": {"target_modules": ".*", "lora_rank": RANK, "lora_alpha": ALPHA},
}


def few(*shape: int) -> torch.Tensor:
    """Return numbers whose products and sums are exact."""
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16() / 8


def factors(graph: Tensors) -> Tensors:
    """Return an adapter of two linear layers and of the experts of one layer."""
    made = {}
    for module in (QKV, PROJ):
        rows, columns = graph[f"{module}.weight"].shape
        made |= {f"{module}.lora_a": few(RANK, columns), f"{module}.lora_b": few(rows, RANK)}
    for name in (f"{GROUPED}.weight1", f"{GROUPED}.weight2"):
        experts, rows, columns = apart(graph)[name].shape
        made |= {f"{name}_lora_a": few(experts, rows, RANK), f"{name}_lora_b": few(experts, RANK, columns)}
    return made


def trained(graph: Tensors) -> Tensors:
    """Return the model with the adapter added, as MindFormers computes it."""
    merged, added, scale = apart(graph), factors(graph), ALPHA / RANK
    for module in (QKV, PROJ):
        product = added[f"{module}.lora_b"].float() @ added[f"{module}.lora_a"].float()
        merged[f"{module}.weight"] = (merged[f"{module}.weight"].float() + scale * product).bfloat16()
    for name in (f"{GROUPED}.weight1", f"{GROUPED}.weight2"):
        product = added[f"{name}_lora_a"].float() @ added[f"{name}_lora_b"].float()
        merged[name] = (merged[name].float() + scale * product).bfloat16()
    return merged


@pytest.fixture
def merged(hf: Path, graph: Tensors, tmp_path: Path) -> Tensors:
    """The model with the adapter added, under Hugging Face's names."""
    run = save(tmp_path / "trained", trained(graph))
    succeeds("mindformers-to-hf", run, tmp_path / "merged", "--config", hf)
    return loaded(tmp_path / "merged")


@pytest.mark.parametrize("inside", ["", "iteration_00000005"])
def test_adapters_are_merged(hf: Path, graph: Tensors, merged: Tensors, tmp_path: Path, inside: str) -> None:
    run = save(tmp_path / "run", apart(graph) | factors(graph))
    refused = ckptconv("mindformers-to-hf", run, tmp_path / "out", "--config", hf)
    assert refused.code == 4 and "--lora merge" in refused.err
    unknown = ckptconv("mindformers-to-hf", run, tmp_path / "out", "--config", hf, "--lora", "merge")
    assert unknown.code == 2 and "--lora-alpha" in unknown.err
    (run / inside / "mindformers_adapter_config.json").write_text(json.dumps(MANIFEST))
    succeeds("mindformers-to-hf", run, tmp_path / "out", "--config", hf, "--lora", "merge")
    assert_equal(loaded(tmp_path / "out"), merged)


def test_an_adapter_without_the_model_is_merged_into_it(
    hf: Path, graph: Tensors, merged: Tensors, tmp_path: Path
) -> None:
    base = save(tmp_path / "base", apart(graph))
    adapter = save(tmp_path / "adapter", factors(graph))
    (adapter / "mindformers_adapter_config.json").write_text(json.dumps(MANIFEST))
    succeeds("mindformers-to-hf", base, tmp_path / "out", "--config", hf, "--adapter", adapter)
    assert_equal(loaded(tmp_path / "out"), merged)


@pytest.mark.parametrize("alone", [False, True])
def test_adapters_are_written_for_peft(
    hf: Path, graph: Tensors, merged: Tensors, tmp_path: Path, alone: bool
) -> None:
    run = save(tmp_path / "run", factors(graph) if alone else apart(graph) | factors(graph))
    (run / "mindformers_adapter_config.json").write_text(json.dumps(MANIFEST))
    out = tmp_path / "out"
    succeeds("mindformers-to-hf", run, out, "--config", hf, "--lora", "adapter")
    config = json.loads((out / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    held, made = load_file(out / "adapter_model.safetensors"), loaded(hf)
    for name in [n for n in held if n.endswith(".lora_A.weight")]:
        weight = name.removeprefix("base_model.model.").replace(".lora_A", "")
        product = held[name.replace("_A", "_B")].float() @ held[name].float()
        made[weight] = (made[weight].float() + scale * product).bfloat16()
    assert_equal(made, merged)


def test_a_factor_without_its_other_is_refused(hf: Path, graph: Tensors, tmp_path: Path) -> None:
    held = apart(graph) | factors(graph)
    del held[f"{GROUPED}.weight1_lora_b"]
    run = save(tmp_path / "run", held)
    flags = ("--lora", "merge", "--lora-alpha", ALPHA)
    result = ckptconv("mindformers-to-hf", run, tmp_path / "out", "--config", hf, *flags)
    assert result.code == 4 and "not the other factor" in result.err
    assert not (tmp_path / "out").exists()
