"""Results to write, and waiting with a limit."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from edgerpn.proposals import Proposals
from edgerpn.runtime.frame import Event, Frame, Result
from tests.support import patience

MakeResult = Callable[..., Result]
Until = Callable[..., None]


@pytest.fixture(scope="session")
def make_result() -> MakeResult:
    """Makes a result of one box."""

    def make(
        index: int = 0, *, source: str = "door", height: int = 48, width: int = 64, at_s: float | None = None,
        media_time_s: float | None = None, level: int = 100,
    ) -> Result:  # fmt: skip
        now_s = time.monotonic() if at_s is None else at_s
        frame = Frame(
            image=np.full((height, width, 3), level, np.uint8), index=index, media_time_s=media_time_s,
            captured_at=1_700_000_000 + (index if at_s is None else at_s), monotonic_s=now_s, source=source,
            decode_ms=1.0,
        )  # fmt: skip
        proposals = Proposals(np.array([[1, 2, 30, 40]]), np.array([0.875]))
        return Result(proposals=proposals, frame=frame, stage_ms={"inference": 12.5})

    return make


@pytest.fixture(scope="session")
def make_event() -> Callable[..., Event]:

    def make(kind: str = "error", *, source: str = "door") -> Event:
        return Event(kind=kind, source=source, message="something happened", happened_at=1_700_000_000.0)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def until() -> Until:
    """Waits until a condition holds, and fails when it takes too long."""

    def wait(condition: Callable[[], object]) -> None:
        patience.wait_until(condition)

    return wait
