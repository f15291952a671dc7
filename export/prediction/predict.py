"""Predicts on images and videos, and writes results, data sets, crops, pictures and a contact sheet."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerpn import __version__, files, settings
from edgerpn.errors import ConfigError
from edgerpn.export.model_names import find_any_model
from edgerpn.export.prediction import inputs
from edgerpn.export.prediction.config import PredictConfig
from edgerpn.export.prediction.inputs import InputFile
from edgerpn.export.prediction.journal import OBJECT, Journal, complete_summary
from edgerpn.export.prediction.models import Predictor, open_predictor
from edgerpn.export.prediction.pipeline import predict_shots
from edgerpn.export.prediction.rendering import Output, Renderer
from edgerpn.export.prediction.sheet import read_entries, sheet_page
from edgerpn.labels import WRITERS, LabelledImage, open_writer
from edgerpn.machine import StopOnSignal, available_cores
from edgerpn.progress import progress, track
from edgerpn.runtime.opencv import single_threaded

if TYPE_CHECKING:
    from edgerpn.train.data.formats.content import Split

SHEET = "contact-sheet.html"
_SCHEMA = 1
_MAX_THREADS = 4
_MANY_BOXES = 50
_NOT_IN_PLAN = ("batch", "threads", "providers")


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictSummary:
    """The result of a prediction."""

    num_images: int
    """Images and frames done, those of earlier runs into the same folder included."""
    num_results: int
    """Their proposals."""
    problems: tuple[str, ...]
    """A line for each image that could not be read."""
    num_damaged: int
    """Images that decode only in part, and count nevertheless."""
    num_resumed: int
    """Images that an earlier run had done."""
    elapsed_s: float
    """From the first image to the last file, seconds."""
    ran_by: str
    """Library, version and device; empty: nothing was left to do."""
    stop_signal: int | None
    """Number of the signal that stopped the run before its end; None: it is complete."""

    @property
    def images_per_s(self) -> float:
        """Images per second of this run."""
        return (self.num_images - self.num_resumed) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def text(self) -> str:
        """Returns the summary as one line for people."""
        parts = [f"{self.num_images} images, {self.num_results} proposals"]
        if self.ran_by:
            parts.append(f"{self.elapsed_s:.1f} s ({self.images_per_s:.1f} images/s)")
            if self.num_resumed:
                parts.append(f"{self.num_resumed} were done before")
        if self.problems:
            parts.append(f"{len(self.problems)} unreadable")
        if self.num_damaged:
            parts.append(f"{self.num_damaged} damaged")
        parts.append(self.ran_by or "complete already")
        if self.stop_signal is not None:
            parts.append(f"stopped by {signal.Signals(self.stop_signal).name}; run it again to continue")
        return "; ".join(parts)


def predict(
    model: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    config: PredictConfig | None = None,
    *,
    data: str | os.PathLike[str] | Split | None = None,
    to: Sequence[str] = (),
    crops: bool = False,
    pictures: bool = False,
    allow_host_code: bool = False,
    verify: bool = True,
    log: Callable[[str], None] | None = None,
) -> PredictSummary:
    """Predicts on images and videos.

    Writes results.json (COCO results, by image and score), images.json (ids, names and sizes of the images),
    predict.json (model and settings) and contact-sheet.html. A broken-off run continues where it stopped when it is
    called again with the same arguments; its outputs are those of a run in one go.

    Args:
        model: Checkpoint, ONNX file or engine; or the name of an installed model, such as `general`. Only a
            checkpoint needs PyTorch.
        images: Images, videos, folders or globs of images, and lists of files (.txt); none: all images of `data`.
        output: Folder of the outputs.
        config: Choice of the proposals and form of the outputs; None: the defaults.
        data: Data set whose image ids the results use, and whose category ids for classes of the same name (a path: its
            validation images); None: ids count from 1.
        to: Formats of data sets to write, with the model's classes or else the single class "object", each into a
            folder of its name: coco, yolo, voc, labelstudio, cvat.
        crops: Whether to cut out the best boxes, into crops/, listed in crops.jsonl.
        pictures: Whether to draw the best boxes, into pictures/.
        allow_host_code: Whether a version-compatible engine may contain code for the CPU.
        verify: Whether to refuse an ONNX file that was changed since export.
        log: Called with a line for the layout of the data, each unreadable or damaged image, each note on a data set.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        ConfigError: A list of files cannot be read, an image is not in the data set, or the output folder holds
            something else, or another prediction is writing into it.
        DataError: The annotations cannot be used.
        EngineLoadError: The exported model cannot be loaded.
        InferenceError: The backend failed.
        ManifestError: The exported model's manifest is missing or does not fit.
        SinkError: A file cannot be written.
        StreamOpenError: An input does not exist, or a video cannot be opened.
    """
    config = config or PredictConfig()
    log = log or (lambda line: None)
    unknown = [name for name in to if name not in WRITERS]
    if unknown:
        raise ConfigError([f"{unknown[0]}: unknown format of data sets; known: {', '.join(WRITERS)}"])
    specs = [images] if isinstance(images, (str, os.PathLike)) else images
    ids, categories = _ids(data, log) if data is not None else (None, {})
    found = inputs.find_inputs([os.fspath(spec) for spec in specs], ids)
    if not found:
        raise ConfigError(["predict: no images; name images, videos, folders or lists, or a data set"])
    job = _Job(
        model=find_any_model(model),
        folder=Path(output),
        found=tuple(found),
        categories=categories,
        config=config,
        formats=tuple(dict.fromkeys(to)),
        crops=crops,
        pictures=pictures,
        log=log,
    )
    complete = complete_summary(job.folder, job.plan)
    return _summary_of(complete) if complete is not None else job.run(allow_host_code, verify)


def _ids(
    data: str | os.PathLike[str] | Split, log: Callable[[str], None]
) -> tuple[dict[Path, int | str], dict[str, int]]:
    """Returns the ids of a data set's images by their real paths, in the order of the ids, and those of its classes."""
    from edgerpn.train.data.coco import category_ids, inspect_split
    from edgerpn.train.data.splits import find_split

    split = find_split(Path(data), "val", log=log) if isinstance(data, (str, os.PathLike)) else data
    # Only the ids count, so that nothing in the boxes is a reason to refuse the set.
    records = inspect_split(split, verify="none").records
    # Numbers before texts.
    ordered = sorted(records, key=lambda record: (isinstance(record.image_id, str), record.image_id))
    return {Path(os.path.realpath(record.file)): record.image_id for record in ordered}, category_ids(split)


