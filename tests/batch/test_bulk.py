"""The whole command on a Ray of its own; `test_nodes.py` takes its processes away."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgerpn.__main__ import main
from edgerpn.errors import ConfigError

# Ray deprecates what itself uses.
pytestmark = pytest.mark.filterwarnings(r"ignore:::ray\.")

pytest.importorskip("ray", reason="Ray comes with the extra `ray`")

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from edgerpn.batch import BulkConfig, Proposer, bulk  # noqa: E402


@pytest.mark.slow
def test_the_command_writes_what_the_class_finds_and_continues_a_run(
    photos: Path, model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    command = ["bulk", str(model_path), str(photos), "-o", str(output), "--set", "part_rows=2", "--workers", "1"]
    assert main(command) == 0
    assert capsys.readouterr().out == (f"7 pictures, 1 broken, 0 damaged, 7 proposals, in 4 parts; written: {output}\n")
    table = pq.read_table(output)
    assert table.equals(Proposer(model_path)({"path": table["path"].to_pylist()}).replace_schema_metadata())
    summary = json.loads((output / "_bulk" / "summary.json").read_text())
    assert (summary["num_pictures"], summary["num_workers"]) == (7, 1)
    assert 0 < summary["worker_peak_bytes"] < 2**30
    (output / "part-000001.parquet").unlink()
    again = bulk(model_path, [str(photos)], output, BulkConfig(part_rows=2))
    assert (again.num_pictures, again.num_resumed) == (7, 3)
    assert pq.read_table(output).equals(table)
    # Nothing is missing, so no Ray is needed, not even one that can be reached.
    assert main([*command, "--address", "127.0.0.1:1"]) == 0
    assert "in 4 parts (4 from before)" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="a run with other settings; repeat it as it was"):
        bulk(model_path, [str(photos)], output, BulkConfig(part_rows=2, min_score=0.5))
    assert len(list(output.glob("*.parquet"))) == 4


@pytest.mark.slow
def test_a_worker_that_cannot_work_ends_the_run_with_its_reason(
    photos: Path, model_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["bulk", str(model_path), str(photos), "-o", str(tmp_path / "out"), "--set", 'providers=["nonsense"]']
    assert main(command) == 1
    shown = capfd.readouterr().err
    assert "\nerror: " in f"\n{shown}"
    assert "nonsense" in shown
    assert "the same command continues this run" in shown
    assert "Traceback" not in shown
    with pytest.raises(ConfigError, match="no machine of this Ray has the 1000 CPUs and 0 GPUs of a worker"):
        bulk(model_path, [str(photos)], tmp_path / "more", BulkConfig(threads=1000))


@pytest.mark.slow
def test_the_programs_of_the_page_run(root: Path, photos: Path, model_path: Path) -> None:
    folder = photos.parent
    for suffix in (".onnx", ".json"):
        shutil.copy(model_path.with_suffix(suffix), folder / f"model{suffix}")
    pq.write_table(pa.table({"path": ["photos/1.png", "photos/2.png", "photos/broken.jpg"]}), folder / "names.parquet")
    (folder / "bulk-out").mkdir()
    paths = {"path": [str(photos / "broken.jpg")]}
    pq.write_table(Proposer(model_path)(paths), folder / "bulk-out" / "part-000000.parquet")
    programs = re.findall(r"^```python\n(.*?)^```", (root / "docs" / "bulk.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(programs) == 4
    for program in programs:
        # A reading task needs a CPU beside that of the class.
        started = program.replace(
            "import ray\n", 'import ray\nray.init("local", num_cpus=2, include_dashboard=False)\n'
        )
        (folder / "program.py").write_text(started)
        done = subprocess.run(
            [sys.executable, "program.py"],
            cwd=folder,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    found = pq.read_table(folder / "found").sort_by("path")
    assert [None if boxes is None else len(boxes) for boxes in found["boxes"].to_pylist()] == [1, 2, None]
    assert found["boxes"].type == pa.list_(pa.list_(pa.float32(), 4))
