"""The command `edgerpn doctor`: what is wrong with this machine, or with a camera, and what to change."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from edgerpn import manifest as manifests
from edgerpn.errors import ConfigError
from edgerpn.runtime.run.streams_config import SourceConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `edgerpn doctor` to `parser`."""
    parser.add_argument(
        "what",
        metavar="WHAT",
        nargs="?",
        choices=("system", "stream"),
        default="system",
        help="system (default): OpenCV, decoders, inference libraries; stream: measure a SOURCE",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        help="what `edgerpn run` takes, or the name of a source of --config",
    )
    parser.add_argument(
        "--seconds", metavar="N", type=_seconds, default=10.0, help="listen for N seconds from the first frame on (10)"
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file of `edgerpn run`, whose settings are used")
    parser.add_argument(
        "--set", metavar="A.B=VALUE", action="append", default=[], help="change a setting, as in `edgerpn run`"
    )
    parser.add_argument("--model", metavar="FILE", help="model.onnx or model.engine, to compare sizes with")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints a report; exit status 0 when nothing is wrong (there may be hints), 1 when something is.

    Raises:
        ConfigError: The arguments do not go together, or settings are wrong.
        ManifestError: The model's manifest cannot be read.
    """
    if arguments.what == "stream":
        return _stream(arguments)
    if arguments.source is not None or arguments.config is not None or arguments.set or arguments.model is not None:
        raise ConfigError(["SOURCE, --config, --set and --model belong to `edgerpn doctor stream`"])
    return _system(arguments)


def _system(arguments: argparse.Namespace) -> int:
    from edgerpn.runtime.doctor import report
    from edgerpn.runtime.doctor.system import check_system

    checks = check_system()
    print(report.system_json(checks) if arguments.json else report.system_text(checks))
    return 1 if any(check.verdict == "problem" for check in checks) else 0


def _stream(arguments: argparse.Namespace) -> int:
    from edgerpn.runtime.doctor import report
    from edgerpn.runtime.doctor.clock import find_clock_skew
    from edgerpn.runtime.doctor.figures import figures_of
    from edgerpn.runtime.doctor.findings import findings_of, is_healthy
    from edgerpn.runtime.doctor.key_frames import find_key_frames
    from edgerpn.runtime.doctor.recording import record

    config = choose_source(arguments.config, arguments.source, arguments.set).capture
    network_hw = None
    if arguments.model is not None:
        network_hw = manifests.read(arguments.model).input.network_hw
    print(f"listening to {config.label} for {arguments.seconds:g} s ...", file=sys.stderr)
    recording = record(config, arguments.seconds)
    key_frames, clock = None, None
    if recording.frames:
        print("looking for key frames and the camera's time ...", file=sys.stderr)
        # Only afterwards, because many cameras have few viewers.
        clock = find_clock_skew(config)
        key_frames = find_key_frames(config)
    figures = figures_of(recording, key_frames, clock)
    findings = findings_of(figures, recording, network_hw=network_hw)
    print(report.stream_json(figures, findings) if arguments.json else report.stream_text(figures, findings))
    return 0 if is_healthy(findings) else 1


def choose_source(file: str | Path | None, source: str | None, overrides: list[str]) -> SourceConfig:
    """The settings of one source: of its name in a file, or of a text with what the file and overrides say.

    Raises:
        ConfigError: There is no source, or more than one and none is named.
        StreamOpenError: The text names nothing.
    """
    from edgerpn.runtime.run.loading import load_streams

    if file is not None:
        known = load_streams(file, overrides=overrides).sources
        named = [one for one in known if one.label == source or (source is None and len(known) == 1)]
        if named:
            return named[0]
        if source is None:
            names = ", ".join(one.label for one in known) or "none"
            raise ConfigError([f"SOURCE: expected the name of one source of {file}: {names}"])
    if source is None:
        raise ConfigError(["SOURCE: expected a camera, URL, file or pipeline, or a name of a source with --config"])
    return load_streams(file, sources=[source], overrides=overrides).sources[-1]


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 1 <= number <= 3600:
        raise argparse.ArgumentTypeError(f"expected a number of seconds from 1 to 3600, got {text!r}")
    return number
