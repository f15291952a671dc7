"""The command `edgerpn doctor`: checks this machine or measures a camera, and says what to change."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from edgerpn import manifest as manifests
from edgerpn.errors import ConfigError, UsageError
from edgerpn.models import find_model
from edgerpn.runtime.run.streams_config import SourceConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `edgerpn doctor`."""
    parser.add_argument(
        "what",
        metavar="WHAT",
        nargs="?",
        choices=("system", "stream"),
        default="system",
        help="system (default): check OpenCV, decoders and inference libraries; stream: measure a SOURCE",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        help="a source as in `edgerpn run`, or the name of a source in --config",
    )
    parser.add_argument(
        "--seconds", metavar="N", type=_seconds, default=10.0, help="measure for N seconds after the first frame (10)"
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file of `edgerpn run`")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change a setting, as in `edgerpn run`"
    )
    parser.add_argument(
        "--model",
        metavar="FILE",
        help="model.onnx, model.engine or an installed model (general); compares the frame size with its input",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints a report; returns exit status 0 without problems (there may be hints), else 1.

    Raises:
        ConfigError: The arguments contradict each other, or a setting is invalid.
        EngineLoadError: No model of such a name is installed.
        ManifestError: The model's manifest cannot be read.
    """
    if arguments.what == "stream":
        return _stream(arguments)
    if arguments.source is not None or arguments.config is not None or arguments.set or arguments.model is not None:
        raise UsageError(["SOURCE, --config, --set and --model: only for `edgerpn doctor stream`"])
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
        network_hw = manifests.read(find_model(arguments.model)).input.network_hw
    print(f"measuring {config.label} for {arguments.seconds:g} s ...", file=sys.stderr)
    recording = record(config, arguments.seconds)
    key_frames, clock = None, None
    if recording.frames:
        print("reading key frames and the camera's clock ...", file=sys.stderr)
        # Afterwards, because many cameras limit the number of viewers.
        clock = find_clock_skew(config)
        if not recording.is_pictures:
            key_frames = find_key_frames(config)
    figures = figures_of(recording, key_frames, clock)
    findings = findings_of(figures, recording, network_hw=network_hw)
    print(report.stream_json(figures, findings) if arguments.json else report.stream_text(figures, findings))
    return 0 if is_healthy(findings) else 1


def choose_source(file: str | Path | None, source: str | None, overrides: list[str]) -> SourceConfig:
    """Returns the settings of one source.

    Args:
        file: TOML file of `edgerpn run`.
        source: Name of a source in `file`, or a source specification, which gets the defaults of `file`.
        overrides: Settings of `--set`.

    Raises:
        ConfigError: No source is given, and `file` does not have exactly one.
        StreamOpenError: The specification is not valid.
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
        raise UsageError(["SOURCE: expected a camera, URL, file or pipeline, or the name of a source in --config"])
    return load_streams(file, sources=[source], overrides=overrides).sources[-1]


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 1 <= number <= 3600:
        raise argparse.ArgumentTypeError(f"expected a number of seconds from 1 to 3600, got {text!r}")
    return number
