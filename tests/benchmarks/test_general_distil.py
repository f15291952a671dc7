"""What a teacher adds to the losses of a training, on boxes and a network made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.general import distil
from benchmarks.general.nanodet import NanoDet, Sight
from benchmarks.general.prepare import merge, read_sets
from edgerpn.train.checkpoint import load_checkpoint
from edgerpn.train.learning.assign import Assignment
from edgerpn.train.run.loop import run_training
from edgerpn.train.training import resolve_settings


def sight(boxes: list[list[float]], scores: list[float]) -> Sight:
    return Sight([], torch.tensor([boxes]), torch.tensor([scores]))


def test_the_teacher_adds_what_no_label_names() -> None:
    boxes = [
        [0.0, 0, 20, 20],
        [0.0, 0, 20, 19],  # a copy of the first
        [40.0, 40, 80, 80],  # labelled, IoU 0.8
        [60.0, 0, 62, 30],  # too thin
        [0.0, 60, 30, 90],
        [50.0, 0, 90, 30],  # too unsure
    ]
    labelled = torch.tensor([[[40.0, 40, 80, 72], [0.0, 0, 0, 0]]])
    found = distil.teach(sight(boxes, [0.3, 0.29, 0.9, 0.8, 0.6, 0.07]), labelled, torch.tensor([[True, False]]))
    assert found.boxes[0].tolist() == [boxes[4], boxes[0], [0.0] * 4]
    assert found.scores[0].tolist() == pytest.approx([0.6, 0.3, 0.0])


def test_a_view_without_anything_has_a_row_of_padding() -> None:
    found = distil.teach(sight([[0.0, 0, 9, 9]], [0.01]), torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.bool))
    assert found.boxes.tolist() == [[[0.0] * 4]]
    assert found.scores.tolist() == [[0.0]]


def assignment(labels: list[int], matched: list[int], overlap: list[float]) -> Assignment:
    return Assignment(
        labels_NA=torch.tensor([labels]), matched_NA=torch.tensor([matched]), overlap_NA=torch.tensor([overlap])
    )


def test_labelled_objects_come_before_the_teachers() -> None:
    named = assignment([1, 0, -1, 0, 0], [1, 0, 0, 0, 0], [0.7, 0.6, 0.0, 0.2, 0.0])
    seen = assignment([1, 1, 1, 1, 0], [0, 0, 2, 1, 0], [0.9, 0.9, 0.4, 0.5, 0.05])
    both = distil.join(named, seen, 5)
    assert both.labels_NA.tolist() == [[1, 0, 1, 1, 0]]
    assert both.matched_NA[0, [0, 2, 3]].tolist() == [1, 7, 6]
    assert both.overlap_NA[0].tolist() == pytest.approx([0.9, 0.9, 0.4, 0.5, 0.05])


class Bright(NanoDet):
    """Sees the brightest cells; its features are the blue channel and a ramp, at three sizes."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def look(self, images: Tensor) -> Sight:
        self.seen.append(tuple(images.shape))
        maps = [torch.nn.functional.avg_pool2d(images, stride) for stride in (8, 16, 32)]
        count, _, height, width = images.shape
        box = torch.tensor([width / 2, 0.0, width + 5, height / 2])
        return Sight(maps, box.expand(count, 1, 4), torch.full((count, 1), 0.5))


@pytest.mark.slow
def test_a_training_learns_from_labels_and_teacher(
    sets: Path, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distil, "MAPS_ALONE_STEPS", 1)
    data = tmp_path / "data"
    data.mkdir()
    for name, content in zip(("train", "val"), merge(read_sets(sets)), strict=True):
        (data / f"{name}.json").write_text(json.dumps(content))
    for name in read_sets(sets):
        (data / "images").mkdir(exist_ok=True)
        (data / "images" / name).symlink_to(sets / name / "images")
    three_levels = ("model.anchors={strides_px=[8, 16, 32], sizes_px=[[16.0], [32.0], [64.0]]}",)
    deeper = ("model.stage_channels=[4, 8, 8, 8, 8]", "model.stage_blocks=[0, 0, 0, 0, 0]", "data.input_hw=[96, 128]")
    settings = resolve_settings(
        start="random", epochs=2, follow_links=True, overrides=(*tiny, *three_levels, *deeper, "loop.evaluations=1")
    )
    teacher = Bright()
    result = run_training(settings, data=data, output=tmp_path / "run", loss_function=distil.Distillation(teacher))
    assert set(teacher.seen) == {(4, 3, 64, 96)}
    rows = [row for row in result.history if row.get("loss")]
    assert len(rows) == len(teacher.seen)
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert rows[-1]["objectness"] < rows[0]["objectness"]
    assert load_checkpoint(result.last).weights.keys() == load_checkpoint(result.best).weights.keys()


def test_bad_data_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distil, "NanoDet", lambda _: Bright())
    words = ["--data", str(tmp_path / "none"), "--teacher", str(tmp_path), "-o", str(tmp_path / "run")]
    assert distil.main(words) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'none'}")
