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
from edgerpn.train.network.anchors import AnchorConfig, grid_anchors
from edgerpn.train.network.boxes import decode_boxes
from edgerpn.train.network.model import ModelConfig, Rpn
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


def network(seed: int) -> Rpn:
    torch.manual_seed(seed)
    anchors = AnchorConfig(strides_px=(8, 16, 64), sizes_px=((16.0,), (32.0,), (128.0,)))
    config = ModelConfig(anchors=anchors, stage_channels=(4, 4, 4, 4, 4, 4), stage_blocks=(0,) * 6, neck_channels=8)
    return Rpn(config).eval()


def test_only_what_the_kept_weights_are_sure_of_is_an_object() -> None:
    ours = network(0)
    images = torch.randn(2, 3, 128, 192)
    with torch.no_grad():
        levels = ours(images)
        anchors = torch.cat(grid_anchors(ours.config.anchors, (128, 192)))
        everything = torch.cat([logits for logits, _ in levels], dim=1).sigmoid()
        best = everything.argmax(dim=1)
        deltas = torch.cat([deltas for _, deltas in levels], dim=1)
    boxes, scores = distil.look_of(ours, images)
    assert boxes.shape == (2, 100, 4)
    assert scores.shape == (2, 100)
    for number in range(2):
        first = decode_boxes(deltas[number, best[number]][None], anchors[best[number]][None])
        torch.testing.assert_close(boxes[number, :1], first)
        expected = everything[number].sort(descending=True).values[:100]
        torch.testing.assert_close(scores[number], expected.where(expected >= distil.KEPT_SCORE, 0.0))


@pytest.mark.parametrize(("is_part", "shown_hw"), [(True, (160, 384)), (False, (128, 256))])
def test_the_kept_weights_see_whole_views_smaller_and_parts_as_they_are(
    is_part: bool, shown_hw: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look_of(_: Rpn, images: Tensor) -> tuple[Tensor, Tensor]:
        height, width = images.shape[2:]
        seen.append((height, width))
        return torch.tensor([[[-5.0, 0, width / 2, height]]]), torch.tensor([[0.9]])

    monkeypatch.setattr(distil, "look_of", look_of)
    views = torch.zeros(1, 3, 160, 384)
    sight = distil.Distillation(Bright(), network(1)).look(views, is_part=is_part)
    assert seen == [shown_hw]  # 0.7 of the view, to multiples of the coarsest stride
    torch.testing.assert_close(sight.boxes, torch.tensor([[[192.0, 0, 384, 80], [0.0, 0, 192, 160]]]))
    torch.testing.assert_close(sight.scores, torch.tensor([[0.5, 0.9]]))


def test_a_second_look_adds_the_boxes_at_full_size() -> None:
    teacher = Bright()
    views = torch.zeros(1, 3, 160, 384)
    sight = distil.Distillation(teacher, looks_closer=True).look(views, is_part=True)
    assert teacher.seen == [(1, 3, 128, 256), (1, 3, 160, 384)]
    torch.testing.assert_close(sight.boxes, torch.tensor([[[192.0, 0, 384, 80], [192.0, 0, 384, 80]]]))
    torch.testing.assert_close(sight.scores, torch.tensor([[0.5, 0.5]]))
    assert [tuple(maps.shape[2:]) for maps in sight.maps] == [(16, 32), (8, 16), (4, 8)]  # those of the first look


@pytest.mark.slow
@pytest.mark.parametrize("fix_norms_at", [1.0, 0.0])
def test_a_training_learns_from_labels_and_teacher(
    fix_norms_at: float, sets: Path, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    teacher, kept = Bright(), Rpn(settings.model).eval()
    before = {name: value.clone() for name, value in kept.state_dict().items()}
    losses = distil.Distillation(teacher, kept, fix_norms_at=fix_norms_at)
    result = run_training(settings, data=data, output=tmp_path / "run", loss_function=losses)
    assert set(teacher.seen) == {(4, 3, 64, 96)}
    rows = [row for row in result.history if row.get("loss")]
    assert len(rows) == len(teacher.seen)
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert rows[-1]["objectness"] < rows[0]["objectness"]
    assert all(torch.equal(value, before[name]) for name, value in kept.state_dict().items())
    last = load_checkpoint(result.last).weights
    assert last.keys() == load_checkpoint(result.best).weights.keys()
    means = torch.cat([value for name, value in last.items() if name.endswith("running_mean")])
    assert bool((means == 0).all()) == (fix_norms_at == 0)  # as they start


@pytest.mark.parametrize("text", ["nan", "-1", "7", "half"])
def test_a_fraction_outside_of_0_to_1_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(tmp_path), "--teacher", str(tmp_path), "-o", str(tmp_path), "--fix-norms-at", text]
    with pytest.raises(SystemExit, match="2"):
        distil.main(words)
    assert f"--fix-norms-at: expected a number from 0 to 1, got '{text}'" in capsys.readouterr().err


def test_bad_data_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distil, "NanoDet", lambda _: Bright())
    words = ["--data", str(tmp_path / "none"), "--teacher", str(tmp_path), "-o", str(tmp_path / "run")]
    assert distil.main(words) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'none'}")
