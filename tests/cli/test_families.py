"""`families` lists every architecture with a table."""

from __future__ import annotations

import json

from ckptconv.families import FAMILIES
from running import succeeds


def test_all_of_them() -> None:
    listed = {f["family"]: f for f in json.loads(succeeds("families", "--json").out)["families"]}
    assert listed.keys() == {f.name for f in FAMILIES if f.entries or f.text}
    assert listed["llama"]["config"] == "found"
    assert listed["deepseek_v3"]["mtp"] and "kimi_k2" in listed["deepseek_v3"]["model_types"]
    assert all(listed[name]["parts"] == ["vision_model"] for name in ("qwen2_vl", "qwen2_5_vl"))
    shown = succeeds("families").out
    assert all(name in shown for name in ("llama", "qwen3_next", "nemotron_h"))
