"""A converted model is equal to its source, and one flipped bit anywhere is found and named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import ckptconv
from ckptconv.api.verify import verify_roundtrip
from ckptconv.containers.stored import Stored
from ckptconv.engine.events import Event, Progress, Started
from ckptconv.errors import InputChangedError, UsageError
from ckptconv.places.files import SourceFiles
from ckptconv.readers.registry import open_checkpoint
from ckptconv.relations import Relation
from ckptconv.verify.result import Result
from running import CASES, ROOT, case_run

LORA = ROOT / "fixtures" / "lora" / "llama"
ALL = sorted(p.parent.name for p in CASES.glob("*/case.json"))


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model as save_pretrained writes it; its vocabulary is no multiple of 128."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
    )
    folder = tmp_path_factory.mktemp("hf")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ranks(hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    ckptconv.convert(hf, folder, to="megatron", sizes={"tp": 2, "pp": 2})
    return folder


@pytest.fixture(scope="module")
def back(ranks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("back")
    ckptconv.convert(ranks, folder)
    return folder


def flip(path: Path, byte: int, bit: int) -> None:
    """Flip one bit of a file; its times stay as they are."""
    times = path.stat()
    with open(path, "r+b") as file:
        file.seek(byte)
        value = file.read(1)[0] ^ (1 << bit)
        file.seek(byte)
        file.write(bytes([value]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def is_ok(result: Result) -> None:
    assert result.ok, result.mismatches


def test_ranks_are_the_model_they_were_split_from(hf: Path, ranks: Path) -> None:
    result = verify_roundtrip(hf, ranks)
    is_ok(result)
    assert result.proof.invertible and result.proof.pairs > 39 and not result.casts
    assert result.tensors == len(open_checkpoint(ranks).stored)


def test_a_merged_model_is_its_ranks(ranks: Path, back: Path) -> None:
    result = verify_roundtrip(ranks, back)
    is_ok(result)
    assert result.replicas == 9 and result.tensors == 39
    assert result.bytes == sum(t.nbytes for t in load_file(back / "model.safetensors").values())


def assert_found(
    draw: st.DataObject,
    relation: Relation,
    stored: Mapping[str, Stored],
    verify: Callable[[], Result],
    *,
    kinds: tuple[str, ...] = ("value", "replica"),
) -> None:
    """Flip any bit of any element a relation joins: it is found, and its place is named."""
    box = draw.draw(st.sampled_from(relation.pairs)).left
    element = box.offset
    for size, stride in zip(box.size, box.stride, strict=True):
        element += draw.draw(st.integers(0, size - 1)) * stride
    path, first, item = next(stored[box.tensor].spans(element, element + 1))
    byte, bit = first + draw.draw(st.integers(0, item - 1)), draw.draw(st.integers(0, 7))
    flip(Path(path), byte, bit)
    try:
        result = verify()
    finally:
        flip(Path(path), byte, bit)
    assert result.mismatches and {m.kind for m in result.mismatches} <= set(kinds)
    places = [p for m in result.mismatches for p in (m.source, m.output) if p is not None]
    assert (path, first) in [(p.file, p.byte) for p in places]
    assert all(m.count == 1 and m.index is not None for m in result.mismatches)


@settings(max_examples=30)
@given(draw=st.data())
def test_one_bit_of_an_output_is_found(ranks: Path, back: Path, draw: st.DataObject) -> None:
    out = open_checkpoint(back)
    assert_found(draw, out.relation, out.stored, lambda: verify_roundtrip(ranks, back), kinds=("value",))


@settings(max_examples=30)
@given(draw=st.data())
def test_one_bit_of_the_ranks_written_is_found(hf: Path, ranks: Path, draw: st.DataObject) -> None:
    made = ckptconv.plan(ranks)
    assert_found(draw, made.relation, made.stored, lambda: verify_roundtrip(hf, ranks), kinds=("value",))


@settings(max_examples=30)
@given(draw=st.data())
def test_one_bit_of_a_source_is_found(ranks: Path, back: Path, draw: st.DataObject) -> None:
    """Also one of a copy, which no output is made of."""
    made = ckptconv.plan(ranks)
    assert_found(draw, made.relation, made.stored, lambda: verify_roundtrip(ranks, back))


@settings(max_examples=15)
@given(draw=st.data())
def test_one_bit_of_a_copy_is_found_without_an_output(ranks: Path, draw: st.DataObject) -> None:
    made = ckptconv.plan(ranks)
    copies = replace(made.relation, pairs=tuple(p for p in made.relation.pairs if p.left_copy))
    assert_found(draw, copies, made.stored, lambda: verify_roundtrip(ranks), kinds=("replica",))


@settings(max_examples=30)
@given(draw=st.data())
def test_one_bit_of_deepspeeds_masters_is_found(z3: tuple[Path, Path], draw: st.DataObject) -> None:
    source, out = z3
    made = ckptconv.plan(source)
    assert_found(draw, made.relation, made.stored, lambda: verify_roundtrip(source, out))


@pytest.fixture(scope="module")
def z3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("z3")
    source = case_run("llama_z3_bf16_ws2_buffers", folder / "run")
    ckptconv.convert(source, folder / "out")
    return source, folder / "out"


@pytest.mark.parametrize("case", ALL)
@pytest.mark.parametrize("fields", [{}, {"dtype": "float16"}, {"weights": "model"}], ids=str)
def test_every_deepspeed_case(case: str, fields: dict[str, str], tmp_path: Path) -> None:
    """The type of the output is found out; the masters are the default here as they are in a conversion."""
    folder = CASES / case
    source = folder / "ckpt" if (folder / "ckpt").is_dir() else folder / "universal"
    ckptconv.convert(source, tmp_path / "out", assets=False, max_shard_size="30KB", **fields)
    asked = {k: v for k, v in fields.items() if k != "dtype"}
    is_ok(verify_roundtrip(source, tmp_path / "out", **asked))
    is_ok(verify_roundtrip(source, **asked))


class TestWhatIsCompared:
    def test_a_cast_is_exactly_that_cast(self, z3: tuple[Path, Path], tmp_path: Path) -> None:
        source, _ = z3
        out = tmp_path / "out"
        ckptconv.convert(source, out, dtype="bfloat16")
        result = verify_roundtrip(source, out)
        is_ok(result)
        assert any("float32 -> bfloat16" in c for c in result.casts)
        assert not result.proof.invertible and "rounded" in result.proof.one_way[0]
        tensors = load_file(out / "model.safetensors")
        name = "model.layers.0.mlp.up_proj.weight"
        bits = tensors[name].view(torch.int16)
        bits[3, 5] += 1  # the neighbouring value
        save_file(tensors, out / "model.safetensors", {"format": "pt"})
        (found,) = verify_roundtrip(source, out).mismatches
        assert (found.tensor, found.index, found.count) == (name, (3, 5), 1)
        assert found.largest is not None and 0 < found.largest < 0.1

    def test_a_type_that_was_asked_for_is_checked(self, z3: tuple[Path, Path]) -> None:
        kinds = {m.kind for m in verify_roundtrip(*z3, dtype="bfloat16").mismatches}
        assert "dtype" in kinds and "value" not in kinds

    def test_counts_and_the_largest_difference(self, ranks: Path, back: Path, tmp_path: Path) -> None:
        out = shutil.copytree(back, tmp_path / "out")
        tensors = load_file(out / "model.safetensors")
        tensors["model.layers.2.self_attn.k_proj.weight"][5:7, 3] = 8.0
        tensors["model.norm.weight"][0] = float("nan")
        save_file(tensors, out / "model.safetensors", {"format": "pt"})
        by_name = {m.tensor: m for m in verify_roundtrip(ranks, out).mismatches}
        assert list(by_name) == ["model.layers.2.self_attn.k_proj.weight", "model.norm.weight"]
        key = by_name["model.layers.2.self_attn.k_proj.weight"]
        assert (key.count, key.index) == (2, (5, 3)) and 7 < (key.largest or 0) < 9
        assert key.source is not None and key.source.tensor.startswith("mp_rank_00_001:")
        assert by_name["model.norm.weight"].largest is None

    def test_names_and_shapes(self, ranks: Path, back: Path, tmp_path: Path) -> None:
        out = shutil.copytree(back, tmp_path / "out")
        tensors = load_file(out / "model.safetensors")
        tensors["model.norm.other"] = tensors.pop("model.norm.weight")
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
        save_file(tensors, out / "model.safetensors", {"format": "pt"})
        found = {(m.kind, m.tensor) for m in verify_roundtrip(ranks, out).mismatches if m.kind != "asset"}
        assert found == {
            ("missing", "model.norm.weight"),
            ("unexpected", "model.norm.other"),
            ("shape", "lm_head.weight"),
        }

    def test_every_copy_that_differs(self, ranks: Path, back: Path, tmp_path: Path) -> None:
        source = shutil.copytree(ranks, tmp_path / "ranks")
        made = ckptconv.plan(source)
        copies = [p.left for p in made.relation.pairs if p.left_copy]
        for box in copies:
            path, byte, _ = next(made.stored[box.tensor].spans(3, 4))
            flip(Path(path), byte, 4)
        found = verify_roundtrip(source, back).mismatches
        assert sorted(m.output.tensor for m in found if m.output) == sorted(b.tensor for b in copies)
        assert all(m.kind == "replica" and m.index == (3,) for m in found)

    def test_a_merged_adapter_is_computed_again(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        fields = {"adapter": LORA / "adapter"}
        ckptconv.convert(LORA / "base", out, **fields)
        result = verify_roundtrip(LORA / "base", out, **fields)
        is_ok(result)
        assert any("added" in text for text in result.proof.one_way)
        assert {m.kind for m in verify_roundtrip(LORA / "base", out).mismatches} == {"value"}

    def test_an_adapter_alone(self, tmp_path: Path) -> None:
        source = tmp_path / "run"
        source.mkdir()
        shutil.copy(LORA / "wrapped.safetensors", source / "model.safetensors")
        shutil.copy(LORA / "adapter" / "adapter_config.json", source)
        ckptconv.convert(source, tmp_path / "out", lora="adapter", assets=False)
        is_ok(verify_roundtrip(source, tmp_path / "out"))

    @pytest.mark.parametrize("fields", [{"format": "bin"}, {"max_shard_size": "20KB"}], ids=str)
    def test_containers(self, ranks: Path, tmp_path: Path, fields: dict[str, str]) -> None:
        ckptconv.convert(ranks, tmp_path / "out", **fields)
        is_ok(verify_roundtrip(ranks, tmp_path / "out"))

    def test_tensors_that_lie_in_the_file_in_another_order(self, hf: Path, tmp_path: Path) -> None:
        """As torch.save keeps a transposed view."""
        tensors = load_file(hf / "model.safetensors")
        tensors = {n: t.t().contiguous().t() if t.ndim == 2 else t for n, t in tensors.items()}
        (tmp_path / "out").mkdir()
        torch.save(tensors, tmp_path / "out" / "pytorch_model.bin")
        is_ok(verify_roundtrip(hf, tmp_path / "out"))
        tensors["model.layers.0.mlp.up_proj.weight"][4, 7] += 1
        torch.save(tensors, tmp_path / "out" / "pytorch_model.bin")
        (found,) = verify_roundtrip(hf, tmp_path / "out").mismatches
        assert found.kind == "value" and "up_proj" in found.text

    @pytest.mark.parametrize("workers", [1, 3])
    def test_tiles_and_threads_do_not_matter(self, ranks: Path, back: Path, workers: int) -> None:
        events: list[Event] = []
        result = verify_roundtrip(ranks, back, workers=workers, max_memory=1 << 17, listen=events.append)
        is_ok(result)
        total = next(e.total for e in events if isinstance(e, Started))
        assert sum(e.count for e in events if isinstance(e, Progress)) == total


def test_a_source_that_changes_meanwhile(ranks: Path, back: Path, tmp_path: Path) -> None:
    source = shutil.copytree(ranks, tmp_path / "ranks")
    path = next(source.glob("*/mp_rank_00_000/*.pt"))

    def touch(event: Event) -> None:
        if isinstance(event, Started):
            os.utime(path, ns=(1, 1))

    with pytest.raises(InputChangedError):
        verify_roundtrip(source, back, listen=touch)


@pytest.mark.parametrize("sizes", [{"tp": 4}, {"tp": 2, "pp": 2}])
def test_ranks_are_compared_with_a_source_that_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int]
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512, hidden_size=512, num_hidden_layers=2, num_attention_heads=8, intermediate_size=1536
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    ckptconv.convert(tmp_path / "hf", tmp_path / "ranks", to="megatron", sizes=sizes)
    count, read = [0], SourceFiles._read

    def counted(self: SourceFiles, path: str, offset: int, buffer: memoryview) -> int:
        count[0] += len(buffer)
        return read(self, path, offset, buffer)

    monkeypatch.setattr(SourceFiles, "_read", counted)
    is_ok(verify_roundtrip(tmp_path / "hf", tmp_path / "ranks", workers=4, max_memory=16 << 20))
    files = [*tmp_path.glob("hf/*.safetensors"), *tmp_path.rglob("ranks/**/*.pt")]
    assert count[0] <= 1.2 * sum(p.stat().st_size for p in files)


def test_logits_need_an_output(ranks: Path) -> None:
    with pytest.raises(UsageError):
        verify_roundtrip(ranks, logits=True)


class TestLogits:
    def test_against_a_reference(self, hf: Path, ranks: Path, back: Path) -> None:
        result = verify_roundtrip(ranks, back, logits=True, reference=hf)
        is_ok(result)
        assert result.logits is not None and result.logits.largest == 0.0

    def test_another_model_is_found(self, ranks: Path, back: Path, tmp_path: Path) -> None:
        other = shutil.copytree(back, tmp_path / "other")
        tensors = load_file(other / "model.safetensors")
        tensors["lm_head.weight"] = tensors["lm_head.weight"].flip(0).contiguous()
        save_file(tensors, other / "model.safetensors", {"format": "pt"})
        (found,) = verify_roundtrip(ranks, back, reference=other).mismatches
        assert found.kind == "logits" and "differ" in found.text

    def test_what_is_missing_or_not_finite(self, ranks: Path, back: Path, tmp_path: Path) -> None:
        out = shutil.copytree(back, tmp_path / "out")
        tensors = load_file(out / "model.safetensors")
        tensors["model.norm.weight"][0] = float("nan")
        tensors["model.extra"] = tensors.pop("model.layers.0.mlp.up_proj.weight")
        save_file(tensors, out / "model.safetensors", {"format": "pt"})
        texts = [m.text for m in verify_roundtrip(ranks, out, logits=True).mismatches if m.kind == "logits"]
        assert any("misses" in t for t in texts) and any("does not know" in t for t in texts)
        assert any("not finite" in t for t in texts)


def test_one_tensor_of_another_type_is_one_difference(hf: Path, tmp_path: Path) -> None:
    state = load_file(hf / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    other = torch.float16 if state[name].dtype != torch.float16 else torch.bfloat16
    state[name] = state[name].to(other)
    shutil.copytree(hf, tmp_path / "copy")
    save_file(state, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    result = verify_roundtrip(hf, tmp_path / "copy")
    assert [(m.kind, m.tensor) for m in result.mismatches] == [("dtype", name)]
