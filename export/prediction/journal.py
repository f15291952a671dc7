"""The work folder of a prediction: everything that is done so far, so that a broken-off run continues.

    DIR/.predict/plan.json      model, settings, outputs and inputs; another plan is refused
                 lock           the process that writes; a second one is refused
                 images.part    a JSON line for each finished image, with the lengths of the other files after it
                 results.part   results.json without its end
                 crops.part     crops.jsonl
                 frames/        frames of videos, for data sets
                 sheet/         entries of the contact sheet

The line in `images.part` counts: whatever lies behind the lengths that the last whole line states is cut off. So a
killed run loses the images at hand and nothing else. At the end of the run the folder disappears.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from edgerpn import files
from edgerpn.errors import ConfigError

_RESULTS_START, _RESULTS_END = "[\n", "\n]\n"
# As `edgerpn.files.replacing` names them.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.(?:jpg|json|html)")
_WORK, _PLAN, _LOCK = ".predict", "plan.json", "lock"
_SUMMARY, _RESULTS, _IMAGES, _CROPS = "predict.json", "results.json", "images.json", "crops.jsonl"

OBJECT = {"object": 1}
"""The only category of a model without classes."""

Plan = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A finished image."""

    image: dict[str, Any]
    """Its entry in images.json: id, file_name, width, height; of a frame also video and frame; with `damaged`: it
    decodes only in part. With `problem`, and without a size: it could not be read."""
    results: str
    """Its results as JSON, a line each, with commas between them; empty: none."""
    num_results: int
    """Number of its results."""
    crops: str
    """Lines of its crops."""


def complete_summary(folder: Path, plan: Plan) -> dict[str, Any] | None:
    """Returns predict.json of a finished run of this plan, and its `problems`; None if there is none.

    Raises:
        ConfigError: The folder holds the results of another run.
    """
    if (folder / _WORK / _PLAN).exists() or not (folder / _RESULTS).exists():
        return None
    summary = _read(folder / _SUMMARY)
    differences = _differences(summary, plan)
    if differences:
        raise ConfigError(
            [
                f"{folder}: this folder holds the results of a run with other {' and '.join(differences)}; name "
                "another folder, or remove it first"
            ]
        )
    # Of a run that was killed at its very end.
    shutil.rmtree(folder / _WORK, ignore_errors=True)
    unreadable = _read(folder / _IMAGES).get("unreadable", []) if summary["num_unreadable"] else []
    return {**summary, "problems": [image["problem"] for image in unreadable]}


