"""`edgerpn run` with several sources, live ones, or settings of their own."""

from __future__ import annotations

import argparse
import glob
import json
import sys
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from edgerpn.errors import ConfigError
from edgerpn.manifest import manifest_path
from edgerpn.runtime.draw import DEFAULT_TOP
from edgerpn.runtime.run.loading import load_outputs, load_source, load_streams, to_toml
from edgerpn.runtime.run.logs import log_to_stderr
from edgerpn.runtime.run.streams_config import MAX_SOURCES, SourceConfig, StreamsConfig
from edgerpn.runtime.sources.open_source import IMAGE_SUFFIXES
from edgerpn.runtime.sources.spec import parse_source
from edgerpn.runtime.web import open_page
from edgerpn.runtime.web.http_config import MAX_TOP

if TYPE_CHECKING:
    from edgerpn.runtime.summary import RunSummary


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and prints its summary; 0 done, 1 no frame could be read, 128 + N ended by signal N."""
    config = load_config(arguments)
    if arguments.print_config:
        print(to_toml(config, load_outputs(arguments.config)), end="")
        return 0
    check_sources(config)
    with log_to_stderr(arguments.log_format, arguments.log_level or "info"):
        summary = _run(arguments, config)
    print(summary.text(), file=sys.stderr if arguments.jsonl == "-" else sys.stdout)
    if summary.stop_signal is not None and not is_live(config):
        return 128 + summary.stop_signal
    return 1 if summary.num_errors and not summary.num_frames else 0


def load_config(arguments: argparse.Namespace) -> StreamsConfig:
    """The settings that the arguments ask for; read again at SIGHUP."""
    overrides = [] if arguments.score is None else [f"min_score={arguments.score}"]
    if arguments.http is not None:
        # In quotes, because a port alone would be a number.
        overrides.append(f"http.listen={json.dumps(arguments.http)}")
    if arguments.top != DEFAULT_TOP:
        overrides.append(f"http.top={min(arguments.top, MAX_TOP)}")
    overrides += arguments.set
    return load_streams(arguments.config, sources=arguments.sources, overrides=overrides)


def is_live(config: StreamsConfig) -> bool:
    """Whether a run goes on by itself until somebody stops it: a source is live, or may come by HTTP."""
    return has_control(config) or any(source.is_live for source in config.sources)


def has_control(config: StreamsConfig) -> bool:
    """Whether sources may come and go by HTTP."""
    return bool(config.http.listen) and config.http.control


def check_sources(config: StreamsConfig) -> None:
    """Makes sure that there is a source, and not a process for each of a thousand.

    Raises:
        ConfigError: There is none, or there are too many.
    """
    if not config.sources and not has_control(config):
        raise ConfigError(["SOURCE: expected at least one, or --config FILE with a table [sources.NAME]"])
    if len(config.sources) > MAX_SOURCES:
        raise ConfigError(
            [
                f"SOURCE: expected at most {MAX_SOURCES} sources, got {len(config.sources)}. Quote a pattern of images "
                "('images/*.jpg'), which is one source then."
            ]
        )


def _run(arguments: argparse.Namespace, config: StreamsConfig) -> RunSummary:
    from edgerpn.machine import available_cores
    from edgerpn.runtime.model import load
    from edgerpn.runtime.opencv import load_cv2
    from edgerpn.runtime.run.outputs import OutputFlags, open_outputs
    from edgerpn.runtime.run.session import run_streams

    is_endless = is_live(config)
    flags = OutputFlags(
        out=arguments.out, jsonl=arguments.jsonl, video=arguments.video, is_shown=arguments.show, top=arguments.top
    )
    check_targets(flags.out, [flags.jsonl, flags.video], arguments.model, config)
    cv2 = load_cv2()
    num_threads = cv2.getNumThreads()
    # As for one file: the cores belong to the model, and files have two callers of it.
    cv2.setNumThreads(1)
    threads = arguments.threads or (None if is_endless else max(1, available_cores() - 1))
    try:
        # The page first: what is wrong with it shows at once, and the model may take minutes.
        page = open_page(config.http)
        with (
            closing(page) if page is not None else nullcontext(),
            load(
                arguments.model,
                providers=arguments.provider,
                threads=threads,
                on_mismatch=arguments.on_mismatch,
                self_test=arguments.self_test,
            ) as model,
        ):
            sinks = open_outputs(
                flags,
                load_outputs(arguments.config),
                num_sources=len(config.sources),
                is_live=is_endless,
                has_images=any(_may_be_images(source) for source in config.sources),
            )
            return run_streams(
                model,
                config,
                sinks,
                load=lambda: load_config(arguments),
                max_frames=arguments.max_frames,
                stays=has_control(config),
                page=page,
                make_source=lambda table: load_source(arguments.config, table, overrides=arguments.set),
            )
    finally:
        cv2.setNumThreads(num_threads)


def check_targets(out: str | None, files: list[str | None], model: str, config: StreamsConfig) -> None:
    """Makes sure that no output would overwrite an input.

    Raises:
        ConfigError: One would.
    """
    inputs = {Path(model).resolve(), manifest_path(model).resolve()}
    inputs |= {Path(source.spec.path).resolve() for source in config.sources if not source.is_live}
    targets = [Path(file) for file in files if file not in (None, "-")]
    if out is not None:
        targets += [Path(out), Path(out) / "proposals.jsonl"]
    wrong = [path for path in targets if path.resolve() in inputs]
    if wrong:
        raise ConfigError([f"{path}: this is an input of the run, and would be overwritten" for path in wrong])


def is_for_streams(arguments: argparse.Namespace) -> bool:
    """Whether a command needs this module: all but one file, folder or pattern without settings of its own."""
    asks = (arguments.config is not None, arguments.http is not None, arguments.set, arguments.print_config)
    if any(asks) or len(arguments.sources) != 1:
        return True
    return parse_source(arguments.sources[0]).is_live


def _may_be_images(source: SourceConfig) -> bool:
    if source.spec.is_live:
        return False
    path = Path(source.spec.path)
    return path.is_dir() or glob.has_magic(str(path)) or path.suffix.lower() in IMAGE_SUFFIXES
