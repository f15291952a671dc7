"""`python -m benchmarks.streams`: its arithmetic, and a very short run of each part, whose limits are not checked."""

from __future__ import annotations

import json
import math
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from benchmarks import machine
from benchmarks.streams import __main__ as streams
from benchmarks.streams import camera, sinks, stamp
from benchmarks.streams import plan as figures
from benchmarks.streams import soak as streams_soak

_TIMES = np.arange(60) * 20.0


def test_the_slope_and_its_error_are_those_of_least_squares() -> None:
    values = 3.0 + 0.25 * _TIMES + np.random.default_rng(0).normal(size=60)
    (slope, _), covariance = np.polyfit(_TIMES, values, 1, cov=True)
    line = figures.trend(_TIMES, values)
    assert line.slope_per_s == pytest.approx(slope)
    assert line.error_per_s == pytest.approx(math.sqrt(covariance[0, 0]))
    assert line.growth == pytest.approx(slope * 1180)
    assert not line.is_zero


def test_noise_alone_has_a_slope_of_zero_within_three_errors() -> None:
    line = figures.trend(_TIMES, np.random.default_rng(1).normal(100.0, 1.0, 60))
    assert line.is_zero
    assert line.worst < 3.0


def test_constant_values_have_no_growth() -> None:
    assert figures.trend(_TIMES, [17] * 60).worst == 0.0


@pytest.mark.parametrize("number", [0, 1, 2])
def test_too_few_samples_break_every_limit(number: int) -> None:
    line = figures.trend(_TIMES[:number], [1.0] * number)
    assert math.isnan(line.worst)
    assert not figures.Limit(what="growth", value=line.worst, sign="<=", bound=1e9).holds


@pytest.mark.parametrize(
    ("value", "sign", "holds"), [(0.9, ">=", True), (0.89, ">=", False), (0.9, "<=", True), (0.91, "<=", False)]
)
def test_a_limit_includes_its_bound(value: float, sign: Any, holds: bool) -> None:
    limit = figures.Limit(what="ratio", value=value, sign=sign, bound=0.9)
    assert limit.holds is holds
    assert limit.as_row()["tolerance"] == pytest.approx(value / 0.9, abs=1e-4)


def test_ages_distinguish_the_first_minute_from_the_last() -> None:
    times_s = np.arange(0.0, 600.0, 0.5)
    found = figures.ages(times_s, 10 * times_s)
    assert found["first_minute_p50_ms"] == 300.0
    assert found["last_minute_p50_ms"] == pytest.approx(5695.0)
    assert found["p50_ms"] == pytest.approx(2997.5)
    assert found["p99_ms"] == pytest.approx(5935.05)
    assert (found["max_ms"], found["results"]) == (5995.0, 1200)


def test_of_a_short_run_the_first_and_the_last_fifth_are_compared() -> None:
    found = figures.ages(np.arange(11.0), np.arange(11.0))
    assert (found["first_minute_p50_ms"], found["last_minute_p50_ms"]) == (1.0, 9.0)


def test_ratios_are_of_pairs_in_one_turn() -> None:
    rows = [{"dead": 90.0, "without": 100.0}, {"dead": 40.0, "without": 50.0}, {"dead": 10.0, "without": 10.0}]
    assert figures.ratio(rows, "dead", "without") == {"median": 0.9, "min": 0.8, "max": 1.0}


@pytest.mark.parametrize("now_s", [0.0, 12.3456, 98765.4321, 2.0**32 * 1e-4 - 0.0001])
def test_a_stamp_is_read_after_jpeg_compression(now_s: float) -> None:
    image = _stamped(now_s)
    assert stamp.age_ms(image, now_s + 0.25) == pytest.approx(250.0, abs=0.11)
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])
    assert stamp.age_ms(cv2.imdecode(data, cv2.IMREAD_COLOR), now_s + 30) == pytest.approx(30_000.0, abs=0.11)


def test_damaged_stamps_and_black_pictures_have_no_age() -> None:
    image = _stamped(1234.5)
    image[:16, :16] = 255 - image[:16, :16]
    assert stamp.age_ms(image, 1234.5) is None
    assert stamp.age_ms(np.zeros_like(image), 0.0) is None
    assert stamp.age_ms(np.full_like(image, 255), 0.0) is None


