"""Shared by all tests: the repository's root, and the rules of hypothesis and of the markers `gpu` and `rtx`."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# A slow machine is no failure, and in CI the same commit tries the same examples.
pytest_plugins = ["tests.support.models"]

hypothesis.settings.register_profile("edgerpn", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("edgerpn")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config) -> Any:
    """Gives whole files to the processes of `./dev test`.

    `--dist loadgroup` could do a part of it by a mark, but groups nothing with pytest 9.2 (pytest-xdist, issue 1386).
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from tests.support.scheduling import FileScheduling  # here, because xdist is not always installed

    return FileScheduling(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tries failed tests of the runtime and of benchmarks again twice; the summary lists such reruns.

    They meet real cameras, servers, browsers and processes, which a busy machine can hold up for longer than any of
    them allows.
    """
    if config.pluginmanager.hasplugin("rerunfailures"):
        for item in items:
            if {ROOT / "tests" / "runtime", ROOT / "tests" / "benchmarks"} & set(item.path.parents):
                item.add_marker(pytest.mark.flaky(reruns=2))


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Escapes names of files that are not UTF-8, which the processes of xdist cannot send to each other."""
    return _printable((yield))


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_printable(item) for item in value)
    return value


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests that this machine cannot run; CI turns a missing TensorRT-RTX into a failure."""
    if item.get_closest_marker("rtx"):
        try:
            importlib.import_module("tensorrt_rtx")
        except ImportError as error:
            if os.environ.get("EDGERPN_REQUIRE_RTX") == "1":
                pytest.fail(f"EDGERPN_REQUIRE_RTX=1, but TensorRT-RTX does not import: {error}")
            pytest.skip(f"TensorRT-RTX does not import here: {error}")
    if item.get_closest_marker("gpu") and not _has_gpu():
        pytest.skip("PyTorch sees no NVIDIA GPU here")


def _has_gpu() -> bool:
    return importlib.util.find_spec("torch") is not None and importlib.import_module("torch").cuda.is_available()
