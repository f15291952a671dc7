"""The command `edgerpn run`: sources through a model into outputs, by one runner for files, images and cameras.

The sources alone determine the behaviour, not the flags:

- Files and images must open before the model is loaded, and the device of a camera that the command line names must
  exist; a wrong one ends the command. Other cameras and streams are tried again for as long as the run lasts.
- `--output DIR` holds proposals.jsonl, and annotated images, one whole video for each video file (annotated.mp4, or
  NAME.mp4 when there are several sources), and segments of live sources; see `edgerpn.runtime.run.outputs`.
- The log goes to the standard error, from the level info on. A run of files shows a progress bar on a terminal.
- Exit status: 0, the sources ended, --max-frames was reached, or a signal ended a live run; 1, an error, or no frame
  of any source could be used; 2, wrong usage; 128 + N, signal N ended a run of files before its end.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING

from edgerpn.arguments import HOST_CODE_HELP, UNSEALED_HELP, add_settings_arguments, count_argument, share_argument
from edgerpn.errors import UsageError
from edgerpn.files import printable

if TYPE_CHECKING:
    from edgerpn.runtime.frame import Source
    from edgerpn.runtime.run.stats import RunSummary
    from edgerpn.runtime.run.streams_config import StreamsConfig
    from edgerpn.runtime.sinks import Output

_logger = logging.getLogger(__name__)

_SOURCES = (
    "one or several: a video file; an image; a folder or a quoted glob of images; a camera index or /dev/videoN; an "
    "rtsp:// or http:// URL; csi://0; a GStreamer pipeline in quotes"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `edgerpn run` to `parser`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="model.onnx or model.engine, with its manifest beside it; the name of an installed model (general); or "
        "http://HOST:PORT/NAME, triton+grpc://HOST:PORT/NAME: a model that a server runs",
    )
    sources = parser.add_argument("sources", metavar="SOURCE", nargs="+", default=[], help=_SOURCES)
    # Not "*", which argparse takes for empty when options stand between the model and the sources.
    sources.required = False
    add_settings_arguments(parser, contents="settings: sources, batching, outputs, web page")
    outputs = parser.add_argument_group("outputs (none: only the summary)")
    outputs.add_argument(
        "-o", "--output", "--out", metavar="DIR", help="folder for proposals.jsonl and annotated videos or images"
    )
    outputs.add_argument("--jsonl", metavar="FILE", help="one JSON line for each frame; - is the standard output")
    outputs.add_argument(
        "--embeddings",
        choices=("base64",),
        help="write the embedding of each proposal into the JSON lines, as base64 of float32; see edgerpn export",
    )
    outputs.add_argument(
        "--video", metavar="FILE", help="annotated video, .mp4 or .avi; or a folder for annotated videos or images"
    )
    outputs.add_argument(
        "--mot", metavar="FILE", help="tracks as MOTChallenge's CSV, .txt or .csv; or a folder for several sources"
    )
    outputs.add_argument(
        "--http", metavar="HOST:PORT", help="web page and API, such as 127.0.0.1:8080; other addresses need a token"
    )
    outputs.add_argument("--show", action="store_true", help="show the annotated frames in a window; Q closes it")
    parser.add_argument("--track", action="store_true", help="follow objects: stable numbers, and events of tracks")
    parser.add_argument("--max-frames", metavar="N", type=count_argument(1), help="stop after N frames")
    parser.add_argument(
        "--min-score", metavar="X", type=share_argument(), help="leave out proposals scored below X (0)"
    )
    parser.add_argument("--top", metavar="N", type=count_argument(1), default=20, help="draw the N best proposals (20)")
    parser.add_argument(
        "--nms",
        metavar="IOU",
        type=share_argument(above_zero=True),
        default=0.6,
        help="do not draw near copies: proposals whose IoU with a better drawn one, of its class where the model has "
        "classes, is larger (0.6; 1 draws all); records keep them",
    )
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
    parser.add_argument("--allow-host-code", action="store_true", help=HOST_CODE_HELP)
    parser.add_argument("--unsealed", action="store_true", help=UNSEALED_HELP)
    logs = parser.add_argument_group("log (on the standard error)")
    logs.add_argument("--log-format", choices=("text", "json"), default="text", help="for people, or for programs")
    logs.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="lowest level (info)"
    )
    parser.add_argument(
        "--self-test",
        action="store_true",
        help="first run the golden frames beside the model, and refuse wrong results",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and prints its summary; returns the exit status as above."""
    from edgerpn.runtime.run.loading import load_outputs, to_toml
    from edgerpn.runtime.run.logs import log_to_stderr

    config = load_config(arguments)
    if arguments.print_config:
        print(to_toml(config, load_outputs(arguments.config)), end="")
        return 0
    with log_to_stderr(arguments.log_format, arguments.log_level):
        summary = run_sources(arguments, config)
    print(printable(summary.text()), file=sys.stderr if arguments.jsonl == "-" else sys.stdout)
    if summary.stop_signal is not None and not config.is_live:
        return 128 + summary.stop_signal
    return 1 if summary.num_errors and not summary.num_frames else 0


