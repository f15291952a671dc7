"""Settings and folders that a run refuses before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgerpn.errors import ConfigError
from edgerpn.train.config import load_settings
from edgerpn.train.run.folder import RunFolder


def test_a_size_that_could_not_be_exported_is_refused_before_training() -> None:
    with pytest.raises(
        ConfigError, match=r"data\.input_hw: both sides must be multiples of 64.*use 128x128, got \(100, 100\)"
    ):
        load_settings(overrides=("data.input_hw=[100, 100]",))


@pytest.mark.parametrize("override", ["loop.minutes=nan", "loop.minutes=inf", "loop.seed=-1"])
def test_numbers_that_mean_nothing_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        load_settings(overrides=(override,))


def test_a_file_is_no_folder_for_a_run(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("something else")
    with pytest.raises(ConfigError, match="this is a file, expected a folder"):
        RunFolder(file).check_new()
    assert file.read_text() == "something else"
