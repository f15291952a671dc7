"""The watchdog of a builder, and the check for short memory."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgerpn.errors import BuildError
from edgerpn.export.engine import process as build_process
from edgerpn.export.engine.options import BuildConfig
from edgerpn.export.engine.process import BuildOutcome, Watchdog, cpu_s, is_memory_short, run_worker
from edgerpn.export.engine.report import explain
from tests.support.stuck import stuck_lines

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="CPU time is read in /proc")
WAIT_S = 60.0


@pytest.fixture
def child() -> Iterator[Callable[[str], int]]:
    """Starts Python programs that print a line once they run; returns their process ids."""
    started: list[subprocess.Popen[bytes]] = []

    def start(program: str, limit: int | None = None) -> int:
        def prepare() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, preexec_fn=prepare)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline()
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.communicate()


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def stops_after(dog: Watchdog, clock: Clock, *, step_s: float = 0.5, at_most_s: float = 100.0) -> float | None:
    """Seconds until the watchdog reports a stall; None when it does not."""
    start_s = clock.now_s
    while clock.now_s - start_s < at_most_s:
        clock.now_s += step_s
        if dog.has_stalled():
            return clock.now_s - start_s
    return None


def test_an_idle_and_silent_process_stalls_after_its_time(child: Callable[[str], int], clock: Clock) -> None:
    dog = Watchdog(child("print('x', flush=True); input()"), 20.0, clock)
    assert stops_after(dog, clock) == 20.0


def test_an_event_restarts_the_time(child: Callable[[str], int], clock: Clock) -> None:
    dog = Watchdog(child("print('x', flush=True); input()"), 20.0, clock)
    assert stops_after(dog, clock, at_most_s=19.0) is None
    dog.reset()
    assert stops_after(dog, clock) == 20.0


def test_a_silent_process_that_computes_does_not_stall() -> None:
    pid = os.getpid()
    dog = Watchdog(pid, 1e-9)
    before = cpu_s(pid)
    assert before is not None
    deadline = time.monotonic() + WAIT_S
    while (used := cpu_s(pid)) is not None and used < before + 0.1 and time.monotonic() < deadline:
        sum(range(10000))
    assert not dog.has_stalled()
    time.sleep(0.01)
    assert dog.has_stalled()  # no longer


def test_threads_that_wake_up_now_and_then_do_not_count_as_work(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    # 0.4 ms in each second: after two minutes the sum exceeds the CPU time for which a share is computed.
    monkeypatch.setattr(build_process, "cpu_s", lambda pid: 1.0 + 0.0004 * clock.now_s)
    assert stops_after(Watchdog(os.getpid(), 600.0, clock), clock, at_most_s=700.0) == 600.0
    monkeypatch.setattr(build_process, "cpu_s", lambda pid: 1.0 + 0.01 * clock.now_s)
    assert stops_after(Watchdog(os.getpid(), 20.0, clock), clock, at_most_s=700.0) is None


def test_waiting_for_a_disk_is_not_a_stall(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    dog = Watchdog(os.getpid(), 20.0, clock)
    monkeypatch.setattr(build_process, "cpu_s", lambda pid: dog._cpu_s)
    monkeypatch.setattr(build_process, "is_waiting_for_disk", lambda pid: clock.now_s < 300)
    assert stops_after(dog, clock, at_most_s=400.0) == pytest.approx(319.5, abs=1)


def test_a_process_that_waits_for_input_does_not_wait_for_a_disk(child: Callable[[str], int]) -> None:
    pid = child("print('x', flush=True); input()")
    assert not build_process.is_waiting_for_disk(pid)
    assert not build_process.is_waiting_for_disk(2**22 + 1)


def test_time_between_distant_looks_does_not_count(child: Callable[[str], int], clock: Clock) -> None:
    # As after Ctrl-Z, or a container that was paused: both processes were stopped.
    dog = Watchdog(child("print('x', flush=True); input()"), 20.0, clock)
    clock.now_s += 3600.0
    assert not dog.has_stalled()


def test_zero_seconds_turn_the_watchdog_off(child: Callable[[str], int], clock: Clock) -> None:
    assert stops_after(Watchdog(child("print('x', flush=True); input()"), 0.0, clock), clock) is None


def test_without_proc_the_watchdog_never_acts(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_process, "cpu_s", lambda pid: None)
    assert stops_after(Watchdog(os.getpid(), 20.0, clock), clock) is None


def test_cpu_time_is_that_of_all_threads() -> None:
    # Threads of another library may compute meanwhile, so only the order is sure.
    before = time.process_time()
    measured = cpu_s(os.getpid())
    after = time.process_time()
    assert measured is not None
    assert before - 0.05 <= measured <= after + 0.05
    assert cpu_s(2**22 + 1) is None  # above every process number of Linux


def test_memory_is_short_when_the_address_space_is_used_up(child: Callable[..., int]) -> None:
    grow = """
