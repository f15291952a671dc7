"""One reader of a stream before the model, in a process of its own: ours or another project's.

    python -m benchmarks.streams.peer NAME --url rtsp://... --model model.onnx --seconds N --out FILE

Writes for each result the time, the true age of the picture by its stamp, and the time in the model, from
preprocessing to boxes in pixels of the picture, which is ours for all of them. `idle` runs no model: its age is the
time that camera, network and decoder take.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2

from benchmarks.streams.stamp import age_ms
from edgerpn.runtime import Model, load
from edgerpn.runtime.frame import Result
from edgerpn.runtime.run import SourceConfig, StreamRunner, StreamsConfig

SETTLE_S = 2.0
"""Seconds that do not count, with the pictures that waited while the decoder started."""
_MIN_ROWS = 2
"""On a machine that stands still for longer than the measurement, it goes on until it has seen this many pictures."""


def main() -> None:
    """Reads for some seconds from the first picture that counts; ends early when the stream does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("ours", *PICTURES))
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    # The cores belong to the model, as in `edgerpn run`.
    cv2.setNumThreads(1)
    rows: list[dict[str, float]] = []
    start_s, counting_s, num_damaged = 0.0, 0.0, 0
    with (
        load(options.model, providers=["cpu"]) as model,
        closing(_results(options.name, options.url, model)) as results,
    ):
        for picture, figures in results:
            now_s = time.monotonic()
            start_s = start_s or now_s
            if now_s - start_s < SETTLE_S:
                continue
            counting_s = counting_s or now_s
            if now_s - counting_s >= options.seconds and len(rows) >= _MIN_ROWS:
                break
            age = age_ms(picture, now_s)
            num_damaged += age is None
            if age is not None:
                rows.append({"time_s": now_s, "age_ms": age, **figures})
    version = _version(options.name)
    options.out.write_text(json.dumps({"rows": rows, "damaged": num_damaged, "version": version}), encoding="ascii")


def _results(name: str, url: str, model: Model) -> Generator[tuple[Any, dict[str, float]], None, None]:
    """Pictures, each with the milliseconds in the model and, of ours, the figures of its record."""
    if name == "ours":
        yield from _ours(url, model)
        return
    # Closed in order: threads that read while Python ends crash it.
    with closing(PICTURES[name](url)) as pictures:
        for picture in pictures:
            start_s = time.monotonic()
            if name != "idle":
                model(picture)
            yield picture, {"model_ms": (time.monotonic() - start_s) * 1e3}


def _ours(url: str, model: Model) -> Generator[tuple[Any, dict[str, float]], None, None]:
    # No limit of age, so that old results count too.
    config = StreamsConfig(sources=(SourceConfig(source=url, name="camera", max_age_ms=0.0),))
    with StreamRunner(model, config) as runner:
        for item in runner:
            if isinstance(item, Result):
                stages = item.stage_ms
                yield (
                    item.image,
                    {
                        "model_ms": stages["preprocess"] + stages["inference"] + stages["postprocess"],
                        "told_ms": item.age_ms or 0.0,
                        "lag_ms": stages.get("capture_lag", 0.0),
                        "wait_ms": stages.get("wait", 0.0),
                    },
                )


def _read(url: str) -> Generator[Any, None, None]:
    """The loop of most programs."""
    capture = cv2.VideoCapture(url)
    while True:
        is_there, picture = capture.read()
        if not is_there:
            return
        yield picture


def _supervision(url: str) -> Generator[Any, None, None]:
    """It has no loader for live streams; this is its generator, with the thread that it recommends for slow models."""
    from supervision import get_video_frames_generator

    yield from get_video_frames_generator(url, prefetch=8)


def _ultralytics(url: str) -> Generator[Any, None, None]:
    loader = importlib.import_module("ultralytics.data.loaders").LoadStreams(url)
    try:
        for _, pictures, _ in loader:
            yield pictures[0]
    finally:
        loader.close()


PICTURES = {"idle": _read, "read": _read, "supervision": _supervision, "ultralytics": _ultralytics}
"""Readers of pictures by name."""


def _version(name: str) -> str:
    module = sys.modules.get(name)
    return f"{name} {module.__version__}" if module is not None else f"OpenCV {cv2.__version__}"


if __name__ == "__main__":
    main()
