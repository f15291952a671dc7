"""Writers of PASCAL VOC and CVAT files."""

from __future__ import annotations

import os
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from edgerpn.labels.writing import Label, LabelledImage, LabelWriter


class VocWriter(LabelWriter):
    """PASCAL VOC: JPEGImages/, Annotations/, and the lists ImageSets/Main/train.txt, val.txt.

    Coordinates count pixels from 1 and include the last one; they are fractions where a box does not end between two
    pixels. Regions to ignore are "difficult". The format has no place for scores.
    """

    title = "PASCAL VOC"
    holds_ignored = True

    def _image_path(self, name: str, split: str) -> str:
        return f"JPEGImages/{name}"

    def _label_path(self, name: str, split: str) -> str:
        return f"Annotations/{os.path.splitext(name)[0]}.xml"

    def _write(self, image: LabelledImage, labels: list[Label], name: str, split: str) -> None:
        root = Element("annotation")
        _texts(root, folder="JPEGImages", filename=name.rpartition("/")[2])
        width, height = image.size_wh
        _texts(SubElement(root, "size"), width=str(width), height=str(height), depth="3")
        for label in labels:
            entry = SubElement(root, "object")
            _texts(entry, name=self.categories[label.category], pose="Unspecified", truncated="0")
            _texts(entry, difficult=str(int(label.is_ignored)))
            x1, y1, x2, y2 = label.box_xyxy
            corners = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}
            _texts(SubElement(entry, "bndbox"), **{key: _number(value) for key, value in corners.items()})
        indent(root)
        file = self._partial / self._label_path(name, split)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tostring(root, encoding="utf-8"))
        self._text_file(f"ImageSets/Main/{split}.txt").write(f"{os.path.splitext(name)[0]}\n")

    def _finish(self) -> None:
        """Has written everything."""


class CvatWriter(LabelWriter):
    """CVAT for images 1.1: annotations.xml and images/. A score is an attribute of its box; a split is a subset."""

    title = "CVAT"

    def _begin(self) -> None:
        self._file = self._text_file("annotations.xml")
        self._file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        meta = Element("meta")
        labels = SubElement(SubElement(meta, "task"), "labels")
        for name in self.categories:
            label = SubElement(labels, "label")
            _texts(label, name=name, type="rectangle")
            score = SubElement(SubElement(label, "attributes"), "attribute")
            _texts(score, name="score", mutable="False", input_type="text", default_value="", values="")
        self._append(meta)

    def _image_path(self, name: str, split: str) -> str:
        return f"images/{name}"

    def _write(self, image: LabelledImage, labels: list[Label], name: str, split: str) -> None:
        width, height = image.size_wh
        number = self.num_images
        entry = Element("image", id=str(number), name=name, subset=split, width=str(width), height=str(height))
        for label in labels:
            corners = zip(("xtl", "ytl", "xbr", "ybr"), map(_number, label.box_xyxy), strict=True)
            made = {"source": "manual" if label.score is None else "auto", "occluded": "0", "z_order": "0"}
            box = SubElement(entry, "box", {"label": self.categories[label.category], **made, **dict(corners)})
            if label.score is not None:
                SubElement(box, "attribute", name="score").text = f"{label.score:.6g}"
        self._append(entry)

    def _append(self, element: Element) -> None:
        indent(element)
        self._file.write(tostring(element, encoding="unicode") + "\n")

    def _finish(self) -> None:
        self._file.write("</annotations>\n")


def _texts(parent: Element, **texts: str) -> None:
    for tag, text in texts.items():
        SubElement(parent, tag).text = text


def _number(value: float) -> str:
    """Returns all digits, and whole numbers without a point, because many readers of VOC take nothing else."""
    return str(int(value)) if value.is_integer() else repr(value)
