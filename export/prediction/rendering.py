"""The files of one image: its picture with boxes, its crops, its place on the contact sheet, and a video's frame."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from edgerpn import files
from edgerpn.errors import SinkError
from edgerpn.export.prediction.config import PredictConfig
from edgerpn.export.prediction.journal import Entry, Journal
from edgerpn.export.prediction.pipeline import Shot
from edgerpn.export.prediction.sheet import SheetEntry, is_on_sheet
from edgerpn.images.formats import has_image_suffix
from edgerpn.letterbox import crop_corners
from edgerpn.proposals import Proposals
from edgerpn.runtime.draw import draw_proposals

Output = Literal["crops", "pictures", "frames"]

Image = npt.NDArray[np.uint8]

_THUMB_PX = 360
_THUMB_QUALITY = 80
_ENCODER = json.JSONEncoder(separators=(",", ":"))


class Renderer:
    """Turns an image and its proposals into an entry of the journal, and writes its files; threads may share it."""

    def __init__(
        self,
        journal: Journal,
        config: PredictConfig,
        outputs: Collection[Output],
        *,
        category_ids: Sequence[int] = (),
    ) -> None:
        """Prepares the outputs.

        Args:
            journal: The output folder, and the work folder of frames and of the contact sheet.
            config: Choice of the boxes, and qualities.
            outputs: Files to write; "frames" are those of videos.
            category_ids: Ids of the model's classes in the results; empty: it does not have classes.
        """
        self._folder = journal.folder
        self._frames, self._sheet = journal.frames, journal.sheet
        self._config = config
        self._outputs = outputs
        self._category_ids = category_ids

    def __call__(self, shot: Shot, proposals: Proposals) -> Entry:
        """Writes the files of an image.

        Args:
            shot: The image.
            proposals: Its proposals, as chosen by the settings.

        Raises:
            SinkError: A file cannot be written.
        """
        image: dict[str, Any] = {"id": shot.image_id, "file_name": shot.file_name}
        if shot.frame is not None:
            image |= {"video": files.printable(str(shot.path)), "frame": shot.frame}
        if shot.image is None:
            return Entry(image={**image, "problem": shot.problem}, results="", num_results=0, crops="")
        if shot.damage:
            image["damaged"] = shot.damage
        height, width = shot.image.shape[:2]
        try:
            crops = self._write(shot, shot.image, proposals)
        except OSError as error:
            raise SinkError(
                f"{error.filename or self._folder}: cannot be written: {error.strerror or error}"
            ) from error
        return Entry(
            image={**image, "width": width, "height": height},
            results=",\n".join(map(_ENCODER.encode, self._results(shot, proposals))),
            num_results=len(proposals),
            crops=crops,
        )

    def _write(self, shot: Shot, image: Image, proposals: Proposals) -> str:
        shown = proposals.nms(self._config.shown_nms_iou, limit=self._config.top)
        if "frames" in self._outputs and shot.frame is not None:
            self._write_jpeg(self._frames / shot.file_name, image)
        if "pictures" in self._outputs:
            drawn = draw_proposals(image, shown, top=self._config.top, nms_iou=1)
            self._write_jpeg(self._folder / "pictures" / jpeg_name(shot.file_name), drawn)
        if self._config.sheet_images and is_on_sheet(shot.index, shot.index + 1, self._config.sheet_images):
            self._write_sheet_entry(shot, image, shown)
        return self._write_crops(shot, image, shown) if "crops" in self._outputs else ""

    def _write_crops(self, shot: Shot, image: Image, shown: Proposals) -> str:
        lines = []
        folder = PurePosixPath("crops") / shot.file_name
        corners = crop_corners(shown.boxes, image.shape[:2], margin=self._config.crop_margin)
        labels = [{}] * len(shown) if shown.names is None else [{"label": name} for name in shown.names]
        rows = zip(self._results(shot, shown), labels, corners, strict=True)
        for rank, (row, label, (x1, y1, x2, y2)) in enumerate(rows, 1):
            name = folder / f"{rank:03d}.jpg"
            self._write_jpeg(self._folder / name, image[y1:y2, x1:x2])
            lines.append(f"{_ENCODER.encode({'crop': str(name), 'crop_xyxy': [x1, y1, x2, y2], **row, **label})}\n")
        return "".join(lines)

    def _results(self, shot: Shot, proposals: Proposals) -> list[dict[str, Any]]:
        return proposals.to_coco(shot.image_id, category_ids=self._category_ids)

    def _write_sheet_entry(self, shot: Shot, image: Image, shown: Proposals) -> None:
        height, width = image.shape[:2]
        scale = min(1.0, _THUMB_PX / width, _THUMB_PX / height)
        size_wh = max(1, round(width * scale)), max(1, round(height * scale))
        small = np.asarray(cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA), np.uint8)
        entry = SheetEntry(
            name=shot.file_name,
            jpeg=_jpeg(small, _THUMB_QUALITY),
            size_wh=size_wh,
            proposals=dataclasses.replace(shown, boxes=shown.boxes * np.float32(scale), embeddings=None, features=None),
            picture=f"pictures/{jpeg_name(shot.file_name)}" if "pictures" in self._outputs else None,
        )
        files.write_text(self._sheet / f"{shot.index}.json", entry.to_json())

    def _write_jpeg(self, path: Path, image: Image) -> None:
        files.write_bytes(path, _jpeg(image, self._config.jpeg_quality))


def jpeg_name(file_name: str) -> str:
    """Returns the name of the JPEG picture of an image: a.jpg; b.png.jpg of b.png, so b.png.jpg.jpg of b.png.jpg."""
    stem, dot, suffix = file_name.rpartition(".")
    is_kept = dot and suffix.lower() in ("jpg", "jpeg") and not has_image_suffix(stem)
    return file_name if is_kept else f"{file_name}.jpg"


def _jpeg(image: Image, quality: int) -> bytes:
    is_done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not is_done:
        raise SinkError(f"a picture of {image.shape[1]}x{image.shape[0]} cannot be encoded as JPEG")
    return data.tobytes()
