"""What is built and released says what it is: extras, classifiers, the image, the workflow."""

from __future__ import annotations

import re
import sys
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
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    steps = [s.get("run", "") for s in jobs["build"]["steps"]]
    assert "make package" in steps
    for name in set(jobs) - {"build"}:
        assert jobs[name]["needs"] in ("build", "pypi"), name
    assert "make --no-print-directory package" in (ROOT / ".ci" / "run").read_text()


def test_the_image_is_made_of_what_its_context_holds() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY") and "--from" not in line]
    assert {name for names in copied for name in names} == kept
    assert 'ENTRYPOINT ["ckptconv"]' in lines
