"""The processes of `./dev test`, here real ones, which run files that hold nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
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


def test_a_process_takes_whole_files_and_the_first_begins_with_those_that_wait(root: Path, tmp_path: Path) -> None:
    for name in FILES:
        file = tmp_path / "tests" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(TESTS)
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_xdist_make_scheduler\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib -v -n 2 --dist loadfile\n")
    words = ["-c", str(tmp_path / "pytest.ini"), "--rootdir", str(tmp_path), str(tmp_path / "tests")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], capture_output=True, text=True, check=False, cwd=root,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr

    places = re.findall(r"^\[(gw\d)\] .* PASSED \S*tests/(\S+)::", done.stdout, re.MULTILINE)
    assert len(places) == 9 * len(FILES)
    processes = {name: {process for process, other in places if other == name} for name in FILES}
    assert all(len(found) == 1 for found in processes.values())
    assert processes["export/one/test_c.py"] == processes["export/test_d.py"]
    begun = {process: name for process, name in reversed(places)}
    assert sorted(begun.values()) == ["batch/test_a.py", "runtime/test_e.py"]