def _stamped(now_s: float) -> Any:
    height, width = 96, 160
    picture = bytearray(np.random.default_rng(0).integers(90, 160, height * width * 3 // 2, np.uint8).tobytes())
    stamp.paint(picture, width, now_s)
    return cv2.cvtColor(np.frombuffer(picture, np.uint8).reshape(height * 3 // 2, width), cv2.COLOR_YUV2BGR_I420)


def test_usage_counts_descriptors_threads_and_shared_memory_of_children() -> None:
    before = machine.usage(os.getpid())
    descriptor = os.memfd_create("edgerpn-test")
    os.ftruncate(descriptor, 3 << 20)
    memory = mmap.mmap(descriptor, 3 << 20)
    code = f"import mmap, sys; m = mmap.mmap({descriptor}, 0); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[descriptor]
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        with_child = machine.usage(os.getpid())
        alone = machine.usage(child.pid)
        child.communicate()
    memory.close()
    os.close(descriptor)
    assert with_child.processes == before.processes + 1
    assert (alone.processes, alone.threads, alone.shared_maps) == (1, 1, 1)
    assert with_child.shared_mib - before.shared_mib == pytest.approx(3.0)
    assert with_child.rss_mib > with_child.parent_rss_mib
    assert alone.descriptors == alone.parent_descriptors >= 4
    assert machine.usage(child.pid).processes == 0


def test_processor_time_of_a_busy_process_grows() -> None:
    cpu_s = machine.cpu_s
    start_s = cpu_s(os.getpid())
    end_s = time.monotonic() + 60
    while cpu_s(os.getpid()) < start_s + 0.05:
        assert time.monotonic() < end_s
    assert cpu_s(2**22 + 1) == 0.0


@pytest.fixture
def make_plan(tmp_path: Path) -> Callable[..., Any]:
    def make(**changes: Any) -> Any:
        values = {
            "model": tmp_path / "model.onnx", "video": "video.avi", "folder": tmp_path, "bare_fps": 100.0,
            "no_camera": "", "pictures": tmp_path, "camera_wh": (160, 96), "numbers": (1,), "rounds": 1,
            "seconds": 1.0, "source_fps": 10.0, "rate": 0.0, "overload": 1.25, "overload_s": 1.0, "soak_s": 1200.0,
            "cycle_s": 20.0, "warm_up_s": 120.0, "ultralytics_python": None,
        }  # fmt: skip
        return figures.Plan(**{**values, **changes})

    return make


def test_a_soak_fails_by_what_each_connection_leaves_behind(make_plan: Callable[..., Any]) -> None:
    rng = np.random.default_rng(2)

    def samples(descriptors: float) -> list[tuple[float, Any]]:
        usage_of = machine.Usage
        steady: dict[str, Any] = dict.fromkeys(streams_soak.ALLOWED, 5)
        return [
            (
                20.0 * number,
                usage_of(**{**steady, "rss_mib": rng.normal(190, 1), "descriptors": 18 + int(descriptors * number)}),
            )
            for number in range(1, 61)
        ]

    assert all(limit.holds for limit in streams_soak.judge(make_plan(), samples(0.0)).limits)
    broken = [limit.what for limit in streams_soak.judge(make_plan(), samples(0.2)).limits if not limit.holds]
    assert broken == ["descriptors: growth and 3 standard errors"]


def test_records_are_counted_once_as_a_file_grows(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    records = streams_soak.Records(lines)
    records.read()
    assert not records.counts
    lines.write_text('{"event": "connected"}\n{"type": "frame"}\n{"event": "conn')
    records.read()
    records.read()
    assert records.counts == {"connected": 1, "results": 1}
    with lines.open("a") as file:
        file.write('ected"}\n')
    records.read()
    assert records.counts == {"connected": 2, "results": 1}


@pytest.mark.parametrize(
    ("values", "failed", "status"),
    [([1.0], "", 0), ([1.0, 0.5], "", 1), ([], "", 1), ([1.0], "it broke", 1), ([math.nan], "", 1)],
)
def test_the_exit_status_is_one_unless_something_was_measured_and_all_limits_hold(
    values: list[float], failed: str, status: int
) -> None:
    limit_of, part_of = figures.Limit, figures.Part
    limits = [limit_of(what="ratio", value=value, sign=">=", bound=0.9) for value in values]
    part = part_of(name="files", rows=[], limits=limits, notes=[], failed=failed)
    assert streams.exit_status([part]) == status


def test_not_a_number_is_null_in_json_and_the_table_names_every_column() -> None:
    part_of = figures.Part
    part = part_of(name="soak", rows=[{"a": math.nan}, {"b": "x|y"}], limits=[], notes=["told"])
    assert json.loads(json.dumps(streams.as_json({}, [part]), allow_nan=False))["parts"]["soak"]["rows"][0] == {
        "a": None
    }
    assert "| a | b |\n| --- | --- |\n| nan |  |\n|  | x\\|y |" in streams.markdown({"cores": 2}, [part])


@pytest.fixture
def measure(
    root: Path, model_path: Path, make_video: Callable[..., None], tmp_path: Path
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs the command for one part; returns its exit status and its figures."""
    video = tmp_path / "video.avi"
    make_video(video, num_frames=60)

    def run(part: str, *options: str) -> tuple[int, dict[str, Any]]:
        out = tmp_path / "found.json"
        words = [sys.executable, "-m", "benchmarks.streams", "--model", str(model_path), "--source", str(video)]
        words += ["--only", part, "--out", str(out), "--camera-size", "160x96", "--seconds", "0.4", "--rounds", "1"]
        done = subprocess.run([*words, *options], capture_output=True, text=True, timeout=240, check=False, cwd=root)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        assert out.exists(), done.stdout + done.stderr
        assert out.with_suffix(".md").read_text(encoding="utf-8") in done.stdout
        found = json.loads(out.read_text(encoding="utf-8"))["parts"][part]
        assert found["failed"] is None, done.stderr
        assert done.returncode == (0 if found["limits"] and all(row["holds"] for row in found["limits"]) else 1)
        return done.returncode, found

    return run


@pytest.fixture(scope="module")
def rtsp() -> None:
    """Skips where there is no RTSP camera, or fails if EDGERPN_REQUIRE_RTSP=1."""
    problem = camera.why_not()
    if problem and os.environ.get("EDGERPN_REQUIRE_RTSP") == "1":
        pytest.fail(f"EDGERPN_REQUIRE_RTSP=1, but {problem}")
    if problem:
        pytest.skip(problem)


@pytest.mark.slow
def test_the_part_files_counts_results_of_files_and_cameras(measure: Callable[..., Any]) -> None:
    _, found = measure("files", "--sources", "1", "2")
    kinds = ["files"] * 2 + ([] if camera.why_not() else ["RTSP"] * 2)
    assert [row["kind"] for row in found["rows"]] == kinds
    assert [row["sources"] for row in found["rows"]] == [1, 2] * (len(kinds) // 2)
    assert all(row["fps"] > 0 and row["bare_fps"] > 0 and 0 <= row["fairness"] <= 1 for row in found["rows"])
    assert len(found["limits"]) == 4 + len(kinds) - 2


@pytest.mark.slow
@pytest.mark.usefixtures("rtsp")
def test_the_part_overload_measures_true_ages_of_each_reader(measure: Callable[..., Any]) -> None:
    _, found = measure("overload", "--overload-seconds", "1", "--rate", "20")
    rows = {row["reader"]: row for row in found["rows"]}
    assert {"ours", "read"} <= set(rows), found["notes"]
    assert all(0 < row["p50_ms"] <= row["p99_ms"] <= row["max_ms"] < 60_000 for row in rows.values())
    # The picture is older than we can know: it was stamped before it was encoded.
    assert 0 < rows["ours"]["told_p99_ms"] < rows["ours"]["max_ms"]
    assert {"model_p99_ms", "wait_p99_ms", "lag_p99_ms"} <= set(rows["ours"])
    assert any("--ultralytics-python is not given" in note for note in found["notes"])
    assert len(found["limits"]) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("rtsp")
def test_the_part_soak_survives_deaths_and_fails_with_too_few_samples(measure: Callable[..., Any]) -> None:
    options = ("--soak-seconds", "8", "--cycle-seconds", "4", "--warm-up-seconds", "0")
    status, found = measure("soak", *options)
    assert status == 1
    assert 1 <= found["deaths"] == len(found["times_s"]) <= 2
    assert found["events"]["connected"] >= 1
    assert found["events"]["results"] >= 1
    assert found["processes"][0] == 2
    assert found["shared_maps"][0] == 1
    assert found["parent_rss_mib"][0] > 20


@pytest.mark.slow
def test_the_part_sinks_finds_consumers_dead(measure: Callable[..., Any]) -> None:
    _, found = measure("sinks")
    left_out = [note for note in found["notes"] if "left out" in note]
    assert len(found["rows"]) + len(left_out) == len(sinks.CONSUMERS)
    assert all("mosquitto" in note or "ffmpeg" in note for note in left_out), left_out
    assert all(row["median"] > 0 and row["longest_write_ms"] > 0 for row in found["rows"])
    assert all(row["lost"] > 0 for row in found["rows"])


@pytest.mark.parametrize(
    ("options", "told"),
    [(("--only", "speed"), "expected some of files, overload, soak, sinks"), (("--camera-size", "100x50"), "128x80")],
)
def test_wrong_options_are_refused(
    root: Path, model_path: Path, video_path: Path, options: tuple[str, ...], told: str
) -> None:
    words = [sys.executable, "-m", "benchmarks.streams", "--model", str(model_path), "--source", str(video_path)]
    done = subprocess.run([*words, *options], capture_output=True, text=True, timeout=120, check=False, cwd=root)
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr
