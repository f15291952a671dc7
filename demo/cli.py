"""The command `edgerpn demo`: everything from data to an annotated video, on made-up data.

Steps: draw a detection set and a video, measure the general weights without training, fine-tune them, train from random
weights for as long, evaluate the fine-tuned network, export it with proof of parity, run the video, write the report.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgerpn import files
from edgerpn.arguments import count_argument, size_argument
from edgerpn.errors import require

if TYPE_CHECKING:
    from edgerpn.demo.starts import StartedRun
    from edgerpn.demo.steps import DemoFolder
    from edgerpn.demo.synthetic.dataset import SyntheticVideo
    from edgerpn.manifest import Manifest
    from edgerpn.train.config import TrainSettings

SHORT_RUN = (
    # The run takes fifty to three hundred steps, so everything that the preset spreads over a long run comes early.
    "optimizer.learning_rate=4e-3",
    "optimizer.warmup_steps=20",
    "optimizer.ema_warmup_steps=60",
    "loop.log_every=2",
)
"""Settings that differ from the `edge` preset, which is meant for runs of at least ten minutes."""

_STEPS = 8
_MODULES = (
    "numpy",
    "cv2",
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "faster_coco_eval",
    "matplotlib",
    "safetensors",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "-o", "--output", "--out", type=Path, default=Path("demo-out"), metavar="DIR", help="folder (default demo-out)"
    )
    parser.add_argument(
        "--seed", type=count_argument(0), default=0, metavar="N", help="seed of data and training (default 0)"
    )
    parser.add_argument(
        "--minutes", type=_minutes, default=1.5, metavar="M", help="time of each training (default 1.5)"
    )
    parser.add_argument(
        "--images", type=count_argument(1), default=320, metavar="N", help="training images (default 320)"
    )
    parser.add_argument(
        "--val-images", type=count_argument(1), default=40, metavar="N", help="images to measure on (default 40)"
    )
    parser.add_argument(
        "--frames", type=count_argument(1), default=150, metavar="N", help="frames of the video (default 150)"
    )
    parser.add_argument(
        "--size", type=size_argument, default=(384, 640), metavar="HxW", help="network size (default 384x640)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a training setting; may be repeated"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the demo; returns the exit status (130 when interrupted)."""
    for module in _MODULES:
        require(module, extra="demo", purpose="the demo")
    from edgerpn.demo.report import DemoFacts, write_report
    from edgerpn.demo.starts import settings_by_start
    from edgerpn.demo.steps import DemoFolder, run_video
    from edgerpn.export.evaluate import evaluate_model
    from edgerpn.models import GENERAL
    from edgerpn.train.recall.average_recall import format_table

    begin = time.monotonic()
    folder, step = DemoFolder(arguments.output), _Steps()
    settings = settings_by_start(training_settings(arguments))
    folder.start({"seed": arguments.seed, "minutes": arguments.minutes, "images": arguments.images})

    step(f"drawing {arguments.images + arguments.val_images} images and a video of {arguments.frames} frames")
    video = _draw(arguments, folder)

    runs = _measure_and_train(settings, folder, step)
    if runs is None:
        return 130

    step("evaluating the fine-tuned general weights")
    evaluation = evaluate_model(folder.checkpoint, folder.data)

    step("exporting it to ONNX and comparing the graph with PyTorch")
    export = _export(folder)

    step("running the video through the exported model")
    video_run = run_video(folder, video)
    print(video_run.summary.text())
    if video_run.summary.stop_signal is not None:
        return 128 + video_run.summary.stop_signal

    step("writing the report")
    facts = DemoFacts(
        folder=folder,
        settings=settings[GENERAL],
        runs=runs,
        evaluation=evaluation,
        export=export,
        video=video,
        video_run=video_run,
    )
    columns = write_report(facts)

    print(f"\n{format_table(columns)}\n")
    _print_paths(folder)
    print(f"done in {time.monotonic() - begin:.0f} s")
    return 0


