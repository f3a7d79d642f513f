"""Skip what is about URLs where the packages for them are not installed."""

from __future__ import annotations

import pytest

pytest.importorskip("s3fs")
pytest.importorskip("moto")
