"""Cameras and faults for the doctor, and its command, with short times."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from edgerpn.__main__ import main
from edgerpn.runtime.doctor import key_frames
from tests.support.cameras import make_camera, make_mjpeg, make_proxy, rtsp_packages  # noqa: F401 - fixtures


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs `edgerpn doctor stream ... --json`; returns exit status, report, and all output."""

    def run(*words: str) -> tuple[int, dict[str, Any], str]:
        status = main(["doctor", "stream", *words, "--json"])
        printed, progress = capsys.readouterr()
        report = json.loads(printed)
        assert status == (0 if report["is_healthy"] else 1)
        return status, report, printed + progress

    return run


@pytest.fixture
def quick_key_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads live video for one second only to find its key frames."""
    monkeypatch.setattr(key_frames, "_LIVE_S", 1.0)


@pytest.fixture
def no_key_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Does not open the second connection that looks for key frames."""
    monkeypatch.setattr(key_frames, "find_key_frames", lambda config: key_frames.KeyFrames(why_unknown="not measured"))


@pytest.fixture
def problems() -> Callable[[dict[str, Any]], str]:
    """Joins the problems of a report and their advice."""

    def join(report: dict[str, Any]) -> str:
        found = [finding for finding in report["findings"] if finding["kind"] == "problem"]
        return "\n".join(f"{finding['text']}. {finding['advice']}" for finding in found)

    return join
