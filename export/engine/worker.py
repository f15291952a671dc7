"""The child process of a build: `python -m edgerpn.export.engine.worker FD PARENT`.

It reads one request, a JSON object on stdin, and writes events, one JSON object a line, to the file descriptor FD. Its
stdout and stderr belong to the libraries, which print there as they like. It ends when its parent, the process PARENT,
ends.

    request  command: probe or build, and what the functions below take
    events   progress: phase, share         log: severity, text
             probed: see `_probe`           built: see `edgerpn.export.engine.compile`
             layers: layers, num_layers     phases: seconds by name
             timing_cache: note
             failed: kind (build, dependency, memory, write), message
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from edgerpn import settings
from edgerpn.errors import BuildError, MissingDependencyError
from edgerpn.export.engine.build_config import BuildConfig
from edgerpn.export.engine.compile import compile_engine
from edgerpn.export.engine.libraries import choose, cuda_version, inspect_machine, load_library
from edgerpn.machine import die_with_parent

Send = Callable[..., None]
MAX_TEXT = 2000
"""Characters of one log line that are kept."""


def main() -> int:
    """Does what the request asks; returns the exit status."""
    die_with_parent(int(sys.argv[2]))
    request = json.loads(sys.stdin.readline())
    send = _sender(int(sys.argv[1]))
    try:
        {"probe": _probe, "build": _build}[request["command"]](request, send)
    except MissingDependencyError as error:
        send("failed", kind="dependency", message=str(error))
    except BuildError as error:
        send("failed", kind="build", message=str(error))
    except MemoryError:
        send("failed", kind="memory", message="the process ran out of memory")
    except OSError as error:
        send("failed", kind="write", message=f"{error.filename or 'the engine'}: {error.strerror or error}")
    else:
        return 0
    return 1


def _sender(descriptor: int) -> Send:
    """A function that writes an event; threads may share it."""
    os.set_inheritable(descriptor, False)
    lock = threading.Lock()

    def send(event: str, **values: Any) -> None:
        data = (json.dumps({"event": event, **values}) + "\n").encode()
        with lock:
            while data:
                data = data[os.write(descriptor, data) :]

    return send


def _probe(request: dict[str, Any], send: Send) -> None:
    """Which library a build would use, and what this machine is."""
    machine = inspect_machine()
    library, module, notes = choose(request["backend"], machine)
    send(
        "probed",
        library=library,
        version=module.__version__,
        cuda=cuda_version(library),
        machine=dataclasses.asdict(machine),
        notes=notes,
    )


def _build(request: dict[str, Any], send: Send) -> None:
    trt = load_library(request["library"])
    compile_engine(
        trt,
        make_logger(trt, send),
        send,
        onnx_file=request["onnx"],
        plan_file=request["plan"],
        timing_cache=request["timing_cache"],
        has_gpu=request["has_gpu"],
        config=settings.from_dict(BuildConfig, request["config"], source="request"),
    )


def make_logger(trt: Any, send: Send) -> Any:
    """A logger of the library that sends everything but its verbose lines, of which there are tens of thousands."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity.name != "VERBOSE":
                send("log", severity=severity.name.lower(), text=text[:MAX_TEXT])

    return Logger()


if __name__ == "__main__":
    sys.exit(main())
