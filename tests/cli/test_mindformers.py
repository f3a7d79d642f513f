"""MindFormers to Hugging Face and back by the commands: real pairs, ranks, strategies, the run's YAML."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ckptconv as package
from ckptconv.containers.mindspore.mindspore import open_mindspore
from running import ROOT, assert_equal, ckptconv, fails, loaded, succeeds

FIXTURES = ROOT / "fixtures" / "mindspore"
FILES = {
    "deepseekv3_gmm_bf16": ("",),
    "glm4_concat_bf16": ("glm.ckpt",),
    "glm4_rearrange_concat_fp32": ("glm.ckpt",),
    "llama2_gqa_bf16": ("llama.ckpt", "llama_qkv_concat.ckpt"),
    "mixtral_bf16": ("mixtral.ckpt",),
    "qwen2_5_bf16": ("qwen.ckpt", "qwen_qkv_concat.ckpt"),
    "qwen2_5_tied_fp32": ("qwen.ckpt", "qwen_qkv_concat.ckpt"),
    "qwen3_mcore_bf16": tuple(
        f"mcore_{form}.{suffix}"
        for form in ("contiguous", "interleaved", "template")
        for suffix in ("ckpt", "safetensors")
    ),
    "qwen3moe_mcore_bf16": tuple(
        f"mcore_{form}.{suffix}"
        for form in ("contiguous", "interleaved")
        for suffix in ("ckpt", "safetensors")
    ),
}
PAIRS = [(case, file) for case, files in FILES.items() for file in files]
BUFFER = "transformer.rotary_pos_emb.inv_freq"  # stored by both sides, made by the model itself
DISTRIBUTED = [
    "dist_dp2mp1pp2_opt",
    "dist_dp2mp2_opt",
    "dist_mp2pp2",
    "dist_nested_map",
    "dist_st_dp2mp2_dedup",
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("pairs")
    with tarfile.open(FIXTURES / "pairs.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    yield folder
    shutil.rmtree(folder)


def flags(file: str) -> list[str]:
    """Say what names and shapes do not tell of these files."""
    contiguous = ["--qkv-layout", "contiguous", "--mlp-layout", "contiguous"]
    return contiguous if "contiguous" in file else []


def raw(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Read a MindSpore file or folder, as bytes."""
    model = package.open(path)
    return {n: (model[n].dtype.name, model[n].shape, model.read(n).tobytes()) for n in model}


@pytest.mark.parametrize(("case", "file"), PAIRS)
def test_real_checkpoints_become_the_model_they_were_made_from(
    pairs: Path, tmp_path: Path, case: str, file: str
) -> None:
    hf = pairs / case / "hf"
    succeeds("mindformers-to-hf", pairs / case / "ms" / file, tmp_path / "out", "--config", hf, *flags(file))
    got, want = loaded(tmp_path / "out"), loaded(hf)
    want.pop(BUFFER, None)
    assert_equal(got, {n: t.to(got[n].dtype) for n, t in want.items()})  # norms wider, one case rounded


@pytest.mark.parametrize(("case", "file"), PAIRS)
def test_a_model_becomes_the_real_checkpoint(pairs: Path, tmp_path: Path, case: str, file: str) -> None:
    like = pairs / case / "ms" / file
    succeeds("hf-to-mindformers", pairs / case / "hf", tmp_path / "out", "--like", like, *flags(file))
    got, want = raw(tmp_path / "out"), raw(like)
    lost = {BUFFER} & want.keys()
    assert got == {n: t for n, t in want.items() if n not in lost}
    if file and not lost:
        (made,) = tmp_path.glob("out/checkpoint.*")
        assert made.read_bytes() == like.read_bytes()


