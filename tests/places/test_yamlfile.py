"""YAML is read as plain data, with the numbers of YAML 1.2, in bounded time and memory."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from ckptconv.errors import FormatError
from ckptconv.places.yamlfile import parse_yaml, read_yaml


def _parse(text: str) -> object:
    return parse_yaml(text.encode(), where="run.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("-7", -7), ("+5", 5), ("010", 10), ("0o17", 15), ("0x1F", 31), ("1.", 1.0), (".5", 0.5),
        ("1e-5", 1e-5), ("1E+3", 1000.0), (".inf", math.inf), ("-.INF", -math.inf), ("~", None), ("", None),
        ("Null", None), ("yes", True), ("OFF", False), ("True", True),
        ("1:30", "1:30"), ("1_000", "1_000"), ("2024-01-01", "2024-01-01"), ("0b1", "0b1"), ("'12'", "12"),
        ("!!str 12", "12"), ("!!int '12'", 12), ("1.2.3", "1.2.3"), ("e5", "e5"), ("-", [None]), ("=", "="),
    ],
)  # fmt: skip
def test_scalars(text: str, value: object) -> None:
    found = _parse(f"a: {text}" if value != [None] else "a:\n -")
    assert found == {"a": value}
    assert type(found["a"]) is type(value)  # type: ignore[index]


def test_not_a_number() -> None:
    assert math.isnan(_parse("a: .nan")["a"])  # type: ignore[index]


def test_anchors_and_merges() -> None:
    text = "base: &b {x: 1, y: 2}\nother: &o {y: 3, z: 4}\nall:\n  <<: [*b, *o]\n  x: 0\n"
    assert _parse(text)["all"] == {"x": 0, "y": 2, "z": 4}  # type: ignore[index]
    assert _parse("'<<': 1") == {"<<": 1}


def test_no_tag_makes_an_object() -> None:
    text = (
        "a: !!python/object/apply:os.system ['touch /tmp/ran']\nb: !!python/tuple [1, 2]\n"
        "c: !!python/name:torch.bfloat16 ''\nd: !mine {k: v}\n"
    )
    assert _parse(text) == {"a": ["touch /tmp/ran"], "b": [1, 2], "c": "torch.bfloat16", "d": {"k": "v"}}


def _laughs(merge: bool) -> str:
    one, key = ("{k: v}", "\n  <<: ") if merge else ("[x]", " ")
    lines = [f"m0: &m0 {one}"]
    lines += [f"m{i}: &m{i}{key}[{', '.join([f'*m{i - 1}'] * 10)}]" for i in range(1, 12)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        _laughs(merge=False), _laughs(merge=True), "[" * 3000, "{a: " * 3000, "- " * 3000, "&a [*a]",
        "&a {<<: *a}", "*nowhere", "<<: 3", "? {a: b}\n: c", "x: [" + "1," * 210_000 + "]",
        "{" + ",".join(f"{k << 61 | k}: 0" for k in range(3000)) + "}", "a: 'unclosed", "\x00",
    ],
    ids=range(14),
)  # fmt: skip
def test_bombs_and_nonsense_are_refused_soon(text: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(FormatError) as caught:
        _parse(text)
    assert time.perf_counter() - begin < 5
    assert caught.value.where == "run.yaml"


@pytest.mark.parametrize("text", ["1:" * 300_000 + "1", "9" * 100_000, "1e" + "9" * 1000, "1" * 401])
def test_numbers_without_end(text: str) -> None:
    begin = time.perf_counter()
    _parse(f"a: {text}")
    assert time.perf_counter() - begin < 1


def test_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"#" * (5 << 20))
    with pytest.raises(FormatError, match="bytes"):
        read_yaml(path)
