"""`edgerpn eval`: a checkpoint and its export have the same recall; results of any program can be measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

from edgerpn import files
from edgerpn.__main__ import main
from edgerpn.errors import DataError
from edgerpn.export.evaluate import evaluate_model, evaluate_results
from edgerpn.train.data.choice import DataChoice
from edgerpn.train.data.splits import find_split
from tests.train.data.formats.data_sets import write_yolo

GetExport = Callable[[str], Any]


@pytest.mark.parametrize("name", ["standard", "portable"])
def test_a_checkpoint_and_its_export_have_the_same_recall(name: str, exported: GetExport, photos: Path) -> None:
    made = exported(name)
    found = evaluate_model(made.file, photos)
    expected = evaluate_model(made.checkpoint, photos, num_proposals=made.config.num_proposals)
    assert found.metrics.keys() == expected.metrics.keys()
    for metric, value in expected.metrics.items():
        assert found.metrics[metric] == pytest.approx(value, abs=0.001), metric
    assert expected.metrics["AR@100"] > 0.05
    assert (found.num_images, found.num_proposals) == (expected.num_images, expected.num_proposals) == (5, 50)
    assert found.data_sha256 == files.sha256(photos / "val.json")
    assert 0 < found.latency_ms["p50"] <= found.latency_ms["p95"] <= found.latency_ms["p99"]
    assert found.images_per_s == pytest.approx(1000 / found.latency_ms["mean"])


def test_a_model_with_classes_is_measured_by_precision_too(
    make_model: Callable[..., Path], paint: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # One fish, found exactly; and one crab, found 1 px smaller on each side, behind a fish that is not there.
    names, box = ("fish", "crab"), (20, 20, 80, 80)
    images = [{"id": n, "file_name": f"{n}.png", "width": 160, "height": 96} for n in (1, 2)]
    boxes = [{"id": n, "image_id": n, "category_id": 10 * n, "bbox": [20, 20, 60, 60]} for n in (1, 2)]
    categories = [{"id": 20, "name": "crab"}, {"id": 10, "name": "fish"}]
    (tmp_path / "images").mkdir()
    for number in (1, 2):
        assert cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), paint(96, 160, box=box, count=number))
    data = tmp_path / "val.json"
    data.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    model = make_model(tmp_path, class_names=names)
    assert main(["eval", str(model), "--data", str(data), "-o", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    # 58 x 58 of 60 x 60 pixels are an IoU of 0.934: one threshold of ten is above it.
    assert report["classes"] == {
        "fish": {"AP": pytest.approx(1.0), "AP50": pytest.approx(1.0)},
        "crab": {"AP": pytest.approx(0.9), "AP50": pytest.approx(1.0)},
    }
    assert report["metrics"]["AP"] == pytest.approx(0.95)
    assert report["metrics"]["AR@10"] == pytest.approx(1.0)
    assert "AP50" in capsys.readouterr().out


def test_an_exported_model_is_measured_where_torch_does_not_import(exported: GetExport, photos: Path) -> None:
    code = """
import sys
for name in ("torch", "torchvision", "onnx", "onnxscript", "matplotlib"):
    sys.modules[name] = None
