"""The command line: `edgerpn COMMAND ...`, the same as `python -m edgerpn COMMAND ...`.

Each command lives in a module with `add_arguments(parser)` and `run(arguments) -> exit status`, and is imported
only when it is asked for, so that `edgerpn run` on a device needs neither torch nor onnx.
Exit status: 0 done, 1 an error of ours (printed as `error: ...`), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from edgerpn import __version__
from edgerpn.errors import EdgeRpnError

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("edgerpn.train.cli", "train a Region Proposal Network on a COCO folder"),
    "eval": ("edgerpn.export.evaluate", "measure the recall of a model, or of anybody's results file"),
    "export": ("edgerpn.export.cli", "turn a checkpoint into an ONNX graph, and prove that they agree"),
    "run": ("edgerpn.runtime.cli", "run an exported model on video, images or a camera"),
    "inspect": ("edgerpn.export.inspection", "say what a checkpoint or an exported model is"),
    "demo": ("edgerpn.export.demo", "train, evaluate, export and run on made-up data"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status. `argv` defaults to the process's arguments."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(argv)
    arguments = parser.parse_args(argv)
    try:
        return arguments.entry(arguments)
    except EdgeRpnError as error:
        if arguments.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser with every command's name, and the arguments of the one that `argv` asks for."""
    parser = argparse.ArgumentParser(prog="edgerpn", description="Class-agnostic object proposals on edge GPUs.")
    parser.add_argument("--version", action="version", version=f"edgerpn {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (module_name, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name in argv:
            module = importlib.import_module(module_name)
            module.add_arguments(command)
            command.add_argument("--debug", action="store_true", help="show the traceback of an error")
            command.set_defaults(entry=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
