"""`edgerpn train` as a program with worker processes: a signal stops it, and --resume continues it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from edgerpn.__main__ import main
from edgerpn.train.checkpoint import load_checkpoint
from edgerpn.train.run.folder import read_log

# 32 steps, with evaluations after each 8.
LENGTH = ("loop.epochs=8", "loop.evaluations=4")

# The command, which pauses two steps after its first evaluation: it makes the first file and waits for the second.
_PROGRAM = """
import os, sys, time
from edgerpn.__main__ import main
from edgerpn.train.data.loader import TrainLoader
read, given = TrainLoader.steps, []
def steps(*arguments, **options):
    for step in read(*arguments, **options):
        given.append(1)
        if len(given) == 11:
            open(sys.argv[1], "x").close()
            while not os.path.exists(sys.argv[2]):
                time.sleep(0.01)
        yield step
TrainLoader.steps = steps
sys.exit(main(sys.argv[3:]))
"""


def sets(texts: Sequence[str]) -> list[str]:
    return [word for text in texts for word in ("--set", text)]


def train_and_stop(folders: list[str], out: Path, texts: Sequence[str], number: signal.Signals) -> tuple[int, str]:
    """Runs the command and sends it a signal two steps after its first evaluation; exit status and output."""
    pauses, goes_on = out.with_name("pauses"), out.with_name("goes-on")
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(pauses), str(goes_on), "train", *folders, *sets(texts)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not pauses.exists():
        time.sleep(0.02)
    # A terminal, a service manager and SLURM send the signal to the workers too.
    os.killpg(process.pid, number)
    goes_on.touch()
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


@pytest.fixture(scope="module")
def whole(data_folder: Path, tmp_path_factory: pytest.TempPathFactory, tiny_texts: tuple[str, ...]) -> Path:
    """The checkpoint of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(["train", "--data", str(data_folder), "--out", str(out), *sets((*tiny_texts, *LENGTH))]) == 0
    return out / "last.pt"


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stopped_run_resumes_to_the_numbers_of_an_uninterrupted_one(
    number: signal.Signals,
    data_folder: Path,
    whole: Path,
    tiny_texts: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    folders = ["--data", str(data_folder), "--out", str(out)]
    texts = (*tiny_texts, *LENGTH, "data.workers=1")
    status, output = train_and_stop(folders, out, texts, number)
    assert status == 130, output
    assert "interrupted at step" in output
    assert "Traceback" not in output
    part = load_checkpoint(out / "last.pt")
    assert 8 < part.step < 32
    assert not list(out.glob(".*")), "no temporary file is left"
    assert read_log(out / "log.csv")[-1]["step"] == part.step

    # The run resumes with its own settings; the number of workers changes no batch.
    assert main(["train", *folders, "--resume", "--set", "data.workers=0"]) == 0
    assert f"resuming at step {part.step}" in capsys.readouterr().out
    found, expected = load_checkpoint(out / "last.pt"), load_checkpoint(whole)
    assert found.step == expected.step == 32
    for name, value in expected.weights.items():
        assert torch.equal(found.weights[name], value), name
    steps = [row["step"] for row in read_log(out / "log.csv") if "loss" in row]
    assert steps == list(range(1, 33))
