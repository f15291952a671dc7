"""A build that is interrupted, killed, or runs out of room: its messages, and the files that it leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.rtx,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are looked up in /proc"),
]

# `{prepare}` runs before the command, with `resource` at hand.
PROGRAM = """
import resource, signal, sys
from edgerpn import __main__ as command_line
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start the tests with SIGINT ignored
{prepare}
sys.exit(command_line.main(["build", *sys.argv[1:]]))
"""
WAIT_S = 240


class Building:
    """`edgerpn build` in a process of its own."""

    def __init__(self, model: Path, output: Path, *flags: str, prepare: str = "") -> None:
        self.output = output
        program = PROGRAM.format(prepare=prepare)
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(model), "-o", str(output), "--backend", "tensorrt-rtx", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def builder(self, *after: int) -> int:
        """Process id of the child once it builds; `after` are earlier children."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.communicate()
            for pid in self.children():
                if pid not in after and self.is_building(pid):
                    return pid
            time.sleep(0.005)
        raise AssertionError("no child builds")

    def children(self) -> list[int]:
        pid = self.process.pid
        try:
            return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except FileNotFoundError:
            return []

    @staticmethod
    def is_building(pid: int) -> bool:
        """True if the process has mapped the ONNX parser, which a probe does as well, and holds the event pipe."""
        try:
            return "onnxparser" in Path(f"/proc/{pid}/maps").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return False

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, out, err

    def files(self) -> list[str]:
        return sorted(file.name for file in self.output.parent.iterdir()) if self.output.parent.is_dir() else []


@pytest.fixture
def build(fixed_graph: Path, tmp_path: Path) -> Iterator[Callable[..., Building]]:
    """Starts builds into an empty folder, and ends them."""
    started: list[Building] = []

    def start(*flags: str, prepare: str = "") -> Building:
        started.append(Building(fixed_graph, tmp_path / "out" / "a.engine", *flags, prepare=prepare))
        return started[-1]

    yield start
    for building in started:
        building.process.kill()
        building.process.communicate()


def past_probe(building: Building) -> int:
    """Process id of the child that builds: the one after the probe, which ends before the first line is printed."""
    assert building.process.stdout is not None
    while not (line := building.process.stdout.readline()).startswith("building with"):
        assert line, building.finish()
    return building.builder()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(pid)