def test_what_only_the_yaml_says_is_known_of_what_is_written_like_it(pairs: Path, tmp_path: Path) -> None:
    case, out = pairs / "glm4_rearrange_concat_fp32", tmp_path / "out"
    yaml = next((case / "ms").glob("*.yaml"))
    succeeds("hf-to-mindformers", case / "hf", out, "--like", case / "ms" / "glm.ckpt")
    assert (out / yaml.name).read_bytes() == yaml.read_bytes()
    succeeds("verify-roundtrip", case / "hf", out)
    (out / yaml.name).unlink()  # now it is guessed, and said which flag settles it
    result = ckptconv("verify-roundtrip", case / "hf", out)
    assert result.code == 3
    assert (
        "guess: the output: rows of query and key are as published" in result.err and "--yaml" in result.err
    )
    succeeds("verify-roundtrip", case / "hf", out, "--yaml", yaml)


def test_a_yaml_that_the_flags_contradict_is_not_written(pairs: Path, tmp_path: Path) -> None:
    case, like = pairs / "qwen3_mcore_bf16", tmp_path / "like"
    like.mkdir()
    shutil.copyfile(case / "ms" / "mcore_contiguous.ckpt", like / "model.ckpt")
    text = "model:\n  model_config:\n    use_contiguous_weight_layout_attention: {}\n"
    for said, flag, kept in (("true", "contiguous", True), ("false", "contiguous", False)):
        (like / "run.yaml").write_text(text.format(said))
        out = tmp_path / said
        succeeds("hf-to-mindformers", case / "hf", out, "--like", like / "model.ckpt", "--qkv-layout", flag)
        assert (out / "run.yaml").exists() is kept


@pytest.mark.parametrize(
    ("case", "file", "form"),
    [
        ("llama2_gqa_bf16", "llama.ckpt", []),
        ("llama2_gqa_bf16", "llama_qkv_concat.ckpt", ["--qkv-concat"]),
        ("mixtral_bf16", "mixtral.ckpt", []),
        ("qwen2_5_tied_fp32", "qwen.ckpt", []),
        ("qwen3_mcore_bf16", "mcore_interleaved.ckpt", []),
        ("qwen3_mcore_bf16", "mcore_contiguous.ckpt", flags("contiguous")),
        ("qwen3moe_mcore_bf16", "mcore_interleaved.safetensors", ["--format", "safetensors"]),
    ],
)
def test_defaults_and_flags_write_what_the_own_converters_do(
    pairs: Path, tmp_path: Path, case: str, file: str, form: list[str]
) -> None:
    succeeds("hf-to-mindformers", pairs / case / "hf", tmp_path / "out", *form)
    assert raw(tmp_path / "out") == raw(pairs / case / "ms" / file)


def test_a_guess_is_said_and_the_yaml_settles_it(pairs: Path, tmp_path: Path) -> None:
    ms, hf = pairs / "qwen3_mcore_bf16" / "ms", pairs / "qwen3_mcore_bf16" / "hf"
    file = ms / "mcore_contiguous.ckpt"
    made = json.loads(succeeds("mindformers-to-hf", file, "x", "--config", hf, "--dry-run", "--json").out)
    guesses = [n["text"] for n in made["notes"] if n["level"] == "guess"]
    assert len(guesses) == 2
    assert "--qkv-layout" in guesses[0]
    assert "--mlp-layout" in guesses[1]
    yaml = tmp_path / "run.yaml"
    yaml.write_text(
        "model:\n  model_config:\n    use_contiguous_weight_layout_attention: true\n"
        "    use_interleaved_weight_layout_mlp: false\n"
    )
    out = tmp_path / "out"
    result = succeeds("mindformers-to-hf", file, out, "--config", hf, "--yaml", yaml)
    assert "do not tell" not in result.err
    assert_equal(loaded(out), loaded(hf))


