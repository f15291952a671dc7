"""Runs the model of this folder on a video in DeepStream, and turns its tensors into objects.

    python3 edgerpn_tensors.py file:///VIDEO

It needs pyservicemaker, which comes with DeepStream 7.1 and later, and PyTorch, which reads the tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

MIN_SCORE = 0.2
NETWORK_WH = (640, 640)
NAMES = ("object",)


def objects_of(tensors: Mapping[str, np.ndarray], frame_wh: tuple[int, int]) -> list[tuple[int, float, list[float]]]:
    """Returns class, score and left, top, width, height in pixels of the frame, best first.

    Args:
        tensors: boxes (K, 4), scores (K,), count (1,) and, with classes, labels (K,), of one frame.
        frame_wh: Width and height of the frame; nvinfer has scaled it to fit and laid it at the top left.
    """
    scale = min(NETWORK_WH[0] / frame_wh[0], NETWORK_WH[1] / frame_wh[1])
    objects = []
    for row in range(int(tensors["count"].flat[0])):
        score = float(tensors["scores"][row])
        if score >= MIN_SCORE:
            x1, y1, x2, y2 = np.clip(tensors["boxes"][row] / scale, 0, [*frame_wh, *frame_wh]).tolist()
            number = int(tensors["labels"][row]) if "labels" in tensors else 0
            objects.append((number, score, [x1, y1, x2 - x1, y2 - y1]))
    return objects


def main(uri: str) -> None:
    """Plays the video with the boxes of its objects."""
    import torch
    from pyservicemaker import BatchMetadataOperator, Flow, Pipeline, Probe, osd

    class ObjectMaker(BatchMetadataOperator):
        def handle_metadata(self, batch_meta: Any) -> None:
            for frame in batch_meta.frame_items:
                for item in frame.tensor_items:
                    layers = item.as_tensor_output().get_layers()
                    tensors = {
                        name: torch.utils.dlpack.from_dlpack(layer.clone()).cpu().numpy()
                        for name, layer in layers.items()
                    }
                    for found in objects_of(tensors, (frame.pipeline_width, frame.pipeline_height)):
                        self.attach(batch_meta, frame, *found)

        def attach(self, batch_meta: Any, frame: Any, number: int, score: float, ltwh: list[float]) -> None:
            made = batch_meta.acquire_object_meta()
            made.class_id, made.confidence, made.label = number, score, NAMES[number]
            rect = made.rect_params
            rect.left, rect.top, rect.width, rect.height = ltwh
            rect.border_width, rect.border_color = 2, osd.Color(0.0, 1.0, 0.0, 1.0)
            frame.append(made)

    config = str(Path(__file__).resolve().with_name("config_tensors.txt"))
    flow = Flow(Pipeline("edgerpn")).batch_capture([uri]).infer(config)
    flow.attach(what=Probe("objects", ObjectMaker())).render()()


if __name__ == "__main__":
    main(sys.argv[1])
