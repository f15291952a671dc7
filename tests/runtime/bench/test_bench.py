"""`edgerpn bench` on real models on the CPU, and its phases on the stand-in of an engine. No time is asserted."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest

from edgerpn import files, manifest
from edgerpn.__main__ import main
from edgerpn.proposals import Proposals
from edgerpn.runtime.bench.bench import BenchRequest, _time_parts, run_bench
from edgerpn.runtime.bench.config import BenchConfig
from edgerpn.runtime.bench.facts import parse_power_mode
from edgerpn.runtime.bench.frames import BenchFrame, FrameSet
from edgerpn.runtime.bench.page import render
from edgerpn.runtime.bench.phases import PhaseLog, run_serial, run_throughput
from edgerpn.runtime.bench.reading import Reading, summarize
from edgerpn.runtime.bench.report import BenchReport, RecallFacts, make_phase_report
from edgerpn.runtime.model import Model, load
from tests.runtime.bench.test_readings import ORIN_NX, read
from tests.runtime.bench.test_sampler import make_tool, repeat

pytestmark = pytest.mark.timeout(120)

Image = npt.NDArray[np.uint8]
QUICK = [word for name in ("warm_up_s", "serial_s", "throughput_s") for word in ("--set", f"{name}=0.2")]
SHORT = BenchConfig(warm_up_s=0, serial_s=0, throughput_s=0, frame_hw=(120, 200), sample_ms=50)

# A change here is a change of the report's format: raise SCHEMA when a field changes its name or meaning.
KEYS = {
    "": "artifact backend command created frames is_cpu machine memory parts_ms readings recall row schema serial"
    " settings slots throughput tools warnings",
    "row": "AR@10 AR@100 AR@1000 backend device frames_per_joule frames_per_s input latency_p50_ms latency_p99_ms model"
    " power_mode precision sha256 watts",
    "artifact": "file manifest num_bytes sha256",
    "machine": "board cores cpu gpu has_pinned_clocks jetson_linux load_average memory_mib power_mode python system"
    " versions",
    "memory": "machine_growth_mib process_peak_mib",
    "frames": "num_images num_kept origin sizes_hw",
    "settings": "engine frame_hw frames_mib max_drift_percent sample_ms serial_s sources throughput_s warm_up_s",
    "serial": "frames_per_joule phase telemetry",
    "serial.phase": "drift_percent end_s frames_per_s frames_per_s_by_part num_frames stage_ms start_s",
    "serial.phase.stage_ms": "inference postprocess preprocess total",
    "serial.phase.stage_ms.total": "max mean p50 p90 p99",
    "serial.telemetry": "clock_mhz load_percent num_readings power_w temperature_c throttling total_of total_w",
    "recall": "data data_sha256 metrics num_images",
}


@pytest.fixture
def photos(tmp_path: Path, paint: Callable[..., Image]) -> Path:
    """A COCO data set of four pictures of two sizes, in which the model `bright` finds every object."""
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number, (height, width) in enumerate([(192, 320), (192, 320), (96, 160), (192, 320)], start=1):
        box = (8 * number, 16, 8 * number + 40, 56)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), paint(height, width, box=box, count=1))
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        bbox = [box[0], box[1], 40, 40]
        row = {"id": number, "image_id": number, "category_id": 1, "bbox": bbox, "area": 1600, "iscrowd": 0}
        annotations.append(row)
    categories = [{"id": 1, "name": "thing"}]
    for name in ("train", "val"):
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def measured(model_path: Path) -> BenchReport:
    """A report of a short run on made-up frames."""
    return run_bench(BenchRequest(model=model_path, command="edgerpn bench bright.onnx"), SHORT)


class Page(HTMLParser):
    """The texts of a page, and the tags that must not be in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_one_command_measures_latency_rate_power_and_recall(
    model_path: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_tool(tmp_path / "bin", "tegrastats", repeat(ORIN_NX))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    out = tmp_path / "new" / "bench.json"
    words = ["bench", str(model_path), "--data", str(photos), "-o", str(out), *QUICK]
    assert main(words) == 0
    shown = capsys.readouterr().out
    report = json.loads(out.read_text(encoding="utf-8"))
    # Every object is found by the first proposal.
    assert report["recall"]["metrics"]["AR@10"] == report["row"]["AR@10"] == pytest.approx(1, abs=0.15)
    assert report["recall"]["num_images"] == 4
    # The model gives ten proposals, so AR@100 would repeat AR@10.
    assert report["row"]["AR@100"] is None
    assert "AR@10 " in shown
    assert report["artifact"]["sha256"] == files.sha256(model_path)
    assert report["artifact"]["manifest"]["name"] == "bright"
    assert report["memory"]["process_peak_mib"] > 20
    assert re.search(r"^memory +[\d,]+ MiB at most in this process", shown, re.MULTILINE)
    assert report["command"].split()[:2] == ["edgerpn", "bench"]
    assert "--set serial_s=0.2" in report["command"]
    assert "tegrastats" in report["tools"]
    for phase in ("serial", "throughput"):
        stages = report[phase]["phase"]["stage_ms"]
        assert all(0 <= ms["p50"] <= ms["p90"] <= ms["p99"] <= ms["max"] for ms in stages.values())
        assert report[phase]["phase"]["num_frames"] >= 4
    page = out.with_suffix(".html").read_text(encoding="utf-8")
    assert f"{report['row']['latency_p50_ms']:.2f} ms" in page
    assert f"{report['row']['frames_per_s']:.1f}/s" in page
    assert report["artifact"]["sha256"] in page


def test_the_report_keeps_its_fields(
    model_path: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    assert main(["bench", str(model_path), "--data", str(photos), "-o", str(out), *QUICK]) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["schema"] == 1
    for path, keys in KEYS.items():
        found: Any = report
        for name in filter(None, path.split(".")):
            found = found[name]
        assert " ".join(sorted(found)) == keys, path


def test_the_recall_of_a_bench_is_that_of_eval(
    model_path: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = tmp_path / "bench.json", tmp_path / "eval.json"
    assert main(["bench", str(model_path), "--data", str(photos), "-o", str(reports[0]), *QUICK]) == 0
    assert main(["eval", str(model_path), "--data", str(photos), "-o", str(reports[1])]) == 0
    found, expected = (json.loads(file.read_text(encoding="utf-8")) for file in reports)
    for name, value in found["recall"]["metrics"].items():
        assert value == pytest.approx(expected["metrics"][name], abs=1e-5), name
    assert found["recall"]["data_sha256"] == expected["data_sha256"]


@pytest.mark.parametrize(("trained", "words"), [("apply", []), ("auto", ["--exif", "apply"])])
def test_images_are_turned_as_in_the_models_training_or_as_the_user_says(
    trained: Any, words: list[str], make_model: Callable[..., Path], paint: Callable[..., Image], tmp_path: Path
) -> None:
    model, data, out = make_model(tmp_path), tmp_path / "data", tmp_path / "bench.json"
    described = manifest.read(model)
    manifest.write(described.replace(input=dataclasses.replace(described.input, exif=trained)), model)
    (data / "images").mkdir(parents=True)
    turned = PIL.Image.Exif()
    turned[0x112] = 6  # the stored picture is to be turned right by a quarter
    stored = np.rot90(paint(96, 160, box=(100, 16, 140, 56), count=1)[..., ::-1])
    PIL.Image.fromarray(np.ascontiguousarray(stored)).save(data / "images" / "1.jpg", exif=turned, quality=100)
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 160, "height": 96}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [100, 16, 40, 40]}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (data / "val.json").write_text(json.dumps(content))
    assert main(["bench", str(model), "--data", str(data), "-o", str(out), *words, *QUICK]) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["recall"]["metrics"]["AR@10"] > 0.7


def test_images_that_do_not_fit_into_memory_run_after_the_clock(model_path: Path, photos: Path) -> None:
    paths = tuple(sorted((photos / "images").iterdir()))
    big = tuple(path for path in paths for _ in range(2))
    kept: list[int] = []

    def measure(proposals: Any) -> RecallFacts:
        kept.extend(sorted(proposals))
        assert all(len(found) == 1 for found in proposals.values())
        return RecallFacts(data="photos", data_sha256="", num_images=len(proposals), metrics={"AR@1000": 0.5})

    # 192 x 320 x 3 bytes are 0.18 MiB: five of the eight pictures and a small one fit into 1 MiB.
    report = run_bench(
        BenchRequest(model=model_path, command="", images=big, measure_recall=measure),
        dataclasses.replace(SHORT, frames_mib=1),
    )
    assert kept == list(range(8))
    assert 1 <= report.frames.num_kept < report.frames.num_images == 8
    assert report.recall is not None
    # Of ten proposals, AR@1000 says nothing.
    assert report.recall.metrics == {}


def test_a_model_for_one_camera_size_gets_photographs_letterboxed_and_its_boxes_are_those_of_the_photograph(
    tmp_path: Path, make_model: Callable[..., Path], paint: Callable[..., Image]
) -> None:
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), paint(192, 320, box=(40, 40, 120, 120), count=1))
    seen: dict[int, Proposals] = {}
    with load(make_model(tmp_path, source_hw=(96, 160))) as model:
        frames = FrameSet([photo], source_hw=(96, 160), frame_hw=(1, 1), max_mib=1)

        def keep(frame: BenchFrame, found: Proposals) -> None:
            seen[frame.index] = frame.restore(found)

        run_throughput(model, frames.kept, 0, num_sources=1, on_proposals=keep)
    assert frames.kept[0].image.shape == (96, 160, 3)
    np.testing.assert_allclose(seen[0].boxes, [[40, 40, 120, 120]], atol=4)


