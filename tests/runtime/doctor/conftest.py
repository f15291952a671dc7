"""Cameras and faults for the doctor, and its command."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgerpn.__main__ import main

_CAMERAS = Path(__file__).resolve().parents[2] / "streams" / "cameras.py"


def _load_cameras() -> Any:
    spec = importlib.util.spec_from_file_location("edgerpn_tests_cameras_of_doctor", _CAMERAS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_cameras = _load_cameras()
rtsp_packages = _cameras.rtsp_packages
make_camera = _cameras.make_camera
make_proxy = _cameras.make_proxy
make_mjpeg = _cameras.make_mjpeg


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
