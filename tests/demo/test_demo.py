"""The demo: one small run from data to report, and the rules of its folder and arguments."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgerpn import files, manifest
from edgerpn.__main__ import main
from edgerpn.demo.cli import add_arguments, training_settings
from edgerpn.demo.starts import STARTS
from edgerpn.demo.steps import MARKER, DemoFolder
from edgerpn.errors import ConfigError
from edgerpn.proposals import pairwise_iou
from edgerpn.train.checkpoint import load_checkpoint
from edgerpn.train.run.folder import RunFolder, read_log

NUM_FRAMES = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    """A finished demo."""

    folder: DemoFolder
    output: str


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    out = tmp_path_factory.mktemp("demo") / "out"
    output = io.StringIO()
    sizes = ["--images", "8", "--val-images", "3", "--frames", str(NUM_FRAMES), "--size", "128x192"]
    with contextlib.redirect_stdout(output):
        status = main(["demo", "-o", str(out), "--minutes", "0.05", *sizes, "--set", "data.workers=0"])
    assert status == 0
    return Demo(folder=DemoFolder(out), output=output.getvalue())


@pytest.mark.slow
def test_the_demo_announces_its_steps_and_ends_with_the_table_and_the_paths(demo: Demo) -> None:
    steps = re.findall(r"^\[(\d)/(\d)\]", demo.output, flags=re.MULTILINE)
    assert steps == [(str(number), "8") for number in range(1, 9)]
    end = demo.output.split("[8/8]")[1]
    row = re.search(r"^AR@100 +([0-9.]+) +([0-9.]+)$", end, flags=re.MULTILINE)
    assert row is not None
    assert float(row[1]) == pytest.approx(float(row[2]), abs=0.0011)
    folder = demo.folder
    named = (folder.report, folder.annotated_video, folder.results, folder.model, folder.checkpoint, folder.data)
    for path in named:
        assert path.exists()
        assert f"\n{path}" in end


@pytest.mark.slow
def test_the_exported_model_is_that_of_the_checkpoint_and_states_its_recall(demo: Demo) -> None:
    found = manifest.read(demo.folder.model)
    assert found.provenance.checkpoint_sha256 == files.sha256(demo.folder.checkpoint)
    assert found.provenance.data_sha256 == files.sha256(demo.folder.data / "train.json")
    assert found.input.network_hw == (128, 192)
    assert found.recall is not None
    assert found.recall.num_images == 3
    assert 0 <= dict(found.recall.metrics)["AR@100"] <= 1


@pytest.mark.slow
def test_both_trainings_are_in_the_report_from_before_their_first_step_on(demo: Demo) -> None:
    html = demo.folder.report.read_text(encoding="utf-8")
    for start, name in STARTS.items():
        row = re.search(rf"<th scope='row'>{name}</th>((?:<td class='number'>[^<]*</td>)+)", html)
        assert row is not None
        before, after, steps = re.findall(">([^<]+)</td>", row[1])
        assert f"\n{name}: AR@100 {before}\n" in demo.output
        history = read_log(demo.folder.runs[start] / "log.csv")
        assert float(after) == pytest.approx([row["AR@100"] for row in history if "AR@100" in row][-1], abs=0.00051)
        assert int(steps) == max(int(row["step"]) for row in history)
        assert RunFolder(demo.folder.runs[start]).read_last().settings.loop.start == start
    assert load_checkpoint(demo.folder.checkpoint).settings.loop.start == "general"


@pytest.mark.slow
def test_every_frame_has_its_line_and_its_picture(demo: Demo) -> None:
    records = [json.loads(line) for line in demo.folder.results.read_text().splitlines()]
    assert [record["frame"] for record in records] == list(range(NUM_FRAMES))
    assert {(record["width"], record["height"]) for record in records} == {(384, 216)}
    assert all(record["proposals"] for record in records)
    source, annotated = (read_video(path) for path in (demo.folder.source_video, demo.folder.annotated_video))
    assert len(source) == len(annotated) == NUM_FRAMES
    assert annotated[0].shape == source[0].shape == (216, 384, 3)
    # Boxes are drawn: some pixels differ by far more than the second encoding alone would change them.
    assert (np.abs(annotated[0].astype(int) - source[0].astype(int)).max(axis=2) > 80).sum() > 100


@pytest.mark.slow
def test_the_report_states_what_the_files_hold(demo: Demo) -> None:
    html = demo.folder.report.read_text(encoding="utf-8")
    for heading in (
        "General weights and a random start",
        "Fine-tuning",
        "Recall",
        "Proposals beside ground truth",
        "Time per frame",
        "Made with",
    ):
        assert f"<h2>{heading}</h2>" in html
    for stage in ("decode", "preprocess", "inference", "postprocess", "write"):
        assert f"<th scope='row'>{stage}</th>" in html
    for package in ("Python", "torch", "onnx", "onnxruntime", "OpenCV", "NumPy", "CPU"):
        assert f"<th scope='row'>{package}</th>" in html
    assert html.count("<figcaption>") == 1 + 3 + 2  # loss, validation images, frames of the video
    recall = manifest.read(demo.folder.model).recall
    assert recall is not None
    assert f"<dd class='value'>{dict(recall.metrics)['AR@100']:.3f}</dd>" in html
    config = re.search(r"all settings are in ([^<]+)\.</p>", html)
    assert config is not None
    assert Path(config[1]).is_file()
    counts = re.search(r"Of the (\d+) objects in these frames, (\d+) \(", html)
    assert counts is not None
    assert (int(counts[1]), int(counts[2])) == count_covered(demo.folder)


def count_covered(folder: DemoFolder) -> tuple[int, int]:
    """Objects of the video and those covered at IoU 0.5, from the written files alone."""
    truth = json.loads((folder.data / "video.json").read_text())["annotations"]
    covered = 0
    for line in folder.results.read_text().splitlines():
        record = json.loads(line)
        boxes = np.array([row["bbox"] for row in truth if row["image_id"] == record["frame"]], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        covered += int((pairwise_iou(boxes, np.array(record["proposals"])[:, :4]) >= 0.5).any(axis=1).sum())
    return len(truth), covered


def read_video(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    capture.release()
    return frames


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_text("mine")
    with pytest.raises(ConfigError, match="choose another"):
        DemoFolder(tmp_path).start({})
    assert (tmp_path / "best.pt").read_text() == "mine"
    with pytest.raises(ConfigError, match="expected a new or empty folder"):
        DemoFolder(tmp_path / "best.pt").start({})


def test_a_folder_of_an_earlier_demo_is_cleared_of_its_results_alone(tmp_path: Path) -> None:
    folder = DemoFolder(tmp_path / "new")
    folder.start({"seed": 1})
    for path in (folder.data / "train.json", folder.training / "best.pt", folder.report, folder.path / "notes.txt"):
        files.write_text(path, "old")
    folder.start({"seed": 2})
    assert {path.name for path in folder.path.rglob("*")} == {MARKER, "notes.txt"}
    assert json.loads((folder.path / MARKER).read_text()) == {"seed": 2}


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(argv)


def test_the_command_line_reaches_the_training_settings() -> None:
    arguments = parse("--seed", "7", "--minutes", "0.5", "--size", "192x320", "--set", "data.batch_size=4")
    settings = training_settings(arguments)
    assert (settings.loop.seed, settings.loop.minutes) == (7, 0.5)
    assert settings.data.input_hw == (192, 320)
    # The command line overrides the settings of a short run.
    assert settings.data.batch_size == 4
    assert settings.optimizer.warmup_steps == 20
    # The processes that read images need a core too.
    assert settings.loop.threads == max(1, len(os.sched_getaffinity(0)) - 1)
    assert training_settings(parse("--set", "loop.threads=3")).loop.threads == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--minutes", "0"), "positive number of minutes, got '0'"),
        (("--minutes", "nan"), "positive number of minutes, got 'nan'"),
        (("--frames", "-3"), "at least 1, got '-3'"),
        (("--images", "many"), "at least 1, got 'many'"),
        (("--size", "384by640"), "HEIGHTxWIDTH"),
    ],
)
def test_wrong_arguments_are_refused(argv: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("=".join(argv))
    assert message in capsys.readouterr().err
