"""What is built and released says what it is: extras, classifiers, the image, the workflow."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ckptconv.errors import _EXTRAS
from running import ROOT

if sys.version_info < (3, 11):
    pytest.skip("tomllib is of Python 3.11", allow_module_level=True)
import tomllib


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])


def test_what_a_plain_install_brings_is_small(project: dict[str, Any]) -> None:
    names = {re.split(r"[^\w-]", d)[0] for d in project["dependencies"]}
    assert not names & {"torch", "transformers", "ray", "tensorflow", "h5py", "sentencepiece"}


def test_every_extra_that_an_error_names_is_there(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    assert {"transformers", "tokenizers", "remote", "ray", "tensorflow", "hub", "all"} <= extras.keys()
    assert set(_EXTRAS.values()) <= extras.keys()
    whole = " ".join(extras["all"])
    assert all(name in whole for name in {*_EXTRAS.values()})


def test_the_project_says_where_it_is(project: dict[str, Any]) -> None:
    assert {"Homepage", "Documentation", "Changelog", "Issues", "Source"} <= project["urls"].keys()
    minors = [c.rpartition(".")[2] for c in project["classifiers"] if "Python :: 3." in c]
    assert project["requires-python"] == f">=3.{minors[0]}" and "Typing :: Typed" in project["classifiers"]


def test_a_release_is_built_and_tried_before_it_is_published() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    assert set(workflow[True]) == {"push"} and workflow[True]["push"] == {"tags": ["v[0-9]+.[0-9]+.[0-9]+*"]}
    assert workflow["permissions"] == {"contents": "read"}  # a job that needs more says so itself
    jobs = workflow["jobs"]
    steps = [s.get("run", "") for s in jobs["build"]["steps"]]
    assert steps.index('bash .ci/tag "$GITHUB_REF_NAME"') < steps.index("make package")
    for name in set(jobs) - {"build"}:
        assert jobs[name]["needs"] in ("build", "pypi"), name
    for job in jobs.values():
        for step in job["steps"]:
            assert "@" in step.get("uses", "@"), step
            assert "${{" not in step.get("run", ""), step  # a name may hold what a shell would run
    # What one job leaves the others take, and PyPI is asked for a token of this run, not for a kept one.
    given = {s["with"]["name"] for j in jobs.values() for s in j["steps"] if "artifact" in s.get("uses", "")}
    assert given == {"dist"} and jobs["pypi"]["permissions"] == {"id-token": "write"}
    assert "make --no-print-directory package" in (ROOT / ".ci" / "run").read_text()


def test_a_tag_is_the_version_and_has_an_entry(tmp_path: Path) -> None:
    for name in (".ci/tag", "ckptconv/version.py", "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "ckptconv" / "version.py").write_text('__version__ = "1.2.3"\n')

    def says(tag: str) -> tuple[int, str]:
        ran = subprocess.run(
            ["bash", tmp_path / ".ci" / "tag", tag], capture_output=True, text=True, check=False
        )
        return ran.returncode, ran.stderr

    assert says("v1.2.4") == (1, "the tag is v1.2.4, ckptconv/version.py says 1.2.3\n")
    assert says("1.2.3")[0] == 1 and says("v1.2.3rc1")[0] == 1
    assert says("v1.2.3") == (1, "CHANGELOG.md has no entry of 1.2.3\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [1.2.3]\n")
    assert says("v1.2.3") == (0, "")


def _stages() -> list[list[tuple[str, str]]]:
    """Return the instructions of each stage of the Dockerfile; lines that go on are put together."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    stages: list[list[tuple[str, str]]] = [[]]
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stages.append([])
        stages[-1].append((word, rest))
    return stages


def test_the_image_is_made_of_what_its_context_holds(project: dict[str, Any]) -> None:
    before, build, image = _stages()
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {n for word, rest in build if word == "COPY" for n in rest.split()[:-1]}
    assert copied == kept and all((ROOT / name).exists() for name in copied)
    (python,) = [rest.partition("=")[2] for word, rest in before if rest.startswith("PYTHON=")]
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]
    assert [stage[0][1].split()[0] for stage in (build, image)] == ["python:${PYTHON}-slim"] * 2
    # Where the environment is made is where the image has it: its scripts hold that path.
    (run,) = [rest for word, rest in build if word == "RUN"]
    made = run.split()[run.split().index("venv") + 1]
    assert ("COPY", f"--from=build {made} {made}") in image
    assert any(word == "ENV" and f"PATH={made}/bin:" in rest for word, rest in image)


def test_the_image_runs_our_command_as_nobody_special() -> None:
    image = dict(_stages()[-1])
    user = image["USER"].split(":")
    assert all(part.isdecimal() and int(part) > 0 for part in user), "Kubernetes knows numbers alone"
    assert image["ENTRYPOINT"] == '["ckptconv"]' and image["CMD"] == '["--help"]'
    assert "HF_HOME=/tmp/" in image["ENV"]  # it has no home
    for name in ("README.md", "README.zh-CN.md", "Dockerfile"):
        (line,) = [x for x in (ROOT / name).read_text(encoding="utf-8").splitlines() if "docker run" in x]
        assert '--user "$(id -u):$(id -g)"' in line, name  # what is written belongs to who asked for it
