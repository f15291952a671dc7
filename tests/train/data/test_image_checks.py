"""Image files of a set: odd kinds that are read, damaged and undecodable ones, and names that nearly fit."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from PIL import Image

from edgerpn.errors import DataError
from edgerpn.train.data.choice import ImageRules
from edgerpn.train.data.coco import Dataset, read_split
from edgerpn.train.data.formats.content import Split
from edgerpn.train.data.image_files import probe_image, read_image

WIDTH, HEIGHT = 64, 48
NOISE = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


JPEG = encode(Image.fromarray(NOISE), "JPEG")
CUT = JPEG[: len(JPEG) * 3 // 4] + b"\xff\xd9"


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Dataset]:
    """Reads a set of the given files, by the names in its annotations."""

    def make(files: dict[str, bytes], names: list[str] | None = None, **rules: Any) -> Dataset:
        for name, data in files.items():
            (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "images" / name).write_bytes(data)
        images = [
            {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for number, name in enumerate(names or list(files))
        ]
        boxes = [{"id": one["id"], "image_id": one["id"], "category_id": 1, "bbox": [8, 8, 9, 9]} for one in images]
        (tmp_path / "train.json").write_text(json.dumps({"images": images, "annotations": boxes}))
        return read_split(Split(tmp_path / "train.json", tmp_path / "images", rules=ImageRules(**rules)))

    return make


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0)), "JPEG"),
        (Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 0)).quantize(4), "PNG"),
        (Image.new("RGBA", (WIDTH, HEIGHT), (255, 0, 0, 90)), "PNG"),
        (Image.new("RGBA", (WIDTH, HEIGHT), (255, 0, 0, 90)), "WebP"),
        (Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 0)), "WebP"),
        (Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 0)), "TIFF"),
        (Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 0)), "PPM"),
    ],
    ids=["CMYK", "palette", "alpha", "WebP with alpha", "WebP", "TIFF", "PPM"],
)
def test_odd_kinds_of_images_are_read_as_bgr(tmp_path: Path, image: Image.Image, kind: str) -> None:
    file = tmp_path / "image"
    file.write_bytes(encode(image, kind))
    pixels = read_image(file)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(pixels[20, 30], [0, 0, 255], atol=4)
    assert probe_image(file, "decode") == ((HEIGHT, WIDTH), 1, "")


def test_a_damaged_image_is_named_and_dropped_used_or_refused(read: Callable[..., Dataset], tmp_path: Path) -> None:
    pytest.importorskip("simplejpeg", reason="only cut files are found without it")
    files = {**{f"{number}.jpg": JPEG for number in range(11)}, "bad.jpg": CUT}
    named = f"(image 11: {tmp_path}/images/bad.jpg: premature end of data segment)"
    dropped = read(files)
    assert len(dropped.records) == 11
    assert dropped.problems == (f"image file damaged: 1, image dropped {named}",)
    used = read(files, damaged="use")
    assert len(used.records) == 12
    assert used.problems == (f"image file damaged, data.damaged accepts it: 1, used as far as it decodes {named}",)
    with pytest.raises(DataError, match=r"1 of 12 images are damaged: repair or remove them") as refused:
        read(files, damaged="refuse")
    assert named in str(refused.value)


def test_an_image_without_a_decoder_is_dropped_with_the_reason(read: Callable[..., Dataset]) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
    dataset = read({**{f"{number}.jpg": JPEG for number in range(11)}, "photo.jpg": heic})
    assert len(dataset.records) == 11
    (problem,) = dataset.problems
    assert problem.startswith("image file broken: 1, image dropped (image 11: ")
    assert f"photo.jpg: HEIC, which OpenCV {cv2.__version__} does not decode here; convert it" in problem


def test_names_that_nearly_fit_are_used_or_named(read: Callable[..., Dataset], tmp_path: Path) -> None:
    files = {f"{number}.jpg": JPEG for number in range(24)} | {"x/t.jpg": JPEG, "y/t.jpg": JPEG, "w.png": JPEG}
    names = ["0.JPG", "train/1.jpg", *(f"{number}.jpg" for number in range(2, 24)), "t.jpg", "w.jpg"]
    dataset = read(files, names)
    assert [record.file.name for record in dataset.records] == [f"{number}.jpg" for number in range(24)]
    assert dataset.problems == (
        "image file found under another spelling or folder: 2, used "
        "(image 0: 0.JPG found as 0.jpg; image 1: train/1.jpg found as 1.jpg)",
        "image file name that fits several files: 1, image dropped "
        f"(image 24: t.jpg: {tmp_path}/images/x/t.jpg and {tmp_path}/images/y/t.jpg)",
        "image file missing: 1, image dropped (image 25: w.jpg (there is w.png))",
    )


@pytest.mark.parametrize("verify", ["decode", "header"])
def test_sizes_of_all_parsed_formats_agree(tmp_path: Path, verify: Literal["decode", "header"]) -> None:
    for kind in ("JPEG", "PNG", "GIF", "BMP", "WebP", "TIFF", "PPM", "JPEG2000"):
        file = tmp_path / kind
        file.write_bytes(encode(Image.fromarray(NOISE), kind))
        if cv2.haveImageReader(str(file)):
            assert probe_image(file, verify) == ((HEIGHT, WIDTH), 1, "")
