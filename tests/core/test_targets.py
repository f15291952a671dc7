"""The table of targets, and how versions of a library find their row."""

from __future__ import annotations

import pytest

from edgerpn.targets import (
    EXPORT_TARGETS,
    LIBRARIES,
    TARGETS,
    EngineLibrary,
    is_same_version,
    oldest_target,
    runs_compatible_engine,
    target_of,
    version_numbers,
)


def test_rows_of_a_library_rise_from_its_oldest_version() -> None:
    for library, info in LIBRARIES.items():
        rows = [row for row in TARGETS.values() if row.library == library]
        assert rows[0].since == info.oldest
        assert [row.since for row in rows] == sorted({row.since for row in rows})
    assert [oldest_target(target) for target in EXPORT_TARGETS] == ["onnxruntime", "tensorrt-10.3", "tensorrt-rtx"]


@pytest.mark.parametrize(
    ("library", "version", "target"),
    [
        ("tensorrt", "10.0.1", "tensorrt-10.3"),
        ("tensorrt", "10.3.0.26", "tensorrt-10.3"),
        ("tensorrt", "10.7.0.23", "tensorrt-10.3"),
        ("tensorrt", "10.15.1.29", "tensorrt-10.8"),
        ("tensorrt", "11.1.0.1", "tensorrt-11"),
        ("tensorrt", "11.4.1.7", "tensorrt-11"),
        ("tensorrt", "11.5.0.1", "tensorrt-11.5"),
        ("tensorrt-rtx", "1.7.1", "tensorrt-rtx"),
    ],
)
def test_a_version_finds_its_row(library: EngineLibrary, version: str, target: str) -> None:
    assert target_of(library, version) == target


def test_versions_are_compared_by_the_numbers_that_both_have() -> None:
    assert version_numbers("10.3.0.26+cuda12") == (10, 3, 0, 26)
    assert is_same_version("10.3.0.26", "10.3.0.26")
    assert is_same_version("10.3.0.26", "10.3.0")
    assert not is_same_version("10.3.0.26", "10.3.0.30")
    assert not is_same_version("10.3", "10.3")
    assert runs_compatible_engine("8.6.1.6", "10.3.0.26")
    assert not runs_compatible_engine("11.1.0.1", "10.3.0.26")
