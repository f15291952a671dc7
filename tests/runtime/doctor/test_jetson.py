"""`edgerpn doctor` on a Jetson and in a container, on folders that look like theirs."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from edgerpn import machine
from edgerpn.runtime.doctor import jetson
from edgerpn.runtime.doctor.check import SystemCheck


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root folder of a Jetson as a container shows it: without the release of Jetson Linux."""
    for name in ("nvmap", "nvgpu/igpu0/ctrl", "nvgpu/igpu0/dbg", "nvgpu/igpu0/sched", "dri/renderD128"):
        file = tmp_path / "dev" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    family = tmp_path / "family"
    family.write_text("Tegra\n")
    monkeypatch.setattr(jetson, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "JETSON_RELEASE", tmp_path / "none")
    monkeypatch.setattr(machine, "SOC_FAMILY", family)
    monkeypatch.setattr(jetson, "board_model", lambda: "NVIDIA Jetson Orin Nano Developer Kit")
    monkeypatch.setattr(jetson, "power_mode", lambda: "2 MAXN_SUPER")
    return tmp_path


def by_name() -> dict[str, SystemCheck]:
    return {check.name: check for check in jetson.check_jetson()}


def test_a_jetson_is_described(board: Path) -> None:
    checks = by_name()
    assert set(checks) == {"board", "GPU device files"}
    assert checks["board"].found == "NVIDIA Jetson Orin Nano Developer Kit, power mode 2 MAXN_SUPER"
    assert checks["GPU device files"].found == "this user may open all 3"


def test_files_for_debuggers_are_closed_to_every_user(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda file, mode: Path(file).name not in ("dbg", "sched"))
    assert by_name()["GPU device files"].verdict == "ok"


def test_a_user_outside_the_groups_gets_advice(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda file, mode: Path(file).name != "renderD128")
    check = by_name()["GPU device files"]
    assert check.verdict == "problem"
    assert check.found.endswith("dev/dri/renderD128")
    assert "usermod -aG video,render" in check.advice
    assert '--group-add "$(getent group render | cut -d: -f3)"' in check.advice
    assert "gstreamer-1.0" in check.advice


def test_a_container_that_hides_board_and_power_mode_gets_advice(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetson, "board_model", lambda: None)
    monkeypatch.setattr(jetson, "power_mode", lambda: None)
    assert by_name()["board"].verdict == "ok"
    (board / ".dockerenv").touch()
    check = by_name()["board"]
    assert check.verdict == "absent"
    assert check.found == "unknown, power mode unknown (nvpmodel -q)"
    assert "-v /proc/device-tree/model:/tmp/nv_jetson_model:ro" in check.advice


def test_a_container_gets_advice_on_what_to_mount(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(board / "cache"))
    (board / ".dockerenv").touch()
    checks = by_name()
    assert checks["CSI cameras"].advice.startswith("csi:// cameras need it: docker run -v /tmp/argus_socket:/tmp/argus")
    (board / "tmp").mkdir()
    (board / "tmp" / "argus_socket").touch()
    assert by_name()["CSI cameras"].verdict == "ok"
    monkeypatch.setattr(os.path, "ismount", lambda path: path == board / "cache")
    assert by_name()["caches"].found.endswith("is on a volume")
    monkeypatch.setattr(os.path, "ismount", lambda path: False)
    assert by_name()["caches"].found.endswith("vanishes with the container")
    folder = board / "cache" / "edgerpn"
    assert f"docker run -v edgerpn-cache:{folder}" in by_name()["caches"].advice
    monkeypatch.setattr(os, "access", lambda file, mode: file != board)  # the nearest folder that exists
    check = by_name()["caches"]
    assert check.verdict == "problem"
    assert check.found == f"this user may not write into {board}, so compiled kernels are lost"
    assert f"chown -v edgerpn-cache:{folder} IMAGE {os.getuid()}" in check.advice


def test_another_machine_has_none_of_these_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetson, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "JETSON_RELEASE", tmp_path / "none")
    monkeypatch.setattr(machine, "SOC_FAMILY", tmp_path / "none")
    assert by_name() == {}


def test_numpy_2_above_an_opencv_for_numpy_1_is_named_before_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "dist-packages"
    info = folder / "numpy-1.21.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.21.5\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    monkeypatch.setattr(np, "__version__", "2.2.6")
    spec = ModuleSpec("cv2", None, origin=str(folder / "cv2" / "__init__.py"))
    monkeypatch.setattr(jetson, "find_spec", lambda name: spec)
    (check,) = jetson.check_numpy()
    assert check.verdict == "problem"
    assert check.found.startswith("2.2.6, but the system's OpenCV (")
    assert "compiled for 1.21.5" in check.found
    assert "numpy<2" in check.advice
    monkeypatch.setattr(np, "__version__", "1.26.4")
    assert list(jetson.check_numpy()) == []
    monkeypatch.setattr(np, "__version__", "2.2.6")
    spec.origin = str(tmp_path / "site-packages" / "cv2" / "__init__.py")
    assert list(jetson.check_numpy()) == []
