from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import resource
import threading
from pathlib import Path

import pytest

from edgerpn import files
from edgerpn.errors import ConfigError


class Interruption(BaseException):
    """Like KeyboardInterrupt, not an Exception."""


def test_the_new_text_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")
    files.write_text(path, "new \N{GREEK SMALL LETTER ALPHA}")
    assert path.read_text(encoding="utf-8") == "new \N{GREEK SMALL LETTER ALPHA}"


def test_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a.bin", b"\x00\r\n\xff")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\r\n\xff"


@pytest.mark.parametrize("error", [OSError("disk full"), Interruption()])
def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def write_half() -> None:
        with files.replacing(path) as temporary:
            temporary.write_bytes(b"half of the new")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("number", "is_named"), [(errno.ENOSPC, True), (errno.EPIPE, False)])
def test_the_error_of_a_full_disk_names_the_file(tmp_path: Path, number: int, *, is_named: bool) -> None:
    with pytest.raises(OSError, match=os.strerror(number)) as caught, files.replacing(tmp_path / "a.txt"):
        raise OSError(number, os.strerror(number))
    assert caught.value.filename == (str(tmp_path / "a.txt") if is_named else None)


def test_the_file_does_not_appear_before_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with files.replacing(path) as temporary:
        temporary.write_text("new", encoding="utf-8")
        assert not path.exists()
    assert path.exists()


def test_the_temporary_file_lies_beside_the_target_and_keeps_its_suffix(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "video.mp4") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".mp4"
        assert temporary.name.startswith(".")
        temporary.touch()


@pytest.mark.parametrize(
    "name",
    ["a" * 251 + ".jpg", "\U0001f41f" * 62 + ".jpg", os.fsdecode(b"\xe9" * 251 + b".jpg"), f"a.{'b' * 253}"],
    ids=["ASCII", "four bytes a letter", "not UTF-8", "long suffix"],
)
def test_a_name_as_long_as_a_file_system_allows_is_written(tmp_path: Path, name: str) -> None:
    files.write_text(tmp_path / name, "x")
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a" / "b" / "c.txt", "x")
    assert (tmp_path / "a" / "b" / "c.txt").read_text(encoding="utf-8") == "x"


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, (1 << 20) + 1])
def test_sha256_reads_the_whole_file_at_any_length(tmp_path: Path, size: int) -> None:
    data = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    path = tmp_path / "data"
    path.write_bytes(data[:size])
    assert files.sha256(path) == hashlib.sha256(data[:size]).hexdigest()


def test_a_folder_that_cannot_be_filled_is_not_made(tmp_path: Path) -> None:
    # So long that the temporary folder inside has no path.
    target = tmp_path
    while (rest := 4090 - len(str(target))) > 1:
        target /= "x" * min(rest - 1, 200)
    with pytest.raises(OSError, match="too long"), files.filling(target):
        pass
    assert not target.exists()


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with files.locked(tmp_path / "lock", folder=tmp_path):
        pass
    assert "its file system has no locks (No locks available), so nothing keeps a second run out" in caplog.text


def test_a_lock_that_is_refused_is_held_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(fcntl, "flock", fail)
    told = "another process is writing into this folder"
    with pytest.raises(ConfigError, match=told), files.locked(tmp_path / "lock", folder=tmp_path):
        pass


def test_a_folder_that_cannot_be_written_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write everywhere but on a read-only file system.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with files.locked(tmp_path / "lock", folder=tmp_path):
        assert not (tmp_path / "lock").exists()


def test_a_lock_on_a_full_disk_is_an_error_that_names_its_file(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*/lock"), files.locked(tmp_path / "lock", folder=tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_folder_that_stays_locked_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_TIDY_S", 0.1)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        told = r"another process keeps it locked \(0.1 s\); wait for its end, or name another folder"
        with pytest.raises(ConfigError, match=told), files.shared(tmp_path, tidy=lambda: pytest.fail("tidied")):
            pass
    finally:
        os.close(descriptor)


def test_a_folder_that_another_process_tidies_is_waited_for(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    threading.Timer(1.0, os.close, [descriptor]).start()
    with files.shared(tmp_path, tidy=lambda: pytest.fail("tidied")):
        pass


@pytest.mark.parametrize(
    ("name", "added", "start"),
    [
        ("a/b.jpg", ".json", "a/b.jpg"),
        (f"{'a' * 251}.jpg", "", f"{'a' * 251}.jpg"),
        (f"{'a' * 251}.jpg", "!", f"{'a' * 40}-"),
        ("\U0001f41f" * 63 + "/" + "a" * 252 + ".jpg", "", "\U0001f41f" * 63 + "/" + "a" * 40 + "-"),
        (os.fsdecode(b"\xe9" * 64), "", r"\xe9" * 10 + "-"),
    ],
    ids=["short", "longest", "no room", "long in a long folder", "not UTF-8"],
)
def test_a_name_has_room_for_what_is_added_and_stays_as_it_is_where_it_can(name: str, added: str, start: str) -> None:
    found = files.fitting(name, added)
    assert found.startswith(start)
    assert all(len(f"{part}{added}".encode()) <= 255 for part in found.split("/"))
    assert Path(found).suffix == Path(name).suffix
    assert files.fitting(f"b{name}", added) != found
