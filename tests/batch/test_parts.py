"""Inputs, plan, parts and worker, without Ray: the numbers of the parts are passed by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import onnx
import pytest

from edgerpn.errors import ArtifactChangedError, ConfigError
from edgerpn.files import sha256
from edgerpn.manifest import DIGEST_KEY

pa = pytest.importorskip("pyarrow", reason="pyarrow comes with the extra `ray`")

import pyarrow.parquet as pq  # noqa: E402

from edgerpn.batch import BulkConfig, Proposer, bulk  # noqa: E402
from edgerpn.batch.inputs import divide, find_items  # noqa: E402
from edgerpn.batch.output import OutputFolder  # noqa: E402
from edgerpn.batch.worker import PartWorker  # noqa: E402


def write_parts(model: Path, inputs: Sequence[str], output: Path | str, config: BulkConfig | None = None) -> list[dict]:
    """Plans and writes all parts; returns the answers of the worker."""
    config = config or BulkConfig()
    folder = OutputFolder(str(output))
    num_parts = folder.plan(divide(find_items(inputs, config), config.part_rows), {"inputs": list(inputs)})
    worker = PartWorker(str(output), str(model), sha256(model), config, False, True)
    answers = [worker({"part": [part]}) for part in range(num_parts)]
    return [{name: values[0] for name, values in answer.items()} for answer in answers]


def places(inputs: Sequence[str], config: BulkConfig | None = None) -> list[tuple[str, str]]:
    return [(item.kind, item.place) for item in find_items(inputs, config or BulkConfig())]


def test_a_folder_gives_its_images_and_videos_at_every_depth(photos: Path, video_path: Path) -> None:
    (photos / "below" / "moving.avi").symlink_to(video_path)
    (photos / ".hidden.png").write_bytes(b"")
    names = ["0.png", "1.png", "2.png", "3.png", "broken.jpg", "below/4.png", "below/5.png", "below/moving.avi"]
    assert places([str(photos)]) == [("video" if "avi" in name else "image", f"{photos}/{name}") for name in names]


def test_globs_lists_and_single_files_give_what_they_name(photos: Path, tmp_path: Path) -> None:
    assert places([f"{photos}/**/[45].png"]) == [("image", f"{photos}/below/{n}.png") for n in (4, 5)]
    listed = tmp_path / "list.txt"
    listed.write_text(f"# two\nphotos/1.png\n\n{photos}/absent.png\ns3://bucket/a.mp4\n", encoding="utf-8-sig")
    expected = [("image", f"{photos}/1.png"), ("image", f"{photos}/absent.png"), ("video", "s3://bucket/a.mp4")]
    assert places([str(listed)]) == expected
    assert places([f"file://{photos}/1.png"]) == [("image", f"{photos}/1.png")]


def test_a_parquet_file_gives_paths_or_row_groups_of_bytes(photos: Path, tmp_path: Path) -> None:
    data = [(photos / f"{n}.png").read_bytes() for n in range(4)]
    pq.write_table(pa.table({"path": ["photos/1.png", "/x/2.png"]}), tmp_path / "paths.parquet")
    assert places([f"{tmp_path}/paths.parquet"]) == [("image", f"{photos}/1.png"), ("image", "/x/2.png")]
    images = [{"bytes": value, "path": f"{n}"} for n, value in enumerate(data)]
    pq.write_table(pa.table({"image": images}), tmp_path / "bytes.parquet", row_group_size=3)
    config = BulkConfig(bytes_column="image.bytes", path_column="image.path")
    found = list(find_items([f"{tmp_path}/bytes.parquet"], config))
    assert [(item.group, item.first, item.rows) for item in found] == [(0, 0, 3), (1, 3, 1)]
    with pytest.raises(ConfigError, match=r"no column 'bytes' of .* it has image\.bytes, image\.path\. Name one"):
        places([f"{tmp_path}/bytes.parquet"])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gone", "no such file or folder, and no file matches it"),
        ("empty", "no image and no video in it"),
        ("odd.parquet", "cannot be read"),
        ("odd.txt", "this list is not UTF-8 text"),
        ("secret.txt", "this URL holds a password"),
        ("nothing.parquet", "the column 'path' holds int64, expected texts"),
        ("*.zzz", "no such file or folder, and no file matches it"),
    ],
)
def test_an_input_that_cannot_be_used_is_one_error(name: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.parquet").write_bytes(b"PAR1 nonsense")
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe\xff\n")
    (tmp_path / "secret.txt").write_text("https://user:hunter2@host/a.jpg\n")
    pq.write_table(pa.table({"path": [1, 2]}), tmp_path / "nothing.parquet")
    with pytest.raises(ConfigError, match=told) as caught:
        places([str(tmp_path / name)])
    assert "hunter2" not in str(caught.value)


def test_parts_have_the_rows_that_were_asked_for_and_a_video_fills_one(photos: Path, video_path: Path) -> None:
    config = BulkConfig(part_rows=3)
    parts = list(divide(find_items([str(photos), str(video_path), str(photos / "1.png")], config), 3))
    assert [len(part) for part in parts] == [3, 3, 2, 1]
    assert [item.kind for item in parts[2]] == ["image", "video"]


def test_every_picture_of_every_kind_of_input_becomes_one_row(
    photos: Path, video_path: Path, model_path: Path, tmp_path: Path
) -> None:
    data = [(photos / f"{n}.png").read_bytes() for n in range(4)]
    pq.write_table(pa.table({"bytes": [*data, None]}), tmp_path / "bytes.parquet", row_group_size=2)
    (tmp_path / "cut.mp4").write_bytes(b"no video")
    inputs = [str(photos), f"{tmp_path}/bytes.parquet", str(video_path), f"{tmp_path}/cut.mp4"]
    answers = write_parts(model_path, inputs, tmp_path / "out", BulkConfig(part_rows=4))
    assert [answer["problem"] for answer in answers] == [""] * len(answers)
    table = pq.read_table(tmp_path / "out")
    rows = table.to_pylist()
    assert len(rows) == 7 + 5 + 40 + 1 == sum(answer["num_pictures"] for answer in answers)
    assert sum(answer["num_broken"] for answer in answers) == 3
    broken = [row for row in rows if row["error"] is not None]
    assert [row["path"] for row in broken] == [
        f"{photos}/broken.jpg",
        f"{tmp_path}/bytes.parquet#4",
        f"{tmp_path}/cut.mp4",
    ]
    assert all(row["boxes"] is None for row in broken)
    frames = [row for row in rows if row["frame"] is not None and row["error"] is None]
    assert [row["frame"] for row in frames] == list(range(40))
    assert frames[30]["media_time_s"] == pytest.approx(30 / 29.97, abs=0.01)
    assert sum(len(row["boxes"] or ()) for row in rows) == sum(answer["num_proposals"] for answer in answers)
    by_path = {row["path"]: row["boxes"] for row in rows}
    assert by_path[f"{tmp_path}/bytes.parquet#3"] == by_path[f"{photos}/3.png"] != []


def test_a_part_is_never_written_twice_and_a_lost_one_comes_back_the_same(
    photos: Path, model_path: Path, tmp_path: Path
) -> None:
    config, output = BulkConfig(part_rows=2), tmp_path / "out[1]"
    first = write_parts(model_path, [str(photos)], output, config)
    content = {path.name: path.read_bytes() for path in output.glob("*.parquet")}
    os.utime(output / "part-000000.parquet", (1, 1))
    (output / "part-000002.parquet").unlink()
    # A picture that came later: the plan is the one of the first call.
    cv2.imwrite(str(photos / "9.png"), cv2.imread(str(photos / "1.png")))
    again = write_parts(model_path, [str(photos)], output, config)
    assert {path.name: path.read_bytes() for path in output.glob("*.parquet")} == content
    assert (output / "part-000000.parquet").stat().st_mtime == 1
    counts = [{name: value for name, value in row.items() if name.startswith("num_")} for row in again]
    assert counts == [{name: value for name, value in row.items() if name.startswith("num_")} for row in first]
    assert not list((output / "_bulk" / "attempts").iterdir())


def test_a_failure_leaves_no_part_and_is_the_answer_of_the_worker(
    photos: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Proposer, pictures: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Proposer, "tables", fail)
    (answer,) = write_parts(model_path, [str(photos)], tmp_path / "out")
    assert "No space left on device" in answer["problem"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_bulk"]
    assert not list((tmp_path / "out" / "_bulk").glob("*.part"))


def test_a_worker_that_cannot_load_the_model_says_why(photos: Path, model_path: Path, tmp_path: Path) -> None:
    write_parts(model_path, [str(photos)], tmp_path / "out")
    gone = PartWorker(str(tmp_path / "out"), str(tmp_path / "gone.onnx"), "0", BulkConfig(), False, True)
    assert "gone.onnx" in gone({"part": [0]})["problem"][0]
    other = PartWorker(str(tmp_path / "out"), str(model_path), "0" * 64, BulkConfig(), False, True)
    assert "another file than where the run began" in other({"part": [0]})["problem"][0]


def test_a_changed_graph_is_refused_before_the_work_and_taken_when_asked(
    photos: Path, model_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, output = tmp_path / "model.onnx", tmp_path / "out"
    model.with_suffix(".json").write_bytes(model_path.with_suffix(".json").read_bytes())
    changed = onnx.load(model_path)
    changed.producer_name = "another program"
    onnx.save(changed, model)
    changed.metadata_props.add(key=DIGEST_KEY, value="d" * 64)
    alone = tmp_path / "alone.onnx"  # its manifest is only inside
    onnx.save(changed, alone)
    for file in (model, alone):
        with pytest.raises(ArtifactChangedError, match=rf"{file.name}: changed since export"):
            bulk(file, [str(photos)], output)
    assert not output.exists()
    write_parts(model_path, [str(photos)], output)
    (output / "part-000000.parquet").unlink()
    for verify, problem in ((True, "changed since export"), (False, "")):
        worker = PartWorker(str(output), str(model), sha256(model), BulkConfig(), False, verify)
        (told,) = worker({"part": [0]})["problem"]
        assert problem in told
        assert bool(told) is bool(problem)
    for file in (model, alone):
        caplog.clear()
        with pytest.raises(ConfigError, match="no such file or folder"):
            bulk(file, [str(photos / "gone")], tmp_path / "other", verify=False)
        assert "nothing shows that its proposals are right" in caplog.text


def test_a_part_in_which_workers_die_again_and_again_ends_the_run(
    photos: Path, model_path: Path, tmp_path: Path
) -> None:
    output, config = tmp_path / "out", BulkConfig(max_attempts=2)
    folder = OutputFolder(str(output))
    folder.plan(divide(find_items([str(photos)], config), 512), {})
    for _ in range(2):
        folder.begin_attempt(0)
    worker = PartWorker(str(output), str(model_path), sha256(model_path), config, False, True)
    (problem,) = worker({"part": [0]})["problem"]
    assert f"part 0: 2 workers died in it, in one of the inputs from {photos}/0.png" in problem
    folder.clean()
    assert worker({"part": [0]})["problem"] == [""]


@pytest.mark.parametrize("changed", ["model", "settings", "inputs"])
def test_a_folder_of_another_run_is_refused(changed: str, photos: Path, tmp_path: Path) -> None:
    run = {"model": "a", "settings": {"min_score": 0.0}, "inputs": ["x"]}
    folder = OutputFolder(str(tmp_path / "out"))
    folder.plan(divide(find_items([str(photos)], BulkConfig()), 512), run)
    assert folder.plan([], run) == 1
    with pytest.raises(ConfigError, match=f"out: this folder holds a run with other {changed}; repeat it as it was"):
        folder.plan([], {**run, changed: "other"})


def test_a_second_run_into_a_folder_is_refused_until_the_first_ends_or_is_killed(
    photos: Path, model_path: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    program = (
        "import sys, time\n"
        "from edgerpn.batch.output import OutputFolder\n"
        "with OutputFolder(sys.argv[1]).locked():\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(output)], stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "locked\n"
            with pytest.raises(ConfigError, match=rf"out: process {first.pid} on .* is writing into this folder; wait"):
                bulk(model_path, [str(photos)], output)
            assert [path.name for path in (output / "_bulk").iterdir()] == ["lock"]
        finally:
            first.kill()
    # Workers do not take the lock.
    with OutputFolder(str(output)).locked():
        answers = write_parts(model_path, [str(photos)], output)
        assert [answer["problem"] for answer in answers] == [""]
    assert (output / "_bulk" / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_folder_with_other_files_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"this folder is not empty \(it holds 0.png\)"):
        OutputFolder(str(photos)).plan([], {})
    with pytest.raises(ConfigError, match="this folder is not empty"), OutputFolder(str(photos)).locked():
        pass
    assert not (photos / "_bulk").exists()
    with pytest.raises(ConfigError, match="this is a file, expected a folder"):
        OutputFolder(str(photos / "0.png")).plan([], {})


def test_names_that_are_not_utf8_are_read_and_shown(
    paint: Callable[..., Any], model_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    ok, data = cv2.imencode(".png", paint(96, 160, box=(10, 20, 60, 80), count=2))
    assert ok
    (folder / "a.png").write_bytes(data.tobytes())
    (answer,) = write_parts(model_path, [str(folder)], tmp_path / "out")
    assert (answer["problem"], answer["num_proposals"]) == ("", 2)
    assert pq.read_table(tmp_path / "out")["path"].to_pylist() == [f"{tmp_path}/caf\\xe9/a.png"]


def test_an_archive_is_a_file_system_and_so_is_memory(photos: Path, model_path: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="fsspec comes with the extra `ray`")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(photos.rglob("*.*g")):
            archive.write(path, path.relative_to(photos))
    memory = fsspec.filesystem("memory")
    memory.rm("/bulk", recursive=True) if memory.exists("/bulk") else None
    inputs = [f"zip://*.png::{tmp_path}/photos.zip", f"zip://below::{tmp_path}/photos.zip"]
    answers = write_parts(model_path, inputs, "memory://bulk/out", BulkConfig(part_rows=4))
    assert [(answer["problem"], answer["num_broken"]) for answer in answers] == [("", 0)] * 2
    assert sorted(memory.ls("/bulk/out", detail=False)) == [
        "/bulk/out/_bulk",
        "/bulk/out/part-000000.parquet",
        "/bulk/out/part-000001.parquet",
    ]
    with memory.open("/bulk/out/part-000000.parquet") as stream:
        first = pq.read_table(stream)
    assert first["path"].to_pylist() == [f"zip://{n}.png::{tmp_path}/photos.zip" for n in range(4)]
    local = Proposer(model_path)({"path": [str(photos / f"{n}.png") for n in range(4)]})
    assert first["boxes"].to_pylist() == local["boxes"].to_pylist()
    with memory.open("/bulk/videos/cut.mp4", "wb") as stream:
        stream.write(b"no video")
    (broken,) = write_parts(model_path, ["memory://bulk/videos", "memory://bulk/none.png"][:1], "memory://bulk/second")
    assert (broken["problem"], broken["num_broken"]) == ("", 1)


def test_a_picture_that_is_gone_from_any_file_system_is_a_row_with_an_error(model_path: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    files = [f"zip://a.png::{tmp_path}/empty.zip", f"zip://a.png::{tmp_path}/gone.zip", "memory://none/a.png"]
    errors = Proposer(model_path)({"path": files})["error"].to_pylist()
    assert all("cannot be read" in error for error in errors)


def test_the_summary_of_a_run_is_json_beside_the_plan(tmp_path: Path) -> None:
    folder = OutputFolder(str(tmp_path / "out"))
    folder.plan([], {})
    folder.write_summary({"num_pictures": 3})
    assert json.loads((tmp_path / "out" / "_bulk" / "summary.json").read_text()) == {"num_pictures": 3}
