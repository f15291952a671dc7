"""The machine and the process: cores, memory, children that end with their parent, forks, and signals."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import platform
import re
import signal
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from subprocess import Popen

Item = TypeVar("Item")
Result = TypeVar("Result")

CGROUP = Path("/sys/fs/cgroup")
"""Control group of a container, version 2."""

JETSON_RELEASE = Path("/etc/nv_tegra_release")
"""Release of Jetson Linux, on a Jetson only; a container has it only if it is mounted."""

SOC_FAMILY = Path("/sys/devices/soc0/family")
"""Family of the chip: `Tegra` on a Jetson, also in a container. NVIDIA's container toolkit looks there too (go-nvlib,
HasTegraFiles)."""

BOARD_MODELS = (Path("/proc/device-tree/model"), Path("/sys/devices/soc0/machine"), Path("/tmp/nv_jetson_model"))
"""Name of the board: by the device tree, which Docker hides; by the kernel, if it is new enough; as jetson-containers
mounts it."""

NVPMODEL_STATUS, NVPMODEL_MODES = Path("/var/lib/nvpmodel/status"), Path("/etc/nvpmodel.conf")
"""The power mode of a Jetson, as `pmode:0002`, and the names of all modes; both are readable without root."""

CHILD_MARK = "EDGERPN_CHILD_PROCESS"
"""Environment variable of a child that runs a module of this package, until the module begins; see `python_problem`."""

NO_THREADS = "can't start new thread"
"""Text of Python's RuntimeError when the system gives no more threads; it has no class of its own."""

_RUN_MODULE = (
    "import sys; sys.path[:] = filter(None, sys.path); import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
"""Line that runs the module of the first argument as `python -m` would. An empty entry means the current folder."""
_AHEAD = 16
"""Items for each core that `threaded_map` starts before their results are taken."""
_KILL_S = 5.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PROCESS = "_process_of_owner"

_owners: weakref.WeakKeyDictionary[object, tuple[str, ...]] = weakref.WeakKeyDictionary()


def bind_to_process(owner: object, *names: str) -> None:
    """Makes `owner` belong to this process: a child of `os.fork()` finds `is_foreign` true for it.

    A fork copies no thread, so that the destructor of a native object waits for ever for the threads of its pool, and
    it shares all files and sockets with the parent. The child therefore never destroys the values of the attributes
    `names`; the operating system frees them with the child.
    """
    _owners[owner] = names
    # Not a set of weak references: the collector clears those before the finalizers that ask.
    owner.__dict__[_PROCESS] = os.getpid()


def is_foreign(owner: object) -> bool:
    """Whether `owner` was bound to a parent of this process: it must not be closed here."""
    return bool(owner.__dict__.get(_PROCESS, os.getpid()) != os.getpid())


def _abandon_in_child() -> None:
    for owner, names in list(_owners.items()):
        for name in names:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(getattr(owner, name, None)))
    if _owners:
        skip_destructors()


