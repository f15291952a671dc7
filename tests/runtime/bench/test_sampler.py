"""The sampler: real child processes that print recorded lines."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path

import pytest

from edgerpn.runtime.bench.sampler import Sampler
from tests.runtime.bench.test_readings import ORIN_NX, write
from tests.support.patience import wait_until
from tests.support.stuck import stuck_lines, write_tool

pytestmark = pytest.mark.timeout(120)


def make_tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho $$ > {shlex.quote(str(folder / name))}.pid\n{script}\n")
    (folder / name).chmod(0o755)


def is_alive(folder: Path, name: str) -> bool:
    try:
        os.kill(int((folder / f"{name}.pid").read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def repeat(line: str) -> str:
    return f"while :; do echo {shlex.quote(line)}; sleep 0.02; done"


def test_every_tool_is_read_and_ended(tmp_path: Path) -> None:
    tools, files = tmp_path / "bin", tmp_path / "sys"
    make_tool(tools, "tegrastats", repeat(ORIN_NX))
    line = "55.5, 1500, 2000, 44, 80, 0x0000000000000004"
    make_tool(tools, "nvidia-smi", f'case "$*" in *--loop-ms*) {repeat(line)};; *) echo 0x0;; esac')
    write(files, {"class/thermal/cooling_device0/type": "devfreq-gpu", "class/thermal/cooling_device0/cur_state": 1})
    start_s = time.monotonic()
    with Sampler(50, sys_root=files, search_path=f"{tools}:/bin:/usr/bin") as sampler:
        # Both have given a reading already; the thread that reads files may not have run.
        assert {"tegrastats", "nvidia-smi"} <= set(sampler.tools)
        wait_until(lambda: "sysfs" in sampler.tools)
    readings = sampler.between(start_s, time.monotonic())
    assert {"VDD_IN", "GPU"} <= {name for reading in readings for name in reading.power_w}
    assert {reason for reading in readings for reason in reading.throttling} >= {"cooling: devfreq-gpu"}
    assert [reading.at_s for reading in readings] == sorted(reading.at_s for reading in readings)
    assert sampler.between(0.0, start_s - 1) == []
    assert not is_alive(tools, "tegrastats")
    assert not is_alive(tools, "nvidia-smi")


def test_a_tool_that_fails_costs_its_readings_only(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    make_tool(tools, "tegrastats", "echo 'cannot open /dev/nvhost' >&2; exit 1")
    make_tool(tools, "nvidia-smi", "echo 'NVIDIA-SMI has failed because it could not communicate'; exit 9")
    with Sampler(50, sys_root=tmp_path / "sys", search_path=f"{tools}:/bin:/usr/bin") as sampler:
        pass
    assert not {"tegrastats", "nvidia-smi"} & set(sampler.tools)


def test_a_tool_that_ignores_the_request_to_end_is_killed(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    make_tool(tools, "tegrastats", f"trap '' TERM\n{repeat(ORIN_NX)}")
    with Sampler(50, sys_root=tmp_path / "sys", search_path=f"{tools}:/bin:/usr/bin") as sampler:
        assert "tegrastats" in sampler.tools
    assert not is_alive(tools, "tegrastats")


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_tool_that_hangs_in_a_driver_is_left_behind(tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "tegrastats"
    with stuck_lines(tmp_path / "release") as stick:
        write_tool(tool, f"{stick}\nwhile True:\n    print({ORIN_NX!r}, flush=True)\n    time.sleep(0.02)")
        with Sampler(50, sys_root=tmp_path / "sys", search_path=str(tool.parent)) as sampler:
            wait_until(lambda: "tegrastats" in sampler.tools)


def test_a_machine_without_tools_is_sampled_in_silence(tmp_path: Path) -> None:
    with Sampler(50, sys_root=tmp_path, search_path=str(tmp_path)) as sampler:
        pass
    # Of the clocks in /proc/cpuinfo a virtual machine may show some.
    assert set(sampler.tools) <= {"sysfs"}
    assert not [reading for reading in sampler.between(0.0, time.monotonic()) if reading.power_w]
