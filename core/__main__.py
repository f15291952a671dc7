"""The command line: `edgerpn COMMAND ...`, the same as `python -m edgerpn COMMAND ...`.

Each command, of one word or of two (`data check`), is a module with `add_arguments(parser)` and
`run(arguments) -> exit status`. It is imported only when a user calls it, so that `edgerpn run` on a device needs
neither torch nor onnx.
Exit status: 0 success, 1 an error (printed as `error: ...`) or a finding, 2 wrong usage (whatever the files hold),
130 after SIGINT, 143 after SIGTERM; docs/troubleshooting.md explains it to users.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NamedTuple

from edgerpn import __version__
from edgerpn.errors import EdgeRpnError, UsageError, numpy_remedy
from edgerpn.files import printable
from edgerpn.machine import CHILD_MARK, NO_THREADS, sigterm_handler
from edgerpn.runtime.redaction import hide_passwords, redact_url


class Command(NamedTuple):
    """One command: its module, the extra that brings the module's packages, its summary and an example."""

    module: str
    extra: str
    summary: str
    example: str


COMMANDS = {
    "data check": Command(
        "edgerpn.train.data_check_cli",
        "train",
        "find what is wrong with a data set, without training",
        "edgerpn data check DIR",
    ),
    "data convert": Command(
        "edgerpn.train.data_convert_cli",
        "train",
        "write a data set in another format",
        "edgerpn data convert DIR -o CONVERTED --to yolo",
    ),
    "anchors": Command(
        "edgerpn.train.anchors_cli",
        "train",
        "fit anchors to the boxes of a data set",
        "edgerpn anchors --data DIR -o anchors.toml",
    ),
    "train": Command(
        "edgerpn.train.cli",
        "train",
        "train a Region Proposal Network on annotated images",
        "edgerpn train --data DIR -o RUN --minutes 10",
    ),
    "import": Command(
        "edgerpn.train.import_cli",
        "train",
        "convert weights trained elsewhere into a checkpoint",
        "edgerpn import torchvision fasterrcnn.pth -o imported.pt",
    ),
    "eval": Command(
        "edgerpn.export.eval_cli",
        "export",
        "measure recall and precision of a model or of a results file",
        "edgerpn eval RUN/best.pt --data DIR",
    ),
    "export": Command(
        "edgerpn.export.cli",
        "export",
        "export a checkpoint to an ONNX graph and prove that they agree",
        "edgerpn export RUN/best.pt -o model.onnx --size 384x640",
    ),
    "build": Command(
        "edgerpn.export.engine.cli",
        "tensorrt",
        "compile an exported graph to a TensorRT engine",
        "edgerpn build model.onnx -o model.engine",
    ),
    "package": Command(
        "edgerpn.export.package_cli",
        "export",
        "write a folder with a model that another program runs, such as Frigate",
        "edgerpn package model.onnx --for frigate -o frigate",
    ),
    "run": Command(
        "edgerpn.runtime.cli",
        "onnxruntime",
        "run a model on videos, images or cameras",
        "edgerpn run model.onnx rtsp://camera/stream --jsonl -",
    ),
    "predict": Command(
        "edgerpn.export.predict_cli",
        "onnxruntime",
        "find proposals in images and videos, as results, data sets, crops and pictures",
        "edgerpn predict model.onnx photos -o predictions",
    ),
    "bulk": Command(
        "edgerpn.batch.cli",
        "ray",
        "find proposals in millions of pictures, on many machines, as Parquet files",
        "edgerpn bulk model.onnx photos -o bulk-out",
    ),
    "bench": Command(
        "edgerpn.export.bench_cli",
        "onnxruntime",
        "measure latency, rate, power and recall of a model on this machine",
        "edgerpn bench model.engine --data DIR -o bench.json",
    ),
    "inspect": Command(
        "edgerpn.export.inspection",
        "onnxruntime",
        "show what a checkpoint, graph or engine is and whether it can run here",
        "edgerpn inspect model.engine",
    ),
    "check": Command(
        "edgerpn.export.check_cli",
        "export",
        "check a graph against a target, or compare two models on images",
        "edgerpn check model.onnx --target tensorrt-10.3",
    ),
    "doctor": Command(
        "edgerpn.runtime.doctor.cli",
        "opencv-headless",
        "diagnose this machine or a camera",
        "edgerpn doctor stream rtsp://camera/stream",
    ),
    "demo": Command(
        "edgerpn.demo.cli",
        "demo",
        "train, evaluate, export and run on made-up data",
        "edgerpn demo -o demo-out",
    ),
}

STAGES = {
    "data": ("data check", "data convert", "anchors"),
    "train": ("train", "import", "eval"),
    "export": ("export", "build", "package"),
    "run": ("run", "predict", "bulk", "bench"),
    "diagnose": ("inspect", "check", "doctor"),
    "all stages": ("demo",),
}
"""The commands by stage, as `edgerpn --help` lists them."""

GROUPS = {"data": "check and convert annotated images"}
"""The first words of commands of two words, and their summaries."""