class Journal:
    """Writes finished images, and reads them again at the end; a context manager."""

    def __init__(
        self, folder: Path, plan: Plan, folders: Sequence[str] = (), *, categories: Mapping[str, int] = OBJECT
    ) -> None:
        """Names the run; the block opens its work folder, or continues with the one of a broken-off run.

        Args:
            folder: Output folder.
            plan: Everything that determines the outputs, as JSON values.
            folders: Folders in it that the run will make.
            categories: Names of the classes, and their ids in the results.
        """
        self.folder = folder
        self.work = folder / _WORK
        self.num_images = 0
        self.num_results = 0
        self.num_damaged = 0
        self.problems: list[str] = []
        self.num_resumed = 0
        self._plan = plan
        self._folders = folders
        self._categories = categories
        self._files: dict[str, IO[str]] = {}
        self._lock = contextlib.ExitStack()
        self._is_new = not folder.exists()
        self._begins = False

    @property
    def frames(self) -> Path:
        """Folder of the frames of videos."""
        return self.work / "frames"

    @property
    def sheet(self) -> Path:
        """Folder of the entries of the contact sheet."""
        return self.work / "sheet"

    def __enter__(self) -> Journal:
        """Opens the work folder.

        Raises:
            ConfigError: The folder holds a broken-off run with another plan, or something else; or another run is
                writing into it.
        """
        if not (self.work / _PLAN).exists():
            self._check_empty()  # before the lock leaves a file there
        self.work.mkdir(parents=True, exist_ok=True)
        self._lock.enter_context(files.locked(self.work / _LOCK, folder=self.folder))
        try:
            if (self.work / _PLAN).exists():
                self._check_plan()
                self._remove_remains()
            else:
                self._check_empty()
                self._begins = True
            self._open()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            for file in self._files.values():
                file.close()
            if error is not None and self._begins and not self.num_images:
                self._clear()

    def add(self, entry: Entry) -> None:
        """Adds a finished image; its other files must be whole."""
        results, crops = self._files["results"], self._files["crops"]
        if entry.results:
            results.write((",\n" if self.num_results else "") + entry.results)
        crops.write(entry.crops)
        results.flush()
        crops.flush()
        self._count(entry.image, entry.num_results)
        line = {**entry.image, "num_results": entry.num_results, "lengths": [results.tell(), crops.tell()]}
        self._files["images"].write(json.dumps(line) + "\n")
        self._files["images"].flush()

    def entries(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Yields the finished images in order: entry of images.json, and results."""
        with self._part("results").open(encoding="utf-8") as rows:
            rows.readline()
            for line in self._lines():
                image, num_results = _image_of(line), line["num_results"]
                yield image, [json.loads(rows.readline().rstrip().rstrip(",")) for _ in range(num_results)]

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Moves the results to their places, and removes the work folder.

        Args:
            summary: Figures for predict.json, behind the plan.
        """
        for file in self._files.values():
            file.close()
        self._write_images()
        if self._plan["outputs"]["crops"]:
            os.replace(self._part("crops"), self.folder / _CROPS)
        with self._part("results").open("a", encoding="utf-8") as results:
            results.write(_RESULTS_END)
        os.replace(self._part("results"), self.folder / _RESULTS)
        files.write_text(self.folder / _SUMMARY, json.dumps({**self._plan, **summary}, indent=2) + "\n")
        # First the plan of a run that is complete: without it the rest of the folder counts for nothing.
        (self.work / _PLAN).unlink()
        shutil.rmtree(self.work)

    def _clear(self) -> None:
        """Removes everything: a run that failed before its first image has nothing to continue."""
        for folder in (self.work, *(self.folder / name for name in self._folders)):
            shutil.rmtree(folder, ignore_errors=True)
        if self._is_new:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def _check_empty(self) -> None:
        taken = [path for path in self.folder.glob("*") if path != self.work]
        if taken:
            found = files.printable(min(taken).name)
            raise ConfigError([f"{self.folder}: this folder is not empty (it holds {found}); name another folder"])

    def _check_plan(self) -> None:
        differences = _differences(_read(self.work / _PLAN), self._plan)
        if differences:
            raise ConfigError(
                [
                    f"{self.folder}: a run into this folder broke off, and it had other {' and '.join(differences)}; "
                    f"repeat it as it was, name another folder, or remove {self.work}"
                ]
            )

    def _remove_remains(self) -> None:
        """Removes the files that a killed process was writing; they have temporary names."""
        ours = [path for name in self._folders for path in (self.folder / name).rglob(".*")]
        for path in [*ours, *self.folder.glob(".*")]:
            if _TEMPORARY.fullmatch(path.name) and path.is_file():
                path.unlink()

    def _open(self) -> None:
        if self._begins:
            for path in self.work.iterdir():  # of a run that was killed before its first image
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != _LOCK:
                    path.unlink()
            files.write_text(self.work / _PLAN, json.dumps(self._plan))
        # A run that was killed while it moved its results to their places.
        for name, final in (("results", _RESULTS), ("crops", _CROPS)):
            if not self._part(name).exists() and (self.folder / final).exists():
                os.replace(self.folder / final, self._part(name))
        kept, lengths = self._count_kept()
        for name, length in (("images", kept), ("results", lengths[0]), ("crops", lengths[1])):
            file = self._part(name).open("a", encoding="utf-8", newline="\n")
            file.truncate(length)
            file.seek(0, os.SEEK_END)
            self._files[name] = file
        if not lengths[0]:
            self._files["results"].write(_RESULTS_START)
        self.num_resumed = self.num_images

    def _count_kept(self) -> tuple[int, list[int]]:
        """Counts the finished images; returns the length of their lines, and those of the other files."""
        sizes = [path.stat().st_size if (path := self._part(name)).exists() else 0 for name in ("results", "crops")]
        kept, lengths = 0, [0, 0]
        for line, end in self._whole_lines():
            if any(length > size for length, size in zip(line["lengths"], sizes, strict=True)):
                break
            kept, lengths = end, line["lengths"]
            self._count(_image_of(line), line["num_results"])
        return kept, lengths

    def _count(self, image: Mapping[str, Any], num_results: int) -> None:
        self.num_images += 1
        self.num_results += num_results
        self.num_damaged += "damaged" in image
        if "problem" in image:
            self.problems.append(str(image["problem"]))

    def _whole_lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Yields each whole line of the finished images, and where it ends."""
        if not self._part("images").exists():
            return
        end = 0
        with self._part("images").open("rb") as lines:
            for line in lines:
                end += len(line)
                if not line.endswith(b"\n"):
                    return
                yield json.loads(line), end

    def _lines(self) -> Iterator[dict[str, Any]]:
        return (line for line, _ in self._whole_lines())

    def _write_images(self) -> None:
        """Writes images.json, a COCO file without annotations, one image at a time."""
        with files.replacing(self.folder / _IMAGES) as temporary, temporary.open("w", encoding="utf-8") as file:
            categories = [{"id": number, "name": name} for name, number in self._categories.items()]
            file.write(f'{{"categories": {json.dumps(categories)}')
            for key, is_unreadable in (("images", False), ("unreadable", True)):
                chosen = (image for line in self._lines() if ("problem" in (image := _image_of(line))) is is_unreadable)
                file.write(f',\n"{key}": [')
                for number, image in enumerate(chosen):
                    file.write((",\n" if number else "\n") + json.dumps(image))
                file.write("\n]")
            file.write("}\n")

    def _part(self, name: str) -> Path:
        return self.work / f"{name}.part"


def _image_of(line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in ("num_results", "lengths")}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _differences(found: Plan, expected: Plan) -> list[str]:
    return [key for key, value in json.loads(json.dumps(expected)).items() if found.get(key) != value]
