"""JSON of others is read within a budget of memory, and what is wrong with it is said."""

from __future__ import annotations

import pytest

from ckptconv.errors import FormatError
from ckptconv.places.jsonfile import parse_json


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"[" + b"[]," * 4_000_000 + b"[]]"],
    ids=["empty", "open", "no UTF-8", "deep", "5,000 digits", "12 MB of brackets"],
)
def test_what_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        parse_json(data, where="config.json", hint="give another")
    assert caught.value.where == "config.json" and caught.value.hint == "give another"


def test_what_is_taken() -> None:
    assert parse_json(b'{"a": [1, 2.5, null], "limit": Infinity}', where="x")["a"] == [1, 2.5, None]
    merges = b"[" + b",".join(b'["a", "b"]' for _ in range(300_000)) + b"]"
    assert len(parse_json(merges, where="tokenizer.json")) == 300_000
