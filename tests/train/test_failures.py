"""Memory, disks and checkpoints that fail while a training runs, for real: each leaves a state to go on from."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from edgerpn.errors import CheckpointError, DataError, TrainingStoppedError
from edgerpn.train.checkpoint import load_checkpoint
from edgerpn.train.config import TrainSettings
from edgerpn.train.failures import is_out_of_memory
from edgerpn.train.loop import TrainResult, train

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc as Linux has them")
Start = Callable[..., TrainResult]


@pytest.fixture
def start(data_folder: Path, tmp_path: Path, tiny_settings: Callable[..., TrainSettings]) -> Start:
    """Trains into `tmp_path` / run with tiny settings and further `--set` texts."""

    def run(*overrides: str, **options: object) -> TrainResult:
        return train(tiny_settings(*overrides), data=data_folder, out=tmp_path / "run", **options)  # type: ignore[arg-type]

    return run


@contextlib.contextmanager
def limit(kind: int, size: int) -> Iterator[None]:
    """Sets the soft limit, and takes it back."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def address_space() -> int:
    """Bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def test_a_disk_that_is_full_for_a_while_costs_only_what_it_did_not_take(start: Start, tmp_path: Path) -> None:
    said: list[str] = []
    folder = tmp_path / "run"
    limits = contextlib.ExitStack()

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("step 2,"):
            limits.enter_context(limit(resource.RLIMIT_FSIZE, 30_000))
        if line.startswith("step 6,"):
            limits.close()

    with limits:
        result = start("loop.epochs=2", "loop.evaluations=4", "optimizer.learning_rate=1e-5", say=say)
    failures = [line for line in said if "the checkpoint could not be written: File too large" in line]
    assert [line.split(":")[0] for line in failures] == ["step 2", "step 4"]
    assert all("training goes on" in line for line in failures)
    assert load_checkpoint(result.last).step == 8
    assert result.best.exists()
    assert load_checkpoint(result.best).metrics == result.metrics
    assert not list(folder.glob(".*")), "no temporary file is left"


def test_a_disk_that_stays_full_ends_the_run_with_the_last_good_state(start: Start, tmp_path: Path) -> None:
    done = start("loop.epochs=1")
    before = done.last.read_bytes()
    with (
        limit(resource.RLIMIT_FSIZE, 30_000),
        pytest.raises(TrainingStoppedError, match=r"could not be written: File too large .*Free space; .*--resume"),
    ):
        start("loop.epochs=2", resume=True)
    assert done.last.read_bytes() == before
    assert load_checkpoint(start("loop.epochs=2", resume=True).last).step == 8


def test_running_out_of_memory_names_the_way_on(start: Start, tmp_path: Path) -> None:
    # A step needs some hundred MB: eight images of 512 x 512 and their gradients.
    large = ("data.input_hw=[512, 512]", "data.batch_size=8", "model.stage_channels=[32, 32, 16, 16, 16]")
    limits = contextlib.ExitStack()

    def say(line: str) -> None:
        if "parameters" in line:
            limits.enter_context(limit(resource.RLIMIT_AS, address_space() + (96 << 20)))

    with (
        limits,
        pytest.raises(TrainingStoppedError, match=r"out of memory with 8 images a step in 1 part, 512x512") as stopped,
    ):
        start(*large, "loop.epochs=1", say=say)
    assert "no checkpoint was written yet; start again and --set loop.accumulate=2" in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_other_errors_are_no_lack_of_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(RuntimeError("shape '[2]' is invalid for input of size 3"))
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50)
    assert is_out_of_memory(raised.value)


def test_a_truncated_checkpoint_falls_back_to_the_one_before(start: Start) -> None:
    whole = start("loop.epochs=3", "loop.evaluations=3")
    expected = load_checkpoint(whole.last)
    shutil.rmtree(whole.last.parent)
    part = start("loop.epochs=2", "loop.evaluations=2")
    previous = part.last.with_name("last-previous.pt")
    assert load_checkpoint(previous).step == 4
    part.last.write_bytes(part.last.read_bytes()[:-2000])
    said: list[str] = []
    again = start("loop.epochs=3", "loop.evaluations=3", resume=True, say=said.append)
    assert any("last.pt" in line and "going on from last-previous.pt instead, of step 4" in line for line in said)
    found = load_checkpoint(again.last)
    assert found.step == 12
    assert [row["step"] for row in again.history if "loss" in row] == list(range(1, 13))
    assert found.weights.keys() == expected.weights.keys()


def test_without_a_whole_checkpoint_resuming_says_what_to_do(start: Start) -> None:
    done = start("loop.epochs=1")
    done.last.write_bytes(done.last.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"There is no last-previous\.pt beside it .*or start a new run"):
        start("loop.epochs=2", resume=True)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_killed_data_worker_ends_the_run_with_its_state_saved(start: Start, tmp_path: Path) -> None:
    before = {process.pid for process in multiprocessing.active_children()}
    killed: list[int] = []

    def say(line: str) -> None:
        if line.startswith("step 8,"):
            for process in multiprocessing.active_children():
                if process.pid not in before:
                    killed.append(process.pid or 0)
                    process.kill()
                    process.join()

    length = ("loop.epochs=8", "loop.evaluations=4")
    with pytest.raises(DataError, match=r"died .*\nStep \d+ is saved; go on with --resume"):
        start(*length, "data.workers=1", say=say)
    assert killed
    saved = load_checkpoint(tmp_path / "run" / "last.pt").step
    assert 8 <= saved < 32
    assert load_checkpoint(start(*length, resume=True).last).step == 32


def test_a_run_saves_itself_between_evaluations(start: Start, tmp_path: Path) -> None:
    seen: list[bool] = []
    start(
        "loop.epochs=2",
        "loop.save_every_s=0",
        say=lambda line: seen.append((tmp_path / "run" / "last.pt").exists()) if line.startswith("step 8,") else None,
    )
    assert seen == [True]
