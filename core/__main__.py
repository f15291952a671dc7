"""The command line: `edgerpn COMMAND ...`, the same as `python -m edgerpn COMMAND ...`.

Each command lives in a module with `add_arguments(parser)` and `run(arguments) -> exit status`, and is imported
only when it is asked for, so that `edgerpn run` on a device needs neither torch nor onnx.
Exit status: 0 done, 1 an error of ours (printed as `error: ...`), 2 wrong usage, 130 and 143 ended
by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import FrameType

from edgerpn import __version__
from edgerpn.errors import EdgeRpnError
from edgerpn.machine import sigterm_handler
from edgerpn.runtime.redaction import hide_passwords

# Name: module, the extra that brings what the module imports, summary.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "train": ("edgerpn.train.cli", "train", "train a Region Proposal Network on a COCO folder"),
    "anchors": ("edgerpn.train.anchors_cli", "train", "fit anchors to the boxes of a COCO folder"),
    "import": ("edgerpn.train.import_cli", "train", "turn weights trained elsewhere into a checkpoint"),
    "eval": ("edgerpn.export.evaluate", "export", "measure the recall of a model, or of anybody's results file"),
    "export": ("edgerpn.export.cli", "export", "turn a checkpoint into an ONNX graph, and prove that they agree"),
    "build": ("edgerpn.export.engine.cli", "tensorrt", "compile an exported graph to a TensorRT engine"),
    "check": ("edgerpn.export.check_cli", "export", "check a graph against a target, or compare two models on images"),
    "why": ("edgerpn.runtime.why_cli", "tensorrt", "say whether an engine can run here, and what to do if not"),
    "run": ("edgerpn.runtime.cli", "onnxruntime", "run an exported model on video, images or a camera"),
    "doctor": ("edgerpn.runtime.doctor.cli", "opencv-headless", "say what is wrong with this machine or a camera"),
    "inspect": ("edgerpn.export.inspection", "export", "say what a checkpoint or an exported model is"),
    "demo": ("edgerpn.demo.cli", "demo", "train, evaluate, export and run on made-up data"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status. `argv` defaults to the process's arguments."""
    hide_passwords()
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = build_parser(argv).parse_args(argv)
        with sigterm_handler(_exit_by_signal):
            status: int = arguments.entry(arguments)
    except (EdgeRpnError, ModuleNotFoundError) as error:
        message = str(error) if isinstance(error, EdgeRpnError) else _what_to_install(error, argv)
        if "--debug" in argv or not message:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output has gone (`edgerpn eval ... | head`); close stdout so that its flush stays silent.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives until the process ends
        return 1
    except OSError as error:
        # What no module foresaw: a full disk, a folder without permission. The path is what a person needs.
        if "--debug" in argv:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return status


def _exit_by_signal(number: int, _: FrameType | None) -> None:
    """Ends a command like any error, so that half-written files go; some commands handle SIGTERM themselves."""
    sys.exit(128 + number)


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser with every command's name, and the arguments of the one that `argv` asks for."""
    parser = argparse.ArgumentParser(prog="edgerpn", description="Class-agnostic object proposals on edge GPUs.")
    parser.add_argument("--version", action="version", version=f"edgerpn {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (module_name, _, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == _asked(argv):
            module = importlib.import_module(module_name)
            module.add_arguments(command)
            command.add_argument("--debug", action="store_true", help="show the traceback of an error")
            command.set_defaults(entry=module.run)
    return parser


def _asked(argv: Sequence[str]) -> str | None:
    """The command: the first word, because a later one may be a file that happens to be called like a command."""
    return next((word for word in argv if not word.startswith("-")), None)


def _what_to_install(error: ModuleNotFoundError, argv: Sequence[str]) -> str:
    """Which extra brings the missing module; empty when it is one of ours, which is a bug and needs its traceback."""
    missing = (error.name or "").partition(".")[0]
    command = _asked(argv)
    if missing in ("", "edgerpn") or command not in COMMANDS:
        return ""
    return (
        f"`edgerpn {command}` needs the Python module {missing!r}, which is not installed here. "
        f"Install it with: pip install 'edgerpn[{COMMANDS[command][1]}]'"
    )


if __name__ == "__main__":
    sys.exit(main())
