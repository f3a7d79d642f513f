"""An average is the same sum on every format, in flat memory, proved afterwards, and of one model alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM

import ckptconv as package
from running import assert_equal, ckptconv, contents, fails, loaded, succeeds

RATIOS = (0.5, 0.3, 0.2)


def _llama(folder: Path, seed: int, *, dtype: torch.dtype = torch.bfloat16, **fields: object) -> Path:
    torch.manual_seed(seed)
    sizes = dict(vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    config = LlamaConfig(**{**sizes, "num_attention_heads": 4, "num_key_value_heads": 2, **fields})
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three steps of one model."""
    run = tmp_path_factory.mktemp("steps")
    return [_llama(run / f"checkpoint-{i}", i) for i in range(3)]


def _mean(folders: list[Path], ratios: tuple[float, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return float32 sums in order, rounded once."""
    held = [loaded(f) for f in folders]
    means = {}
    for name in held[0]:
        total = torch.tensor(ratios[0]) * held[0][name].float()
        for ratio, tensors in zip(ratios[1:], held[1:], strict=True):
            total = total + torch.tensor(ratio) * tensors[name].float()
        means[name] = total.to(dtype)
    return means


def test_a_mean_is_float32_sums_in_the_order_given(steps: list[Path], tmp_path: Path) -> None:
    succeeds("average", *steps, tmp_path / "out", "--ratios", "0.5,0.3,0.2")
    assert_equal(loaded(tmp_path / "out"), _mean(steps, RATIOS, torch.bfloat16))
    succeeds("average", *steps, tmp_path / "even", "--dtype", "fp32", "--max-shard-size", "100KB")
    assert len(list((tmp_path / "even").glob("*.safetensors"))) > 1
    assert_equal(loaded(tmp_path / "even"), _mean(steps, (1 / 3,) * 3, torch.float32))
    assert json.loads((tmp_path / "even" / "config.json").read_text())["dtype"] == "float32"


def test_what_is_written_loads_and_computes(steps: list[Path], tmp_path: Path) -> None:
    succeeds("average", *steps, tmp_path / "out")
    model, info = LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


def test_sources_of_three_formats_average_as_those_of_one(steps: list[Path], tmp_path: Path) -> None:
    succeeds("megatron-split", steps[0], tmp_path / "ranks", "--tp", 2, "--pp", 2)
    succeeds("convert", steps[1], tmp_path / "dcp", "--to", "dcp")
    mixed = (tmp_path / "ranks", tmp_path / "dcp", steps[2])
    flags = ("--ratios", "0.5,0.3,0.2", "--config", steps[0], "--max-memory", "1MB")
    succeeds("average", *mixed, tmp_path / "out", *flags, "--verify")
    assert_equal(loaded(tmp_path / "out"), _mean(steps, RATIOS, torch.bfloat16))


def test_norms_without_their_one_get_it_before_they_are_averaged(tmp_path: Path) -> None:
    sizes = dict(vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=1, head_dim=16)
    config = GemmaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4)
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = GemmaForCausalLM(config)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                torch.nn.init.normal_(parameter)
        model.to(torch.bfloat16).save_pretrained(tmp_path / f"{seed}")
        folders.append(tmp_path / f"{seed}")
    succeeds("megatron-split", folders[1], tmp_path / "ranks", "--tp", 2)
    succeeds("average", folders[0], tmp_path / "ranks", tmp_path / "out", "--config", folders[0], "--verify")
    assert_equal(loaded(tmp_path / "out"), _mean(folders, (0.5, 0.5), torch.bfloat16))


def test_the_plan_lists_it(steps: list[Path], tmp_path: Path) -> None:
    said = json.loads(succeeds("average", *steps, tmp_path / "out", "--dry-run", "--json").out)
    step = next(s for s in said["steps"] if s["kind"] == "average")
    assert step["what"].startswith("21 tensors: 0.333333 x ")
    assert all(str(s) in step["what"] for s in steps) and "float32" in step["why"]
    assert not (tmp_path / "out").exists()


def test_it_is_verified_by_computing_again(steps: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    succeeds("average", *steps, out, "--ratios", "0.5,0.3,0.2", "--dtype", "fp16", "--verify")
    assert str(steps[2]) in json.loads((out / "ckptconv-verify.json").read_text())["source"]
    said = json.loads((out / "ckptconv-average.json").read_text())
    assert [s["ratio"] for s in said["sources"]] == list(RATIOS)
    succeeds("verify-roundtrip", steps[1], out)  # any of them: what was averaged is known
    succeeds("check", out)
    assert "none of its sources" in fails(2, "verify-roundtrip", tmp_path, out)
    tensors = load_file(out / "model.safetensors")
    tensors["model.norm.weight"][3] += 0.5
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    assert "model.norm.weight" in ckptconv("verify-roundtrip", steps[1], out).out
    assert ckptconv("verify-roundtrip", steps[1], out).code == 3


def test_a_finished_average_resumed_is_the_same(steps: list[Path], tmp_path: Path) -> None:
    succeeds("average", *steps, tmp_path / "a", "--workers", 1)
    succeeds("average", *steps, tmp_path / "b", "--workers", 8, "--max-memory", "256KB")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_hidden_layers": 3}, "model.layers.2."),
        ({"intermediate_size": 64}, "model.layers.0.mlp"),
        ({"rope_theta": 77777.0}, "rope_theta"),
        ({"dtype": torch.float32}, "float32"),
        ({"tie_word_embeddings": True}, "lm_head.weight"),
    ],
)
def test_what_is_no_step_of_the_same_model_is_refused_by_name(
    steps: list[Path], tmp_path: Path, fields: dict[str, object], named: str
) -> None:
    other = _llama(tmp_path / "other", 9, **fields)  # type: ignore[arg-type]
    message = fails(4, "average", steps[0], other, tmp_path / "out", naming=(named, str(other)))
    assert not (tmp_path / "out").exists(), message


def test_fields_that_compute_nothing_are_said(steps: list[Path], tmp_path: Path) -> None:
    other = shutil.copytree(steps[1], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    del config["pretraining_tp"]  # as a config that is built from training arguments
    (other / "config.json").write_text(json.dumps({**config, "eos_token_id": 7}))
    said = succeeds("average", steps[0], other, tmp_path / "out").err
    assert "eos_token_id is 2 and 7" in said
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 2


def test_whole_numbers_have_no_mean_and_must_be_equal(tmp_path: Path) -> None:
    for i, counts in enumerate(([1, 2], [1, 2], [1, 3])):
        tensors = {"w": torch.full((4,), float(i)), "seen": torch.tensor(counts)}
        (tmp_path / f"{i}").mkdir()
        save_file(tensors, tmp_path / f"{i}" / "model.safetensors", {"format": "pt"})
    a, b, c = (tmp_path / f"{i}" for i in range(3))
    succeeds("average", a, b, tmp_path / "out", "--no-assets", "--verify")
    assert_equal(loaded(tmp_path / "out"), {"w": torch.full((4,), 0.5), "seen": torch.tensor([1, 2])})
    fails(3, "average", a, c, tmp_path / "bad", "--no-assets", naming=("seen[1]",), out=tmp_path / "bad")


@pytest.mark.parametrize(
    ("ratios", "named"),
    [("0.5,0.5", "2 ratios for 3"), ("1,1,1", "0.33333333"), ("0.5,x,0.2", "x"), ("1,0.5,-0.5", "above 0")],
)
def test_ratios_that_do_not_fit_are_refused(
    steps: list[Path], tmp_path: Path, ratios: str, named: str
) -> None:
    fails(2, "average", *steps, tmp_path / "out", "--ratios", ratios, naming=(named,))


def test_one_checkpoint_has_no_mean(steps: list[Path], tmp_path: Path) -> None:
    fails(2, "average", steps[0], tmp_path / "out", naming=("at least two",))
    assert "folder" in fails(1, "average", steps[0], steps[1], steps[1])


def test_steps_of_a_run_are_averaged(steps: list[Path], tmp_path: Path) -> None:
    run = steps[0].parent
    succeeds("average", run, tmp_path / "last", "--steps", "last:2", "--verify")
    assert_equal(loaded(tmp_path / "last"), _mean(steps[1:], (0.5, 0.5), torch.bfloat16))
    said = json.loads((tmp_path / "last" / "ckptconv-average.json").read_text())["sources"]
    assert [s["step"] for s in said] == ["checkpoint-1", "checkpoint-2"]
    succeeds("verify-roundtrip", run, tmp_path / "last")
    package.average(run, tmp_path / "chosen", steps="0,2")
    assert_equal(loaded(tmp_path / "chosen"), _mean([steps[0], steps[2]], (0.5, 0.5), torch.bfloat16))
    fails(
        2, "average", run, tmp_path / "none", "--steps", "last:2", "--ratios", "1", naming=("2 checkpoints",)
    )


def test_a_flag_goes_to_the_sources_it_is_about(steps: list[Path], tmp_path: Path) -> None:
    fails(2, "average", *steps, tmp_path / "out", "--weights", "model", naming=("--weights",))


def test_python_averages_as_the_command_line_does(steps: list[Path], tmp_path: Path) -> None:
    report = package.average(steps, tmp_path / "out", ratios=RATIOS, dtype="float16")
    assert report.bytes_out
    assert_equal(loaded(tmp_path / "out"), _mean(steps, RATIOS, torch.float16))


_PEAK = """
import sys
import ckptconv
ckptconv.average(sys.argv[2:], sys.argv[1], workers=2, max_memory="8MiB", overwrite=True, assets=False)
print(next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_grows_neither_with_the_size_nor_with_the_number_of_sources(tmp_path: Path) -> None:
    def peak(rows: int, count: int) -> int:
        paths = []
        for i in range(count):
            (folder := tmp_path / f"{rows}-{i}").mkdir(exist_ok=True)
            save_file({"w": torch.full((rows, 1 << 20), 0.5)}, folder / "model.safetensors")
            paths.append(str(folder))
        words = [sys.executable, "-c", _PEAK, str(tmp_path / "out"), *paths]
        return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)

    small, large, many = peak(2, 2), peak(24, 2), peak(24, 6)  # 8 MB each, 96 MB each
    print(small, large, many)
    assert large < small + 16 and many < large + 16, (small, large, many)
