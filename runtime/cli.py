"""The command `edgerpn run`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgerpn.arguments import count_argument
from edgerpn.errors import ConfigError
from edgerpn.manifest import manifest_path

if TYPE_CHECKING:
    from edgerpn.runtime.frame import Source
    from edgerpn.runtime.model import Model
    from edgerpn.runtime.sinks.sink import Sink
    from edgerpn.runtime.summary import RunSummary

_SOURCES = (
    "one or several: a video file; an image; a folder or a quoted glob of images; a camera index or /dev/videoN; an "
    "rtsp:// or http:// URL; csi://0; a GStreamer pipeline in quotes"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `edgerpn run` to `parser`."""
    parser.add_argument("model", metavar="MODEL", help="model.onnx or model.engine, with its manifest beside it")
    sources = parser.add_argument("sources", metavar="SOURCE", nargs="+", default=[], help=_SOURCES)
    # Not "*", which argparse takes for empty when options stand between the model and the sources.
    sources.required = False
    parser.add_argument("--config", metavar="FILE", help="TOML file with sources, batching and outputs")
    parser.add_argument(
        "--set", metavar="A.B=VALUE", action="append", default=[], help="change a setting; may be repeated"
    )
    parser.add_argument("--print-config", action="store_true", help="print the settings of streams and end")
    outputs = parser.add_argument_group("outputs (none: only the summary)")
    outputs.add_argument("--out", metavar="DIR", help="folder for proposals.jsonl and the annotated video or images")
    outputs.add_argument("--jsonl", metavar="FILE", help="one JSON line for each frame; - is the standard output")
    outputs.add_argument(
        "--video", metavar="FILE", help="annotated video, .mp4 or .avi; or a folder for videos of each source"
    )
    outputs.add_argument(
        "--http", metavar="HOST:PORT", help="web page and API, such as 127.0.0.1:8080; other addresses need a token"
    )
    outputs.add_argument("--show", action="store_true", help="show the annotated frames in a window; Q closes it")
    parser.add_argument("--max-frames", metavar="N", type=count_argument(1), help="stop after N frames")
    parser.add_argument("--score", metavar="X", type=_score, help="leave out proposals scored below X, everywhere (0)")
    parser.add_argument("--top", metavar="N", type=count_argument(1), default=20, help="draw the N best proposals (20)")
    parser.add_argument("--threads", metavar="N", type=count_argument(1), help="CPU threads of one inference")
    parser.add_argument(
        "--provider",
        metavar="NAME",
        action="append",
        help="ONNX Runtime execution provider (tensorrt, cuda, cpu); may be repeated, in order of preference",
    )
    parser.add_argument(
        "--on-mismatch",
        choices=("fail", "rebuild"),
        default="fail",
        help="engine made for another GPU or version: fail (default), or build it again from the ONNX file beside it",
    )
    logs = parser.add_argument_group("log (on the standard error)")
    logs.add_argument("--log-format", choices=("text", "json"), default="text", help="for people, or for programs")
    logs.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="how much (streams: info)")
    parser.add_argument(
        "--self-test",
        action="store_true",
        help="first run the golden frames beside the model, and refuse wrong results",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and prints its summary; 0 done, 1 no frame could be read, 128 + N ended by signal N."""
    from edgerpn.runtime.run import streams_cli as streams
    from edgerpn.runtime.run.logs import log_to_stderr
    from edgerpn.runtime.sources.file_sources import ImageSource
    from edgerpn.runtime.sources.open_source import image_paths, open_source

    # A pattern that the shell has expanded is a source like one that it has not.
    paths = image_paths(arguments.sources)
    if streams.is_for_streams(arguments) and not (paths and arguments.http is None):
        return streams.run(arguments)
    # A wrong source should fail before the model is loaded.
    source = ImageSource(paths, name=str(paths[0].parent)) if paths else open_source(arguments.sources[0])
    with log_to_stderr(arguments.log_format, arguments.log_level or "warning"):
        try:
            summary = run_opened(arguments, source)
        finally:
            source.close()
    print(summary.text(), file=sys.stderr if arguments.jsonl == "-" else sys.stdout)
    if summary.stop_signal is not None:
        return 128 + summary.stop_signal
    return 1 if summary.num_errors and not summary.num_frames else 0


def run_opened(arguments: argparse.Namespace, source: Source) -> RunSummary:
    """Runs a file, a folder or a pattern that was opened, as the arguments of `edgerpn run` say.

    Raises:
        EdgeRpnError: The first error of model, source or sinks.
    """
    from edgerpn.runtime.opencv import load_cv2
    from edgerpn.runtime.summary import run_source

    check_targets(arguments, source)
    cv2 = load_cv2()
    num_threads = cv2.getNumThreads()
    # The cores belong to the model: waking OpenCV's threads for one small resize costs more than it gains.
    cv2.setNumThreads(1)
    try:
        with _load(arguments, source) as model:
            sinks = _open_sinks(arguments, source)
            return run_source(model, source, sinks, max_frames=arguments.max_frames, min_score=arguments.score or 0.0)
    finally:
        cv2.setNumThreads(num_threads)


def check_targets(arguments: argparse.Namespace, source: Source) -> None:
    """Makes sure that no output would overwrite an input or another output.

    Raises:
        ConfigError: One would.
    """
    inputs = {Path(arguments.model).resolve(), manifest_path(arguments.model).resolve()}
    images = [path.resolve() for path in getattr(source, "paths", ())]
    inputs.update(images or [Path(source.name).resolve()])
    targets = [Path(path).resolve() for path in _target_files(arguments, source)]
    problems = [f"{path}: this is an input of the run, and would be overwritten" for path in targets if path in inputs]
    problems += [f"{path}: this is a folder, expected the name of a file" for path in targets if path.is_dir()]
    problems += [f"{path}: given for two outputs" for path in sorted(set(targets)) if targets.count(path) > 1]
    if arguments.out is not None and Path(arguments.out).resolve() in {path.parent for path in images}:
        problems.append(f"--out {arguments.out}: the images of the source lie there, and would be overwritten")
    if problems:
        raise ConfigError(problems)


def _target_files(arguments: argparse.Namespace, source: Source) -> list[str | Path]:
    files: list[str | Path] = []
    if arguments.jsonl not in (None, "-"):
        files.append(arguments.jsonl)
    if arguments.video is not None:
        files.append(arguments.video)
    if arguments.out is not None:
        names = ("proposals.jsonl",) if source.is_images else ("proposals.jsonl", "annotated.mp4")
        files += [Path(arguments.out) / name for name in names]
    return files


def _load(arguments: argparse.Namespace, source: Source) -> Model:
    from edgerpn.machine import available_cores
    from edgerpn.runtime.model import load

    threads = arguments.threads
    if threads is None:
        # A file has two frames in the model at once: two callers and threads - 1 helpers then fill the cores.
        threads = max(1, available_cores() - 1)
    return load(
        arguments.model,
        providers=arguments.provider,
        threads=threads,
        on_mismatch=arguments.on_mismatch,
        self_test=arguments.self_test,
    )


def _open_sinks(arguments: argparse.Namespace, source: Source) -> list[Sink]:
    from edgerpn.runtime.draw import Painter
    from edgerpn.runtime.sinks.picture_sinks import ImageFolderSink, VideoSink, WindowSink
    from edgerpn.runtime.sinks.sink import JsonLinesSink

    painter = Painter(top=arguments.top)
    sinks: list[Sink] = []
    # Those that can fail without leaving anything behind come first.
    if arguments.show:
        sinks.append(WindowSink(painter, title=f"edgerpn: {source.name}"))
    if arguments.video is not None:
        sinks.append(VideoSink(arguments.video, painter, fps=source.fps))
    if arguments.out is not None:
        folder = Path(arguments.out)
        if source.is_images:
            sinks.append(ImageFolderSink(folder, painter))
        else:
            sinks.append(VideoSink(folder / "annotated.mp4", painter, fps=source.fps))
        sinks.append(JsonLinesSink(folder / "proposals.jsonl"))
    if arguments.jsonl is not None:
        sinks.append(JsonLinesSink(arguments.jsonl))
    return sinks


def _score(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return number
