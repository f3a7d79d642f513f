"""What is printed stands on one line, steers no terminal and gives no secret away."""

from __future__ import annotations

import pytest

from ckptconv.errors import FormatError, PlanError, keep_secret, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \u4e2d\u6587 \u00e9", "plain \u4e2d\u6587 \u00e9"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\nerror: b", r"a\nerror: b"),
        ("a\u2028b\u2029c\x85d", r"a\u2028b\u2029c\x85d"),
        ("a\u202eb\u2066c\u200f", r"a\u202eb\u2066c\u200f"),
        ("a\ud800b\udcff", r"a\ud800b\udcff"),
        ("\r\x07\x00\x9b", r"\r\x07\x00\x9b"),
    ],
    ids=["plain", "escape", "line", "separators", "bidi", "surrogates", "controls"],
)
def test_names_are_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    error = FormatError(f"is {text}", where=f"/in/{text}", hint=f"try {text}")
    assert str(error) == f"is {shown}\n  in: /in/{shown}\n  do: try {shown}"


def test_several_problems_are_several_lines() -> None:
    assert str(PlanError(["a\nb", "c"], hint="d")) == "a\\nb\nc\n  do: d"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:ab/cd+e@bucket/k", "s3://***@bucket/k"),
        ("https://me:p@ss@host/x y", "https://***@host/x y"),
        ("cannot open 'https://me:12345@host/x'", "cannot open 'https://***@host/x'"),
        ("https://ghp_token@github.com/x", "https://***@github.com/x"),
        ("s3:/KEY:secret@bucket", "s3:/***@bucket"),
        ("https://h/x?a=1&X-Amz-Signature=ab12&b=2", "https://h/x?a=1&X-Amz-Signature=***&b=2"),
        ("https://h/x?sig=ab%3D", "https://h/x?sig=***"),
        ("http://localhost:8000/org/m@main", "http://localhost:8000/org/m@main"),
        ("hf://org/model@main/x", "hf://org/model@main/x"),
        ("abfs://box@account.dfs/x", "abfs://box@account.dfs/x"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
    ],
)
def test_secrets_in_urls_are_cut(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_secret_is_cut_wherever_it_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptconv.errors._secrets", set())
    keep_secret("hunter22")
    keep_secret("abc")
    assert printable("BasicAuth(password='hunter22') abc") == "BasicAuth(password='***') abc"


def test_what_is_long_is_cut_after_its_secrets() -> None:
    text = "x" * 9_990 + "s3://key:" + "y" * 500 + "@bucket" + "z" * 50_000
    assert "y" not in printable(text) and "60,506 characters" in printable(text)
