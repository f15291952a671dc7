"""`torchrun ... -m edgerpn train`: two real processes on the CPU equal one, and end together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from edgerpn import settings
from edgerpn.errors import ConfigError
from edgerpn.train.checkpoint import load_checkpoint
from edgerpn.train.config import LoopConfig, TrainSettings
from edgerpn.train.run.device import choose_compute
from edgerpn.train.run.folder import read_log
from edgerpn.train.run.loop import run_training
from edgerpn.train.run.ranks import Ranks, ranks_from_environment

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform != "linux", reason="needs torch.distributed and /proc"
)
# 80 steps of 8 images; a sampler that draws, as the paper's; saved after each step.
LENGTH = (
    "data.batch_size=8",
    "loop.epochs=40",
    "loop.evaluations=20",
    "loop.save_every_s=0",
    "assign.samples_per_image=64",
    # A low rate, because rounding errors grow with the steps of the weights.
    "optimizer.learning_rate=5e-4",
)


def sets(texts: Sequence[str]) -> list[str]:
    return [word for text in texts for word in ("--set", text)]


class Torchrun:
    """A torchrun with two processes, in a session of its own."""

    def __init__(self, data: Path, out: Path, texts: Sequence[str], *options: str, restarts: int = 0) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        self.out = out
        self.log = out.with_suffix(".txt")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}"]
        command = ["-m", "edgerpn", "train", "--data", str(data), "--out", str(out), *options, *sets(texts)]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)

    def wait(self) -> int:
        return self.process.wait(timeout=150)

    @property
    def text(self) -> str:
        return self.log.read_text()

    def worker(self, rank: int) -> int:
        """Process id of the training process `rank`."""
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(
                    b"\0"
                ):
                    return int(folder.name)
        raise AssertionError(f"no process of rank {rank}: {self.text}")

    def step(self) -> int:
        """Steps of the last row of the log; 0 before there is one."""
        log = self.out / "log.csv"
        rows = read_log(log) if log.exists() else []
        return int(rows[-1]["step"]) if rows else 0


@pytest.fixture
def torchrun(data_folder: Path, tmp_path: Path, tiny_texts: tuple[str, ...]) -> Iterator[Callable[..., Torchrun]]:
    """Starts torchrun on the tiny folder, and ends it after the test."""
    started: list[Torchrun] = []

    def start(name: str, texts: Sequence[str], *options: str, restarts: int = 0) -> Torchrun:
        run = Torchrun(data_folder, tmp_path / name, (*tiny_texts, *texts), *options, restarts=restarts)
        started.append(run)
        return run

    yield start
    for run in started:
        if run.process.poll() is None:
            run.process.terminate()
            run.process.wait(timeout=60)


def losses(rows: Sequence[dict[str, float]]) -> list[tuple[float, float, float]]:
    return [(row["loss"], row["objectness"], row["box"]) for row in rows if "loss" in row]


@pytest.mark.slow
def test_two_processes_equal_one_and_resume_after_one_is_killed_or_all_are_stopped(
    torchrun: Callable[..., Torchrun], data_folder: Path, tmp_path: Path, tiny_texts: tuple[str, ...]
) -> None:
    config = settings.load(TrainSettings, overrides=(*tiny_texts, *LENGTH))
    alone = run_training(config, data=data_folder, output=tmp_path / "alone")

    # One is killed: torchrun restarts both, and they resume automatically.
    run = torchrun("run", LENGTH, restarts=1)
    run.wait_until(lambda: run.step() >= 4)
    os.kill(run.worker(1), signal.SIGKILL)
    run.wait_until(lambda: "resuming at step " in run.text)
    restarted, _, resumed = run.text.partition("resuming at step ")
    assert "torchrun restarted this run (" in restarted
    resumed_at = int(resumed.split()[0])
    assert resumed_at >= 4

    # All are stopped, as on a machine that shuts down.
    run.wait_until(lambda: run.step() > resumed_at + 8)
    run.process.send_signal(signal.SIGTERM)
    run.wait()
    assert "interrupted at step" in run.text
    assert run.step() < 80
    # Evaluated at every fourth step, where all weights are compared.
    assert run.text.count("AR@100") >= 2
    assert "weights of the processes differed" not in run.text
    assert run.text.count("M parameters, 16 images, cpu, fp32 on each of 2 processes") == 2

    # One process resumes the run.
    shared = losses(read_log(run.out / "log.csv"))
    whole = run_training(config, data=data_folder, output=run.out, resume=True)
    expected = losses(alone.history)
    assert [row["step"] for row in whole.history if "loss" in row] == list(range(1, 81))
    assert shared[0] == pytest.approx(expected[0], rel=1e-5)
    for step, (found_losses, expected_losses) in enumerate(zip(losses(whole.history), expected, strict=True)):
        # Rounding errors grow: numbers that agree to five digits at first agree to two after eighty steps.
        assert found_losses == pytest.approx(expected_losses, rel=1e-3 if step < 8 else 0.15), step
    found, model = load_checkpoint(whole.last), load_checkpoint(alone.last)
    assert found.step == 80
    assert found.metrics["AR@100"] == pytest.approx(model.metrics["AR@100"], abs=0.02)
    for name, value in model.weights.items():
        torch.testing.assert_close(found.weights[name], value, rtol=0.2, atol=0.15)


def drift(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    layer = torch.nn.BatchNorm2d(3)
    with torch.no_grad():
        layer.weight[1] += 0.25 * rank
    ranks = Ranks(rank=rank, size=2, local_rank=rank, local_size=2)
    differences = [ranks.broadcast_from_first(layer.state_dict().values()) for _ in range(2)]
    torch.save((differences, layer.state_dict()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, while idle threads exist
def test_weights_that_diverge_are_measured_and_synchronised(tmp_path: Path) -> None:
    start = torch.multiprocessing.start_processes  # type: ignore[attr-defined]
    start(drift, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in (0, 1):
        differences, state = torch.load(tmp_path / f"{rank}.pt")
        assert differences == [0.25, 0.0]
        assert state["weight"].tolist() == [1.0, 1.0, 1.0]


def test_an_error_of_the_first_process_stops_all_and_is_printed_once(
    torchrun: Callable[..., Torchrun], data_folder: Path
) -> None:
    run = torchrun("run", ("data.holdout_classes=['dragon']",))
    assert run.wait() == 1
    told = run.text.partition("torch/distributed/elastic")[0]
    assert told.count("dragon") == 1
    assert "process 1 stops because the first one did; see the message of that process" in run.text
    assert not run.out.exists()


@pytest.fixture
def restarted(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Makes this process one that torchrun started, in a run of some name, after some restarts."""

    def set_environment(run_id: str, restarts: int) -> None:
        values = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        for name, value in {
            **values,
            "TORCHELASTIC_RUN_ID": run_id,
            "TORCHELASTIC_RESTART_COUNT": str(restarts),
        }.items():
            monkeypatch.setenv(name, value)

    return set_environment


