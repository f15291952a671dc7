"""Writer of YOLO data sets."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

from edgerpn.labels.writing import Label, LabelledImage, LabelWriter


class YoloWriter(LabelWriter):
    """YOLO: data.yaml, images/train/, labels/train/, and the same for the other splits.

    A label file has five columns, as trainers of YOLO demand, so that it has no place for scores. A list of images
    replaces the folder in data.yaml where the order of the images is not that of their names.
    """

    title = "YOLO"

    def _begin(self) -> None:
        self._last: dict[str, PurePosixPath] = {}
        self._is_sorted: dict[str, bool] = {}

    def _image_path(self, name: str, split: str) -> str:
        return f"images/{split}/{name}"

    def _label_path(self, name: str, split: str) -> str:
        # Readers replace the last "images" of an image's path.
        *before, last = f"/{os.path.splitext(self._image_path(name, split))[0]}.txt".rsplit("/images/", 1)
        return f"{before[0]}/labels/{last}"[1:]

    def _write(self, image: LabelledImage, labels: list[Label], name: str, split: str) -> None:
        width, height = image.size_wh
        lines = []
        for label in labels:
            x1, y1, x2, y2 = label.box_xyxy
            # All digits: with six, boxes would move by a thousandth of a pixel.
            box = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(f"{label.category} {' '.join(map(repr, box))}\n")
        file = self._partial / self._label_path(name, split)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(lines), encoding="utf-8")
        path = PurePosixPath(self._image_path(name, split))
        self._is_sorted[split] = self._is_sorted.get(split, True) and self._last.get(split, path) <= path
        self._last[split] = path
        self._text_file(f"{split}.txt").write(f"./{path}\n")

    def _finish(self) -> None:
        lines = []
        for split, is_sorted in self._is_sorted.items():
            if is_sorted:
                (self._partial / f"{split}.txt").unlink()
            lines.append(f"{split}: images/{split}\n" if is_sorted else f"{split}: {split}.txt\n")
        lines.append("names:\n" if self.categories else "names: {}\n")
        lines += [f"  {number}: {_quoted(name)}\n" for number, name in enumerate(self.categories)]
        self._text_file("data.yaml").writelines(lines)


def _quoted(name: str) -> str:
    """Returns a name as a scalar of YAML, which holds everything but control characters."""
    return "'" + name.replace("'", "''") + "'"
