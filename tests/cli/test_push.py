"""A published model was verified, is sent once, in one commit, with a card; tokens are never shown."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from hub import TOKEN, Hub, serving
from running import DEMO, ROOT, command, contents, succeeds

SCHEMA = json.loads((ROOT / "docs" / "schema.json").read_text())


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving() as found:
        found.home = tmp_path / "hf"
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "model"
    succeeds("deepspeed-to-hf", DEMO, out, "--verify", "--max-shard-size", "100KB")
    return out


@pytest.fixture
def verified(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


def run(hub: Hub, *words: object, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env = {**inherited, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(hub.home)}
    env |= {} if token is None else {"HF_TOKEN": token}
    found = subprocess.run(command(*words), env=env, capture_output=True, text=True, timeout=120, check=False)
    assert TOKEN not in found.stdout + found.stderr
    return found


def test_a_verified_folder_is_published_whole(hub: Hub, verified: Path) -> None:
    before = contents(verified)
    found = run(hub, "push", verified, "me/demo", "--json")
    assert found.returncode == 0, found.stderr
    there = hub.files("me/demo")
    assert {n: b for n, b in there.items() if n != "README.md"} == before == contents(verified)
    assert hub.commits == 1
    said = json.loads(found.stdout)
    assert said["url"] == f"{hub.url}/me/demo"
    jsonschema.validate(said, {**SCHEMA, "anyOf": [{"$ref": "#/$defs/pushed"}]})


def test_the_card_says_what_it_is(hub: Hub, verified: Path) -> None:
    config = json.loads((verified / "config.json").read_text())
    run(hub, "push", verified, "me/demo")
    card = hub.files("me/demo")["README.md"].decode()
    certificate = (verified / "ckptconv-verify.json").read_bytes()
    head = card.split("---")[1]
    assert "library_name: transformers" in head and "base_model" not in head
    assert "deepspeed, ZeRO stage 3, step 2" in card and config["architectures"][0] in card
    assert hashlib.sha256(certificate).hexdigest() in card and json.loads(certificate)["plan"] in card
    assert b"library_name" not in b"".join(contents(verified).values())


@pytest.mark.parametrize(
    ("path", "base"), [("org/base-7B", True), ("/cluster/models/base", False), ("../base", False)]
)
def test_a_base_model_is_named_where_the_config_names_one(
    hub: Hub, tmp_path: Path, path: str, base: bool
) -> None:
    config = json.loads((DEMO / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "_name_or_path": path}))
    out = tmp_path / "model"
    succeeds("deepspeed-to-hf", DEMO, out, "--verify", "--config", tmp_path)
    run(hub, "push", out, "me/demo")
    assert (f'base_model: "{path}"' in hub.files("me/demo")["README.md"].decode()) is base


def test_what_is_hidden_or_leads_elsewhere_stays_here(hub: Hub, verified: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the machine")
    (verified / "notes.txt").symlink_to(tmp_path / "secret")
    (verified / ".env").write_text("HF_TOKEN=x")
    (verified / "LICENSE").write_text("Apache-2.0")
    assert run(hub, "push", verified, "me/demo").returncode == 0
    there = hub.files("me/demo")
    assert "LICENSE" in there and not {"notes.txt", ".env"} & there.keys()


def test_a_card_that_is_there_stays(hub: Hub, verified: Path) -> None:
    run(hub, "push", verified, "me/demo")
    hub.files("me/demo")["README.md"] = b"# mine\n"
    run(hub, "push", verified, "me/demo")
    assert hub.files("me/demo")["README.md"] == b"# mine\n"
    (verified / "README.md").write_text("# of the folder\n")
    run(hub, "push", verified, "me/demo")
    assert hub.files("me/demo")["README.md"] == b"# of the folder\n"


def test_what_was_sent_is_not_sent_again(hub: Hub, verified: Path) -> None:
    shards = sorted(verified.glob("*.safetensors"))
    assert len(shards) > 2
    digests = [hashlib.sha256(s.read_bytes()).hexdigest() for s in shards]
    hub.refused = {digests[-1]}
    stopped = run(hub, "push", verified, "me/demo")
    assert stopped.returncode == 1 and "does not allow" in stopped.stderr and "do:" in stopped.stderr
    assert hub.files("me/demo") == {} and hub.sent  # nothing is seen of a part
    hub.refused = set()
    assert run(hub, "push", verified, "me/demo").returncode == 0
    assert sorted(hub.sent) == sorted(digests)
    assert run(hub, "push", verified, "me/demo").returncode == 0
    assert len(hub.sent) == len(digests)


def test_a_conversion_publishes_what_it_has_verified(hub: Hub, tmp_path: Path) -> None:
    flags = ("--push-to-hub", "me/demo", "--private", "--revision", "step-2", "--json")
    found = run(hub, "deepspeed-to-hf", DEMO, tmp_path / "out", *flags)
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout)
    jsonschema.validate(said, {**SCHEMA, "anyOf": [{"$ref": "#/$defs/converted"}]})
    assert said["verify"]["ok"] and said["push"]["url"].endswith("/me/demo/tree/step-2")
    assert hub.repos["me/demo"].private and hub.files("me/demo") == {}
    assert "model.safetensors" in hub.files("me/demo", "step-2")


def test_files_that_are_not_as_verified_are_not_sent(hub: Hub, verified: Path) -> None:
    with (shard := next(verified.glob("*.safetensors"))).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    found = run(hub, "push", verified, "me/demo")
    assert found.returncode == 3 and shard.name in found.stderr
    (verified / "ckptconv-verify.json").unlink()
    found = run(hub, "push", verified, "me/demo")
    assert found.returncode == 1 and "verify-roundtrip" in found.stderr
    assert hub.repos == {}


def test_what_is_to_be_private_is_not_shown_in_a_public_repository(hub: Hub, verified: Path) -> None:
    run(hub, "push", verified, "me/demo")
    found = run(hub, "push", verified, "me/demo", "--private")
    assert found.returncode == 1 and "public" in found.stderr and hub.commits == 1


@pytest.mark.parametrize(
    ("token", "words", "code", "named"),
    [
        (None, ("me/demo",), 1, "HF_TOKEN"),
        ("hf_anotherOneThatIsWrong", ("me/demo",), 1, "HF_TOKEN"),
        (TOKEN, ("demo",), 2, "USER/MODEL"),
        (TOKEN, ("a/b/c",), 2, "USER/MODEL"),
    ],
)
def test_what_cannot_be_published_is_refused_first(
    hub: Hub, tmp_path: Path, token: str | None, words: tuple[str, ...], code: int, named: str
) -> None:
    found = run(hub, "deepspeed-to-hf", DEMO, tmp_path / "out", "--push-to-hub", *words, token=token)
    assert found.returncode == code and named in found.stderr, found.stderr
    assert token is None or token not in found.stderr
    assert hub.repos == {} and not (tmp_path / "out").exists()


def test_a_hub_that_is_not_there_is_found_out_first(tmp_path: Path) -> None:
    gone = Hub("http://127.0.0.1:9", home=tmp_path)
    found = run(gone, "deepspeed-to-hf", DEMO, tmp_path / "out", "--push-to-hub", "me/demo")
    assert found.returncode == 1 and "HF_ENDPOINT" in found.stderr
    assert not (tmp_path / "out").exists()


def test_flags_of_publishing_are_refused_where_nothing_is(hub: Hub, tmp_path: Path) -> None:
    found = run(hub, "deepspeed-to-hf", DEMO, tmp_path / "out", "--private")
    assert found.returncode == 2 and "--push-to-hub" in found.stderr
    words = ("convert", DEMO, tmp_path / "out", "--to", "dcp", "--push-to-hub", "me/demo")
    assert run(hub, *words).returncode == 2


def test_without_the_package_its_extra_is_named(verified: Path) -> None:
    code = "import sys; sys.modules['huggingface_hub'] = None; from ckptconv.cli import main; main()"
    words = [sys.executable, "-c", code, "push", str(verified), "me/demo"]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert found.returncode == 1 and "ckptconv[hub]" in found.stderr


def test_the_client_is_not_imported_before_it_is_needed() -> None:
    build = "import sys, ckptconv.cli.app as app; app.build('push')"
    code = f"{build}; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
