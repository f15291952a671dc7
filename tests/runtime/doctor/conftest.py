"""Cameras and faults for the doctor, and its command."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from edgerpn.__main__ import main
from tests.support.cameras import make_camera, make_mjpeg, make_proxy, rtsp_packages  # noqa: F401 - fixtures


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs `edgerpn doctor stream ... --json`; gives exit status, report, and all that was printed."""

    def run(*words: str) -> tuple[int, dict[str, Any], str]:
        status = main(["doctor", "stream", *words, "--json"])
        printed, progress = capsys.readouterr()
        report = json.loads(printed)
        assert status == (0 if report["is_healthy"] else 1)
        return status, report, printed + progress

    return run


@pytest.fixture
def problems() -> Callable[[dict[str, Any]], str]:
    """The problems of a report with what to do, as one text."""

    def join(report: dict[str, Any]) -> str:
        found = [finding for finding in report["findings"] if finding["kind"] == "problem"]
        return "\n".join(f"{finding['text']}. {finding['advice']}" for finding in found)

    return join
