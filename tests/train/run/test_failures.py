"""Real failures of memory, disks and checkpoints during a training: each leaves a state to resume from."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from edgerpn.errors import CheckpointError, DataError, TrainingStoppedError
from edgerpn.train.checkpoint import Checkpoint, load_checkpoint
from edgerpn.train.config import LoopConfig, TrainSettings, load_settings
from edgerpn.train.run.batch_size import resolve_batch_size
from edgerpn.train.run.device import choose_compute
from edgerpn.train.run.failures import how_to_resume, is_out_of_memory, next_larger_accumulate
from edgerpn.train.run.folder import RunFolder
from edgerpn.train.run.loop import TrainResult, run_training
from edgerpn.train.run.ranks import Ranks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc as Linux has them")
Start = Callable[..., TrainResult]
Copy = Callable[[str], RunFolder]


@pytest.fixture
def start(data_folder: Path, tmp_path: Path, tiny_settings: Callable[..., TrainSettings]) -> Start:
    """Trains into `tmp_path` / run with tiny settings and further `--set` texts."""

    def run(*overrides: str, **options: object) -> TrainResult:
        return run_training(tiny_settings(*overrides), data=data_folder, output=tmp_path / "run", **options)  # type: ignore[arg-type]

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


def test_a_disk_that_is_full_for_a_while_costs_only_the_failed_writes(start: Start, tmp_path: Path) -> None:
    said: list[str] = []
    folder = tmp_path / "run"
    limits = contextlib.ExitStack()

    def log(line: str) -> None:
        said.append(line)
        if line.startswith("step 2,"):
            limits.enter_context(limit(resource.RLIMIT_FSIZE, 30_000))
        if line.startswith("step 6,"):
            limits.close()

    with limits:
        result = start("loop.epochs=2", "loop.evaluations=4", "optimizer.learning_rate=1e-5", log=log)
    failures = [line for line in said if "the checkpoint could not be written: File too large" in line]
    assert [line.split(":")[0] for line in failures] == ["step 2", "step 4"]
    assert all("training continues" in line for line in failures)
    assert load_checkpoint(result.last).step == 8
    assert result.best.exists()
    assert load_checkpoint(result.best).metrics == result.metrics
    assert not list(folder.glob(".*")), "no temporary file is left"


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
# The thread of TensorBoard that writes ends with the error.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_goes_on_without_tensorboard_when_the_disk_is_full_for_a_while(start: Start) -> None:
    said: list[str] = []
    limits = contextlib.ExitStack()

    def log(line: str) -> None:
        said.append(line)
        if line.startswith("step 2,"):
            limits.enter_context(limit(resource.RLIMIT_FSIZE, 1_000))
        if line.startswith("step 6,"):
            limits.close()

    with limits:
        result = start("loop.epochs=2", "loop.evaluations=4", "loop.tensorboard=true", log=log)
    failures = [line for line in said if "TensorBoard" in line]
    assert len(failures) == 1
    assert "File too large; training continues without it" in failures[0]
    assert load_checkpoint(result.last).step == 8


def test_a_disk_that_stays_full_ends_the_run_with_the_last_good_state(start: Start, copy_of_finished: Copy) -> None:
    done = copy_of_finished("run")
    before = done.last.read_bytes()
    with (
        limit(resource.RLIMIT_FSIZE, 30_000),
        pytest.raises(TrainingStoppedError, match=r"could not be written: File too large .*Free space; .*--resume"),
    ):
        start("loop.epochs=2", resume=True)
    assert done.last.read_bytes() == before
    assert load_checkpoint(start("loop.epochs=2", resume=True).last).step == 8


# In a process of its own: memory that earlier tests kept would serve the step, and the limit stays here.
WITH_LITTLE_MEMORY = """
import os, pathlib, resource, sys
from edgerpn import settings
from edgerpn.errors import TrainingStoppedError
from edgerpn.train.config import TrainSettings
from edgerpn.train.run.loop import run_training

def log(line):
    if sys.argv[3] in line:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        size = pages * os.sysconf("SC_PAGE_SIZE") + (96 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))

config = settings.load(TrainSettings, overrides=tuple(sys.argv[4:]))
try:
    run_training(config, data=pathlib.Path(sys.argv[1]), output=pathlib.Path(sys.argv[2]), log=log)
except TrainingStoppedError as error:
    print(error)
