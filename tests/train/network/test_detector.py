"""The whole detector: frames in, boxes in frame pixels out."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from edgerpn.errors import InputError
from edgerpn.letterbox import letterbox
from edgerpn.train.config import TrainSettings
from edgerpn.train.network.detector import Detector, detect
from edgerpn.train.network.model import Rpn
from edgerpn.train.network.proposal_stage import ProposalConfig

NETWORK_HW = (64, 96)
MakeSettings = Callable[..., TrainSettings]


@pytest.fixture
def model(tiny_settings: MakeSettings) -> Rpn:
    """Random weights, large enough that boxes and scores differ."""
    torch.manual_seed(3)
    network = Rpn(tiny_settings().model).eval()
    torch.nn.init.normal_(network.head.objectness.weight, std=0.5)
    torch.nn.init.normal_(network.head.deltas.weight, std=0.05)
    return network


def scene(height: int, width: int) -> np.ndarray:
    """Smooth colours with a few rectangles."""
    rng = np.random.default_rng(height)
    small = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    frame = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    cv2.rectangle(frame, (width // 5, height // 4), (width // 2, height // 2), (20, 230, 240), -1)
    return frame


def make(model: Rpn, source_hw: tuple[int, int] | None = None, **changes: object) -> Detector:
    config = ProposalConfig(**{"num_proposals": 30, "pre_nms": 60, **changes})  # type: ignore[arg-type]
    return Detector(model, config, network_hw=NETWORK_HW, source_hw=source_hw).eval()


def test_frames_of_the_network_size_give_valid_proposals(model: Rpn) -> None:
    frames = torch.from_numpy(np.stack([scene(*NETWORK_HW), scene(*NETWORK_HW)[:, ::-1].copy()]))
    with torch.inference_mode():
        batch = make(model)(frames)
    assert batch.boxes.shape == (2, 30, 4)
    for i in range(2):
        count = int(batch.count[i])
        boxes, scores = batch.boxes[i, :count], batch.scores[i, :count]
        assert count > 5
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= 96).all()
        assert (boxes[:, 3] <= 64).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)
        assert ((scores > 0) & (scores < 1)).all()
        assert scores[0] > 2 * scores[-1]


def best_overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """For each of `first`, the number of its nearest in `second` by largest corner distance, and that distance."""
    return np.abs(first[:, None] - second[None]).max(axis=-1).min(axis=1)


@pytest.mark.parametrize("source_hw", [(128, 192), (100, 150), (200, 90), (64, 96), (40, 30)])
def test_scaling_inside_and_on_the_host_agree_within_a_pixel(model: Rpn, source_hw: tuple[int, int]) -> None:
    frame = scene(*source_hw)
    # Without NMS, because on the host's way a box in the padding may suppress another one.
    inside_detector = make(model, source_hw, num_proposals=400, nms_iou=1.0, pre_nms=400)
    with torch.inference_mode():
        inside = inside_detector(torch.from_numpy(frame)[None])
    found = inside.boxes[0, : int(inside.count[0])].numpy()
    on_host = detect(make(model, num_proposals=400, nms_iou=1.0, pre_nms=400), frame)
    expected, scores = on_host.boxes, on_host.scores
    assert len(found) > 40
    # The host rounds scaled pixels to whole levels, which moves scores and boxes a little.
    share = float(np.mean(best_overlaps(found, expected) <= 1.0))
    assert share == 1.0
    assert abs(float(inside.scores[0, 0]) - scores[0]) < 0.01
    assert (found <= np.array([source_hw[1], source_hw[0]] * 2)).all()


def test_boxes_lie_in_the_frame_and_not_in_the_padding(model: Rpn) -> None:
    frame = scene(120, 60)
    proposals = detect(make(model), frame)
    boxes, scores = proposals.boxes, proposals.scores
    assert len(boxes) == len(scores) > 0
    assert boxes.dtype == scores.dtype == np.float32
    assert (boxes >= 0).all()
    assert (boxes[:, [0, 2]] <= 60).all()
    assert (boxes[:, [1, 3]] <= 120).all()
    assert ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).all()
    assert letterbox((120, 60), NETWORK_HW).content_hw == (64, 32)


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((1, 10, 10, 3), np.uint8),
    ],
    ids=["grey", "alpha", "float", "batch"],
)
def test_anything_but_a_bgr_frame_is_refused(model: Rpn, frame: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"frame: expected \(H, W, 3\) uint8 BGR, got shape"):
        detect(make(model), frame)


class HostTraffic(TorchFunctionMode):
    """Notes calls that bring numbers from the host to a device, or back."""

    NAMES = ("tensor", "as_tensor", "from_numpy", "new_tensor", "item", "tolist", "cpu", "cuda", "numpy", "__bool__",
             "__int__", "__float__", "nonzero", "masked_select")  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        name = getattr(func, "__name__", "")
        if name in self.NAMES:
            self.calls.append(name)
        return func(*args, **(kwargs or {}))  # type: ignore[operator]


@pytest.mark.parametrize("source_hw", [None, (90, 130)])
@pytest.mark.parametrize(("nms_candidates", "classes"), [(None, "[]"), (40, "[]"), (40, "['cat', 'dog']")])
def test_a_frame_moves_no_number_between_host_and_gpu_so_that_a_cuda_graph_can_hold_it(
    tiny_settings: MakeSettings, source_hw: tuple[int, int] | None, nms_candidates: int | None, classes: str
) -> None:
    model = Rpn(tiny_settings(f"model.classes={classes}").model).eval()
    config = ProposalConfig(num_proposals=10, pre_nms=50, nms_candidates=nms_candidates)
    detector = Detector(model, config, network_hw=NETWORK_HW, source_hw=source_hw, nms="portable").to("meta")
    frames = torch.zeros((2, *(source_hw or NETWORK_HW), 3), dtype=torch.uint8, device="meta")
    with HostTraffic() as traffic, torch.inference_mode():
        batch = detector(frames)
    assert traffic.calls == []
    assert batch.boxes.shape == (2, 10, 4)
