"""Wheels built from the tracked files alone, without a network."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

_BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"


def tracked_files(root: Path) -> list[str]:
    """Names of the files that git knows and that exist, relative to `root`."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (root / name).is_file()]


def build_wheel(root: Path, folder: Path) -> zipfile.ZipFile:
    """Builds the wheel of the project in `root` in the empty `folder`."""
    source, built = folder / "source", folder / "wheel"
    for name in tracked_files(root):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, source / name)
    built.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, str(built)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # setuptools says so, and no more, when a data file is about to be left out.
    assert "would be ignored" not in done.stderr
    return zipfile.ZipFile(next(built.glob("*.whl")))
