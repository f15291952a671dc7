"""`edgerpn export`: its flags, its output, its errors."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgerpn.export
import edgerpn.manifest
from edgerpn.__main__ import main
from edgerpn.arguments import load_settings
from edgerpn.errors import ConfigError
from edgerpn.export.cli import FLAGS, add_arguments
from edgerpn.export.export_config import ExportConfig

GetExport = Callable[[str], Any]


def parsed(*arguments: str) -> ExportConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return load_settings(ExportConfig, parser.parse_args(["best.pt", "-o", "model.onnx", *arguments]), FLAGS)


def test_the_public_names_are_sorted_and_exist() -> None:
    assert edgerpn.export.__all__ == sorted(edgerpn.export.__all__)
    for name in edgerpn.export.__all__:
        assert callable(getattr(edgerpn.export, name))
    with pytest.raises(AttributeError, match="has no attribute 'load'"):
        edgerpn.export.load  # noqa: B018


def test_without_flags_the_settings_are_the_defaults() -> None:
    assert parsed() == ExportConfig()


def test_every_flag_reaches_the_settings() -> None:
    config = parsed(
        *("--target", "tensorrt", "--size", "384x640", "--source-size", "1080x1920", "--batch", "4"),
        *("--proposals", "30", "--set", "pre_nms=200", "--set", "nms_iou=0.6", "--set", "score_threshold=0.1"),
        *("--set", "nms=standard", "--set", "soft_nms_iou=0.4"),
    )
    assert config == ExportConfig(
        target="tensorrt", network_hw=(384, 640), source_hw=(1080, 1920), batch=4, num_proposals=30, pre_nms=200,
        nms_iou=0.6, soft_nms_iou=0.4, score_threshold=0.1, nms="standard",
    )  # fmt: skip
    assert parsed("--target", "tensorrt", "--batch", "dynamic").fixed_batch is None


@pytest.mark.parametrize(
    "flags", [["--batch", "0"], ["--batch", "many"], ["--size", "0x10"], ["--target", "cpu"], ["--precision", "int4"]]
)
def test_wrong_usage_ends_with_status_2(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["export", "best.pt", "-o", "model.onnx", *flags])
    assert exit_info.value.code == 2
    assert "usage: edgerpn export" in capsys.readouterr().err


def test_arguments_about_a_data_set_need_one(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--format", "coco", "--split", "0.2", "--allow", "images", "--classes", "fish", "--exif", "apply"]
    assert main(["export", "best.pt", "-o", "model.onnx", *words, "--follow-links"]) == 2
    named = "--format and --split and --allow and --classes and --exif and --follow-links"
    assert f"{named}: for --data PATH only; name a data set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "setting"),
    [
        ("--proposals", "0", "num_proposals"),
        ("--size", "16x640", "network_hw"),
        ("--set", "nms_iou=1.5", "nms_iou"),
        ("--set", "soft_nms_iou=0", "soft_nms_iou"),
    ],
)
def test_settings_out_of_range_are_errors_of_ours(flag: str, value: str, setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"{setting}: expected"):
        parsed(flag, value)


def test_the_command_measures_recall_on_the_training_folder(exported: GetExport, photos: Path) -> None:
    made = exported("standard")
    recall = edgerpn.manifest.read(made.file).recall
    assert recall is not None
    assert recall.num_images == 5
    metrics = dict(recall.metrics)
    assert "AR@1000" not in metrics
    assert 0.05 < metrics["AR@100"] < 1
    assert sorted(p.name for p in made.file.parent.iterdir()) == ["model.golden.npz", "model.json", "model.onnx"]


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--size", "130x190"], 1, "use 128x192"),
        (["--target", "tensorrt", "--set", "pre_nms=5000"], 1, "use --set pre_nms=3840 or less"),
        (["--set", "nms_iou=1.5"], 2, "nms_iou"),
        (["-o", "model.txt"], 2, "--output model.txt: expected a file name that ends in .onnx"),
        (["--data", "nowhere"], 1, "nowhere: no such file or folder; expected a folder or file of one of:"),
        (["--images", "nowhere"], 1, "this folder does not exist"),
    ],
)
def test_a_failed_export_is_one_error_and_writes_nothing(
    flags: list[str],
    status: int,
    message: str,
    checkpoints: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["export", str(checkpoints["pyramid"]), "-o", str(tmp_path / "model.onnx"), *flags]) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert not list(tmp_path.iterdir())


def test_a_missing_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "nowhere.pt"), "-o", str(tmp_path / "model.onnx")]) == 1
    assert "nowhere.pt: no such checkpoint file" in capsys.readouterr().err


def test_a_manifest_never_replaces_another_json_file(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = tmp_path / "val.json"
    annotations.write_text('{"images": []}')
    assert main(["export", str(checkpoints["pyramid"]), "-o", str(tmp_path / "val.onnx")]) == 1
    assert "val.json: not a manifest; it would be overwritten" in capsys.readouterr().err
    assert annotations.read_text() == '{"images": []}'


@pytest.mark.slow
def test_an_opset_that_the_exporter_does_not_write_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(checkpoints["peaks"]), "-o", str(tmp_path / "model.onnx"), "--set", "opset=99"]
    assert main(command) == 1
    assert "opset 99" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