_MAX_SHOWN = 200
_STATUS = "exit status: 0 done, 1 an error or a finding, 2 wrong usage, 128 + N ended by signal N"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status. `argv` defaults to the process's arguments."""
    hide_passwords()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name that is not UTF-8 must not end a command that reports it; the standard error does the same.
        sys.stdout.reconfigure(errors="backslashreplace")
    argv = [_expand_home(word) for word in (sys.argv[1:] if argv is None else argv)]
    try:
        arguments = _parsed(argv)
        with sigterm_handler(_exit_by_signal):
            status: int = arguments.entry(arguments)
    except (EdgeRpnError, ImportError) as error:
        message = str(error) if isinstance(error, EdgeRpnError) else _what_to_install(error, argv)
        if "--debug" in argv or not message:
            raise
        print(f"error: {printable(message)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:
        # The reader of our output has gone (`edgerpn eval ... | head`); close stdout so that its flush stays silent.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives until the process ends
        return 1
    except OSError as error:
        # No module expected it: a full disk, a folder without permission. The message names the path.
        if "--debug" in argv:
            raise
        where = f"{printable(str(error.filename))}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        # Threads start in many places, those of libraries among them.
        if "--debug" in argv or NO_THREADS not in str(error):
            raise
        print(
            "error: the system gives this process no more threads. Raise their limit (ulimit -u, TasksMax of systemd, "
            "--pids-limit of a container), or free memory",
            file=sys.stderr,
        )
        return 1
    except UnicodeEncodeError as error:
        # A library that takes no other names (TensorBoard's, for example) got a path that is not UTF-8.
        if "--debug" in argv or printable(error.object) == error.object:
            raise
        shown = printable(error.object[:_MAX_SHOWN])
        print(
            f"error: {shown}: not UTF-8, and a library of this command takes no other name; rename it", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return status


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the arguments; an unknown one is an error of its command, with a similar one that the command has."""
    arguments, unknown = build_parser(argv).parse_known_args(argv)
    if unknown:
        parser: argparse.ArgumentParser = arguments.parser
        options = [option for action in parser._actions for option in action.option_strings]
        similar = difflib.get_close_matches(unknown[0].partition("=")[0], options, n=1, cutoff=0.7)
        hint = f"; did you mean {similar[0]}?" if similar else ""
        parser.error(f"unrecognized arguments: {printable(' '.join(map(redact_url, unknown)))}{hint}")
    return arguments


def _expand_home(word: str) -> str:
    """Expands the ~ of `--option=~/file`, which shells leave as it is."""
    option, equals, value = word.partition("=")
    return f"{option}={os.path.expanduser(value)}" if equals and option.startswith("--") else word


def _exit_by_signal(number: int, _: FrameType | None) -> None:
    """Ends a command like any error, so that half-written files go; some commands handle SIGTERM themselves."""
    sys.exit(128 + number)


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Returns the parser with every command's name, and the arguments of the command that `argv` names."""
    parser = argparse.ArgumentParser(
        prog="edgerpn",
        usage="edgerpn [-h] [--version] COMMAND ...",
        description="Class-agnostic object proposals on edge GPUs, from a training folder to a camera.",
        epilog=_overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edgerpn {__version__}")
    # The overview lists the commands by stage; argparse would list them in one column.
    commands = parser.add_subparsers(metavar="COMMAND", required=True, prog="edgerpn", help=argparse.SUPPRESS)
    places = {"": commands}
    for name, command in COMMANDS.items():
        group, _, word = name.rpartition(" ")
        if group not in places:
            summary = GROUPS[group]
            parent = commands.add_parser(group, description=f"{summary[0].upper()}{summary[1:]}.")
            places[group] = parent.add_subparsers(metavar="COMMAND", required=True, title="commands")
        subparser = places[group].add_parser(
            word,
            help=command.summary if group else None,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == asked_command(argv):
            module = importlib.import_module(command.module)
            module.add_arguments(subparser)
            subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
            subparser.set_defaults(entry=module.run, parser=subparser)
    return parser


def _overview() -> str:
    lines = []
    for stage, names in STAGES.items():
        lines.append(f"{stage}:")
        lines.extend(f"  {name:<12} {COMMANDS[name].summary}" for name in names)
    return "\n".join([*lines, "", "`edgerpn COMMAND --help` shows the arguments and an example.", _STATUS])


def asked_command(argv: Sequence[str]) -> str | None:
    """Returns the command: the first one or two words, because a file may have the name of a command."""
    words = [word for word in argv if not word.startswith("-")][:2]
    return next((name for name in (words[0], " ".join(words)) if name in COMMANDS), None) if words else None


def _what_to_install(error: ImportError, argv: Sequence[str]) -> str:
    """Names the extra that brings the missing module; empty when it is ours, a bug that needs its traceback."""
    if remedy := numpy_remedy(error):
        return f"{error}: a module does not import here. {remedy}"
    if not isinstance(error, ModuleNotFoundError):
        return ""
    missing = (error.name or "").partition(".")[0]
    command = asked_command(argv)
    if missing in ("", "edgerpn") or command is None:
        return ""
    return (
        f"`edgerpn {command}` needs the Python module {missing!r}, which is not installed here. "
        f"Install it with: pip install 'edgerpn[{COMMANDS[command].extra}]'"
    )


if __name__ == "__main__":
    os.environ.pop(CHILD_MARK, None)
    sys.exit(main())