@pytest.mark.parametrize(
    "case", ["llama2_gqa_bf16", "qwen2_5_bf16", "qwen2_5_tied_fp32", "glm4_rearrange_concat_fp32"]
)
def test_config_is_built_from_the_yaml_beside(pairs: Path, tmp_path: Path, case: str) -> None:
    file, hf = FILES[case][-1], pairs / case / "hf"
    out = tmp_path / "out"
    succeeds("mindformers-to-hf", pairs / case / "ms" / file, out)
    built, true = (json.loads((f / "config.json").read_text()) for f in (out, hf))
    told = {"num_hidden_layers", "num_layers", "hidden_size", "rms_norm_eps", "vocab_size"}
    told |= {"num_key_value_heads", "multi_query_group_num", "padded_vocab_size", "intermediate_size"}
    assert {k: built[k] for k in told & true.keys()} == {k: true[k] for k in told & true.keys()}
    assert built["model_type"] == true["model_type"]
    got, want = loaded(out), loaded(hf)
    want.pop(BUFFER, None)
    if true.get("tie_word_embeddings"):  # its YAML does not say so, and the file holds the head
        want["lm_head.weight"] = want["model.embed_tokens.weight"]
    assert_equal(got, {n: t.to(got[n].dtype) for n, t in want.items()})
    plan = json.loads(
        succeeds("mindformers-to-hf", pairs / case / "ms" / file, "x", "--dry-run", "--json").out
    )
    origins = {s["what"].split(":")[0]: s["why"] for s in plan["steps"] if s["kind"] == "config"}
    assert origins["hidden_size"] == "yaml model_config.hidden_size"


