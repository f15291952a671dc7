"""Writing files and folders in one step: they are whole or absent."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from edgerpn.errors import ConfigError

_logger = logging.getLogger(__name__)
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)\}|(?P<plain>[A-Za-z_]\w*))")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of a full disk, quota or file, and of a broken disk."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""Errors of a file system without locks."""
_MAX_NAME_BYTES = 255
_NUM_KEPT, _NUM_KEPT_OF_SUFFIX = 40, 10
"""Letters that stay of a long name and of its suffix; each has up to 4 bytes."""
_TIDY_S = 5.0
_POLL_S = 0.02


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path` and renames it to `path` when the block ends without an error.

    After an error the temporary file is removed and an older file at `path` stays. A missing parent folder is created.
    The error of a full disk names `path`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: OpenCV and ONNX choose the format by it.
    temporary = temporary_path(target, target.suffix)
    process = os.getpid()
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        if error.filename is None and error.errno in _FULL:  # write() raised it and does not know the name
            error.filename = os.fspath(target)
        raise
    finally:
        # A child of this process that ends in the block leaves the file to its parent.
        if process == os.getpid():
            temporary.unlink(missing_ok=True)


def temporary_path(target: Path, suffix: str) -> Path:
    """Returns a new path of a hidden file beside `target`, also where the name of `target` leaves no room for more."""
    kept, end = printable(target.stem)[:_NUM_KEPT], suffix[:_NUM_KEPT_OF_SUFFIX]
    return target.with_name(f".{kept}.{secrets.token_hex(4)}{end}")


@contextmanager
def filling(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary folder inside `folder`, and moves its content up when the block ends without an error.

    After an error nothing of it remains. A missing `folder` is created; it stays only if something is in it.
    """
    target = Path(folder)
    is_new = not target.exists()
    partial = target / f".partial.{secrets.token_hex(4)}"
    try:
        partial.mkdir(parents=True)
        yield partial
        # Files last: they describe the folders.
        for entry in sorted(partial.iterdir(), key=lambda entry: (entry.is_file(), entry.name)):
            entry.rename(target / entry.name)
    finally:
        if partial.exists():
            shutil.rmtree(partial)
        if is_new and target.exists() and not any(target.iterdir()):
            target.rmdir()


@contextmanager
def locked(path: str | os.PathLike[str], *, folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps a second run out of a folder until the block or this process ends, however it ends.

    The lock is on the file `path`, which names the process and stays. If it were removed, two runs could each lock a
    file of their own. A file system without locks is a warning in the log, and the block runs. Where this process
    cannot write, the block runs without a lock: it can only read a run that is done.

    Args:
        path: The file; its folder exists.
        folder: The folder that it keeps, for messages.

    Raises:
        ConfigError: Another run, of this process or of another one, holds the lock.
        OSError: The file cannot be written; names it.
    """
    if not os.access(Path(path).parent, os.W_OK):
        yield
        return
    with open(path, "a+b", buffering=0) as file:  # programs that this process starts do not inherit it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}".encode())
        except (BlockingIOError, PermissionError) as error:  # the latter where locks are mandatory
            raise ConfigError(
                [f"{folder}: {_holder(file)} is writing into this folder; wait for its end, or name another folder"]
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                error.filename = os.fspath(path)
                raise
            _logger.warning(
                "%s: its file system has no locks (%s), so nothing keeps a second run out of it", folder, error.strerror
            )
        yield


@contextmanager
def shared(folder: str | os.PathLike[str], *, tidy: Callable[[], None]) -> Iterator[None]:
    """Marks a folder as in use until the block or this process ends; calls `tidy` first if no other process uses it.

    The lock is on the folder, because a locked file of an SMB share can be written by the locking descriptor only
    (flock(2), "CIFS details"). Where the file system has no locks, `tidy` is not called.

    Raises:
        ConfigError: Another process keeps the folder to itself for longer than tidying takes.
        OSError: The folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass
        else:
            tidy()
        _lock_shared(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock_shared(descriptor: int, folder: str | os.PathLike[str]) -> None:
    deadline_s = time.monotonic() + _TIDY_S
    with suppress(OSError):  # a file system without locks
        while time.monotonic() < deadline_s:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:  # noqa: PERF203 - it is tried again
                time.sleep(_POLL_S)
            else:
                return
        raise ConfigError(
            [f"{folder}: another process keeps it locked ({_TIDY_S:g} s); wait for its end, or name another folder"]
        )


def _holder(file: BinaryIO) -> str:
    """Returns what the process that holds a lock wrote; where locks are mandatory, no other process can read it."""
    text = b""
    with suppress(OSError):
        file.seek(0)
        text = file.read()
    return text.decode(errors="replace") or "another process"


@contextmanager
def native_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yields an absolute path under which C and C++ libraries find `path`; valid inside the block.

    Many of them read a relative `12:30:00.mp4` as an address, and refuse or crash on a path that is not UTF-8: an open
    descriptor stands for the part that is not.

    Raises:
        OSError: The path is not UTF-8, and neither it nor its folder can be opened.
    """
    whole = os.path.join(os.getcwd(), path)
    if _is_utf8(whole):
        yield whole
        return
    folder, name = os.path.split(whole)
    target, rest = (folder, f"/{name}") if _is_utf8(name) else (whole, "")
    descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}{rest}"
    finally:
        os.close(descriptor)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    r"""Returns the text with \xe9 for a byte that is not UTF-8, which no log, JSON record or terminal accepts."""
    if _is_utf8(text):
        return text
    shown = (f"\\x{ord(letter) - 0xDC00:02x}" if "\udc80" <= letter <= "\udcff" else letter for letter in text)
    return "".join(shown).encode(errors="backslashreplace").decode()


def fitting(path: str, added: str = "") -> str:
    """Returns a relative path to whose parts a file system lets `added` be appended.

    Each part is printable, and one that would be too long is cut, with a hash of it. Each byte that is not UTF-8 has
    four letters, so that a name of 64 such bytes is long.
    """
    parts = printable(path).split("/")
    return "/".join(part if is_short_enough(f"{part}{added}") else _cut(part) for part in parts)


def is_short_enough(name: str) -> bool:
    """Returns whether a file system can hold a name of so many bytes."""
    return len(os.fsencode(name)) <= _MAX_NAME_BYTES


def _cut(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return f"{stem[:_NUM_KEPT]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}{suffix[:_NUM_KEPT_OF_SUFFIX]}"


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` to `path` as UTF-8 in one step; bytes of file names in it that are not UTF-8 become printable."""
    with replacing(path) as temporary:
        temporary.write_text(printable(text), encoding="utf-8")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes `data` to `path` in one step."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def expand_path(text: str) -> str:
    """Expands ~, ~user, $NAME and ${NAME} in `text`, as a shell does; `./~` is a file of that name.

    Raises:
        ValueError: There is no such user, a variable is not set, or the text holds a NUL character.
    """

    def value(found: re.Match[str]) -> str:
        name = found["braced"] or found["plain"]
        if name not in os.environ:
            raise ValueError(f"the environment variable {name} in {printable(text)!r} is not set")
        return os.environ[name]

    if "\0" in text:
        raise ValueError(f"{text!r} holds a NUL character, which no path does")
    path = os.path.expanduser(text)
    if path.startswith("~"):
        user = printable(path[1:].partition("/")[0])
        raise ValueError(f"there is no user {user!r} for {printable(text)!r}; ./~ is a plain name")
    return path if os.path.exists(path) else _VARIABLE.sub(value, path)


def sha256(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cache_folder() -> Path | None:
    """Returns the cache folder: $XDG_CACHE_HOME/edgerpn, or ~/.cache/edgerpn; None without a home folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "edgerpn"
    except RuntimeError:  # a user without a home folder, as in some containers
        return None
