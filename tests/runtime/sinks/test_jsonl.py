"""Rotating JSON lines: whole lines in whole files, also when the disk is full."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgerpn.errors import SinkError
from edgerpn.runtime.sinks import JsonLinesConfig, NotDeliveredError, Record
from edgerpn.runtime.sinks.jsonl import STAMP, JsonLinesSink


def record(index: int, *, size: int = 100) -> Record:
    line = json.dumps({"frame": index, "fill": ""}).encode()
    line = line[:-2] + b"x" * (size - len(line) - 1) + line[-2:]
    return Record(source="door", kind="proposals", line=line + b"\n")


def frames(path: Path) -> list[int]:
    text = path.read_text()
    assert text.endswith("\n") or not text
    return [json.loads(line)["frame"] for line in text.splitlines()]


def full_files(path: Path) -> list[Path]:
    name = re.compile(rf"{path.stem}\.{STAMP}{path.suffix}")
    return sorted(one for one in path.parent.iterdir() if name.fullmatch(one.name))


def test_a_full_file_is_renamed_and_no_line_is_split_or_lost(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    sink = JsonLinesSink(JsonLinesConfig(path=str(path), rotate_mb=0.001, keep=0))
    records = [record(index) for index in range(35)]
    for start in (0, 1, 8, 30):
        sink.write_records(records[start : {0: 1, 1: 8, 8: 30, 30: 35}[start]])
    sink.close()
    assert [len(frames(one)) for one in full_files(path)] == [10, 10, 10]
    assert [index for one in [*full_files(path), path] for index in frames(one)] == list(range(35))


def test_a_name_without_room_for_the_date_of_full_files_is_refused_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / f"{'a' * 240}.jsonl"
    JsonLinesSink(JsonLinesConfig(path=str(path))).close()
    with pytest.raises(SinkError, match=r"\.19700101T000000\.000Z\.jsonl, would be too long .*Choose a shorter name"):
        JsonLinesSink(JsonLinesConfig(path=str(path), rotate_mb=1.0))


def test_a_line_longer_than_a_file_gets_one_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    sink = JsonLinesSink(JsonLinesConfig(path=str(path), rotate_mb=0.001))
    sink.write_records([record(0), record(1, size=5000), record(2)])
    sink.close()
    assert [frames(one) for one in [*full_files(path), path]] == [[0], [1], [2]]


def test_an_old_file_is_renamed_at_the_next_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    sink = JsonLinesSink(JsonLinesConfig(path=str(path), rotate_minutes=0.05 / 60))
    sink.write_records([record(0)])
    time.sleep(0.06)
    sink.write_records([record(1)])
    sink.close()
    assert [frames(one) for one in [*full_files(path), path]] == [[0], [1]]


def test_only_the_newest_full_files_are_kept_and_others_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    others = [tmp_path / "a.backup.jsonl", tmp_path / "b.20260131T120000.000Z.jsonl"]
    for other in others:
        other.write_text("keep me")
    sink = JsonLinesSink(JsonLinesConfig(path=str(path), rotate_mb=0.0001, keep=2))
    for index in range(8):
        sink.write_records([record(index)])
    sink.close()
    assert [frames(one) for one in full_files(path)] == [[5], [6]]
    assert frames(path) == [7]
    assert all(other.exists() for other in others)


def test_a_file_called_dash_does_not_empty_the_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-").touch()
    os.write(1, b"before\n")
    JsonLinesSink(JsonLinesConfig(path="-")).write_records([record(0)])
    assert capfd.readouterr().out == "before\n" + record(0).line.decode()


def test_the_file_of_an_earlier_run_is_kept_without_its_broken_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(record(0).line + b'{"frame": 1, "fi')
    sink = JsonLinesSink(JsonLinesConfig(path=str(path), rotate_mb=1.0))
    sink.write_records([record(5)])
    sink.close()
    assert [frames(one) for one in [*full_files(path), path]] == [[0], [5]]


def test_a_live_run_continues_the_file_of_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for index in range(2):
        sink = JsonLinesSink(JsonLinesConfig(path=str(path)), is_live=True)
        sink.write_records([record(index)])
        sink.close()
    assert frames(path) == [0, 1]


@pytest.mark.parametrize("is_live", [True, False])
def test_a_pipe_takes_records_too(is_live: bool, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink = JsonLinesSink(JsonLinesConfig(path=str(path)), is_live=is_live)
    sink.write_records([record(0)])
    sink.close()
    assert os.read(reader, 1000) == record(0).line
    os.close(reader)


def test_without_rotation_the_first_record_of_a_run_of_files_replaces_an_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("old\n")
    sink = JsonLinesSink(JsonLinesConfig(path=str(path)))
    assert path.read_text() == "old\n"
    sink.write_records([record(index, size=1000) for index in range(300)])
    sink.close()
    sink.close()
    assert frames(path) == list(range(300))
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_a_file_that_cannot_be_opened_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="Is a directory"):
        JsonLinesSink(JsonLinesConfig(path=str(tmp_path)))


_FULL_DISK = """
import json, sys, time
from pathlib import Path
from edgerpn.runtime.sinks import JsonLinesConfig, QueuedSink, Record
from edgerpn.runtime.sinks.jsonl import JsonLinesSink

