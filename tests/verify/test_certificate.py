"""The certificate says which files were verified, and tells later whether they still are those."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptconv
from ckptconv.api.verify import verify_roundtrip
from ckptconv.errors import CkptconvError, FormatError, OutputError
from ckptconv.verify.certificate import NAME, check
from running import DEMO


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("certified") / "model"
    ckptconv.convert(DEMO, out, dtype="bfloat16", max_shard_size="40KB")
    assert verify_roundtrip(DEMO, out, certify=True, sha256=True).ok
    return out


def test_it_says_what_was_verified(certified: Path) -> None:
    said = json.loads((certified / NAME).read_text())
    files = {p.name: p for p in certified.iterdir() if p.name != NAME}
    assert said["files"].keys() == files.keys() and len(files) > 8
    for name, path in files.items():
        data = path.read_bytes()
        assert said["files"][name] == {
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "xxh3": xxhash.xxh3_128_hexdigest(data),
        }
    plan = ckptconv.plan(DEMO, dtype="bfloat16")
    assert said["plan"] == plan.digest() and said["source"] == str(DEMO)
    assert said["tool"] == f"ckptconv {ckptconv.__version__}"
    assert said["result"]["ok"] and said["result"]["tensors"] == 21 and said["result"]["mismatches"] == []


def test_unchanged_files_pass_wherever_they_are(certified: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(certified, tmp_path / "elsewhere")
    found = check(moved)
    assert found.ok and not found.extra and found.files == len(list(moved.iterdir())) - 1


@settings(max_examples=30)
@given(data=st.data())
def test_one_bit_anywhere_in_any_file_is_found(certified: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(p for p in certified.iterdir() if p.name != NAME)))
    byte = data.draw(st.integers(0, path.stat().st_size - 1))
    before = path.read_bytes()
    changed = bytearray(before)
    changed[byte] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    try:
        assert list(check(certified).wrong) == [path.name]
    finally:
        path.write_bytes(before)


def test_missing_longer_and_further_files(certified: Path, tmp_path: Path) -> None:
    out = shutil.copytree(certified, tmp_path / "out")
    (out / "tokenizer.json").unlink()
    with open(out / "config.json", "a") as file:
        file.write(" ")
    (out / "sub").mkdir()
    (out / "sub" / "more.bin").write_text("x")
    (out / ".hidden").write_text("x")
    found = check(out)
    assert found.wrong.keys() == {"tokenizer.json", "config.json"} and found.extra == ("sub/more.bin",)
    assert "missing" in found.wrong["tokenizer.json"] and "bytes" in found.wrong["config.json"]


def test_without_a_certificate_it_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(CkptconvError, match="verify-roundtrip") as caught:
        check(tmp_path)
    assert caught.value.exit_code == 1


def certificate(files: object) -> str:
    return json.dumps({"version": 2, "tool": "", "source": "", "plan": "", "files": files})


DIGEST = {"bytes": 1, "xxh3": ""}


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        "{}",
        '{"version": 1}',
        certificate({"../x": DIGEST}),
        certificate({"/x": DIGEST}),
        certificate({"x": {**DIGEST, "bytes": "1"}}),
        certificate({"x": {**DIGEST, "sha256": 1}}),
        certificate([]),
        "[" * 100_000,
    ],
    ids=["text", "list", "empty", "version", "above", "absolute", "size", "sha256", "files", "deep"],
)
def test_what_is_no_certificate_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(FormatError):
        check(tmp_path)


def test_there_is_none_where_anything_differs(certified: Path, tmp_path: Path) -> None:
    out = shutil.copytree(certified, tmp_path / "out")
    (out / NAME).unlink()
    shard = next(out.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert not verify_roundtrip(DEMO, out, certify=True).ok
    assert not (out / NAME).exists()


def test_no_link_is_followed(certified: Path, tmp_path: Path) -> None:
    out = shutil.copytree(certified, tmp_path / "out")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    os.symlink(victim, out / (NAME + ".part"))
    with pytest.raises(OutputError, match="--no-certificate"):
        verify_roundtrip(DEMO, out, certify=True)
    assert victim.read_text() == "mine"


def test_ranks_are_certified_in_their_folders(certified: Path, tmp_path: Path) -> None:
    out = tmp_path / "ranks"
    ckptconv.convert(certified, out, to="megatron", sizes={"tp": 2})
    assert verify_roundtrip(certified, out, certify=True).ok
    found = check(out)
    assert found.ok and found.files == 3
    rank = next(out.glob("*/mp_rank_01/*"))
    rank.unlink()
    assert list(check(out).wrong) == [rank.relative_to(out).as_posix()]


def test_sha256_is_for_those_who_ask(certified: Path, tmp_path: Path) -> None:
    out = shutil.copytree(certified, tmp_path / "out")
    assert verify_roundtrip(DEMO, out, certify=True).ok
    entries = json.loads((out / NAME).read_text())["files"].values()
    assert all(e.keys() == {"bytes", "xxh3"} for e in entries)
    assert check(out).ok
    path = next(out.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert list(check(out).wrong) == [path.name]


def test_a_signature_beside_it_is_no_file_of_the_model(certified: Path, tmp_path: Path) -> None:
    """As the page on signing says: with ssh-keygen, which most have."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen")
    out, key = shutil.copytree(certified, tmp_path / "out"), tmp_path / "key"
    run = partial(subprocess.run, check=True, capture_output=True)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    run(["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", "ckptconv", str(out / NAME)])
    signers = tmp_path / "allowed_signers"
    signers.write_text(f'you@example.org namespaces="ckptconv" {key.with_suffix(".pub").read_text()}')
    verify = ["ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", "you@example.org", "-n", "ckptconv"]
    verify += ["-s", str(out / f"{NAME}.sig")]
    run(verify, input=(out / NAME).read_bytes())
    found = check(out)
    assert found.ok and not found.extra
    with pytest.raises(subprocess.CalledProcessError):
        run(verify, input=(out / NAME).read_bytes().replace(b"xxh3", b"xxh4"))
