"""The processes of `./dev test`, here real ones, which run files that hold nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("xdist", reason="pytest-xdist comes with the extra `test`")

FILES = (
    "batch/test_a.py",
    "core/test_b.py",
    "export/one/test_c.py",
    "export/test_d.py",
    "runtime/test_e.py",
    "runtime/test_f.py",
    "train/test_g.py",
)
TESTS = """
import pytest

@pytest.mark.parametrize("number", range(9))
def test_it(number):
    pass
"""


@pytest.fixture
def run_files(root: Path, tmp_path: Path) -> Callable[[dict[str, str]], subprocess.CompletedProcess[str]]:
    """Runs files of tests in two processes, with our scheduler."""

    def run(texts: dict[str, str]) -> subprocess.CompletedProcess[str]:
        for name, text in texts.items():
            file = tmp_path / "tests" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_xdist_make_scheduler\n")
        (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib -v -n 2 --dist loadfile\n")
        words = ["-c", str(tmp_path / "pytest.ini"), "--rootdir", str(tmp_path), str(tmp_path / "tests")]
        return subprocess.run(
            [sys.executable, "-m", "pytest", *words], capture_output=True, text=True, check=False, cwd=root,
            env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        )  # fmt: skip

    return run


def test_a_process_takes_whole_files_and_the_first_begins_with_those_that_wait(
    run_files: Callable[[dict[str, str]], subprocess.CompletedProcess[str]],
) -> None:
    done = run_files(dict.fromkeys(FILES, TESTS))
    assert done.returncode == 0, done.stdout + done.stderr

    places = re.findall(r"^\[(gw\d)\] .* PASSED \S*tests/(\S+)::", done.stdout, re.MULTILINE)
    assert len(places) == 9 * len(FILES)
    processes = {name: {process for process, other in places if other == name} for name in FILES}
    assert all(len(found) == 1 for found in processes.values())
    assert processes["export/one/test_c.py"] == processes["export/test_d.py"]
    begun = {process: name for process, name in reversed(places)}
    assert sorted(begun.values()) == ["batch/test_a.py", "runtime/test_e.py"]


def test_a_crash_fails_its_test_and_every_other_test_runs_once(
    run_files: Callable[[dict[str, str]], subprocess.CompletedProcess[str]],
) -> None:
    crash = TESTS.replace("    pass", "    if number == 4:\n        os._exit(3)").replace(
        "import pytest", "import os\nimport pytest"
    )
    done = run_files({**dict.fromkeys(FILES, TESTS), "core/test_b.py": crash})
    ends = re.findall(r"^\[gw\d\] .* (PASSED|FAILED) \S*tests/(\S+)", done.stdout, re.MULTILINE)
    assert done.returncode == 1, done.stdout + done.stderr
    assert sorted(name for _, name in ends) == sorted(
        f"{name}::test_it[{number}]" for name in FILES for number in range(9)
    )
    assert [name for end, name in ends if end == "FAILED"] == ["core/test_b.py::test_it[4]"]