blocks = []
try:
    while True:
        blocks.append(bytearray(1 << 20))
except MemoryError:
    blocks.pop()
    print('full', flush=True)
input()
"""
    assert is_memory_short(child(grow, 256 << 20))
    assert not is_memory_short(child("print('x', flush=True); input()", 4 << 30))
    assert not is_memory_short(child("print('x', flush=True); input()"))


def test_memory_is_short_when_the_computer_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"MemTotal": 8000, "MemAvailable": 400}
    monkeypatch.setattr(build_process, "kib_fields", lambda file: numbers)
    assert is_memory_short(os.getpid())
    numbers["MemAvailable"] = 600
    monkeypatch.setattr(build_process, "_address_limit", lambda pid: None)
    assert not is_memory_short(os.getpid())


def test_a_stall_is_retried_with_less_memory_only_when_memory_was_the_cause() -> None:
    outcome = BuildOutcome(stalled_s=120.0, status=-signal.SIGKILL)
    assert not outcome.is_out_of_memory
    assert BuildOutcome(stalled_s=120.0, was_memory_short=True).is_out_of_memory
    outcome.log.add("error", "Error Code 2: OutOfMemory (Requested size was 1073741824 bytes.)")
    assert outcome.is_out_of_memory


def test_a_stalled_builder_is_explained() -> None:
    outcome = BuildOutcome(stalled_s=120.0)
    outcome.events["progress"] = {"phase": "Building engine", "share": 0.2}
    text = explain(outcome)
    assert text.startswith("the builder stalled: it sent nothing and used no CPU time for 120 s")
    assert "phase: Building engine" in text
    assert "close other programs" not in text
    outcome.was_memory_short = True
    text = explain(outcome)
    assert "stalled with memory short" in text
    assert "close other programs" in text


def test_an_import_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A library whose import waits for a driver that never answers.
    (tmp_path / "tensorrt_rtx.py").write_text("import time\ntime.sleep(3600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = run_worker(
        {"command": "probe", "backend": "tensorrt-rtx"}, on_event=lambda _: None, tick=lambda: None, stall_s=0.5
    )
    assert outcome.stalled_s == 0.5
    assert "the builder stalled" in outcome.describe_end()


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_process_whose_end_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("_KILL_WAIT_S", "_END_WAIT_S"):
        monkeypatch.setattr(build_process, name, 0.5)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with stuck_lines(tmp_path / "release") as stick:
        (tmp_path / "tensorrt_rtx.py").write_text(f"{stick}\n__version__ = '1.7.1'")
        outcome = run_worker(
            {"command": "probe", "backend": "tensorrt-rtx"}, on_event=lambda _: None, tick=lambda: None
        )
    assert outcome.stalled_s == 0.5
    assert "has no builder" in outcome.describe_end()


@pytest.mark.parametrize("executable", ["", None])
def test_an_interpreter_that_does_not_know_its_python_is_one_error(
    executable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(BuildError, match=r"process cannot be started: sys\.executable is empty; set it to"):
        run_worker({"command": "probe", "backend": "auto"}, on_event=lambda _: None, tick=lambda: None)


ONE_FILE = """\
#!{python}
import os
import sys
with open(f"{{__file__}}.parents", "a+") as parents:
    parents.write(f"{{os.getppid()}}\\n")
    parents.seek(0)
    if len(list(parents)) > 3:
        sys.exit("it starts itself over and over")
sys.executable = __file__
from edgerpn.export.engine.build import probe
probe("auto")
"""


def test_a_program_in_place_of_python_does_not_start_itself_over_and_over(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(ONE_FILE.format(python=sys.executable))
    program.chmod(0o755)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is another program; the section 'In one file' of docs/recipes.md has the lines" in done.stderr
    assert len((tmp_path / "program.parents").read_text().split()) == 2


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_only_a_time_of_zero_or_more_seconds_is_accepted(seconds: float) -> None:
    with pytest.raises(ValueError, match="stall_s: expected 0 or more, got"):
        BuildConfig(stall_s=seconds)


@pytest.mark.parametrize(
    ("limit", "used", "kept", "is_full"),
    [("max", 10**9, 0, False), (str(10**9), 10**9, 0, True), (str(10**9), 10**9, 9 * 10**8, False)],
)
def test_a_container_is_full_when_its_own_limit_is_near(
    limit: str, used: int, kept: int, is_full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {kept}\nactive_file 7\n")
    monkeypatch.setattr("edgerpn.machine.CGROUP", tmp_path)
    assert is_memory_short(os.getpid()) == is_full