"""
# A step needs some hundred MB: images of 512 x 512 and their gradients.
LARGE = (
    "data.input_hw=[512, 512]",
    "data.view_sides_px=[]",
    "model.stage_channels=[32, 32, 16, 16, 16]",
    "loop.epochs=1",
)


@pytest.mark.parametrize(
    ("texts", "told", "advice"),
    [
        (
            ["data.batch_size=8"],
            "out of memory with 8 images a step in 1 part, 512x512. no last.pt was written yet; start again and ",
            "--set loop.accumulate=2, which needs about 50% of it and takes the same steps",
        ),
        # Nine images are no two halves.
        pytest.param(
            ["data.batch_size=9"],
            "with 9 images a step in 1 part",
            "--set loop.accumulate=3, which needs about 33%",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_running_out_of_memory_says_how_to_continue(
    texts: list[str], told: str, advice: str, data_folder: Path, tmp_path: Path, tiny_texts: tuple[str, ...]
) -> None:
    options = [str(data_folder), str(tmp_path / "run"), "M parameters", *tiny_texts, *LARGE, *texts]
    done = subprocess.run(
        [sys.executable, "-c", WITH_LITTLE_MEMORY, *options], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert told in done.stdout
    assert advice in done.stdout
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("batch_size", "images_per_step", "num_ranks", "passes", "expected"),
    [
        (8, 8, 1, 1, 2),
        (9, 9, 1, 1, 3),
        (6, 6, 1, 2, 3),
        (8, 8, 4, 1, 2),
        (8, 8, 4, 2, None),
        (1, 1, 1, 1, None),
        (6, 5, 1, 1, None),
        (12, 9, 1, 1, 3),
    ],
)
def test_the_passes_that_are_advised_are_accepted(
    batch_size: int, images_per_step: int, num_ranks: int, passes: int, expected: int | None
) -> None:
    assert next_larger_accumulate(batch_size, images_per_step, num_ranks, passes) == expected
    if expected is not None:
        settings = load_settings(overrides=(f"data.batch_size={batch_size}", f"loop.accumulate={expected}"))
        records: Any = [None] * images_per_step
        compute = choose_compute(LoopConfig(device="cpu"))
        assert resolve_batch_size(settings, records, Ranks(size=num_ranks), compute, print) == settings


def test_a_lack_of_memory_before_the_first_step_gives_no_advice_on_batches(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        torch.empty(1 << 50)

    # No size of a network fails on every machine before the first step but after the first line.
    monkeypatch.setattr("edgerpn.train.run.setup.make_optimizer", full)
    with pytest.raises(
        TrainingStoppedError, match=r"out of memory before the first step, up to 96x96: free memory"
    ) as stopped:
        start("loop.epochs=1")
    assert "accumulate" not in str(stopped.value)


def test_other_errors_do_not_count_as_a_lack_of_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(RuntimeError("shape '[2]' is invalid for input of size 3"))
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50)
    assert is_out_of_memory(raised.value)
    # oneDNN's messages: no room for its code, and an unsupported computation.
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for a convolution"))


def test_a_truncated_checkpoint_falls_back_to_the_one_before(start: Start) -> None:
    whole = start("loop.epochs=3", "loop.evaluations=3")
    expected = load_checkpoint(whole.last)
    shutil.rmtree(whole.last.parent)
    part = start("loop.epochs=2", "loop.evaluations=2")
    previous = part.last.with_name("last-previous.pt")
    assert load_checkpoint(previous).step == 4
    part.last.write_bytes(part.last.read_bytes()[:-2000])
    said: list[str] = []
    again = start("loop.epochs=3", "loop.evaluations=3", resume=True, log=said.append)
    assert any("last.pt" in line and "resuming from last-previous.pt of step 4 instead" in line for line in said)
    found = load_checkpoint(again.last)
    assert found.step == 12
    assert [row["step"] for row in again.history if "loss" in row] == list(range(1, 13))
    assert found.weights.keys() == expected.weights.keys()


def test_a_run_continues_with_its_own_optimizer_only(start: Start) -> None:
    start("loop.epochs=1", "optimizer.kind=adamw")
    with pytest.raises(CheckpointError, match=r"cannot continue with muon; use --set optimizer\.kind=adamw"):
        start("loop.epochs=2", resume=True)
    start("loop.epochs=2", "optimizer.kind=adamw", resume=True)


def test_a_save_that_fails_after_falling_back_leaves_the_older_state(start: Start) -> None:
    part = start("loop.epochs=2", "loop.evaluations=2")
    previous = part.last.with_name("last-previous.pt")
    part.last.write_bytes(part.last.read_bytes()[:-2000])
    damaged, older = part.last.read_bytes(), previous.read_bytes()
    with (
        limit(resource.RLIMIT_FSIZE, 30_000),
        pytest.raises(TrainingStoppedError, match=r"last-previous\.pt is intact; continue with --resume"),
    ):
        start("loop.epochs=3", "loop.evaluations=3", resume=True)
    assert (part.last.read_bytes(), previous.read_bytes()) == (damaged, older)
    again = start("loop.epochs=3", "loop.evaluations=3", resume=True)
    assert load_checkpoint(again.last).step == 12
    assert load_checkpoint(previous).step == 8


def test_a_damaged_checkpoint_is_not_kept_as_the_one_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    states = [Checkpoint(settings=load_settings(), weights={}, step=step) for step in range(4)]
    folder.save(states[0])
    folder.save(states[1])
    assert load_checkpoint(folder.previous).step == 0
    folder.last.write_bytes(b"half")
    again = RunFolder(tmp_path)
    assert again.read_last().step == 0
    assert "last-previous.pt is intact" in how_to_resume(again)
    again.save(states[2])
    assert (load_checkpoint(again.last).step, load_checkpoint(again.previous).step) == (2, 0)
    assert "last.pt is intact" in how_to_resume(again)
    again.save(states[3])
    assert (load_checkpoint(again.last).step, load_checkpoint(again.previous).step) == (3, 2)
    # The existence of a file does not make it intact.
    again.last.write_bytes(b"half")
    assert "is intact" not in how_to_resume(RunFolder(tmp_path))


KILLED_WHILE_SAVING = """
import os, pathlib, signal, sys
from edgerpn.train.checkpoint import Checkpoint
from edgerpn.train.config import load_settings
from edgerpn.train.run.folder import RunFolder
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
RunFolder(pathlib.Path(sys.argv[1])).save(Checkpoint(settings=load_settings(), weights={}, step=1))
"""


def test_the_file_that_a_killed_run_was_writing_goes_when_the_run_resumes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save(Checkpoint(settings=load_settings(), weights={}, step=0))
    others = [tmp_path / name for name in (".last.notes.pt", ".other.0a1b2c3d.pt")]
    for path in others:
        path.touch()
    words = [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path)]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".*"))) == 3
    folder.keep_others_out()
    folder.release()
    assert sorted(tmp_path.glob(".*")) == others
    assert folder.read_last().step == 0


def test_the_best_weights_count_when_they_were_written_and_only_the_state_was_not(
    start: Start, tmp_path: Path, finished_run: Path
) -> None:
    small, large = ((finished_run / name).stat().st_size for name in ("best.pt", "last.pt"))
    assert 1.2 * small < large
    with (
        limit(resource.RLIMIT_FSIZE, (small + large) // 2),
        pytest.raises(TrainingStoppedError, match=r"no last\.pt was written yet; start again in another folder"),
    ):
        start("loop.epochs=1")
    assert load_checkpoint(tmp_path / "run" / "best.pt").step == 4

    shutil.rmtree(tmp_path / "run")
    limits = contextlib.ExitStack()

    def log(line: str) -> None:
        if line.startswith("step 4,"):
            limits.enter_context(limit(resource.RLIMIT_FSIZE, (small + large) // 2))
        if "the checkpoint could not be written" in line:
            limits.close()
            signal.raise_signal(signal.SIGINT)

    with limits:
        result = start("loop.epochs=2", "loop.evaluations=2", log=log)
    assert result.interrupted
    best, last = load_checkpoint(result.best), load_checkpoint(result.last)
    assert best.metrics == result.metrics
    assert best.metrics["AR@100"] > 0
    assert (last.training or {})["progress"]["best_metrics"] == best.metrics


def test_without_an_intact_checkpoint_resuming_says_what_to_do(start: Start, copy_of_finished: Copy) -> None:
    done = copy_of_finished("run")
    done.last.write_bytes(done.last.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"There is no last-previous\.pt beside it .*or start a new run"):
        start("loop.epochs=2", resume=True)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_killed_data_worker_ends_the_run_with_its_state_saved(start: Start, tmp_path: Path) -> None:
    before = {process.pid for process in multiprocessing.active_children()}
    killed: list[int] = []

    def log(line: str) -> None:
        if line.startswith("step 8,"):
            for process in multiprocessing.active_children():
                if process.pid not in before:
                    killed.append(process.pid or 0)
                    process.kill()
                    process.join()

    length = ("loop.epochs=8", "loop.evaluations=4")
    with pytest.raises(DataError, match=r"died .*\nStep \d+ is saved; continue with --resume"):
        start(*length, "data.workers=1", log=log)
    assert killed
    saved = load_checkpoint(tmp_path / "run" / "last.pt").step
    assert 8 <= saved < 32
    assert load_checkpoint(start(*length, resume=True).last).step == 32


def test_a_run_saves_itself_between_evaluations(start: Start, tmp_path: Path) -> None:
    seen: list[bool] = []
    start(
        "loop.epochs=2",
        "loop.save_every_s=0",
        log=lambda line: seen.append((tmp_path / "run" / "last.pt").exists()) if line.startswith("step 8,") else None,
    )
    assert seen == [True]
