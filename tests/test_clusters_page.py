"""What ``docs/clusters.md`` gives to be copied is valid."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from running import ROOT, ckptconv

TEXT = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert found
    return found


@pytest.mark.parametrize("script", blocks("bash"), ids=range(2))
def test_scripts_are_bash(script: str, tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(script)
    checked = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert script.startswith("#!/bin/bash\n#SBATCH ")


def test_the_job_is_whole() -> None:
    (job,) = (yaml.safe_load(text) for text in blocks("yaml"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        # Ray takes nothing but strings, and source and output must be there for all.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {m["mountPath"]: claims[m["name"]] for m in container["volumeMounts"]}
        assert mounts == {"/shared": "checkpoints"}
        assert spec["rayVersion"] in blocks("dockerfile")[0]
    assert "/shared/run /shared/model --engine ray" in job["spec"]["entrypoint"]


def test_commands_are_ones_ckptconv_has() -> None:
    found = re.findall(r"\bckptconv ([a-z-]+(?: [^\n#]*--engine ray[^\n#]*))", TEXT.replace("\\\n", " "))
    assert len(found) >= 5
    for line in found:
        name, *words = shlex.split(line)
        usage = ckptconv(name, "--help-all").out
        for flag in (w for w in words if w.startswith("--")):
            assert flag in usage, line
