"""Errors of the Python API speak its words: keywords with values that can be typed, calls for commands."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import save_file

import ckptconv
from ckptconv.api.words import in_python
from running import ROOT

PACKAGE = ROOT / "ckptconv"


@pytest.mark.parametrize(
    ("said", "python"),
    [
        ("give --step pytorch_model", 'give step="pytorch_model"'),
        ("give --tag best, or wait", 'give step="best", or wait'),
        ("give --step the name of one", "give step the name of one"),
        ("(--key 'state dict')", '(key="state dict")'),
        ("leave it out: --drop lm_head.weight", 'leave it out: drop="lm_head.weight"'),
        ("for example --drop '*.lora_?.NAME.*'", 'for example drop="*.lora_?.NAME.*"'),
        ("--steps 100,200; or", 'steps="100,200"; or'),
        ("name them: --steps last:5", 'name them: steps="last:5"'),
        ("--config /models/a b", 'config="/models/a" b'),
        ("--config DIR", 'config="DIR"'),
        ("give --config with a folder", "give config with a folder"),
        ("choose --tp 1, or --ep 16", "choose tp=1, or ep=16"),
        ("--workers -3: from 0 to 64", "workers=-3: from 0 to 64"),
        ("--lora-alpha is 16", "lora_alpha is 16"),
        ("--atol 1e-6", "atol=1e-6"),
        ("--rtol 0.5.", "rtol=0.5."),
        ("--weights model and --dtype bf16", 'weights="model" and dtype="bf16"'),
        ("give --dtype to write all in one", "give dtype to write all in one"),
        ("run it again with --resume", "run it again with resume=True"),
        ("--no-assets writes the weights alone", "assets=False writes the weights alone"),
        ("--moe-tp-extend-ep, else --no-moe-tp-extend-ep", "extend_ep=True, else extend_ep=False"),
        ("leave out --private", "leave out private=True"),
        ("ckptconv ls says why", "ckptconv.ls says why"),
        ("ckptconv verify-roundtrip SRC OUT --sha256", "ckptconv.verify_roundtrip(SRC, OUT, sha256=True)"),
        ("ckptconv inspect --tensors '*' lists them", 'ckptconv.inspect(tensors="*") lists them'),
        (
            "ckptconv verify-roundtrip, where --no-certificate",
            "ckptconv.verify_roundtrip, where certify=False",
        ),
        ("run again with --debug and report the traceback", "report the traceback"),
        # Other programs have flags, too.
        ("save it with --ckpt-format torch_dist", "save it with --ckpt-format torch_dist"),
        ("start one with 'ray start --head'", "start one with 'ray start --head'"),
        ("pip install 'ckptconv[ray]'", "pip install 'ckptconv[ray]'"),
    ],
)
def test_flags_become_keywords(said: str, python: str) -> None:
    assert in_python(said) == python


@cache
def messages() -> tuple[str, ...]:
    """Return what the package may say, with ``{}`` for what is filled in."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] in ("cli", "report"):
            continue
        tree = ast.parse(path.read_text())
        within = {
            id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in ast.walk(n) if v is not n
        }
        for node in ast.walk(tree):
            if id(node) in within:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = (str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def test_a_plain_word_after_a_flag_is_no_value_by_accident() -> None:
    """What follows a flag that takes any text is quoted, filled in, has a mark, or is known as prose."""
    wrong = {
        found[0]
        for text in messages()
        for found in re.finditer(r'\b[a-z_]+="([a-z]+)"', in_python(text))
        if f"--{found[0].split('=')[0].replace('_', '-')} {found[1]}" in text
        and not found[0].startswith(CHOICES)
    }
    assert not wrong, f"these are words of ours, for _PROSE: {wrong}"


CHOICES = (
    "dtype=",
    "engine=",
    "format=",
    "lora=",
    "mla=",
    "replicas=",
    "schedule=",
    "to=",
    "weights=",
    "dialect=",
)


def test_what_is_filled_in_is_a_value() -> None:
    """No message leaves a keyword beside a value, as in ``step pytorch_model``."""
    seen = 0
    for text in messages():
        for found in re.finditer(r"--([a-z][a-z-]*) '?\{\}'?(?=[\s.,;:)]|$)", text):
            seen += 1
            values = {"lora": ("merge", "adapter")}.get(found[1], ("pytorch_model", "lm_head.weight", "4"))
            for value in values:
                whole = text.replace("{}", value)
                assert f"{found[1].replace('-', '_')} {value}" not in in_python(whole), whole
    assert seen > 5


def test_through_the_api(tmp_path: Path) -> None:
    import torch

    for name in ("best", "last"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.ones(2)}, tmp_path / name / "model.safetensors")
    with pytest.raises(ckptconv.CkptconvError) as found:
        ckptconv.convert(tmp_path / "best", tmp_path / "out", dtype="float7")
    assert "--" not in str(found.value) and "dtype" in str(found.value)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ckptconv.CkptconvError, match="overwrite=True"):
        ckptconv.convert(tmp_path / "best", tmp_path / "out", to="hf", assets=False)
