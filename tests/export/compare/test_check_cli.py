"""The command `edgerpn check`: exit status, table, report and pictures."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from edgerpn import manifest as manifests
from edgerpn.errors import ConfigError, DataError, EngineLoadError
from edgerpn.export import check_cli

GetExport = Callable[[str], Any]


def check(*words: object) -> int:
    """Runs the command with these arguments."""
    parser = argparse.ArgumentParser()
    check_cli.add_arguments(parser)
    return check_cli.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def damaged(exported: GetExport, tmp_path: Path) -> Path:
    """An export with other weights, under a manifest of its own."""
    made = exported("standard")
    proto = onnx.load(made.file)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("objectness.weight"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    onnx.save(proto, tmp_path / "damaged.onnx")
    manifests.write(manifests.read(made.file), tmp_path / "damaged.onnx")
    return tmp_path / "damaged.onnx"


def test_warnings_alone_are_no_failure(exported: GetExport, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = exported("standard").file
    assert check(file, "--target", "onnxruntime") == 0
    assert "for onnxruntime: nothing that it cannot do" in capsys.readouterr().out
    assert check(file, "--target", "tensorrt-11", "--output", tmp_path / "report.json") == 0
    shown = capsys.readouterr().out
    count = shown.count("warning: varying-shape: NonMaxSuppression")
    assert count >= 1
    assert f"for tensorrt-11: 0 errors, {count} warnings" in shown
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["model"], report["target"]["num_warnings"]) == (str(file), count)
    assert [violation["rule"] for violation in report["target"]["violations"]] == ["varying-shape"] * count


def test_an_error_is_listed_with_limit_and_fix_and_fails(
    exported: GetExport, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(exported("standard").file, "--target", "tensorrt-rtx") == 1
    shown = capsys.readouterr().out
    count = shown.count(": operator NonMaxSuppression")
    assert count >= 1
    assert "limit: TensorRT-RTX does not have this operator" in shown
    assert "fix:   export with --set nms=portable" in shown
    assert f"for tensorrt-rtx: {count} errors, 0 warnings" in shown


def test_a_foreign_model_is_checked_with_a_note(
    exported: GetExport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = onnx.load(exported("portable").file)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "theirs.onnx")
    assert check(tmp_path / "theirs.onnx", "--target", "tensorrt-rtx") == 0
    assert capsys.readouterr().out.startswith("note: theirs.onnx has no manifest of edgerpn")


def test_models_that_agree_end_in_0_with_a_table_and_a_report(
    exported: GetExport, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = exported("standard")
    report, pictures = tmp_path / "report.json", tmp_path / "pictures"
    data = ("--data", photos / "val.json", "--images", photos / "images")
    more = ("--output", report, "--pictures", pictures, "--limit", 3)
    assert check(made.file, "--against", made.checkpoint, *data, *more) == 0
    shown = capsys.readouterr()
    assert "3 images, batch 1, 2:" in shown.out
    assert "AR@100: " in shown.out
    assert "the models agree within the tolerance of fp32" in shown.out
    assert shown.err == f"{photos / 'val.json'}: COCO (val.json); val: all of val.json\n"
    content = json.loads(report.read_text())
    assert content["comparison"]["agrees"] is True
    assert {image["image"] for image in content["comparison"]["images"]} == {"1.png", "3.png", "5.png"}
    assert len(list(pictures.iterdir())) >= 1


def test_a_device_without_torch_and_onnx_compares_files(exported: GetExport, photo_files: list[Path]) -> None:
    code = """
import sys
for name in ("torch", "torchvision", "onnx", "onnxscript", "matplotlib", "faster_coco_eval"):
    sys.modules[name] = None