from edgerpn.__main__ import main
sys.exit(main(["eval", *sys.argv[1:]]))
"""
    words = [sys.executable, "-c", code, str(exported("standard").file), "--data", str(photos)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "AR@100 " in done.stdout


def test_a_model_for_one_camera_size_is_measured_on_pictures_of_any_size(exported: GetExport, photos: Path) -> None:
    fixed = evaluate_model(exported("portable-source").file, photos)
    free = evaluate_model(exported("portable").file, photos)
    assert fixed.num_images == 5
    # Pictures are scaled twice on this way.
    assert fixed.metrics["recall@100-iou50"] == pytest.approx(free.metrics["recall@100-iou50"], abs=0.25)
    assert fixed.metrics["AR@100"] > 0.05


def test_recall_on_classes_that_the_model_may_have_seen_is_called_so(
    exported: GetExport, photos: Path, tmp_path: Path
) -> None:
    content = json.loads((photos / "val.json").read_text())
    content["categories"].append({"id": 3, "name": "other"})
    for annotation in content["annotations"][::2]:
        annotation["category_id"] = 3
    (tmp_path / "val.json").write_text(json.dumps(content))
    made = exported("standard")
    lines: list[str] = []
    for model in (made.checkpoint, made.file):
        found = evaluate_model(
            model, tmp_path / "val.json", images=photos / "images", holdout_classes=["other"], log=lines.append
        )
        assert found.open_world
    seen = [line for line in lines if "may have seen" in line]
    assert seen[0].endswith(".pt was trained without holding out other, and may have seen such objects")
    assert seen[1].endswith("an exported model does not say what it was trained on; it may have seen objects of other")


def test_a_limit_measures_the_first_images_only(checkpoints: dict[str, Path], photos: Path) -> None:
    evaluation = evaluate_model(checkpoints["peaks"], photos, limit=2)
    assert evaluation.num_images == 2


def test_the_command_prints_recall_and_speed_and_writes_a_report(
    exported: GetExport, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, report = exported("standard").file, tmp_path / "new" / "report.json"
    assert main(["eval", str(file), "--data", str(photos / "val.json"), "--output", str(report)]) == 0
    captured = capsys.readouterr()
    rows = dict(line.split() for line in captured.out.splitlines() if line.startswith(("AR@", "recall@")))
    assert list(rows)[:4] == ["AR@10", "AR@100", "AR@300", "AR@1000"]
    assert "5 images, " in captured.out
    assert "latency p50" in captured.out
    assert "(AR@100, AR@300, AR@1000: this model gives 50 proposals at most)" in captured.err
    content = json.loads(report.read_text())
    assert content["model"] == str(file)
    assert f"{content['metrics']['AR@100']:.3f}" == rows["AR@100"]
    assert set(content["latency_ms"]) == {"p50", "p90", "p95", "p99", "mean"}


@pytest.fixture
def results(photos: Path, tmp_path: Path) -> Path:
    """A results file with a perfect proposal for the first two of three boxes of each image."""
    content = json.loads((photos / "val.json").read_text())
    rows = [
        {"image_id": row["image_id"], "category_id": 1, "bbox": row["bbox"], "score": 0.5}
        for row in content["annotations"]
        if row["id"] % 3
    ]
    file = tmp_path / "results.json"
    file.write_text(json.dumps(rows))
    return file


def test_results_of_any_program_are_measured(
    results: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    arguments = ["eval", "--results", str(results), "--data", str(photos / "val.json"), "--output", str(report)]
    assert main(arguments) == 0
    assert "results.json" in capsys.readouterr().out
    metrics = json.loads(report.read_text())["metrics"]
    # Two of three are found in full, the third by chance at best.
    assert 2 / 3 - 1e-9 <= metrics["AR@10"] <= 0.85
    assert metrics == evaluate_results(results, photos / "val.json").metrics


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "expected a JSON list of results, got dict"),
        ("[1]", "result 0: expected image_id, bbox"),
        ('[{"image_id": 1, "bbox": [1, 2, 3], "score": 1}]', "result 0: expected image_id, bbox"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, 4]}]', "result 0: expected image_id, bbox"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, "4"], "score": 1}]', "result 0: expected image_id, bbox"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, NaN], "score": 1}]', "result 0: expected image_id, bbox"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": "high"}]', "result 0: expected image_id, bbox"),
        ('[{"image_id": [1], "bbox": [1, 2, 3, 4], "score": 1}]', "result 0: expected image_id, bbox"),
        ('[{"image_id": 99, "bbox": [1, 2, 3, 4], "score": 1}]', "1 image ids are not in the annotations"),
        ("[", "results.json: not valid JSON"),
        ('[{"image_id": null, "bbox": [1, 2, 3, 4], "score": 1}]', "result 0: expected image_id, bbox"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, 1e999], "score": 1}]', "result 0: expected image_id, bbox"),
    ],
)
def test_results_in_another_form_are_refused(
    text: str, message: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        evaluate_results(file, photos / "val.json")
    assert main(["eval", "--results", str(file), "--data", str(photos / "val.json")]) == 1
    assert message in capsys.readouterr().err


def test_annotations_in_another_form_are_refused(results: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "annotations.json"
    wrong.write_text("[]")
    with pytest.raises(DataError, match="expected a JSON object with 'images' and 'annotations', got list"):
        evaluate_results(results, wrong)
    wrong.write_text('{"images": [{"id": null}], "annotations": [{"id": [], "image_id": {}}]}')
    with pytest.raises(DataError, match="no usable image entries\n  image entry without a usable id and file name: 1"):
        evaluate_results(results, wrong)
    wrong.write_text('{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": []}')
    with pytest.raises(DataError, match=r"annotations\.json: no objects to measure recall on: its 1 images have 0 reg"):
        evaluate_results(results, wrong)
    with pytest.raises(DataError, match=r"nowhere\.json: cannot be read"):
        evaluate_results(results, tmp_path / "nowhere.json")


@pytest.mark.parametrize("arguments", [[], ["model.onnx", "--results", "results.json"]])
def test_a_model_or_results_must_be_named(
    arguments: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *arguments, "--data", str(photos / "val.json")]) == 2
    assert "name either a MODEL or --results" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nowhere.onnx", "nowhere.pt", "nowhere.engine"])
def test_a_missing_model_is_named(name: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", name, "--data", str(photos / "val.json")]) == 1
    assert name in capsys.readouterr().err


def test_a_report_never_replaces_an_input(
    exported: GetExport, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = exported("standard").file
    before = file.with_suffix(".json").read_bytes()
    data = str(photos / "val.json")
    assert main(["eval", str(file), "--data", data, "--output", str(file.with_suffix(".json"))]) == 1
    assert "this is an input of the command" in capsys.readouterr().err
    assert file.with_suffix(".json").read_bytes() == before
    assert main(["eval", str(file), "--data", data, "--output", str(photos)]) == 1
    assert "this is a folder" in capsys.readouterr().err


def test_sizes_of_exported_models_and_sizes_that_do_not_fit_are_refused(
    exported: GetExport, checkpoints: dict[str, Path], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(photos / "val.json")
    assert main(["eval", str(exported("standard").file), "--data", data, "--size", "64"]) == 2
    assert "an exported model has its own" in capsys.readouterr().err
    assert main(["eval", str(checkpoints["pyramid"]), "--data", data, "--size", "100x100"]) == 1
    assert "multiples of 32" in capsys.readouterr().err


def test_results_are_measured_on_a_set_of_another_format(tmp_path: Path) -> None:
    write_yolo(tmp_path / "images", tmp_path / "labels", 2)
    # Images are numbered from 1 in the order of their names.
    rows = [{"image_id": number, "bbox": [10, 5, 20, 10], "score": 0.9, "category_id": 1} for number in (1, 2)]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    whole = DataChoice(split="train=val,val=train")
    assert evaluate_results(tmp_path / "results.json", find_split(tmp_path, "val", whole)).metrics["AR@100"] == 1


def test_results_with_classes_are_measured_by_precision_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # An object of both classes, a second crab that is missed, and an object without a class, which recall counts. The
    # class crab has two ids.
    boxes = [(20, [10, 10, 20, 20]), (7, [10, 10, 20, 20]), (20, [50, 10, 20, 20]), (None, [90, 10, 20, 20])]
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 160, "height": 96}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": category, "bbox": box}
            for number, (category, box) in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 20, "name": "crab"}, {"id": 7, "name": "fish"}, {"id": 21, "name": "crab"}],
    }
    (tmp_path / "val.json").write_text(json.dumps(content))
    found = [
        {"image_id": 1, "category_id": category, "bbox": boxes[0][1], "score": 0.9 - category / 100}
        for category in (7, 21)
    ]
    results, report = tmp_path / "results.json", tmp_path / "report.json"
    words = ["eval", "--results", str(results), "--data", str(tmp_path / "val.json"), "-o", str(report)]
    results.write_text(json.dumps(found))
    assert main(words) == 0
    shown = json.loads(report.read_text())
    half = pytest.approx(51 / 101)  # of 101 levels of recall, those up to a half
    assert shown["classes"] == {"crab": {"AP": half, "AP50": half}, "fish": {"AP": 1.0, "AP50": 1.0}}
    assert shown["metrics"]["AP50"] == pytest.approx((1 + 51 / 101) / 2)
    assert shown["metrics"]["AR@10"] == pytest.approx(1 / 3)
    assert "crab" in capsys.readouterr().out
    # A class that the annotations do not have, and results of one class only: recall alone, as for any detector.
    for category, line in (
        (8, "val.json: no AP, because it has no class for the category_id of 1 of 2 results"),
        (7, ""),
    ):
        results.write_text(json.dumps([found[0], {**found[1], "category_id": category}]))
        assert main(words) == 0
        told = capsys.readouterr().err
        assert line in told
        assert ("no AP" in told) == bool(line)
        alone = json.loads(report.read_text())
        assert alone["classes"] == {}
        assert "AP" not in alone["metrics"]
        assert alone["metrics"]["AR@10"] == pytest.approx(1 / 3)


def test_results_and_annotations_are_read_by_the_reader_of_training(tmp_path: Path) -> None:
    """A byte order mark, text ids on one side only, a bad annotation and a copy of a box."""
    boxes = [[10, 5, 20, 10], [40, 5, 20, 10]]
    rows: list[object] = [{"id": n, "image_id": n, "bbox": box} for n, box in enumerate(boxes, start=1)]
    rows += [{"id": None, "image_id": [1], "bbox": None}, {"image_id": 1, "bbox": [10, 5, 20, 10]}]
    truth = {"images": [{"id": n, "file_name": f"{n}.jpg", "width": None} for n in (1, 2)], "annotations": rows}
    (tmp_path / "val.json").write_text(json.dumps(truth), encoding="utf-8-sig")
    found = [{"image_id": f"{n}", "bbox": box, "score": 0.5} for n, box in enumerate(boxes, start=1)]
    (tmp_path / "results.json").write_text(json.dumps(found), encoding="utf-16")
    lines: list[str] = []
    metrics = evaluate_results(tmp_path / "results.json", tmp_path / "val.json", log=lines.append).metrics
    assert metrics["AR@100"] == 1
    assert [line.partition(" (")[0] for line in lines] == [
        "val.json: image without a usable width and height: 2, size taken from the file",
        "val.json: annotation of an image that is not listed: 1, dropped",
        "val.json: box that equals another of its image: 1, kept once",
    ]