class _Steps:
    """Numbers the lines that announce the steps."""

    def __init__(self) -> None:
        self._number = 0

    def __call__(self, text: str) -> None:
        self._number += 1
        print(f"[{self._number}/{_STEPS}] {text}")


def training_settings(arguments: argparse.Namespace) -> TrainSettings:
    """Returns the `edge` preset, fitted to a short run, under the settings of the command line.

    Raises:
        ConfigError: A setting is unknown or out of range.
    """
    from edgerpn.machine import available_cores
    from edgerpn.train.config import load_settings

    # A core stays free for the processes that read images: PyTorch's threads wait for each other without sleeping, so
    # one that shares its core stops them all. On two busy cores, two threads were up to ten times slower than one.
    threads = max(1, available_cores() - 1)
    height, width = arguments.size
    asked = (f"loop.minutes={arguments.minutes}", f"loop.seed={arguments.seed}", f"data.input_hw=[{height}, {width}]")
    return load_settings(overrides=(*SHORT_RUN, f"loop.threads={threads}", *asked, *arguments.set))


def _draw(arguments: argparse.Namespace, folder: DemoFolder) -> SyntheticVideo:
    """Writes the detection set, and a video whose frames are twice as large."""
    from edgerpn.demo.synthetic.dataset import write_dataset, write_video

    height, width = arguments.size
    write_dataset(
        folder.data, num_train=arguments.images, num_val=arguments.val_images, hw=(height, width), seed=arguments.seed
    )
    # 16:9, as cameras have it; the network's own sides are multiples of its coarsest stride.
    video_hw = (round(width * 9 / 16) * 2, width * 2)
    return write_video(
        folder.source_video,
        num_frames=arguments.frames,
        hw=video_hw,
        seed=arguments.seed,
        annotations=folder.data / "video.json",
    )


def _measure_and_train(
    settings: Mapping[str, TrainSettings], folder: DemoFolder, step: Callable[[str], None]
) -> dict[str, StartedRun] | None:
    """Returns the training from each start, or None if one was interrupted; fills `folder.checkpoint`."""
    from edgerpn.demo.starts import STARTS, StartedRun, evaluate_start
    from edgerpn.models import GENERAL
    from edgerpn.train.training import train

    step("measuring the general weights without training, and random ones")
    before = {start: evaluate_start(settings[start], folder.data) for start in STARTS}
    for start, evaluation in before.items():
        print(f"{STARTS[start]}: AR@100 {evaluation.metrics['AR@100']:.3f}")
    runs = {}
    for start, name in STARTS.items():
        step(f"training the edge preset from {name} for {settings[start].loop.minutes:g} minutes")
        training = train(folder.data, folder.runs[start], settings=settings[start], log=print)
        if training.interrupted:
            print(f"interrupted; the training so far is in {folder.runs[start]}")
            return None
        runs[start] = StartedRun(before=before[start], training=training)
        (_, first), *_, (_, last) = runs[start].recall_curve
        print(f"{name}: AR@100 {first:.3f} before training, {last:.3f} after it")
    with files.replacing(folder.checkpoint) as temporary:
        shutil.copyfile(runs[GENERAL].training.best, temporary)
    return runs


def _export(folder: DemoFolder) -> Manifest:
    from edgerpn.export.onnx.export import export_onnx

    return export_onnx(folder.checkpoint, folder.model, data=folder.data, log=print)


def _print_paths(folder: DemoFolder) -> None:
    for path, meaning in (
        (folder.report, "the report; open it in a browser"),
        (folder.annotated_video, "the video with the best proposals drawn in"),
        (folder.results, "the proposals of each frame"),
        (folder.model, "the exported model; its manifest is model.json"),
        (folder.checkpoint, "the checkpoint that it was made from"),
        (folder.data, "the made-up images, video and annotations"),
    ):
        print(f"{path!s:<28} {meaning}")


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number of minutes, got {text!r}")
    return minutes