@pytest.mark.parametrize("run_id", ["a1b2", "none"])
def test_a_restart_resumes_its_own_run_only(
    run_id: str,
    restarted: Callable[[str, int], None],
    data_folder: Path,
    tmp_path: Path,
    tiny_settings: Callable[..., TrainSettings],
) -> None:
    said: list[str] = []

    def start(*texts: str) -> None:
        run_training(tiny_settings("loop.epochs=1", *texts), data=data_folder, output=tmp_path / "run", log=said.append)

    restarted(run_id, 0)
    start()
    assert not any("restarted" in line for line in said)
    if run_id == "none":  # torchrun's default name identifies no run, and this is a first start
        with pytest.raises(ConfigError, match="already holds a run"):
            start()
    restarted(run_id, 1)
    start()
    place = said.index(f"torchrun restarted this run ({run_id})")
    assert "resuming at step 4" in said[place + 1 :]
    with pytest.raises(ConfigError, match="already holds a run"):
        start("loop.seed=1")
    restarted("another", 1)
    with pytest.raises(ConfigError, match="already holds a run"):
        start()


@pytest.mark.slow
def test_a_restart_without_a_name_leaves_the_run_of_another_torchrun_alone(
    restarted: Callable[[str, int], None],
    data_folder: Path,
    tmp_path: Path,
    tiny_texts: tuple[str, ...],
) -> None:
    texts, out = (*tiny_texts, "loop.epochs=1", "loop.start=random"), tmp_path / "run"
    restarted("none", 0)
    # This process stands for the other torchrun, and its parent for ours.
    command = [sys.executable, "-m", "edgerpn", "train", "--data", str(data_folder), "--out", str(out), *sets(texts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    config = settings.load(TrainSettings, overrides=texts)
    assert load_checkpoint(out / "last.pt").settings == config
    restarted("none", 1)
    with pytest.raises(ConfigError, match="already holds a run"):
        run_training(config, data=data_folder, output=out)


def test_without_torchrun_a_process_is_alone() -> None:
    assert ranks_from_environment({}) == Ranks()
    assert ranks_from_environment({}).is_first


def test_torchruns_environment_gives_the_place_of_a_process() -> None:
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    alone = {**environment, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert ranks_from_environment(alone).size == 1
    with pytest.raises(ConfigError, match="MASTER_ADDR, MASTER_PORT is missing"):
        ranks_from_environment(environment)
    environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    ranks = ranks_from_environment({**environment, "TORCHELASTIC_RUN_ID": "abc", "TORCHELASTIC_RESTART_COUNT": "2"})
    assert ranks == Ranks(rank=5, size=8, local_rank=1, local_size=4, run_id="abc", run_key="abc", restarts=2)
    unnamed = ranks_from_environment({**environment, "TORCHELASTIC_RUN_ID": "none"})
    assert not unnamed.is_named
    assert unnamed.run_key != "none"
    assert not ranks.is_first
    for broken in (
        {**environment, "LOCAL_RANK": "one"},
        {**environment, "MASTER_PORT": "x"},
        {"RANK": "0", "WORLD_SIZE": "2"},
    ):
        with pytest.raises(ConfigError, match="start with `torchrun -m edgerpn train"):
            ranks_from_environment(broken)


def test_processes_choose_their_gpus_themselves() -> None:
    if torch.cuda.device_count() > 1:
        pytest.skip("this machine has the devices")
    with pytest.raises(ConfigError, match="cuda"):
        choose_compute(LoopConfig(device="cuda:0"), Ranks(rank=1, size=2, local_rank=1, local_size=2))