def code_mib() -> int:
    """Address space of a child process after the import of the library, MiB."""
    program = (
        "import edgerpn.export.engine.worker, tensorrt_rtx, pathlib\n"
        "lines = pathlib.Path('/proc/self/status').read_text().splitlines()\n"
        "print(next(line.split()[1] for line in lines if line.startswith('VmPeak')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout) >> 10


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_build_leaves_no_files_and_no_child(
    build: Callable[..., Building], number: signal.Signals, status: int
) -> None:
    building = build()
    child = past_probe(building)
    building.process.send_signal(number)
    returned, _, err = building.finish()
    assert returned == status
    assert "Traceback" not in err
    assert building.files() == []
    wait_until_gone(child)


def test_a_child_does_not_outlive_its_killed_parent(build: Callable[..., Building]) -> None:
    building = build()
    child = past_probe(building)
    building.process.kill()
    building.finish()
    wait_until_gone(child)
    assert "a.engine" not in building.files()


def test_after_a_killed_builder_the_next_try_takes_less_memory(build: Callable[..., Building]) -> None:
    building = build()
    first = past_probe(building)
    os.kill(first, signal.SIGKILL)
    status, out, err = building.finish()
    assert (status, err) == (0, "")
    assert "out of memory; trying again with a workspace of 1024 MiB, optimization level the default" in out
    assert building.files() == ["a.engine", "a.engine.build.json", "a.engine.golden.npz", "a.engine.json"]
    report = json.loads((building.output.parent / "a.engine.build.json").read_text())
    assert "killed (SIGKILL)" in report["tries"][0]["result"]
    assert [step["workspace_mib"] for step in report["tries"]] == [None, 1024]
    manifest = json.loads((building.output.parent / "a.engine.json").read_text())
    assert manifest["engine"]["workspace_mib"] == 1024


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_in_the_library_is_reported_with_its_phase_and_not_tried_again(
    build: Callable[..., Building], number: signal.Signals
) -> None:
    building = build()
    os.kill(past_probe(building), number)
    status, out, err = building.finish()
    assert status == 1
    assert f"the library crashed ({number.name}); phase: " in err
    assert "Traceback" not in err
    assert "trying again" not in out
    assert building.files() == ["a.engine.build.json"]
    assert len(json.loads((building.output.parent / "a.engine.build.json").read_text())["tries"]) == 1


def test_without_enough_memory_each_try_is_reported_and_the_last_error_quoted(
    build: Callable[..., Building],
) -> None:
    # Room for the library's code and 60 MiB more. A build takes 400, or 110 if the allocator gives no thread an arena.
    # Only children are limited.
    limit = (code_mib() + 60) << 20
    prepare = f"""
import functools, subprocess
limit = functools.partial(resource.setrlimit, resource.RLIMIT_AS, ({limit}, {limit}))
subprocess.Popen = functools.partial(subprocess.Popen, preexec_fn=limit)
"""
    # The library reports an error, or stalls because a thread of its pool could not be started.
    status, out, err = build("--set", "stall_s=3", prepare=prepare).finish()
    assert status == 1
    steps = [line.partition("; trying again with ") for line in out.splitlines() if "; trying again with " in line]
    assert {reason for reason, _, _ in steps} <= {"out of memory", "the builder stalled with memory short"}
    assert [step for _, _, step in steps] == [
        "a workspace of 1024 MiB, optimization level the default",
        "a workspace of 256 MiB, optimization level 2",
        "a workspace of 256 MiB, optimization level 0",
    ]
    assert "no engine was built (4 tries, each with less memory)" in err
    assert "close other programs" in err


def test_a_builder_that_stalls_is_killed_and_reported(build: Callable[..., Building]) -> None:
    building = build("--set", "stall_s=2")
    child = past_probe(building)
    os.kill(child, signal.SIGSTOP)
    status, out, err = building.finish()
    assert status == 1
    assert "the builder stalled: it sent nothing and used no CPU time for 2 s, and was killed; phase: " in err
    assert "stall_s" in err
    assert "Traceback" not in err
    assert "trying again" not in out
    assert building.files() == ["a.engine.build.json"]
    tries = json.loads((building.output.parent / "a.engine.build.json").read_text())["tries"]
    assert ["the builder stalled" in step["result"] for step in tries] == [True]
    wait_until_gone(child)


def test_a_full_disk_leaves_no_half_written_engine(build: Callable[..., Building]) -> None:
    # The limit on a file's size acts as a disk that fills up while the engine is written.
    building = build(prepare="resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))")
    status, _, err = building.finish()
    assert status == 1
    assert "File too large" in err
    assert building.files() in ([], ["a.engine.build.json"])


def test_without_a_terminal_a_long_build_prints_phase_and_share(build: Callable[..., Building]) -> None:
    prepare = (
        "from edgerpn.export.engine import build\nbuild.ProgressDisplay.__init__.__kwdefaults__['interval_s'] = 0.0"
    )
    status, _, err = build(prepare=prepare).finish()
    assert status == 0
    lines = [line for line in err.splitlines() if line.startswith("building a.engine: ")]
    assert lines
    assert all(re.fullmatch(r"building a\.engine: \d+%, .+, \d+ s(, about \d+ s left)?", line) for line in lines), lines


def test_a_device_without_torch_onnx_and_opencv_builds_and_reports_the_omitted_check(
    build: Callable[..., Building],
) -> None:
    absent = ("torch", "onnx", "onnxscript", "onnxruntime", "cv2")
    building = build(prepare=f"for name in {absent}: sys.modules[name] = None")
    status, out, err = building.finish()
    assert (status, err) == (0, "")
    assert "operations are not checked against the library's limits: the module onnx is not installed here" in out
    assert building.files() == ["a.engine", "a.engine.build.json", "a.engine.golden.npz", "a.engine.json"]
