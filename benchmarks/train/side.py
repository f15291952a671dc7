"""One side of `benchmarks.train`: does training steps on request, in a process of its own.

Reads a number of steps from each line of stdin, does them, and writes the seconds that they took as a JSON line.
Its first line names the versions. `torchvision` needs torch and torchvision only.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import torch

SIZES_PX, RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
NUM_BOXES = 8
Step = Callable[[], None]


def made_up(batch: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, H, W, 3) uint8 and boxes (N, G, 4) in pixels, the same on every side."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, side, side, 3), generator=generator, dtype=torch.uint8)
    corner = torch.rand(batch, NUM_BOXES, 2, generator=generator) * side * 0.6
    size = side * (0.05 + 0.35 * torch.rand(batch, NUM_BOXES, 2, generator=generator))
    return images, torch.cat((corner, corner + size), dim=-1)


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def torchvision_step(options: argparse.Namespace) -> tuple[Step, str]:
    """Torchvision's RPN with the rules of its Faster R-CNN; the images come normalised, to its advantage.

    As its Faster R-CNN trains, a forward pass also decodes, sorts and suppresses proposals for the second stage.
    `torchvision-losses` is the same without that, with the losses put together from torchvision's own parts.
    """
    torchvision: Any = importlib.import_module("torchvision")
    layers: Any = importlib.import_module("torchvision.models._utils")
    detection: Any = importlib.import_module("torchvision.models.detection")
    device = torch.device(options.device)
    backbone = layers.IntermediateLayerGetter(torchvision.models.resnet18(weights=None), {"layer3": "0"})
    anchors = detection.rpn.AnchorGenerator((SIZES_PX,), (RATIOS,))
    head = detection.rpn.RPNHead(256, anchors.num_anchors_per_location()[0])
    counts = {"training": 2000, "testing": 1000}
    rpn = detection.rpn.RegionProposalNetwork(anchors, head, 0.7, 0.3, 256, 0.5, counts, counts, 0.7)
    model = torch.nn.ModuleList([backbone, rpn]).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    frames, boxes = made_up(options.batch, options.size)
    pixels = ((frames.float() - 116) / 58).permute(0, 3, 1, 2).contiguous().to(device)
    images = detection.image_list.ImageList(pixels, [(options.size, options.size)] * options.batch)
    targets = [{"boxes": rows.to(device)} for rows in boxes]

    def losses_only() -> Any:
        features = list(backbone(pixels).values())
        objectness, deltas = detection.rpn.concat_box_prediction_layers(*rpn.head(features))
        grid = rpn.anchor_generator(images, features)
        labels, matched = rpn.assign_targets_to_anchors(grid, targets)
        return sum(rpn.compute_loss(objectness, deltas, labels, rpn.box_coder.encode(matched, grid)))

    def losses_and_proposals() -> Any:
        _, losses = rpn(images, backbone(pixels), targets)
        return losses["loss_objectness"] + losses["loss_rpn_box_reg"]

    compute = losses_only if options.side == "torchvision-losses" else losses_and_proposals

    def step() -> None:
        loss = compute()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()

    return step, f"torchvision {torchvision.__version__}, torch {torch.__version__}, {name_of(device)}, fp32"


def our_step(options: argparse.Namespace) -> tuple[Step, str]:
    """Our step on the same network, from uint8 images, with gradients limited and weights averaged."""
    from edgerpn.train.config import load_settings
    from edgerpn.train.data.batch import TrainBatch
    from edgerpn.train.learning.optimizer import WeightAverage, make_optimizer
    from edgerpn.train.network.model import Rpn, RpnWithMaps
    from edgerpn.train.run.device import choose_compute, keep_freed_memory, place
    from edgerpn.train.run.ranks import SINGLE_PROCESS
    from edgerpn.train.run.state import RunProgress, TrainingRun
    from edgerpn.train.run.step import check_finite, take_step

    texts = [
        "model.backbone=resnet18",
        "model.anchors.strides_px=[16]",
        f"model.anchors.sizes_px=[{list(map(float, SIZES_PX))}]",
        f"model.anchors.ratios_hw={list(RATIOS)}",
        "model.neck_channels=0",
        "model.head_channels=256",
        "model.head_norm=false",
        f"data.input_hw=[{options.size}, {options.size}]",
        f"data.batch_size={options.batch}",
        f"loop.device={options.device}",
        f"loop.amp={options.amp}",
        "optimizer.kind=sgd",
        "optimizer.learning_rate=1e-3",
    ]
    if options.side == "edgerpn":
        texts += ["assign.kind=max_iou", "assign.samples_per_image=256", "loss.objectness=bce", "loss.box=smooth_l1"]
    settings = load_settings(overrides=tuple(texts))
    compute = choose_compute(settings.loop)
    if compute.device.type == "cpu":
        keep_freed_memory()
    model = place(Rpn(settings.model), compute.device)
    nothing: Any = None
    run = TrainingRun(
        settings=settings,
        folder=nothing,
        train_set=nothing,
        val_set=nothing,
        loader=cast("Any", SimpleNamespace(batch_size=options.batch, batches_per_epoch=1000)),
        ranks=SINGLE_PROCESS,
        model=model,
        network=RpnWithMaps(model),
        parallel=None,
        optimizer=make_optimizer(model, settings.optimizer),
        average=WeightAverage(model, settings.optimizer),
        scaler=torch.amp.GradScaler(compute.device.type, enabled=compute.dtype == torch.float16),
        compute=compute,
        parameters=tuple(model.parameters()),
        progress=RunProgress(),
    )
    images, boxes = made_up(options.batch, options.size)
    batch = TrainBatch(
        images=images,
        gt_boxes=boxes,
        gt_mask=torch.ones(boxes.shape[:2], dtype=torch.bool),
        gt_labels=torch.zeros(boxes.shape[:2], dtype=torch.int64),
        ignore_boxes=torch.zeros(options.batch, 1, 4),
        ignore_mask=torch.zeros(options.batch, 1, dtype=torch.bool),
        image_ids=list(range(options.batch)),
    )

    def step() -> None:
        check_finite(run, take_step(run, [batch]))
        run.progress.step += 1

    return step, f"torch {torch.__version__}, {name_of(compute.device)}, {compute}"


def main() -> None:
    """Serves steps until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["torchvision", "torchvision-losses", "edgerpn", "edgerpn-default"])
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--amp", required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    step, what = (torchvision_step if options.side.startswith("torchvision") else our_step)(options)
    print(json.dumps(what), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            step()
        if options.device != "cpu":
            torch.cuda.synchronize()
        print(json.dumps(time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
