"""Only regular files are opened, what is read whole is bounded, and links do not lead out."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ckptconv.errors import FormatError
from ckptconv.places.regular import is_within, open_binary, read_bytes, read_head, read_text


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(path))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (os.mkfifo, "a FIFO"),
        (os.mkdir, "a folder"),
        (_socket, "a socket"),
        (lambda path: os.symlink("/dev/zero", path), "a device"),
    ],
    ids=["FIFO", "folder", "socket", "device"],
)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make, what: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "model.pt"
    make(path)
    for read in (open_binary, read_bytes, lambda p: read_head(p, 4)):
        with pytest.raises(FormatError, match=what) as caught:
            read(path)
        assert caught.value.where == str(path)


def test_a_file_larger_than_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "latest"
    path.write_bytes(b"x" * 11)
    assert read_bytes(path, most=11) == b"x" * 11
    with pytest.raises(FormatError, match="11 bytes"):
        read_bytes(path, most=10)
    assert read_head(path, 4) == b"xxxx"


def test_a_file_that_is_longer_than_it_says() -> None:
    if not os.path.exists("/proc/self/environ"):
        pytest.skip("needs /proc")
    assert b"PATH=" in read_bytes("/proc/self/environ")
    with pytest.raises(FormatError):
        read_bytes("/proc/self/environ", most=3)


def test_text_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_bytes(b"a = b\xff")
    with pytest.raises(FormatError, match="byte 0xff at 5") as caught:
        read_text(path)
    assert "rules" in str(caught.value)


def test_links_lead_inside_or_into_a_hub_cache(tmp_path: Path) -> None:
    model, cache = tmp_path / "model", tmp_path / "models--org--name"
    blob = cache / "blobs" / ("0" * 40)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"blob")
    (tmp_path / "secret").write_bytes(b"secret")
    model.mkdir()
    (model / "real").write_bytes(b"real")
    (model / "inner").symlink_to("real")
    (model / "blob").symlink_to(blob)
    (model / "outer").symlink_to("../secret")
    (model / "chain").symlink_to("outer")
    (model / "folder").symlink_to("..")
    assert read_bytes(model / "inner", within=model) == b"real"
    assert read_bytes(model / "blob", within=model) == b"blob"
    for name in ("outer", "chain", "folder/secret"):
        assert not is_within(model / name, model)
        with pytest.raises(FormatError, match="leads out of its folder"):
            read_bytes(model / name, within=model)


def test_blobs_that_are_a_link_themselves(tmp_path: Path) -> None:
    """A checkpoint cannot pretend to be a hub's cache: what counts is where the links end."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ("0" * 40)).write_bytes(b"secret")
    model = tmp_path / "models--a--b" / "snapshots" / "main"
    model.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").symlink_to(tmp_path / "home")
    (model / "chat_template.jinja").symlink_to(f"../../blobs/{'0' * 40}")
    assert not is_within(model / "chat_template.jinja", model)
