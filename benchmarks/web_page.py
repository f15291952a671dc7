"""The web page of a run: the cost of viewers, and pictures of it for the documentation. Linux only.

    python -m benchmarks.web_page --model model.onnx --video one.mp4 --video two.mp4@60-110 [--seconds 10]
                                  [--rounds 3] [--pictures docs]

Each video, or some frames of it, is repeated as a camera over HTTP. `edgerpn run --http` is started on all of them, and
the results per second are counted alternately without viewers, with one and with three of the page's streams (which
request all pictures), each --seconds long, --rounds times. All of it shares the cores of one machine: cameras, run, and
viewers that only read.

--pictures takes pictures of the page in Debian's Chromium: light, dark with a camera that is down, and a phone.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("entrance", "hall", "yard", "gate")
MAX_PICTURE_BYTES = 300_000
MAX_FRAMES = 400


def main() -> int:
    """Measures, takes the pictures, and prints the table."""
    options = _options()
    cameras = [_camera(path) for path in options.video]
    try:
        with _run(options.model, cameras) as address:
            if options.rounds:
                _print_rates(address, options.rounds, options.seconds)
            if options.pictures:
                _take_pictures(address, cameras, options.pictures)
    finally:
        for camera in cameras:
            camera.__exit__()
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--video", metavar="FILE[@A-B]", action="append", required=True, help="four at most")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3, help="0: only the pictures")
    parser.add_argument("--pictures", type=Path, help="folder")
    return parser.parse_args()


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"{path.stem}_of_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _camera(spec: str) -> Any:
    """A camera that repeats a video, or frames A to B of it; its pictures are encoded once."""
    path, _, span = spec.partition("@")
    first, _, last = (span or f"0-{MAX_FRAMES}").partition("-")
    video = cv2.VideoCapture(path)
    fps = video.get(cv2.CAP_PROP_FPS) or 12.0
    files: list[bytes] = []
    for index in range(int(last)):
        is_read, frame = video.read()
        if not is_read:
            break
        if index < int(first):
            continue
        files.append(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())
    if not files:
        raise SystemExit(f"{path}: no frame can be read")

    class VideoCamera(_module(ROOT / "tests" / "support" / "mjpeg_server.py").MjpegCamera):  # type: ignore[misc]
        def jpeg(self, index: int) -> bytes:
            """Returns the file of one picture."""
            return files[index % len(files)]

    return VideoCamera(fps=fps)


@contextlib.contextmanager
def _run(model: Path, cameras: list[Any]) -> Iterator[str]:
    """Runs `edgerpn run` with a page; yields the page's host and port."""
    with tempfile.TemporaryDirectory() as folder:
        settings, log = Path(folder) / "streams.toml", Path(folder) / "log"
        tables = [f'[sources.{name}]\nsource = "{camera.url}"' for name, camera in zip(NAMES, cameras, strict=False)]
        lines = f'[[outputs]]\nkind = "jsonl"\npath = "{folder}/proposals.jsonl"'
        settings.write_text("\n".join([*tables, lines]))
        words = ["run", str(model), "--config", str(settings), "--http", "127.0.0.1:0"]
        with log.open("w") as file:
            process = subprocess.Popen([sys.executable, "-m", "edgerpn", *words], stdout=file, stderr=file)
        try:
            yield _address(process, log)
        finally:
            process.terminate()
            process.wait(20)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    while not (found := re.search(r"web page: http://(\S+)/", log.read_text())):
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        time.sleep(0.1)
    while not _are_up(found.group(1)):
        time.sleep(0.1)
    return found.group(1)


def _are_up(address: str) -> bool:
    rows = _get(address, "/api/v1/sources")["sources"]
    return bool(rows) and all(row["num_results"] for row in rows)


def _get(address: str, path: str) -> Any:
    with contextlib.closing(http.client.HTTPConnection(address, timeout=20)) as connection:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())


def _print_rates(address: str, rounds: int, seconds: float) -> None:
    """Results per second, alternately, so that other work of the machine affects all of them."""
    rates: dict[int, list[float]] = {0: [], 1: [], 3: []}
    ages: dict[int, list[float]] = {0: [], 1: [], 3: []}
    for _ in range(rounds):
        for num_viewers in rates:
            with _viewers(address, num_viewers):
                time.sleep(1.0)
                before, start_s = _num_results(address), time.monotonic()
                time.sleep(seconds)
                rates[num_viewers].append((_num_results(address) - before) / (time.monotonic() - start_s))
                rows = _get(address, "/api/v1/sources")["sources"]
                ages[num_viewers] += [row["age_p99_ms"] for row in rows if row["age_p99_ms"] is not None]
    print("| viewers | results/s, median | over none | age p99, median |\n|---|---|---|---|")
    base = statistics.median(rates[0])
    for num_viewers, found in rates.items():
        rate = statistics.median(found)
        print(f"| {num_viewers} | {rate:.1f} | {rate / base:.2f} | {statistics.median(ages[num_viewers]):.0f} ms |")


def _num_results(address: str) -> int:
    return sum(row["num_results"] for row in _get(address, "/api/v1/sources")["sources"])


@contextlib.contextmanager
def _viewers(address: str, number: int) -> Iterator[None]:
    """Connections that take all pictures as they come."""
    is_over = threading.Event()

    def watch() -> None:
        with contextlib.closing(http.client.HTTPConnection(address, timeout=20)) as connection:
            connection.request("GET", "/api/v1/stream.mjpeg")
            answer = connection.getresponse()
            while not is_over.is_set() and answer.read1(1 << 16):
                continue

    threads = [threading.Thread(target=watch) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def _take_pictures(address: str, cameras: list[Any], folder: Path) -> None:
    """The page in light, in dark with the last camera down, and on a phone."""
    browsers = _module(ROOT / "tests" / "support" / "browser.py")
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        "web-light": (1280, 1040, False, 1.0),
        "web-dark": (1280, 1040, True, 1.0),
        "web-phone": (390, 1150, False, 1.5),
    }
    for name, (width, height, is_dark, scale) in sizes.items():
        if name == "web-dark":
            cameras[-1].__exit__()
        browser = browsers.open_browser(width=width, height=height, is_dark=is_dark, scale=scale)
        try:
            browser.get(f"http://{address}/")
            time.sleep(6.0)
            path = folder / f"{name}.jpg"
            for quality in range(90, 20, -10):
                browsers.save_picture(browser, path, quality=quality)
                if path.stat().st_size <= MAX_PICTURE_BYTES:
                    break
            print(path, path.stat().st_size, *browsers.complaints(browser))
        finally:
            browser.quit()


if __name__ == "__main__":
    sys.exit(main())