from edgerpn.__main__ import main
sys.exit(main(["check", *sys.argv[1:]]))
"""
    a, b = exported("portable").file, exported("standard").file
    words = [sys.executable, "-c", code, str(a), "--against", str(b), "--images", str(photo_files[0].parent)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the models agree within the tolerance of fp32" in done.stdout


def test_models_that_disagree_end_in_1_with_the_culprit(
    damaged: Path, exported: GetExport, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--images", photos / "images", "--output", tmp_path / "report.json", "--target", "onnxruntime")
    assert check(damaged, "--against", exported("standard").file, *more) == 1
    shown = capsys.readouterr()
    assert "error: the models were not shown to agree: " in shown.err
    assert ".png, batch " in shown.err
    content = json.loads((tmp_path / "report.json").read_text())
    # Both halves of the command are in one report.
    assert content["target"]["violations"] == []
    assert content["comparison"]["culprit"] in shown.err


def test_different_models_are_announced_before_the_table(
    exported: GetExport, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = (exported("peaks-standard").file, "--against", exported("standard").file)
    assert check(*pair, "--images", photos / "images", "--limit", 1) == 1
    shown = capsys.readouterr().out
    assert shown.index("These are different models:") < shown.index("  checkpoint: ") < shown.index("min IoU")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name a --target to check the graph for, or a model to compare it with"),
        (("--against", "b.onnx"), "--against needs photographs; name their folder with --images"),
        (("--target", "tensorrt-11", "--data", "v.json"), "--data is for a comparison"),
        (("--target", "tensorrt-11", "--exif", "apply"), "--exif: for --data PATH only"),
        (("--against", "b.onnx", "--images", ".", "--classes", "fish"), "--classes: for --data PATH only"),
        (("--against", "b.onnx", "--images", "nowhere"), "--images nowhere: expected a folder of photographs"),
        (("--target", "tensorrt-11", "--output", "."), "this is a folder, expected the name of a file"),
        (("--target", "tensorrt-11", "--output", "model.json"), "this is an input of the command"),
    ],
)
def test_arguments_that_cannot_work_are_refused_before_the_work(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check("model.onnx", *words)


def test_a_report_never_replaces_the_annotations(photos: Path) -> None:
    for data in (photos, photos / "val.json"):
        with pytest.raises(ConfigError, match="this is an input of the command"):
            check("model.onnx", "--against", "b.onnx", "--data", data, "--output", photos / "val.json")


def test_images_are_turned_as_in_the_models_training(exported: GetExport, tmp_path: Path) -> None:
    file = shutil.copy(exported("standard").file, tmp_path / "model.onnx")
    described = manifests.read(exported("standard").file)
    manifests.write(described.replace(input=dataclasses.replace(described.input, exif="apply")), file)
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    turned = Image.Exif()
    turned[0x112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(noise).save(data / "images" / "1.jpg", exif=turned)
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 60, 30, 30]}
    images = [{"id": 1, "file_name": "1.jpg", "width": 64, "height": 96}]
    (data / "val.json").write_text(json.dumps({"images": images, "annotations": [box]}))
    assert check(file, "--against", file, "--data", data) == 0
    with pytest.raises(DataError, match="orientation 6"):
        check(exported("standard").file, "--against", exported("standard").file, "--data", data)


def test_an_unknown_target_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        check("model.onnx", "--target", "tensorrt-9")
    assert caught.value.code == 2
    assert "tensorrt-10.3" in capsys.readouterr().err


def test_files_that_cannot_be_used_end_in_our_errors(exported: GetExport, photos: Path, tmp_path: Path) -> None:
    file = exported("standard").file
    with pytest.raises(EngineLoadError, match="no such file"):
        check(tmp_path / "none.onnx", "--target", "tensorrt-rtx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no images in it to compare on"):
        check(file, "--against", file, "--images", tmp_path / "empty")
    shutil.copy(photos / "images" / "1.png", tmp_path / "empty" / "1.png")
    (tmp_path / "empty" / "2.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"2\.png"):
        check(file, "--against", file, "--images", tmp_path / "empty")
    with pytest.raises(DataError, match=r"none\.json: no such file or folder"):
        check(file, "--against", file, "--images", photos / "images", "--data", tmp_path / "none.json")
