"""Transformers is asked to build a model only as large as the tensors that are there."""

from __future__ import annotations

from typing import Any

import pytest

from ckptconv.assets import loading


@pytest.mark.parametrize(
    "sizes",
    [{"num_hidden_layers": 10**11}, {"num_hidden_layers": 50}, {"text_config": {"num_experts": 10**6}}],
    ids=str,
)
def test_what_is_out_of_proportion_is_not_asked(
    sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unasked(*_: object, **__: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(loading.subprocess, "run", unasked)
    assert loading.ask({"model_type": "mine", **sizes}, [{"a.weight": (2, 2)}]) is None
