"""Settings and folders that a run refuses before it starts."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from edgerpn.errors import ConfigError
from edgerpn.train.config import load_settings
from edgerpn.train.run.folder import COLUMNS, LogRows, RunFolder, read_log


def test_a_size_that_could_not_be_exported_is_refused_before_training() -> None:
    with pytest.raises(
        ConfigError, match=r"data\.input_hw: both sides must be multiples of 64.*use 128x128, got \(100, 100\)"
    ):
        load_settings(overrides=("data.input_hw=[100, 100]",))


@pytest.mark.parametrize(
    "override",
    [
        *("loop.minutes=nan", "loop.minutes=inf", "loop.seed=-1", "loop.seed=18446744073709551616"),
        *("optimizer.momentum=1", "optimizer.weight_decay=-0.1"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        load_settings(overrides=(override,))


def test_a_file_is_no_folder_for_a_run(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("something else")
    with pytest.raises(ConfigError, match="this is a file, expected a folder"):
        RunFolder(file).check_new()
    assert file.read_text() == "something else"


def test_the_log_of_a_long_run_takes_little_memory_and_has_whole_steps(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    steps = range(1_000_001, 1_200_001, 10)
    tracemalloc.start()
    try:
        for step in steps:
            folder.append({"step": step, **{name: step / (7 + len(name)) for name in COLUMNS[1:11]}})
        num_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_bytes < 200 * len(steps)
    folder.append({"step": 1_200_007, "AR@100": 0.25})
    folder.write_log()
    read = read_log(folder.log)
    assert [row["step"] for row in read] == [*steps, 1_200_007]
    assert read[-1] == {"step": 1_200_007, "AR@100": 0.25}


def test_rows_of_a_log_are_those_that_were_added() -> None:
    rows = [{"step": 1.0, "loss": 2.5}, {"step": 1.0, "AR@100": 0.5}, {"step": 2.0, "loss": float("inf")}]
    log = LogRows(rows)
    assert list(log) == log[:] == rows
    assert log[-1] == rows[-1]
    assert [values.tolist() for values in log.points("loss")] == [[1, 2], [2.5, float("inf")]]
    assert [values.tolist() for values in log.points("AR@100")] == [[1], [0.5]]
    assert [values.tolist() for values in log.points("AP")] == [[], []]
    assert not LogRows()