def _number_classes(names: Sequence[str], known: Mapping[str, int], log: Callable[[str], None]) -> dict[str, int]:
    """Returns the category id of each class of a model: that of a data set, or the next number that is free in it."""
    numbers: dict[str, int] = {}
    for name in names:
        numbers[name] = known[name] if name in known else max((0, *known.values(), *numbers.values())) + 1
    missing = [f"{name} ({numbers[name]})" for name in names if name not in known]
    if known and missing:
        log(f"predict: the data set has no class {', '.join(missing)}: these category ids are not from it")
    return numbers or dict(OBJECT)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """One prediction into one folder."""

    model: Path
    folder: Path
    found: tuple[InputFile, ...]
    categories: Mapping[str, int]
    config: PredictConfig
    formats: tuple[str, ...]
    crops: bool
    pictures: bool
    log: Callable[[str], None]

    @property
    def plan(self) -> dict[str, Any]:
        """Everything that determines the outputs."""
        values = settings.to_dict(self.config)
        return {
            "schema": _SCHEMA,
            "edgerpn": __version__,
            "model": {"name": self.model.name, "sha256": files.sha256(self.model) if self.model.is_file() else ""},
            "settings": {key: value for key, value in values.items() if key not in _NOT_IN_PLAN},
            "outputs": {"to": list(self.formats), "crops": self.crops, "pictures": self.pictures},
            "inputs": {"num_files": len(self.found), "sha256": inputs.digest(self.found)},
            "categories": dict(self.categories),
        }

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Files of each image; those of a video's frames only for data sets."""
        wanted: dict[Output, bool] = {
            "crops": self.crops,
            "pictures": self.pictures,
            "frames": bool(self.formats),
        }
        return tuple(name for name, is_wanted in wanted.items() if is_wanted)

    def run(self, allow_host_code: bool, verify: bool) -> PredictSummary:
        start_s = time.perf_counter()
        predictor = open_predictor(self.model, self.config, allow_host_code=allow_host_code, verify=verify)
        folders = [*self.formats, *(["crops"] if self.crops else []), *(["pictures"] if self.pictures else [])]
        numbers = _number_classes(predictor.class_names, self.categories, self.log)
        with (
            predictor.closing,
            Journal(self.folder, self.plan, folders, categories=numbers) as journal,
            single_threaded(),
        ):
            stop_signal = self._predict(predictor, journal, numbers)
            if stop_signal is None:
                self._finish(predictor, journal, numbers)
        return PredictSummary(
            num_images=journal.num_images,
            num_results=journal.num_results,
            problems=tuple(journal.problems),
            num_damaged=journal.num_damaged,
            num_resumed=journal.num_resumed,
            elapsed_s=time.perf_counter() - start_s,
            ran_by=predictor.ran_by,
            stop_signal=stop_signal,
        )

    def _predict(self, predictor: Predictor, journal: Journal, numbers: Mapping[str, int]) -> int | None:
        """Predicts on everything that is not done yet; returns the number of the signal that stopped it."""
        num_threads = min(_MAX_THREADS, available_cores())
        shots = inputs.read_shots(self.found, skip=journal.num_images, num_threads=num_threads, exif=predictor.exif)
        category_ids = tuple(numbers.values())
        renderer = Renderer(journal, self.config, self.outputs, category_ids=category_ids)
        with (
            StopOnSignal() as stopper,
            closing(shots),
            closing(predict_shots(predictor, self.config, shots, renderer, num_threads=num_threads)) as entries,
            progress(inputs.total_shots(self.found), "predicting", unit=" images") as bar,
        ):
            bar.update(journal.num_resumed)
            for entry in entries:
                journal.add(entry)
                bar.update()
                for key in ("problem", "damaged"):
                    if key in entry.image:
                        self.log(entry.image[key])
                if stopper.received is not None:
                    return stopper.received
        return None

    def _finish(self, predictor: Predictor, journal: Journal, numbers: Mapping[str, int]) -> None:
        """Writes everything that needs all images."""
        for kind in self.formats:
            self._write_data_set(kind, journal, numbers)
        summary = {
            "num_images": journal.num_images,
            "num_results": journal.num_results,
            "num_unreadable": len(journal.problems),
            "num_damaged": journal.num_damaged,
            "ran_by": predictor.ran_by,
        }
        if self.config.sheet_images:
            files.write_text(self.folder / SHEET, self._sheet(predictor, journal))
        journal.finish(summary)

    def _write_data_set(self, kind: str, journal: Journal, numbers: Mapping[str, int]) -> None:
        folder = self.folder / kind
        if folder.exists():  # of a run that was killed while it wrote the set
            shutil.rmtree(folder)
        sources = {file.name: file.path for file in self.found if not file.is_video}
        places = {number: place for place, number in enumerate(numbers.values())}
        with open_writer(kind, folder, list(numbers)) as writer:
            for image, results in track(journal.entries(), f"writing {kind}", total=journal.num_images, unit=" images"):
                if "problem" not in image:
                    name = image["file_name"]
                    file = journal.frames / name if "video" in image else sources[name]
                    writer.add(_labelled(image, results, file, places))
        for note in writer.notes():
            self.log(f"{folder}: {note}")
        if writer.num_boxes > _MANY_BOXES * max(1, writer.num_images):
            mean = writer.num_boxes / writer.num_images
            self.log(f"{folder}: {mean:.0f} boxes an image; --min-score, --nms and --max-per-image choose fewer")

    def _sheet(self, predictor: Predictor, journal: Journal) -> str:
        total, unreadable = journal.num_images, len(journal.problems)
        entries = read_entries(journal.sheet, total, self.config.sheet_images, predictor.class_names)
        return sheet_page(
            "Proposals",
            entries,
            introduction=f"Images with the best {self.config.top} boxes of {predictor.name} on each, near copies left "
            f"out (IoU above {self.config.shown_nms_iou:g}).",
            figures=(
                ("Images", f"{total - unreadable}", f"{unreadable} not readable" if unreadable else "all readable"),
                ("Proposals", f"{journal.num_results}", "in results.json"),
                ("Per image", f"{journal.num_results / max(1, total - unreadable):.1f}", "proposals, mean"),
                ("On this page", f"{len(entries)}", "images, spread over all"),
            ),
            problems=journal.problems,
        )


def _labelled(
    image: Mapping[str, Any], results: Sequence[Mapping[str, Any]], source: Path, places: Mapping[int, int]
) -> LabelledImage:
    xywh = np.array([row["bbox"] for row in results], np.float64).reshape(-1, 4)
    return LabelledImage(
        file_name=image["file_name"],
        source=source,
        size_wh=(image["width"], image["height"]),
        boxes_xyxy=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
        categories=np.array([places[row["category_id"]] for row in results], np.int64),
        scores=np.array([row["score"] for row in results], np.float64),
        image_id=image["id"],
    )


def _summary_of(complete: Mapping[str, Any]) -> PredictSummary:
    return PredictSummary(
        num_images=complete["num_images"],
        num_results=complete["num_results"],
        problems=tuple(complete["problems"]),
        num_damaged=complete["num_damaged"],
        num_resumed=complete["num_images"],
        elapsed_s=0.0,
        ran_by="",
        stop_signal=None,
    )