class Direct(QueuedSink):
    def put(self, index):
        line = json.dumps({"frame": index, "fill": "x" * 900}).encode() + b"\\n"
        self._put(Record(source="door", kind="proposals", line=line))

folder = Path(sys.argv[1])
filler = folder / "filler"
filler.write_bytes(b"0" * 700_000)
config = JsonLinesConfig(path=str(folder / "a.jsonl"), rotate_mb=0.2)
sink = Direct(JsonLinesSink(config), config, kind="jsonl", is_live=True)
for index in range(600):
    sink.put(index)
deadline = time.monotonic() + 40
while not sink.stats().errors and time.monotonic() < deadline:
    time.sleep(0.01)
during = sink.stats()
lines = b"".join(path.read_bytes() for path in sorted(folder.glob("a*.jsonl")))
assert lines.endswith(b"}\\n"), lines[-50:]
filler.unlink()
sink.close()
after = sink.stats()
frames = [json.loads(line)["frame"] for path in sorted(folder.glob("a.*Z.jsonl")) + [folder / "a.jsonl"]
          for line in path.read_text().splitlines()]
print(json.dumps({"error": during.last_error, "written_then": during.written, "dropped": after.dropped,
                  "is_complete": frames == list(range(600)), "num": len(frames)}))
"""


def test_a_full_disk_keeps_whole_lines_and_is_survived(tmp_path: Path) -> None:
    done = on_small_disk(_FULL_DISK, tmp_path / "disk", size="1m")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "No space left on device" in told["error"]
    assert 0 < told["written_then"] < 600
    assert told["is_complete"], told
    assert told["dropped"] == 0
    assert "cannot be written: No space left on device" in done.stderr


def on_small_disk(program: str, folder: Path, *, size: str) -> subprocess.CompletedProcess[str]:
    """Runs a program with a file system of its own in `folder`, or skips."""
    folder.mkdir()
    mount = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs "$0" && exec "$@"', str(folder)]
    if sys.platform != "linux" or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs Linux with user namespaces")
    return subprocess.run(
        [*mount, sys.executable, "-W", "error", "-c", program, str(folder)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_lines_that_did_not_fit_are_counted_exactly(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    program = f"""
import resource, signal
from edgerpn.runtime.sinks import JsonLinesConfig, NotDeliveredError, Record
from edgerpn.runtime.sinks.jsonl import JsonLinesSink
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (250, resource.RLIM_INFINITY))
sink = JsonLinesSink(JsonLinesConfig(path={str(path)!r}))
records = [Record(source="a", kind="events", line=b"x" * 99 + b"\\n") for _ in range(5)]
try:
    sink.write_records(records)
except NotDeliveredError as error:
    print(error.num_done)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sink.write_records(records[2:])
sink.close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("2\n", "")
    assert path.read_bytes() == (b"x" * 99 + b"\n") * 5


def test_a_closed_pipe_ends_the_run() -> None:
    program = """
import time
from edgerpn.errors import SinkError
from edgerpn.runtime.frame import Event
from edgerpn.runtime.sinks import open_sinks, read_outputs
(sink,) = open_sinks(read_outputs([{"kind": "jsonl", "path": "-"}], source="test"), is_live=True)
event = Event(kind="error", source="door", message="x" * 1000, happened_at=0.0)
try:
    for _ in range(2000):
        sink.event(event)
        time.sleep(0.001)
except SinkError as error:
    import sys
    print(error, file=sys.stderr)
    raise SystemExit(7)
"""
    command = f'"{sys.executable}" -c "$0" | head -n 1; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command, program], capture_output=True, text=True, timeout=120, check=False)
    assert json.loads(done.stdout)["event"] == "error"
    assert done.returncode == 7, done.stderr
    assert "standard output: cannot be written: Broken pipe" in done.stderr


def test_errors_of_a_full_disk_hold_the_number_of_delivered_records() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    sink = JsonLinesSink(JsonLinesConfig(path="/dev/full"))
    with pytest.raises(NotDeliveredError, match="No space left") as caught:
        sink.write_records([record(0)])
    assert caught.value.num_done == 0
    sink.close()
