"""The files of an artifact: golden frames, graph or engine, and manifest, which appear together or not at all.

They are written under temporary names, so that a full disk shows before anything is replaced, and then renamed. If the
process ends in between, the manifest on the disk describes all of the files, or refuses one of them by its hash.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgerpn import files
from edgerpn.golden import golden_path
from edgerpn.manifest import manifest_path

_PLACES: tuple[Callable[[Path], Path], ...] = (golden_path, lambda artifact: artifact, manifest_path)
"""From the artifact's path to that of each file, in the order in which they are renamed."""


def name_problem(output: Path, *more: Callable[[Path], Path]) -> str | None:
    """Returns the reason why an artifact's files, also those of `more`, cannot have their names; None: they can."""
    names = [place(output).name for place in (*_PLACES, *more)]
    longest = max(names, key=lambda name: len(os.fsencode(name)))
    if files.is_short_enough(longest):
        return None
    return f"{output}: the name is too long for a file beside it, {longest}; choose a shorter one"


@contextmanager
def staging(output: Path, *more: Callable[[Path], Path]) -> Iterator[Path]:
    """Yields a temporary path for an artifact, in the folder of `output`.

    At the end the files beside it go too, also those of `more`, which return their paths for that of the artifact.
    """
    staged = files.temporary_path(output, output.suffix)
    try:
        yield staged
    finally:
        for place in (*_PLACES, *more):
            place(staged).unlink(missing_ok=True)


def replace_artifact(staged: Path, output: Path) -> None:
    """Renames a staged artifact and its files; golden frames of an older one do not stay beside it.

    Raises:
        OSError: A file cannot be renamed; the older files stay.
    """
    has_golden = golden_path(staged).exists()
    replace_together([(place(staged), place(output)) for place in _PLACES if place(staged).exists()])
    if not has_golden:
        golden_path(output).unlink(missing_ok=True)


def replace_together(pairs: list[tuple[Path, Path]]) -> None:
    """Renames every first path over its second one, in order; on an error all targets are restored.

    Raises:
        OSError: A file cannot be renamed.
    """
    backups = [files.temporary_path(target, ".old") for _, target in pairs]
    done: list[tuple[Path, Path]] = []
    is_whole = False
    try:
        for (new, target), backup in zip(pairs, backups, strict=True):
            if target.exists():
                _back_up(target, backup)
            done.append((target, backup))
            os.replace(new, target)
        is_whole = True
    finally:
        for target, backup in reversed(done):
            if not is_whole:
                _restore(target, backup)
            backup.unlink(missing_ok=True)


def _back_up(target: Path, backup: Path) -> None:
    """Links the file at `target` to `backup`; where the file system has no links, renames it."""
    try:
        os.link(target, backup)
    except OSError:
        os.replace(target, backup)


def _restore(target: Path, backup: Path) -> None:
    # An error with one file must not keep the others from being restored.
    with contextlib.suppress(OSError):
        if backup.exists():
            os.replace(backup, target)
        else:
            target.unlink(missing_ok=True)