def skip_destructors() -> None:
    """Makes this process end without the destructors of the libraries that were loaded by now, where glibc can do it.

    Those of ONNX Runtime wait for threads that a fork did not copy, and abort the process while a thread is inside it.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):
        # Runs after the end of the interpreter, and passes the exit status on.
        libc.on_exit(libc._exit, None)


os.register_at_fork(after_in_child=_abandon_in_child)


def threaded_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    num_threads: int | None = None,
    ahead: int | None = None,
) -> Generator[Result, None, None]:
    """Yields the results of a function in the order of the items, computed in threads.

    Few results exist at a time, so memory does not grow with the number of items. When it is closed or an error ends
    it, the items in the queue are not started.

    Args:
        function: Its error is raised in place of the result.
        items: May be endless; taken in the caller's thread.
        num_threads: Threads; None: one for each core.
        ahead: Results that are computed or wait at a time; None: 16 for each thread.
    """
    source = iter(items)
    threads = num_threads or available_cores()
    workers = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="map")
    try:
        first = itertools.islice(source, ahead or _AHEAD * threads)
        pending = deque(workers.submit(function, item) for item in first)
        while pending:
            yield pending.popleft().result()
            pending.extend(workers.submit(function, item) for item in itertools.islice(source, 1))
    finally:
        workers.shutdown(wait=True, cancel_futures=True)


def python_problem() -> str | None:
    """Returns the reason why `sys.executable` cannot run a module of this package; None: it can be a Python.

    In a program that is one file, and in some that embed Python, it is that program, which would start itself again
    and again. So the environment of each child has `CHILD_MARK`, which our modules remove.
    """
    if not sys.executable:
        return "sys.executable is empty; set it to the path of a Python that has edgerpn"
    if CHILD_MARK in os.environ:
        return (
            f"{sys.executable} was itself started to run a module of edgerpn, but is another program; the section 'In "
            "one file' of docs/recipes.md has the lines that it needs"
        )
    return None


def child_environment() -> dict[str, str]:
    """Returns the environment of a child that runs a module of this package."""
    return {**os.environ, CHILD_MARK: "1"}


def module_command(module: str) -> list[str]:
    """Returns the words that run a module of this package in a child; its arguments follow them.

    The child imports nothing from the current folder, in which people have a json.py or queue.py. `python -m` does, and
    Python 3.10 has no option against it.
    """
    return [sys.executable, "-c", _RUN_MODULE, module]


def run_tool(words: Sequence[str], *, timeout_s: float, data: bytes = b"") -> tuple[int | None, bytes]:
    """Runs a program with `data` as its input; returns its exit status, None after `timeout_s`, and its output so far.

    `subprocess.run` waits for ever for a program that does not end when it is killed, because it hangs in a driver.

    Raises:
        OSError: It cannot be started.
    """
    # Commands that need no program start without this module.
    import subprocess

    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent_hook(),
    )
    try:
        output, _ = process.communicate(data, timeout_s)
    except subprocess.TimeoutExpired as error:
        return None, error.output or b""
    finally:
        end_child(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
    return process.returncode, output


def end_child(process: Popen[Any], *, wait_s: float = _KILL_S) -> None:
    """Kills a child if it still runs, and waits until it is gone; one that hangs in a driver may outlast the time."""
    from subprocess import TimeoutExpired

    process.kill()
    with contextlib.suppress(TimeoutExpired):
        process.wait(wait_s)


def available_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the name of the processor: on Linux the kernel's, elsewhere the best that Python knows."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def board_model() -> str | None:
    """Returns the name of the board, such as NVIDIA Jetson Orin Nano Developer Kit; None if unknown."""
    return next(filter(None, map(_read_name, BOARD_MODELS)), None)


def is_jetson() -> bool:
    """Whether this machine is a Jetson, also in a container, which has no `JETSON_RELEASE` of its own."""
    return JETSON_RELEASE.is_file() or (_read_name(SOC_FAMILY) or "").lower().startswith("tegra")


def _read_name(file: Path) -> str | None:
    try:
        # Anyone may put something into /tmp, a pipe too, at which reading would wait.
        text = file.read_bytes() if file.is_file() else b""
    except OSError:
        return None
    return text.rstrip(b"\0").decode(errors="replace").strip() or None


def jetson_linux() -> str | None:
    """Returns the release of Jetson Linux, such as "R36 (release), REVISION: 4.3"; None elsewhere."""
    try:
        text = JETSON_RELEASE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.partition("GCID")[0].strip("# ,\n") or None


def installed_packages() -> dict[str, str]:
    """Returns the versions of all installed Python packages, by normalised name."""
    # Commands that need no list start without this module.
    from importlib.metadata import distributions

    return {re.sub(r"[-_.]+", "-", one.metadata["Name"] or "").lower(): one.version for one in distributions()}


def power_mode() -> str | None:
    """Returns the power mode of a Jetson, such as "2 MAXN_SUPER"; None if unknown."""
    try:
        found = re.search(r"pmode:0*(\d+)", NVPMODEL_STATUS.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None
    if found is None:
        return None
    try:
        modes = NVPMODEL_MODES.read_text(encoding="utf-8", errors="replace")
    except OSError:
        modes = ""
    name = re.search(rf"POWER_MODEL\s+ID={found[1]}\s+NAME=(\w+)", modes)
    return f"{found[1]} {name[1]}" if name else found[1]


def kib_fields(file: Path) -> dict[str, int]:
    """Returns the first number of each line `name: number ...`, KiB in /proc/meminfo; empty without the file."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    parts = (line.partition(":") for line in lines)
    return {name: int(words[0]) for name, _, rest in parts if (words := rest.split()) and words[0].isdigit()}


def cgroup_free_bytes() -> tuple[int, int] | None:
    """Returns free bytes and limit of the control group at `CGROUP`; None without a limit.

    Cached files that the kernel can drop count as free.

    Source: the kernel's documentation of cgroup v2, memory.max, memory.current, memory.stat.
    """
    try:
        limit, used = ((CGROUP / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        lines = (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    if not limit.isdigit():
        return None
    inactive = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return int(limit) - int(used) + inactive, int(limit)


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Returns the memory that this process can get without swapping, also within its container; None if unknown."""
    available_kib = kib_fields(meminfo).get("MemAvailable")
    if available_kib is None:
        return None
    container = cgroup_free_bytes()
    return max(0, min(available_kib << 10, container[0] if container else available_kib << 10))


def resident_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Returns the memory of this process that is not swapped out; 0 where the system does not tell."""
    return kib_fields(status).get("VmRSS", 0) << 10


def die_with_parent(parent_pid: int | None = None) -> None:
    """Asks the kernel to kill this process when the thread that started it ends (Linux).

    Args:
        parent_pid: The parent's process number; this process ends at once when the parent is gone already. The parent
            must pass it: in a container it is often process 1, so a comparison with 1 proves nothing.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(1)


def die_with_parent_hook() -> Callable[[], None]:
    """Returns a `preexec_fn` for a program that must not outlive the thread that starts it."""
    # The library is loaded before the fork, because little is safe after it.
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def sigterm_handler(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> Iterator[None]:
    """Handles SIGTERM by `handler` inside the block; does nothing outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old if old is not None else signal.SIG_DFL)


class StopOnSignal:
    """Context manager that turns the first SIGINT or SIGTERM into a request to finish.

    It does nothing outside of the main thread, where Python allows no handlers. The old handlers return at the end.
    """

    def __init__(
        self,
        stop: Callable[[], None] = lambda: None,
        *,
        on_hangup: Callable[[], None] | None = None,
        forcing: tuple[int, ...] = (signal.SIGINT,),
    ) -> None:
        """Prepares the handlers.

        Args:
            stop: Called inside the signal handler, so it must only set flags.
            on_hangup: Called likewise for SIGHUP; None leaves SIGHUP alone.
            forcing: Signals that act as before once a stop was requested, so that a second Ctrl-C interrupts.
        """
        self._stop = stop
        self._on_hangup = on_hangup
        self._forcing = forcing
        self._previous: dict[int, Any] = {}
        self.received: int | None = None
        """Number of the last signal; None before the first."""

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
            if (hangup := self._on_hangup) is not None:
                self._previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda *_: hangup())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for other in self._forcing:
            signal.signal(other, self._previous[other])
        self._stop()
