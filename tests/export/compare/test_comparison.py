"""The report of a comparison: recall, table, JSON and pictures agree."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgerpn import manifest as manifests
from edgerpn.export.compare.compare import compare_models
from edgerpn.export.compare.comparison import Comparison, format_comparison
from edgerpn.export.compare.difference_pictures import draw_comparison, write_pictures
from edgerpn.export.evaluate import evaluate_model
from edgerpn.train.data.coco import read_coco

GetExport = Callable[[str], Any]


@pytest.fixture(scope="module")
def measured(exported: GetExport, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A comparison with recall, of an export with a damaged copy."""
    made = exported("standard")
    wrong = tmp_path_factory.mktemp("wrong") / "wrong.onnx"
    proto = onnx.load(made.file)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("objectness.weight"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    onnx.save(proto, wrong)
    manifests.write(manifests.read(made.file), wrong)
    dataset = read_coco(photos / "val.json", photos / "images")
    return compare_models(wrong, made.file, [record.file for record in dataset.records], dataset=dataset)


def test_recall_is_that_of_the_eval_command(measured: Comparison, exported: GetExport, photos: Path) -> None:
    evaluation = evaluate_model(exported("standard").file, photos)
    assert dict(measured.recall_b) == pytest.approx(evaluation.metrics)
    ((name, value, reference),) = measured.recall_changes
    assert (name, reference) == ("AR@100", evaluation.metrics["AR@100"])
    assert value == dict(measured.recall_a)["AR@100"]


def test_recall_counts_only_the_images_that_were_compared(exported: GetExport, photos: Path) -> None:
    made = exported("standard")
    dataset = read_coco(photos / "val.json", photos / "images")
    one = compare_models(made.file, made.file, [dataset.records[1].file], dataset=dataset)
    only = dataclasses.replace(dataset, records=dataset.records[1:2])
    same = compare_models(made.file, made.file, [dataset.records[1].file], dataset=only)
    assert one.recall_a == one.recall_b == same.recall_a


def test_the_table_and_the_report_say_the_same(measured: Comparison) -> None:
    table = format_comparison(measured)
    report = json.loads(json.dumps(measured.to_dict()))
    assert report["agrees"] is False
    assert report["culprit"] == measured.culprit
    assert len(report["images"]) == 5 * 2
    assert sum(image["num_matched"] for image in report["images"]) == report["num_matched"] == measured.num_matched
    assert sum(image["num_unexplained"] for image in report["images"]) == report["num_unexplained"] > 0
    assert report["score_difference"]["max"] >= report["score_difference"]["p99"] >= report["score_difference"]["p50"]
    assert report["iou"]["min"] <= report["iou"]["p1"] <= report["iou"]["mean"] <= 1
    change = report["recall"]["AR@100"]
    assert change["change"] == pytest.approx(change["a"] - change["b"])
    rows = table.splitlines()
    assert rows[1].split()[0] == measured.worst[0].file.name
    assert f"5 images, batch 1, 2: {measured.num_matched} matched" in table
    assert f"AR@100: {change['a']:.4f} against {change['b']:.4f}, {100 * change['change']:+.2f} points" in table


def test_models_that_propose_nothing_do_not_agree(exported: GetExport, peaks_files: list[Path]) -> None:
    file = exported("peaks-standard").file
    (black,) = (picture for picture in peaks_files if picture.stem == "zero")
    empty = compare_models(file, file, [black])
    assert empty.culprit == "neither model proposes anything on any of 1 images, so nothing was compared"
    assert compare_models(file, file, peaks_files).culprit is None


def test_pictures_show_what_only_one_model_has(measured: Comparison, tmp_path: Path) -> None:
    written = write_pictures(measured, tmp_path / "pictures", top=2)
    assert [path.name for path in written] == [f"0{n}_{measured.worst[n - 1].file.stem}.png" for n in (1, 2)]
    picture = cv2.imread(str(written[0]))
    assert picture is not None
    worst = measured.worst[0]
    photograph = cv2.imread(str(worst.file))
    assert photograph is not None
    width = min(max(photograph.shape[1], 480), 960)
    assert picture.shape[1] == 2 * width + 8
    magenta = (picture == (255, 0, 255)).all(axis=2)
    for side, half in ((1, magenta[:, :width]), (0, magenta[:, width:])):
        assert half.any() == bool(worst.agreement.unexplained[side])


def test_an_image_with_a_long_name_has_a_picture(measured: Comparison, tmp_path: Path) -> None:
    file = tmp_path / f"{'a' * 251}.png"
    shutil.copy(measured.worst[0].file, file)
    renamed = tuple(dataclasses.replace(image, file=file) for image in measured.images)
    (written,) = write_pictures(dataclasses.replace(measured, images=renamed), tmp_path / "pictures", top=1)
    assert written.name.startswith("01_aaaa")
    assert written.is_file()


def test_a_picture_of_models_that_agree_has_grey_boxes_only(exported: GetExport, photo_files: list[Path]) -> None:
    file = exported("standard").file
    result = compare_models(file, file, photo_files[:1])
    picture = draw_comparison(result.images[0], result.names)
    assert not (picture == (255, 0, 255)).all(axis=2).any()
    assert not (picture == (0, 170, 255)).all(axis=2).any()
    assert (picture == (200, 200, 200)).all(axis=2).any()


def test_int8_against_another_precision_is_judged_by_recall_alone(measured: Comparison) -> None:
    recall = dict(measured.recall_a)["AR@100"]

    def against(reference: float) -> str | None:
        return dataclasses.replace(
            measured, precision="int8", is_by_recall=True, recall_b=(("AR@100", reference),)
        ).culprit

    assert measured.culprit is not None
    assert against(recall + 0.009) is None
    assert against(recall + 0.02) == "wrong.onnx loses 2.00 points of AR@100, expected at most 1"
    unmeasured = dataclasses.replace(measured, precision="int8", is_by_recall=True, recall_a=(), recall_b=())
    assert unmeasured.culprit is None
