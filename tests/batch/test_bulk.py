"""The whole command on a Ray of its own; `test_nodes.py` takes its processes away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgerpn.__main__ import main
from edgerpn.errors import ConfigError

# Ray deprecates what itself uses.
pytestmark = pytest.mark.filterwarnings(r"ignore:::ray\.")

pytest.importorskip("ray", reason="Ray comes with the extra `ray`")

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
