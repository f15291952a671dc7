"""Waits and limits that the tests of the runtime share."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import patience
from tests.support.cameras import QUICK


@pytest.fixture(name="patience")
def _patience() -> Any:
    """Waits and limits that suit a busy machine."""
    return patience


@pytest.fixture
def quick() -> dict[str, Any]:
    return dict(QUICK)
