"""Waits and limits that the tests of the runtime share."""

from __future__ import annotations

import threading
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


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of threads that the system refuses: none has room for such a stack."""
    names: set[str] = set()
    lock = threading.Lock()
    start = threading.Thread.start

    def start_or_fail(thread: threading.Thread) -> None:
        with lock:
            before = threading.stack_size(1 << 46 if thread.name in names else 0)
            try:
                start(thread)
            finally:
                threading.stack_size(before)

    monkeypatch.setattr(threading.Thread, "start", start_or_fail)
    return names