def test_an_engine_is_measured_with_all_its_slots_and_in_parts(
    bench: Any, make_engine: Callable[..., Path], tmp_path: Path
) -> None:
    model = Model(bench.load(make_engine(tmp_path), num_slots=2))
    frames = FrameSet([], source_hw=None, frame_hw=(90, 150), max_mib=8)
    serial = run_serial(model, frames.kept, 0)
    busy = run_throughput(model, frames.kept, 0, num_sources=3, on_proposals=lambda *_: None)
    assert serial.num_frames == len(frames.kept) == 8
    assert busy.num_frames == 24
    parts = _time_parts(model)
    assert list(parts) == ["upload", "inference", "download"]
    assert all(ms.p50 >= 0 for ms in parts.values())
    # The slot works on as before.
    assert len(model(frames.kept[0].image).boxes) <= 10
    model.close()


def test_made_up_frames_are_the_same_at_every_run() -> None:
    first, second = (FrameSet([], source_hw=None, frame_hw=(60, 100), max_mib=1) for _ in range(2))
    for one, other in zip(first.kept, second.kept, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
    assert first.sizes_hw() == [(60, 100)]


def test_drift_is_the_change_from_the_first_to_the_last_third(monkeypatch: pytest.MonkeyPatch) -> None:
    # 30 frames in the first second, then 15 a second: half the rate.
    ends = [number / 30 for number in range(1, 31)] + [1 + number / 15 for number in range(1, 31)]
    now_s = iter([0.0, *ends])
    monkeypatch.setattr("edgerpn.runtime.bench.phases.time.monotonic", lambda: next(now_s))
    log = PhaseLog()
    for _ in ends:
        log.add(_Done())  # type: ignore[arg-type]
    phase = log.finish()
    assert phase.drift_percent == pytest.approx(-50, abs=6)
    assert phase.frames_per_s == pytest.approx(20)
    assert len(phase.frames_per_s_by_part) == 10
    assert phase.stage_ms["total"].p99 == pytest.approx(6)


class _Done:
    stage_ms = {"preprocess": 1.0, "inference": 3.0, "postprocess": 2.0}  # noqa: RUF012 - a stand-in of one result


def with_readings(report: BenchReport, readings: list[Reading]) -> BenchReport:
    telemetry = summarize(readings, prefers_gpu=True)
    return dataclasses.replace(
        report,
        tools=("tegrastats",),
        readings=tuple(readings),
        serial=make_phase_report(report.serial.phase, telemetry),
        throughput=make_phase_report(report.throughput.phase, telemetry),
    )


def test_throttling_drift_and_few_readings_are_reasons_to_doubt(measured: BenchReport) -> None:
    reading = dataclasses.replace(read(ORIN_NX), throttling=("cooling: cpufreq-cpu0",))
    doubtful = with_readings(measured, [reading, read(ORIN_NX)])
    phase = dataclasses.replace(doubtful.serial.phase, drift_percent=-9.5)
    doubtful = dataclasses.replace(doubtful, serial=dataclasses.replace(doubtful.serial, phase=phase))
    text = "\n".join(doubtful.warnings)
    assert "throughput: throttled in 1 of 2 readings (cooling: cpufreq-cpu0)" in text
    assert "serial: the rate changed by -9.5 %" in text
    assert "only 2 readings; raise throughput_s" in text
    assert "the power is unknown" not in text
    assert f"warning: {doubtful.warnings[0]}" in doubtful.text()
    assert "the power is unknown" in "\n".join(with_readings(measured, []).warnings)


def test_a_jetson_whose_clocks_follow_the_load_is_a_reason_to_doubt(measured: BenchReport) -> None:
    machine = dataclasses.replace(measured.machine, jetson_linux="R36", has_pinned_clocks=False)
    assert "sudo jetson_clocks" in "\n".join(dataclasses.replace(measured, machine=machine).warnings)


def test_the_page_holds_the_figures_and_needs_nothing_else(measured: BenchReport) -> None:
    readings = [dataclasses.replace(read(ORIN_NX), at_s=float(second)) for second in range(4)]
    report = with_readings(measured, readings)
    metrics = {"AR@10": 0.206, "AR@100": 0.333, "AR@1000": 0.4}
    recall = RecallFacts(data="DIR", data_sha256="0" * 64, num_images=89, metrics=metrics)
    evil = dataclasses.replace(report.machine, board="<script>alert(1)</script>")
    html = render(dataclasses.replace(report, recall=recall, machine=evil))
    page = Page(html)
    text = "\n".join(page.texts)
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert "<script>alert(1)</script> " not in html
    for expected in ("17.95 W", "0.333", "VDD_CPU_GPU_CV", "8.896", "713", "65.56", measured.artifact.sha256):
        assert expected in text
    assert f"{report.throughput.frames_per_joule:.2f}/J" in text
    total = report.serial.phase.stage_ms["total"]
    for value in (total.p50, total.p90, total.p99, total.max):
        assert f"{value:.2f}" in text
    assert html.count("<polyline") >= 4
    assert report.command in text
    for version in report.machine.versions.values():
        assert version in text


def test_the_row_holds_what_identifies_it(measured: BenchReport) -> None:
    row = with_readings(measured, [read(ORIN_NX)]).row
    assert row["watts"] == pytest.approx(17.946)
    assert row["frames_per_joule"] == pytest.approx(measured.throughput.phase.frames_per_s / 17.946)
    assert row["sha256"] == measured.artifact.sha256[:12]
    assert row["input"] == "96x160"
    assert row["AR@100"] is None


def test_without_data_neither_torch_nor_a_package_of_recall_is_needed(model_path: Path) -> None:
    code = """
import sys
for name in ("torch", "torchvision", "onnx", "onnxscript", "matplotlib", "faster_coco_eval", "yaml"):
    sys.modules[name] = None
from edgerpn.__main__ import main
sys.exit(main(["bench", *sys.argv[1:]]))
"""
    words = [sys.executable, "-c", code, str(model_path), *QUICK]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^throughput +\d+\.\d frames/s", done.stdout, re.MULTILINE)
    done = subprocess.run([*words, "--data", "DIR"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'edgerpn[recall]'" in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "MODEL: needed"),
        (["MODEL", "--allow", "images"], 2, "--allow: for --data PATH only"),
        (["MODEL", "--images", "none"], 1, "--images none: this folder does not exist"),
        (["MODEL", "--set", "sources=0"], 2, "sources"),
        (["MODEL", "-o", "page.html"], 2, "the page goes beside it"),
        (["MODEL", "-o", "MODEL"], 1, "would be overwritten"),
        (["none.onnx"], 1, "none.onnx"),
    ],
)
def test_wrong_arguments_are_one_clear_error(
    words: list[str], status: int, message: str, model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *(str(model_path) if word == "MODEL" else word for word in words)]) == status
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message in shown


def test_a_page_that_is_not_of_a_report_is_never_overwritten(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index.html").write_text("mine")
    assert main(["bench", str(model_path), "-o", str(tmp_path / "index.json")]) == 1
    assert "index.html: exists without index.json and would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "index.html").read_text() == "mine"


def test_a_report_never_replaces_the_annotations(
    model_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (photos / "val.json").read_text()
    assert main(["bench", str(model_path), "--data", str(photos), "-o", str(photos / "val.json"), *QUICK]) == 1
    assert "val.json: this is an input of the command and would be overwritten" in capsys.readouterr().err
    assert (photos / "val.json").read_text() == before


def test_a_photograph_that_cannot_be_read_is_an_error(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    assert main(["bench", str(model_path), "--images", str(tmp_path), *QUICK]) == 1


# The output of `nvpmodel -q` as in NVIDIA's Jetson Linux Developer Guide, Power Mode Controls.
@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", "0 MAXN"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 15W\n2\n", "2 15W"),
        ("", None),
    ],
)
def test_the_power_mode_of_nvpmodel(text: str, mode: str | None) -> None:
    assert parse_power_mode(text) == mode