def test_several_yamls_are_not_chosen_between(pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(pairs / "llama2_gqa_bf16" / "ms", tmp_path / "ms")
    shutil.copy(tmp_path / "ms" / "config.yaml", tmp_path / "ms" / "other.yaml")
    error = fails(2, "mindformers-to-hf", tmp_path / "ms" / "llama.ckpt", tmp_path / "out")
    assert "--yaml" in error


def test_without_yaml_and_config_the_error_names_both(pairs: Path, tmp_path: Path) -> None:
    shutil.copy(pairs / "mixtral_bf16" / "ms" / "mixtral.ckpt", tmp_path / "m.ckpt")
    error = fails(4, "mindformers-to-hf", tmp_path / "m.ckpt", tmp_path / "out")
    assert "--yaml" in error
    assert "--config" in error


def test_a_stray_head_must_be_a_copy(pairs: Path, tmp_path: Path) -> None:
    case = pairs / "deepseekv3_gmm_bf16"
    shutil.copytree(case / "ms", tmp_path / "ms")
    (file,) = [p for p in (tmp_path / "ms").glob("*.safetensors") if b"mtp.output_layer" in p.read_bytes()]
    position = open_mindspore(file).tensors["mtp.output_layer.weight"].extents[0].offset
    file.chmod(0o600)
    with open(file, "r+b") as handle:
        handle.seek(position)
        byte = handle.read(1)[0]
        handle.seek(position)
        handle.write(bytes([byte ^ 1]))
    fails(3, "mindformers-to-hf", tmp_path / "ms", tmp_path / "out", "--config", case / "hf")


@pytest.mark.parametrize("case", DISTRIBUTED)
def test_ranks_are_merged_under_their_own_names_with_the_optimizer(tmp_path: Path, case: str) -> None:
    succeeds("convert", FIXTURES / case, tmp_path / "out", "--to", "mindformers")
    want = load_file(FIXTURES / "expected_dist.safetensors")
    got = open_mindspore(tmp_path / "out" / "checkpoint.ckpt").tensors
    with open(tmp_path / "out" / "checkpoint.ckpt", "rb") as file:
        for name, tensor in got.items():
            file.seek(tensor.extents[0].offset)
            data = file.read(tensor.nbytes)
            assert data == want[name].reshape(-1).view(torch.uint8).numpy().tobytes(), name
    assert got.keys() == want.keys()
    assert any(name.startswith("adam_m.") for name in got)


@pytest.mark.parametrize("case", ["dist_dp2mp2_opt", "dist_mp2pp2", "dist_nested_map", "dist_dp2mp1pp2_opt"])
def test_a_merged_checkpoint_is_cut_into_the_very_ranks(tmp_path: Path, case: str) -> None:
    run = FIXTURES / case
    succeeds("convert", run, tmp_path / "whole", "--to", "mindformers")
    out = tmp_path / "out"
    succeeds("convert", tmp_path / "whole", out, "--to", "mindformers", "--strategy", run / "strategy")
    for folder in sorted((run / "checkpoint").glob("rank_*")):
        (file,) = folder.glob("*.ckpt")
        made = out / folder.name / f"checkpoint_{folder.name[5:]}.ckpt"
        ours, theirs = open_mindspore(made).tensors, open_mindspore(file).tensors
        assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {
            n: (t.shape, t.dtype) for n, t in theirs.items()
        }
        with open(made, "rb") as a, open(file, "rb") as b:
            for name in ours:
                a.seek(ours[name].extents[0].offset)
                b.seek(theirs[name].extents[0].offset)
                assert a.read(ours[name].nbytes) == b.read(theirs[name].nbytes), (folder.name, name)


def test_to_hugging_face_the_optimizer_is_left_out_by_count(tmp_path: Path) -> None:
    plan = json.loads(
        succeeds("convert", FIXTURES / "dist_mp2pp2", "x", "--to", "mindformers", "--dry-run", "--json").out
    )
    assert not any("optimizer" in s["why"] for s in plan["steps"])
    model = package.open(FIXTURES / "dist_mp2pp2")
    assert model.checkpoint.left_out["optimizer states"] > 0
    assert not any(n.startswith("adam_") for n in model)


def test_the_dtype_changes_weights_and_not_the_optimizer(tmp_path: Path) -> None:
    out = tmp_path / "out"
    succeeds("convert", FIXTURES / "dist_mp2pp2", out, "--to", "mindformers", "--dtype", "bfloat16")
    found = open_mindspore(out / "checkpoint.ckpt").tensors
    states = {n for n in found if n.startswith(("adam_m.", "adam_v."))}
    assert {found[n].dtype.name for n in states} == {"float32"}
    assert {found[n.removeprefix("adam_m.").removeprefix("adam_v.")].dtype.name for n in states} == {
        "bfloat16"
    }


def test_stored_checksums_are_compared_on_demand(tmp_path: Path) -> None:
    file = tmp_path / "m.ckpt"
    shutil.copy(FIXTURES / "raw_crc" / "model.ckpt", file)
    file.chmod(0o600)
    succeeds("convert", file, tmp_path / "good", "--to", "mindformers", "--check")
    data = bytearray(file.read_bytes())
    data[next(iter(open_mindspore(file).tensors.values())).extents[0].offset] ^= 1
    file.write_bytes(data)
    error = fails(1, "convert", file, tmp_path / "bad", "--to", "mindformers", "--check")
    assert "CRC-32" in error
    assert not (tmp_path / "bad").exists()


def test_flags_of_mindspore_are_refused_elsewhere(pairs: Path, tmp_path: Path) -> None:
    hf = pairs / "llama2_gqa_bf16" / "hf"
    fails(2, "convert", hf, tmp_path / "a", "--to", "hf", "--check")
    fails(
        2,
        "convert",
        FIXTURES / "dist_mp2pp2",
        tmp_path / "b",
        "--to",
        "mindformers",
        "--qkv-layout",
        "grouped",
    )
    fails(2, "hf-to-mindformers", hf, tmp_path / "c", "--like", hf)


def test_a_tensor_over_the_record_limit_is_written_in_parts(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckptconv.containers.mindspore import mindspore_out

    original = mindspore_out.layout
    monkeypatch.setattr(mindspore_out, "layout", lambda tensors: original(tensors, record=1000))
    case = pairs / "llama2_gqa_bf16"
    succeeds("hf-to-mindformers", case / "hf", tmp_path / "out", "--qkv-concat")
    tensors = open_mindspore(tmp_path / "out" / "checkpoint.ckpt").tensors
    assert max(len(t.extents) for t in tensors.values()) > 5
    assert raw(tmp_path / "out") == raw(case / "ms" / "llama_qkv_concat.ckpt")
    succeeds("mindformers-to-hf", tmp_path / "out", tmp_path / "back", "--config", case / "hf")
    assert_equal(loaded(tmp_path / "back"), loaded(case / "hf"))


def test_bits_that_are_no_numbers_survive(tmp_path: Path, pairs: Path) -> None:
    from safetensors.numpy import load_file as load
    from safetensors.numpy import save_file

    shutil.copytree(pairs / "qwen2_5_tied_fp32" / "hf", tmp_path / "hf")
    file = next((tmp_path / "hf").glob("*.safetensors"))
    tensors = load(file)
    for tensor in tensors.values():
        tensor.reshape(-1).view(np.uint32)[0] = 0x7FA00001  # a signalling NaN
    save_file(tensors, file, {"format": "pt"})
    succeeds("hf-to-mindformers", tmp_path / "hf", tmp_path / "ms", "--qkv-concat")
    succeeds("mindformers-to-hf", tmp_path / "ms", tmp_path / "back", "--config", tmp_path / "hf")
    back = load(tmp_path / "back" / "model.safetensors")
    assert {n: t.tobytes() for n, t in back.items()} == {n: t.tobytes() for n, t in tensors.items()}


def test_optimizer_states_without_a_layout_are_cut_like_their_weight(tmp_path: Path) -> None:
    from mindspore_runs import Layout, save

    names = ("w", "adam_m.w", "adam_v.w")
    rng = np.random.default_rng(2)
    tensors = {n: rng.standard_normal((8, 4)).astype(np.float32) for n in names}
    save(tmp_path / "run", [dict.fromkeys(names, Layout([2, 2], [1, 0]))], tensors)
    (strategy,) = {p.parent for p in (tmp_path / "run").rglob("*strategy*") if p.is_file()}
    shutil.rmtree(strategy)
    strategy.mkdir()
    from mindspore_runs import strategy as encoded

    (strategy / "ckpt_strategy.ckpt").write_bytes(encoded({"w": Layout([2, 2], [1, 0])}))
    succeeds("convert", tmp_path / "run", tmp_path / "out", "--to", "mindformers", "--format", "safetensors")
    got = load_file(tmp_path / "out" / "checkpoint.safetensors")
    assert {n: t.numpy().tobytes() for n, t in got.items()} == {n: t.tobytes() for n, t in tensors.items()}


@pytest.mark.parametrize("dtype", ["keep", "float16"])
def test_tiles_may_end_inside_an_element(tmp_path: Path, dtype: str) -> None:
    """A ``.ckpt`` aligns nothing, and its tensors are longer than a tile."""
    from safetensors.numpy import load_file as load
    from safetensors.numpy import save_file

    big = np.random.default_rng(4).standard_normal((3, 1 << 18)).astype(np.float32)
    for shift in range(4):
        folder = tmp_path / str(shift)
        save_file({"a" * (shift + 1): big}, tmp_path / "in.safetensors", {"format": "ms"})
        for made, source in (
            (folder / "ckpt", tmp_path / "in.safetensors"),
            (folder / "st", folder / "ckpt"),
        ):
            container = "ckpt" if made.name == "ckpt" else "safetensors"
            rounded = ("--dtype", dtype) if container == "ckpt" else ()
            succeeds("convert", source, made, "--to", "mindformers", "--format", container, *rounded,
                     "--max-memory", "1MiB")  # fmt: skip
        (got,) = load(folder / "st" / "checkpoint.safetensors").values()
        want = big if dtype == "keep" else big.astype(np.float16)
        assert got.tobytes() == want.tobytes()
