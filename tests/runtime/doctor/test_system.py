"""`edgerpn doctor` on this machine, and on machines that lack something."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgerpn import machine
from edgerpn.__main__ import main
from edgerpn.runtime.doctor import system
from edgerpn.runtime.doctor.check import SystemCheck
from edgerpn.runtime.sources.decoders import Abilities


def by_name() -> dict[str, SystemCheck]:
    return {check.name: check for check in system.check_system()}


def install(site: Path, *names: str) -> None:
    """Writes the metadata of installed packages."""
    for name in names:
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")


def test_this_machine_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    import cv2
    import onnxruntime

    checks = by_name()
    assert {"machine", "OpenCV", "GStreamer", "ffmpeg", "cameras", "ONNX Runtime", "TensorRT", "GPU"} <= set(checks)
    assert cv2.__version__ in checks["OpenCV"].found
    assert onnxruntime.__version__ in checks["ONNX Runtime"].found
    assert "CPU" in checks["ONNX Runtime"].found
    assert all(check.found for check in checks.values())
    has_problem = any(check.verdict == "problem" for check in checks.values())
    assert main(["doctor"]) == has_problem
    printed = capsys.readouterr().out
    assert printed.endswith("no problems found\n") or "to fix: " in printed
    assert main(["doctor", "system", "--json"]) == has_problem
    report = json.loads(capsys.readouterr().out)
    assert report["is_healthy"] is not has_problem
    assert [check["name"] for check in report["checks"]] == list(checks)


def test_two_packages_of_one_library_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "opencv-python", "opencv-python-headless", "onnxruntime", "onnxruntime-gpu")
    monkeypatch.syspath_prepend(str(tmp_path))
    checks = by_name()
    assert checks["OpenCV"].verdict == "problem"
    assert "pip uninstall -y opencv-python opencv-python-headless" in checks["OpenCV"].advice
    assert checks["ONNX Runtime"].verdict == "problem"
    assert "onnxruntime onnxruntime-gpu" in checks["ONNX Runtime"].advice
    assert "inference" in checks or checks["TensorRT-RTX"].verdict == "ok" or checks["TensorRT"].verdict == "ok"


def test_a_library_that_is_installed_and_does_not_import_is_diagnosed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def broken(name: str, *arguments: Any) -> ModuleType:
        if name == "tensorrt":
            raise ImportError("libnvdla_compiler.so: cannot open shared object file: No such file or directory")
        if name == "onnxruntime":
            raise ImportError("libonnxruntime.so: invalid ELF header")
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", broken)
    checks = by_name()
    assert checks["TensorRT"].verdict == "problem"
    assert "JetPack" in checks["TensorRT"].found
    assert checks["ONNX Runtime"].verdict == "problem"
    assert "invalid ELF header" in checks["ONNX Runtime"].found
    assert "pip uninstall" in checks["ONNX Runtime"].advice


def test_a_bare_machine_gets_advice_on_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.import_module

    def bare(name: str, *arguments: Any) -> ModuleType:
        if name in ("cv2", "onnxruntime", "tensorrt", "tensorrt_lean", "tensorrt_rtx"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", bare)
    monkeypatch.setattr(system, "installed_packages", dict)
    monkeypatch.setenv("PATH", "/nowhere")
    checks = by_name()
    assert checks["OpenCV"].verdict == "problem"
    assert "pip install 'edgerpn[opencv-headless]'" in checks["OpenCV"].advice
    assert checks["ffmpeg"].verdict == "absent"
    assert [checks[name].verdict for name in ("ONNX Runtime", "TensorRT", "TensorRT-RTX")] == ["absent"] * 3
    assert checks["inference"].verdict == "problem"
    assert main(["doctor"]) == 1
    assert "to fix: OpenCV, inference" in capsys.readouterr().out


def test_an_opencv_that_numpy_breaks_is_named_and_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def print_pages() -> ModuleType:
        raise AssertionError("importing it prints pages before the report")

    found = SystemCheck(name="NumPy", verdict="problem", found="2.2.6, but OpenCV is compiled for 1.21.5")
    monkeypatch.setattr(system, "check_numpy", lambda: iter([found]))
    monkeypatch.setattr(system, "load_cv2", print_pages)
    checks = by_name()
    assert checks["NumPy"].verdict == "problem"
    assert "OpenCV" not in checks


def test_a_jetson_whose_opencv_lacks_gstreamer_gets_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    monkeypatch.setattr(machine, "JETSON_RELEASE", release)
    without = Abilities(
        has_ffmpeg=True, has_gstreamer=False, has_v4l2=True, has_program=True, has_nvv4l2=True, has_nvjpeg=True
    )
    monkeypatch.setattr(system, "find_abilities", lambda cv2: without)
    checks = by_name()
    assert "Jetson Linux R36 (release), REVISION: 4.3" in checks["machine"].found
    assert checks["GStreamer"].verdict == "problem"
    assert "sudo apt install python3-opencv" in checks["GStreamer"].advice


def test_the_command_needs_no_inference_library_and_no_torch() -> None:
    before = set(sys.modules)
    importlib.import_module("edgerpn.runtime.doctor.cli")
    assert not {"torch", "onnx"} & (set(sys.modules) - before)
