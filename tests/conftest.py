"""Set what every test shares: no network, no time limit on examples, where the fixtures lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A loaded machine is slow by fits, which says nothing about the code.
settings.register_profile("ckptconv", deadline=None, print_blob=True)
settings.load_profile("ckptconv")

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of committed checkpoints."""
    return FIXTURES


@pytest.fixture(scope="session")
def demo_run() -> Path:
    """A run as HF Trainer leaves it: ZeRO-3 on two ranks, config and tokenizer beside ``latest``."""
    return FIXTURES / "demo-run" / "checkpoint-2"
