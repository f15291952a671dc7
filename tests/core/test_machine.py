from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgerpn import machine
from tests.support.stuck import run_until_stuck, stuck_lines


def write_cgroup(folder: Path, limit: str, used: int, inactive: int) -> None:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nactive_file 7\n")


def test_this_machine_has_cores_and_memory() -> None:
    assert 1 <= machine.available_cores() <= 4096
    assert 1 << 20 < (machine.available_bytes() or 0) < 1 << 50


def test_memory_is_unknown_without_the_file_that_says_it(tmp_path: Path) -> None:
    assert machine.available_bytes(tmp_path / "meminfo") is None


@pytest.mark.parametrize(
    ("limit", "used", "inactive", "expected"),
    [("max", 5, 0, 4096 << 10), ("1000000", 900_000, 50_000, 150_000), ("1000000", 1_200_000, 0, 0)],
)
def test_a_container_bounds_the_memory(
    limit: str, used: int, inactive: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 8192 kB\nMemAvailable:    4096 kB\n")
    write_cgroup(tmp_path, limit, used, inactive)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.available_bytes(tmp_path / "meminfo") == expected


PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
"""
CHILD = """
import os, time
from edgerpn.machine import die_with_parent
die_with_parent({parent})
print("ready", flush=True)
time.sleep(60)
"""


def test_a_tool_gets_its_input_and_gives_its_output_and_status() -> None:
    code = "import sys; print(sys.stdin.read() + '!'); sys.stderr.write('not this'); sys.exit(3)"
    assert machine.run_tool([sys.executable, "-c", code], timeout_s=60, data=b"words") == (3, b"words!\n")
    with pytest.raises(FileNotFoundError):
        machine.run_tool(["/no/such/tool"], timeout_s=60)


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_tool_that_does_not_even_end_when_it_is_killed_is_left_behind(tmp_path: Path) -> None:
    with stuck_lines(tmp_path / "release") as stick:
        code = f"{stick}\nprint(os.getpid(), flush=True)\ntime.sleep(3600)"
        words = [sys.executable, "-c", code]
        status, output = run_until_stuck(lambda limit_s: machine.run_tool(words, timeout_s=limit_s))
        assert status is None
        assert Path(f"/proc/{int(output)}").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's request is Linux's")
def test_a_child_ends_with_its_parent() -> None:
    program = PARENT.format(child=CHILD.format(parent="os.getppid()"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    pid = int(done.stdout)
    for _ in range(600):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child still runs")


def test_a_child_whose_parent_has_gone_ends_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD.format(parent=-1)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_the_first_signal_asks_to_stop_and_a_second_interrupts() -> None:
    stops: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    # A shell may have started the tests with SIGINT ignored.
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with machine.StopOnSignal(lambda: stops.append(1)) as stopper:
            assert not stops
            signal.raise_signal(signal.SIGTERM)
            assert stops == [1]
            signal.raise_signal(signal.SIGTERM)
            assert stops == [1, 1]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, old)
    assert stopper.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_signals_that_force_nothing_only_ask_again() -> None:
    stops: list[int] = []
    with machine.StopOnSignal(lambda: stops.append(1), forcing=()):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert stops == [1, 1]


def test_sigterm_is_handled_inside_the_block_only() -> None:
    received: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    with machine.sigterm_handler(lambda number, frame: received.append(number)):
        signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_name_of_the_processor_is_read_from_the_kernel(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU: fast @ 2 GHz\n\nmodel name\t: other\n")
    assert machine.cpu_name(info) == "Some CPU: fast @ 2 GHz"
    assert machine.cpu_name(tmp_path / "missing")


def test_board_and_power_mode_of_a_jetson_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, mounted = tmp_path / "model", tmp_path / "nv_jetson_model"
    status, modes = tmp_path / "status", tmp_path / "nvpmodel.conf"
    monkeypatch.setattr(machine, "BOARD_MODELS", (model, mounted))
    for name, file in (("NVPMODEL_STATUS", status), ("NVPMODEL_MODES", modes)):
        monkeypatch.setattr(machine, name, file)
    assert (machine.board_model(), machine.power_mode()) == (None, None)
    os.mkfifo(mounted)
    assert machine.board_model() is None
    mounted.unlink()
    mounted.write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    assert machine.board_model() == "NVIDIA Jetson AGX Orin Developer Kit"
    model.write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    status.write_text("pmode:0002 fmode:quiet\n")
    assert machine.board_model() == "NVIDIA Jetson Orin Nano Developer Kit"
    assert machine.power_mode() == "2"
    modes.write_text("< POWER_MODEL ID=0 NAME=15W >\nA 1\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n")
    assert machine.power_mode() == "2 MAXN_SUPER"


def test_a_container_on_a_jetson_is_known_by_its_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, family = tmp_path / "nv_tegra_release", tmp_path / "family"
    monkeypatch.setattr(machine, "JETSON_RELEASE", release)
    monkeypatch.setattr(machine, "SOC_FAMILY", family)
    assert not machine.is_jetson()
    family.write_text("Freescale i.MX\n")
    assert not machine.is_jetson()
    family.write_text("Tegra\n")
    assert machine.is_jetson()
    family.unlink()
    release.write_text("# R36 (release), REVISION: 4.3\n")
    assert machine.is_jetson()


def test_a_threaded_map_keeps_the_order_and_takes_few_items_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: 2)
    taken = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = machine.threaded_map(lambda number: number * number, items())
    assert next(results) == 0
    assert len(taken) == 2 * 16
    assert list(results) == [number * number for number in range(1, 1000)]


def test_a_threaded_map_computes_no_more_than_it_is_told() -> None:
    taken: list[int] = []
    gates = [threading.Event() for _ in range(10)]

    def items() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    def slow(number: int) -> int:
        assert gates[number].wait(60)
        return number * number

    results = machine.threaded_map(slow, items(), num_threads=3, ahead=3)
    # The last two are done before the first.
    for number in (1, 2, 0):
        gates[number].set()
    assert next(results) == 0
    assert taken == [0, 1, 2]
    for gate in gates:
        gate.set()
    assert list(results) == [number * number for number in range(1, 10)]


def test_an_error_in_a_threaded_map_ends_it_and_no_further_items_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: 1)
    started = []

    def work(number: int) -> int:
        started.append(number)
        if number == 3:
            raise ValueError("three")
        return number

    with pytest.raises(ValueError, match="three"):
        list(machine.threaded_map(work, range(1000)))
    assert len(started) < 100
