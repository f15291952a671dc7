"""`edgerpn predict`: results, names and ids, data sets, crops and pictures, from images and videos."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from edgerpn.__main__ import main
from edgerpn.errors import ConfigError, StreamOpenError
from edgerpn.export import PredictConfig, predict
from edgerpn.export.evaluate import evaluate_model, evaluate_results
from edgerpn.export.prediction.rendering import jpeg_name
from edgerpn.runtime.model import load
from edgerpn.train.data.coco import read_split
from edgerpn.train.data.splits import Split, find_split
from tests.support.classes import CLASS_NAMES

Paint = Callable[..., Any]


@pytest.fixture
def pictures(tmp_path: Path, paint: Paint) -> Path:
    """Six images in two folders, with 0 to 5 near copies of one box each."""
    folder = tmp_path / "in"
    for number in range(6):
        place = folder / ("b" if number > 3 else "a")
        place.mkdir(parents=True, exist_ok=True)
        left = 10 + 8 * number
        image = paint(96 + number, 160, box=(left, 20, left + 60, 80), count=number)
        assert cv2.imwrite(str(place / f"{number}.png"), image)
    return folder


def results_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "results.json").read_text())


def images_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {image["file_name"]: image for image in json.loads((folder / "images.json").read_text())["images"]}


def test_results_are_those_of_the_model_by_image_and_score(model_path: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = predict(model_path, [str(pictures / "a"), str(pictures / "b")], out)
    images, rows = images_of(out), results_of(out)
    assert list(images) == ["a/0.png", "a/1.png", "a/2.png", "a/3.png", "b/4.png", "b/5.png"]
    assert [image["id"] for image in images.values()] == [1, 2, 3, 4, 5, 6]
    assert images["b/4.png"] == {"id": 5, "file_name": "b/4.png", "width": 160, "height": 100}
    with load(model_path) as model:
        expected = [
            row
            for name, image in images.items()
            for row in model(cv2.imread(str(pictures / name))).to_coco(image["id"])
        ]
    assert rows == expected
    assert [row["image_id"] for row in rows] == sorted(row["image_id"] for row in rows)
    assert (summary.num_images, summary.num_results, summary.num_resumed) == (6, 15, 0)
    assert summary.problems == ()
    assert not (out / ".predict").exists()
    assert sorted(path.name for path in out.iterdir()) == [
        "contact-sheet.html", "images.json", "predict.json", "results.json",
    ]  # fmt: skip


def test_an_image_that_is_named_in_several_ways_is_predicted_once(
    model_path: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    predict(model_path, ["in/b", str(pictures / "b"), "in/a/../b/4.png"], "out")
    assert [(image["id"], name) for name, image in images_of(tmp_path / "out").items()] == [(1, "4.png"), (2, "5.png")]


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({"min_score": 0.8}, [0, 1, 2, 2, 2, 2]),
        ({"max_per_image": 3}, [0, 1, 2, 3, 3, 3]),
        ({"nms_iou": 0.5}, [0, 1, 1, 1, 1, 1]),
    ],
)
def test_settings_choose_the_proposals_of_all_outputs(
    settings: dict[str, Any], counts: list[int], model_path: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(model_path, str(pictures / "**" / "*.png"), out, PredictConfig(**settings), to=["coco"])
    found = [row["image_id"] for row in results_of(out)]
    assert [found.count(image_id) for image_id in range(1, 7)] == counts
    labels = json.loads((out / "coco" / "train.json").read_text())["annotations"]
    assert [row["image_id"] for row in labels] == found
    assert [row["score"] for row in labels] == [row["score"] for row in results_of(out)]


def test_frames_of_a_video_are_numbered_and_become_images_of_a_data_set(
    model_path: Path, video_path: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    summary = predict(model_path, [str(pictures / "b"), video_path], out, to=["coco", "yolo"], pictures=True)
    assert summary.num_images == 42
    images = list(images_of(out).values())
    assert [image["id"] for image in images] == list(range(1, 43))
    assert images[2]["file_name"].endswith("moving_000000.jpg")
    assert (images[41]["frame"], images[41]["video"]) == (39, str(video_path))
    # Frame i has i % 4 boxes.
    counts = [sum(row["image_id"] == image["id"] for row in results_of(out)) for image in images[2:]]
    assert counts == [i % 4 for i in range(40)]
    content = json.loads((out / "coco" / "train.json").read_text())
    assert len(content["images"]) == 42
    for folder in ("coco/images/train", "pictures"):
        assert len([path for path in (out / folder).rglob("*") if path.is_file()]) == 42
    assert len(list((out / "yolo").rglob("*.txt"))) == 42


def test_recall_of_the_results_is_that_of_the_model_to_the_last_digit(
    checkpoints: dict[str, Path], exported: Callable[[str], Any], photos: Path, tmp_path: Path
) -> None:
    for name, model in (("onnx", exported("standard").file), ("torch", checkpoints["pyramid"])):
        out = tmp_path / name
        predict(model, [], out, data=photos)
        expected = evaluate_model(model, photos).metrics
        assert evaluate_results(out / "results.json", find_split(photos, "val")).metrics == expected
        assert expected["AR@100"] > 0.05


def test_a_batch_gives_the_results_of_single_images(
    checkpoints: dict[str, Path], photo_files: list[Path], tmp_path: Path
) -> None:
    for batch in (1, 3):
        predict(checkpoints["pyramid"], photo_files, tmp_path / str(batch), PredictConfig(batch=batch))
    alone, together = (results_of(tmp_path / str(batch)) for batch in (1, 3))
    assert [row["image_id"] for row in together] == [row["image_id"] for row in alone]
    scores = [np.array([row["score"] for row in rows]) for rows in (alone, together)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


def test_ids_are_those_of_the_data_set(model_path: Path, photos: Path, tmp_path: Path) -> None:
    content = json.loads((photos / "val.json").read_text())
    data = tmp_path / "data"
    data.mkdir()
    (data / "images").symlink_to(photos / "images")
    for image in content["images"]:
        image["id"] = 100 - image["id"]
    (data / "val.json").write_text(json.dumps({**content, "annotations": []}))
    (data / "train.json").write_text(json.dumps({**content, "annotations": []}))
    out = tmp_path / "out"
    assert (
        main(["predict", str(model_path), str(data / "images" / "[234].png"), "--data", str(data), "-o", str(out)]) == 0
    )
    assert {name: image["id"] for name, image in images_of(out).items()} == {"4.png": 96, "3.png": 97, "2.png": 98}
    predict(model_path, [], tmp_path / "all", data=data)
    assert [image["id"] for image in images_of(tmp_path / "all").values()] == [95, 96, 97, 98, 99]


def test_classes_of_a_model_are_in_every_output(make_model: Paint, pictures: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path, class_names=CLASS_NAMES)
    out = tmp_path / "out"
    predict(model, [str(pictures / "b")], out, to=["coco", "yolo", "voc"], crops=True, pictures=True)
    # Boxes of a picture are of both classes, in turns.
    assert [row["category_id"] for row in results_of(out)] == [1, 2, 1, 2, 1, 2, 1, 2, 1]
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES, start=1)]
    assert json.loads((out / "images.json").read_text())["categories"] == categories
    coco = json.loads((out / "coco" / "train.json").read_text())
    assert coco["categories"] == categories
    assert [label["category_id"] for label in coco["annotations"]] == [1, 2, 1, 2, 1, 2, 1, 2, 1]
    assert "  2: 'größte Muschel'\n" in (out / "yolo" / "data.yaml").read_text()
    assert [line[0] for line in (out / "yolo/labels/train/4.txt").read_text().splitlines()] == ["0", "1", "0", "1"]
    assert (out / "voc" / "Annotations" / "4.xml").read_text().count("<name>crab</name>") == 2
    (best, *_) = [json.loads(line) for line in (out / "crops.jsonl").read_text().splitlines()]
    assert (best["label"], best["category_id"]) == ("fish", 1)
    assert "<title>fish 0.90</title>" in (out / "contact-sheet.html").read_text()


def test_category_ids_are_those_of_the_data_set(make_model: Paint, pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    categories = [{"id": 7, "name": "crab"}, {"id": 3, "name": "fish"}]
    image = {"id": 5, "file_name": "3.png", "width": 160, "height": 99}
    box = {"id": 1, "image_id": 5, "category_id": 3, "bbox": [1, 1, 9, 9]}
    data.write_text(json.dumps({"images": [image], "annotations": [box], "categories": categories}))
    lines: list[str] = []
    split = Split(data, pictures / "a")
    model = make_model(tmp_path, class_names=CLASS_NAMES)
    predict(model, [], tmp_path / "out", data=split, log=lines.append)
    assert [row["category_id"] for row in results_of(tmp_path / "out")] == [3, 7, 3]
    assert "predict: the data set has no class größte Muschel (8): these category ids are not from it" in lines
    data.write_text(json.dumps({"images": [image], "annotations": [box], "categories": categories[1:]}))
    with pytest.raises(ConfigError, match="this folder holds the results of a run with other categories"):
        predict(model, [], tmp_path / "out", data=split)
    predict(make_model(tmp_path), [], tmp_path / "plain", data=split)
    assert [row["category_id"] for row in results_of(tmp_path / "plain")] == [1, 1, 1]


def test_an_image_outside_of_the_data_set_is_refused(
    model_path: Path, photos: Path, pictures: Path, tmp_path: Path, video_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"0\.png: this image is not in the data set of --data \(4 of 4 are not\)"):
        predict(model_path, str(pictures / "a"), tmp_path / "out", data=photos)
    with pytest.raises(ConfigError, match="this is a video"):
        predict(model_path, video_path, tmp_path / "out", data=photos)
    assert not (tmp_path / "out").exists()


def test_a_list_names_files_beside_it_or_below_the_working_folder(
    model_path: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "list.txt").write_text(
        "\ufeff# chosen\r\na/1.png\r\n\r\n./b/5.png\r\nin/a/2.png\r\na/none.png\r\na/1.png\r\n"
    )
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    summary = predict(model_path, "in/list.txt", "out", log=lines.append)
    assert list(images_of(tmp_path / "out")) == ["a/1.png", "b/5.png", "a/2.png"]
    assert summary.num_images == 4
    assert lines == ["in/a/none.png: cannot be read: No such file or directory"]
    (pictures / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ConfigError, match=r"empty\.txt: this list is empty"):
        predict(model_path, "in/empty.txt", "out2")
    (pictures / "live.txt").write_text("a/1.png\nrtsp://user:secret@camera/stream\n")
    with pytest.raises(ConfigError, match=r"live\.txt: rtsp://\S*@camera/stream: a URL") as caught:
        predict(model_path, "in/live.txt", "out2")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("is_video_first", [True, False])
def test_an_image_named_like_a_frame_of_a_video_keeps_its_name(
    is_video_first: bool, model_path: Path, video_path: Path, tmp_path: Path, paint: Paint
) -> None:
    image = tmp_path / f"{video_path.stem}_000000.jpg"
    assert cv2.imwrite(str(image), paint(96, 160, box=(10, 20, 60, 80)))
    video = tmp_path / video_path.name
    video.write_bytes(video_path.read_bytes())
    order = [video, image] if is_video_first else [image, video]
    predict(model_path, order, tmp_path / "out", pictures=True)
    names = images_of(tmp_path / "out")
    assert len(names) == len(list((tmp_path / "out" / "pictures").iterdir())) == 41
    assert "video" not in names[image.name]


def test_images_that_cannot_be_read_are_named_and_counted(
    model_path: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "a" / "2.png").write_bytes(b"broken")
    (pictures / "a" / "3.png").write_bytes(b"")
    out = tmp_path / "out"
    assert main(["predict", str(model_path), str(pictures / "a"), "-o", str(out), "--to", "yolo", "--crops"]) == 0
    printed = capsys.readouterr()
    assert "2.png: not an image" in printed.err
    assert "3.png: the file is empty" in printed.err
    assert "4 images, 1 proposals" in printed.out
    assert "2 unreadable" in printed.out
    content = json.loads((out / "images.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2]
    assert [(image["id"], image["file_name"]) for image in content["unreadable"]] == [(3, "2.png"), (4, "3.png")]
    page = (out / "contact-sheet.html").read_text()
    assert "2 not readable" in page
    assert "2.png: not an image" in page


def test_images_that_decode_in_part_are_used_named_and_counted(
    model_path: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    data = cv2.imencode(".png", image)[1].tobytes()
    place = data.index(b"IEND") + 4
    (pictures / "a" / "2.png").write_bytes(data[:place] + b"oops")
    out = tmp_path / "out"
    for _ in range(2):  # the second time it is complete already
        assert main(["predict", str(model_path), str(pictures / "a"), "-o", str(out)]) == 0
        printed = capsys.readouterr()
        assert "4 images" in printed.out
        assert "1 damaged" in printed.out
        assert ("2.png: damaged (wrong checksum of the chunk IEND" in printed.err) == ("already" not in printed.out)
    rows = json.loads((out / "images.json").read_text())["images"]
    assert [row["file_name"] for row in rows if "damaged" in row] == ["2.png"]


def test_a_folder_with_other_files_is_refused(model_path: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"mine: this folder is not empty \(it holds train\.json\)"):
        predict(model_path, pictures / "a", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["train.json"]


def test_a_damaged_video_gives_its_frames_and_is_named(
    model_path: Path, video_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = video_path.read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    out = tmp_path / "out"
    assert main(["predict", str(model_path), str(tmp_path / "cut.avi"), "-o", str(out)]) == 0
    assert "1 unreadable" in capsys.readouterr().out
    content = json.loads((out / "images.json").read_text())
    (problem,) = content["unreadable"]
    assert 10 < len(content["images"]) == problem["frame"] < 30
    assert problem["problem"].endswith("the file is damaged or cut short")


def test_the_status_is_1_only_when_no_image_could_be_read(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    words = ["predict", str(model_path), str(tmp_path / "a.png"), "-o", str(tmp_path / "out")]
    assert main(words) == 1
    assert results_of(tmp_path / "out") == []
    capsys.readouterr()
    assert main(words) == 1
    assert "1 unreadable; complete already" in capsys.readouterr().out


def test_crops_hold_the_best_boxes_with_a_margin(model_path: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(model_path, str(pictures / "a"), out, PredictConfig(shown_nms_iou=1.0, top=2), crops=True)
    lines = [json.loads(line) for line in (out / "crops.jsonl").read_text().splitlines()]
    assert [line["crop"] for line in lines] == [
        *("crops/1.png/001.jpg", "crops/2.png/001.jpg", "crops/2.png/002.jpg"),
        *("crops/3.png/001.jpg", "crops/3.png/002.jpg"),
    ]
    assert {path.relative_to(out).as_posix() for path in (out / "crops").rglob("*.jpg")} == {
        line["crop"] for line in lines
    }
    for line in lines:
        x1, y1, x2, y2 = line["crop_xyxy"]
        crop = cv2.imread(str(out / line["crop"]))
        assert crop.shape == (y2 - y1, x2 - x1, 3)
        source = cv2.imread(str(pictures / "a" / line["crop"].split("/")[1]))[y1:y2, x1:x2]
        assert np.abs(crop.astype(int) - source).mean() < 12
        assert {"image_id", "bbox", "score"} <= set(line)


def test_each_image_has_a_picture_of_its_own_name() -> None:
    names = ["a.jpg", "a.JPEG", "b.png", "b.png.jpg", "b.png.jpg.jpg", "c/d.jpg"]
    expected = ["a.jpg", "a.JPEG", "b.png.jpg", "b.png.jpg.jpg", "b.png.jpg.jpg.jpg", "c/d.jpg"]
    assert [jpeg_name(name) for name in names] == expected


def test_long_names_have_room_for_what_the_outputs_add(model_path: Path, video_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    written = ["a" * 251 + ".png", "a" * 250 + "b.png", os.fsdecode(b"\xe9" * 100 + b".png"), "c" * 246 + ".jpg"]
    for name in written:
        Image.new("RGB", (160, 96)).save(folder / name)
    film = folder / ("v" * 251 + video_path.suffix)
    film.symlink_to(video_path)
    outputs: dict[str, Any] = {"pictures": True, "crops": True, "to": ["yolo"]}
    summary = predict(model_path, [folder, film], tmp_path / "out", PredictConfig(batch=4, top=1), **outputs)
    assert not summary.problems
    names = [name for name, image in images_of(tmp_path / "out").items() if "video" not in image]
    assert len(names) == len(set(names)) == len(written)
    assert "c" * 246 + ".jpg" in names
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == summary.num_images > len(written)


def test_a_model_for_one_camera_size_takes_pictures_of_any_size(
    make_model: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    model = make_model(tmp_path / "model", source_hw=(192, 320))
    predict(model, str(pictures / "a"), tmp_path / "out")
    (first,) = [row for row in results_of(tmp_path / "out") if row["image_id"] == 2]
    assert first["bbox"] == pytest.approx([18, 20, 60, 60], abs=1.5)


@pytest.mark.parametrize("kind", ["coco", "yolo", "voc"])
def test_a_data_set_of_predictions_can_be_read_for_training(
    kind: str, model_path: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    # Two groups by name: numbered images of one folder count as a sequence.
    for number in range(6):
        (pictures / "a" / f"other-{number}.png").write_bytes((pictures / "a" / "1.png").read_bytes())
    predict(model_path, str(pictures / "a"), out, to=[kind])
    split = find_split(out / kind, "train")
    boxes = {record.file.name: record.boxes_xyxy for record in read_split(split).records}
    val = find_split(out / kind, "val")
    boxes |= {record.file.name: record.boxes_xyxy for record in read_split(val).records}
    assert len(boxes) == 10
    expected = [row["bbox"] for row in results_of(out) if row["image_id"] == 3]
    found = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes["2.png"].tolist()]
    assert sorted(found) == pytest.approx(np.array(sorted(expected)), abs=0.01 if kind != "voc" else 1.0)


@pytest.mark.slow
def test_predictions_become_a_training(model_path: Path, video_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["predict", str(model_path), str(video_path), "-o", str(out), "--to", "coco", "--nms", "0.6"]) == 0
    words = ["train", "--data", str(out / "coco"), "-o", str(tmp_path / "run"), "--epochs", "1", "--size", "128x192"]
    quick = ["data.workers=0", "data.batch_size=4", "loop.threads=1", "loop.evaluations=1", "data.view_sides_px=[64]"]
    assert main([*words, *(word for text in quick for word in ("--set", text))]) == 0
    assert (tmp_path / "run" / "best.pt").is_file()


def test_an_exported_model_needs_no_torch(model_path: Path, pictures: Path, tmp_path: Path) -> None:
    words = ["predict", str(model_path), str(pictures / "a"), "-o", str(tmp_path / "out"), "--to", "coco", "--crops"]
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'onnx', 'matplotlib', 'faster_coco_eval')))\n"
        "from edgerpn.__main__ import main\n"
        f"sys.exit(main({words!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(results_of(tmp_path / "out")) == 6


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["-o", "out"], 2, "IMAGES: name images, videos, folders or lists of files"),
        (["in/a"], 2, "--output DIR: needed"),
        (["in/a", "-o", "in/a/1.png"], 1, "this is a file, expected a folder"),
        (["in/a", "-o", "out", "--split", "0.2", "--exif", "apply"], 2, "--split and --exif: for --data PATH only"),
        (["in/none", "-o", "out"], 1, "no such file or folder"),
        (["in/a", "-o", "out", "--set", "topp=3"], 2, "did you mean 'top'"),
        (["in/a", "-o", "out", "--set", "batch=-1"], 2, "batch: expected 0 to 256"),
    ],
)
def test_a_wrong_command_line_is_one_clear_error(
    words: list[str], status: int, message: str, model_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(pictures.parent)
    assert main(["predict", str(model_path), *words]) == status
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert not (pictures.parent / "out").exists()


def test_a_video_that_is_none_ends_the_run_before_it_begins(model_path: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(StreamOpenError, match=r"clip\.mp4: not a video"):
        predict(model_path, [str(pictures / "a"), str(pictures / "clip.mp4")], tmp_path / "out")
    with pytest.raises(ConfigError, match="unknown format of data sets; known: coco, yolo, voc"):
        predict(model_path, str(pictures / "a"), tmp_path / "out", to=["coca"])