def load_config(arguments: argparse.Namespace) -> StreamsConfig:
    """Returns the settings of the arguments; SIGHUP makes a live run read them again."""
    from edgerpn.runtime.draw import DEFAULT_NMS_IOU, DEFAULT_TOP
    from edgerpn.runtime.run.http_config import MAX_TOP
    from edgerpn.runtime.run.loading import load_streams
    from edgerpn.runtime.sources.file_sources import image_paths

    overrides = [] if arguments.min_score is None else [f"min_score={arguments.min_score}"]
    if arguments.track:
        overrides.append("track={}")
    if arguments.http is not None:
        # In quotes, because a port alone would be a number.
        overrides.append(f"http.listen={json.dumps(arguments.http)}")
    if arguments.top != DEFAULT_TOP:
        overrides.append(f"http.top={min(arguments.top, MAX_TOP)}")
    if arguments.nms != DEFAULT_NMS_IOU:
        overrides.append(f"http.nms_iou={arguments.nms}")
    overrides += arguments.set
    # A glob that the shell has expanded is one source, like one in quotes.
    images = image_paths(arguments.sources)
    sources = [str(images[0].parent)] if images else arguments.sources
    return load_streams(arguments.config, sources=sources, overrides=overrides)


def _load_again(arguments: argparse.Namespace, tables: tuple[Output, ...]) -> StreamsConfig:
    """Returns the settings as they are now; names the outputs in the log if they are no longer those of the run."""
    from edgerpn.runtime.run.loading import load_outputs

    config = load_config(arguments)
    if load_outputs(arguments.config) != tables:
        _logger.warning("these settings stay as they were when the run started: outputs")
    return config


def run_sources(arguments: argparse.Namespace, config: StreamsConfig) -> RunSummary:
    """Runs the sources of `config`, files and live ones, with the outputs of the arguments.

    Raises:
        EdgeRpnError: The first error of sources that do not open, of the model or of the outputs.
    """
    from edgerpn.runtime.opencv import single_threaded

    _check_sources(arguments, config)
    opened = _open_files(arguments, config)
    try:
        # The cores belong to the model.
        with single_threaded():
            return _run_opened(arguments, config, opened)
    finally:
        for source in opened.values():
            source.close()


def _check_sources(arguments: argparse.Namespace, config: StreamsConfig) -> None:
    from edgerpn.runtime.run.streams_config import MAX_SOURCES
    from edgerpn.runtime.sources.failures import check_device

    if not config.sources and not config.has_control:
        raise UsageError(["SOURCE: expected at least one, or --config FILE with a table [sources.NAME]"])
    if len(config.sources) > MAX_SOURCES:
        raise UsageError(
            [
                f"SOURCE: expected at most {MAX_SOURCES} sources, got {len(config.sources)}. Quote a glob of images "
                "('images/*.jpg'), which is one source then."
            ]
        )
    for source in config.sources:
        # A camera that was typed is expected to be there; one of a settings file may be plugged in later.
        if source.source in arguments.sources and source.spec.kind == "camera":
            check_device(source.spec)


def _open_files(arguments: argparse.Namespace, config: StreamsConfig) -> dict[str, Source]:
    """Opens the files and images of the run, by source name: a wrong one must show before the model loads."""
    from edgerpn.runtime.sources.file_sources import ImageSource, image_paths, open_source

    images = image_paths(arguments.sources)
    listed = str(images[0].parent) if images else None
    opened: dict[str, Source] = {}
    for source in config.sources:
        if not source.is_read_here:
            continue
        if source.source == listed:
            opened[source.label] = ImageSource(images, name=source.label)
            continue
        opened[source.label] = open_source(source.source, name=source.label, decoder_threads=source.decoder_threads)
    return opened


def _run_opened(arguments: argparse.Namespace, config: StreamsConfig, opened: dict[str, Source]) -> RunSummary:
    from edgerpn.machine import available_cores
    from edgerpn.models import find_model
    from edgerpn.runtime.model import load
    from edgerpn.runtime.run.loading import load_outputs, load_source
    from edgerpn.runtime.run.outputs import OutputFlags, check_outputs, check_vectors, open_outputs
    from edgerpn.runtime.run.session import run_streams

    flags = OutputFlags(
        output=arguments.output,
        jsonl=arguments.jsonl,
        embeddings=arguments.embeddings or "off",
        video=arguments.video,
        mot=arguments.mot,
        is_shown=arguments.show,
        top=arguments.top,
        nms_iou=arguments.nms,
    )
    tables = load_outputs(arguments.config)
    check_outputs(flags, tables, find_model(arguments.model), config, opened)
    # A file has two frames in the model at once: two callers and threads - 1 helpers then fill the cores.
    threads = arguments.threads or (None if config.is_live else max(1, available_cores() - 1))
    page = None
    if config.http.listen:
        from edgerpn.runtime.web import open_page

        # Before the model, which may take minutes: an error of the page shows at once.
        page = open_page(config.http)
    with (
        closing(page) if page is not None else nullcontext(),
        load(
            arguments.model,
            providers=arguments.provider,
            threads=threads,
            on_mismatch=arguments.on_mismatch,
            self_test=arguments.self_test,
            allow_host_code=arguments.allow_host_code,
            engine=config.engine,
            server=config.server,
            verify=not arguments.unsealed,
        ) as model,
    ):
        check_vectors(flags, tables, model.manifest)
        return run_streams(
            model,
            config,
            open_outputs(flags, tables, config, opened),
            opened=opened,
            load=lambda: _load_again(arguments, tables),
            max_frames=arguments.max_frames,
            stays=config.has_control,
            page=page,
            make_source=lambda table: load_source(arguments.config, table, overrides=arguments.set),
        )
