"""The index of TensorFlow's saver says where each variable lies, or is refused by name."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from ckptconv.containers.tf1 import crc32c, open_bundle
from ckptconv.errors import CkptconvError, FormatError, PlanError
from tensorflow_models import block, entry, nested, number, table, unpack


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("tensorflow")) / "bert-tf1-ckpt" / "source"


def written(folder: Path, raw: bytes, data: bytes = bytes(64)) -> Path:
    (folder / "m.data-00000-of-00001").write_bytes(data)
    path = folder / "m.index"
    path.write_bytes(raw)
    return path


HEADER = (b"", number(1, 1))


def test_real_variables_lie_where_the_index_says(bert: Path) -> None:
    tensors, other = open_bundle(bert / "bert_model.ckpt.index")
    assert len(tensors) == 49 and other == ()
    words = tensors["bert/embeddings/word_embeddings"]
    assert (words.shape, words.dtype.name) == ((72, 16), "float32")
    found = np.fromfile(words.path, "<f4", words.numel, offset=words.offset)
    assert np.isfinite(found).all() and len(set(found.tolist())) > 100


def test_the_checksum_is_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_a_made_index_is_read(tmp_path: Path) -> None:
    raw = table([block([HEADER, (b"a", entry((2, 3), 0, 24))]), block([(b"b", entry((), 24, 8, dtype=9))])])
    tensors, _ = open_bundle(written(tmp_path, raw))
    assert {n: (t.shape, t.dtype.name, t.offset) for n, t in tensors.items()} == {
        "a": ((2, 3), "float32", 0),
        "b": ((), "int64", 24),
    }


@pytest.mark.parametrize("at", range(0, 4000, 97))
def test_any_changed_byte_is_noticed(bert: Path, tmp_path: Path, at: int) -> None:
    raw = bytearray((bert / "bert_model.ckpt.index").read_bytes())
    at %= len(raw) - 48  # the footer's padding means nothing
    raw[at] ^= 1
    with pytest.raises(FormatError):
        open_bundle(written(tmp_path, bytes(raw)))


LIES: dict[str, tuple[bytes, str]] = {
    "no magic": (b"\0" * 60, "not the index"),
    "short": (b"\0", "not the index"),
    "no header": (table([block([(b"a", entry((2,), 0, 8))])]), "no header"),
    "big-endian": (table([block([(b"", number(1, 1) + number(2, 1))])]), "big-endian"),
    "no shards": (table([block([(b"", number(1, 0))])]), "files of data"),
    "too many shards": (table([block([(b"", number(1, 1 << 40))])]), "files of data"),
    "other shard": (table([block([HEADER, (b"a", entry((2,), 0, 8, shard=7))])]), "file 7 of 1"),
    "past the end": (table([block([HEADER, (b"a", entry((16,), 4, 64))])]), "ends at byte 68"),
    "far past the end": (table([block([HEADER, (b"a", entry((2,), 1 << 61, 8))])]), "the file has"),
    "wrong size": (table([block([HEADER, (b"a", entry((2,), 0, 9))])]), "9 bytes for float32"),
    "huge shape": (table([block([HEADER, (b"a", entry((1 << 60, 1 << 60), 0, 8))])]), "bytes for float32"),
    "unknown type": (table([block([HEADER, (b"a", entry((2,), 0, 8, dtype=99))])]), "type 99"),
    "partitioned": (table([block([HEADER, (b"a", entry((2,), 0, 8) + nested(7, b""))])]), "partitioned"),
    "odd name": (table([block([HEADER, (b"a\x1b[2J", entry((2,), 0, 8))])]), "no name of a variable"),
    "not text": (table([block([HEADER, (b"\xff\xfe", entry((2,), 0, 8))])]), "no name of a variable"),
    "out of order": (
        table([block([HEADER, (b"b", entry((2,), 0, 8)), (b"a", entry((2,), 0, 8))])]),
        "out of order",
    ),
    "one block for ever": (
        table([block([HEADER, (b"a", entry((2,), 0, 8))])], handles=[(0, 60)] * 1000),
        "",
    ),
    "block outside": (table([block([HEADER])], handles=[(1 << 50, 20)]), "a block of 20 bytes"),
}


@pytest.mark.parametrize("case", sorted(LIES))
def test_an_index_that_lies_is_refused_soon(case: str, tmp_path: Path) -> None:
    raw, says = LIES[case]
    start = time.monotonic()
    with pytest.raises(CkptconvError) as caught:
        open_bundle(written(tmp_path, raw))
    assert says in caught.value.message and time.monotonic() - start < 5


def test_a_missing_file_of_data_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, table([block([HEADER, (b"a", entry((2,), 0, 8))])]))
    (tmp_path / "m.data-00000-of-00001").unlink()
    with pytest.raises(PlanError, match=r"m\.data-00000-of-00001 is missing"):
        open_bundle(path)


def test_a_compressed_block_is_refused_by_name(tmp_path: Path) -> None:
    raw = bytearray(table([block([HEADER])]))
    raw[len(block([HEADER])) - 5] = 1
    with pytest.raises(FormatError, match="compressed"):
        open_bundle(written(tmp_path, bytes(raw)))
