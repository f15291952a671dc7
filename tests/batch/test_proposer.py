from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgerpn.errors import InputError
from edgerpn.files import sha256
from edgerpn.runtime import load
from tests.support.models import ANGLES, LABELS

pa = pytest.importorskip("pyarrow", reason="pyarrow comes with the extra `ray`")

from edgerpn.batch import Proposer  # noqa: E402 - it imports pyarrow


def test_paths_become_rows_with_the_proposals_of_the_model(photos: Path, model_path: Path) -> None:
    files = [str(photos / f"{number}.png") for number in range(4)]
    table = Proposer(model_path)({"path": files})
    assert table["path"].to_pylist() == files
    assert table["width"].to_pylist() == [160] * 4
    assert table["height"].to_pylist() == [96] * 4
    assert table["frame"].to_pylist() == [None] * 4
    assert set(table["model"].to_pylist()) == {sha256(model_path)}
    assert set(table["error"].to_pylist()) == {None}
    with load(model_path) as model:
        expected = [model(cv2.imread(file)) for file in files]
    assert [len(row) for row in table["boxes"].to_pylist()] == [0, 1, 2, 3]
    assert table["boxes"].to_pylist() == [proposals.boxes.tolist() for proposals in expected]
    assert table["scores"].to_pylist() == [proposals.scores.tolist() for proposals in expected]


def test_a_broken_picture_is_a_row_with_its_error_between_the_others(photos: Path, model_path: Path) -> None:
    files = [str(photos / name) for name in ("1.png", "broken.jpg", "absent.png", "2.png")]
    table = Proposer(model_path)({"path": files})
    assert [None if row is None else len(row) for row in table["boxes"].to_pylist()] == [1, None, None, 2]
    assert table["scores"].null_count == table["width"].null_count == 2
    errors = table["error"].to_pylist()
    assert errors[0] is errors[3] is None
    assert errors[1].startswith(f"{photos}/broken.jpg: ")
    assert errors[2] == f"{photos}/absent.png: cannot be read: No such file or directory"


def test_bytes_and_arrays_give_the_rows_of_their_files(photos: Path, model_path: Path) -> None:
    files = [photos / f"{number}.png" for number in range(4)]
    proposer = Proposer(model_path)
    expected = proposer({"path": [str(file) for file in files]})
    names = [str(file) for file in files]
    assert proposer({"path": names, "bytes": [file.read_bytes() for file in files]}).equals(expected)
    assert proposer({"path": names, "image": [cv2.imread(name) for name in names]}).equals(expected)
    unnamed = proposer({"bytes": np.array([files[1].read_bytes(), b""], object)})
    assert unnamed["path"].to_pylist() == ["", ""]
    assert unnamed["error"].null_count == 1


def test_a_table_and_a_data_frame_are_batches_too(photos: Path, model_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas comes with the extra `ray`")
    columns = {"path": [str(photos / "1.png"), str(photos / "3.png")], "id": [7, 8]}
    proposer = Proposer(model_path)
    expected = proposer(columns)
    assert proposer(pa.table(columns)).equals(expected)
    assert proposer(pandas.DataFrame(columns)).equals(expected)
    # As Spark's mapInPandas takes it back: lists of numbers, without arrays of two dimensions.
    again = pa.Table.from_pandas(expected.to_pandas(), schema=expected.schema, preserve_index=False)
    assert again.to_pylist() == expected.to_pylist()


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (2, 1), (4, 2), (16, 3)])
def test_batches_and_threads_change_no_row(
    batch: int, threads: int, photos: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_model(tmp_path, batch=None)
    files = [str(photos / name) for name in ("0.png", "broken.jpg", "1.png", "2.png", "3.png")]
    expected = Proposer(path)({"path": files})
    assert Proposer(path, batch=batch, threads=threads)({"path": files}).equals(expected)


def test_the_last_batch_is_filled_up(
    photos: Path, make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposer = Proposer(make_model(tmp_path, batch=None), batch=4)
    backend, sizes = proposer._model.backend, []
    infer = backend.infer

    def counted(frames: Any) -> Any:
        sizes.append(len(frames))
        return infer(frames)

    monkeypatch.setattr(backend, "infer", counted)
    assert len(proposer({"path": [str(photos / f"{number % 4}.png") for number in range(6)]})) == 6
    assert sizes == [4, 4]


def test_few_good_proposals_can_be_asked_for(photos: Path, model_path: Path) -> None:
    batch = {"path": [str(photos / "3.png")]}
    (everything,) = Proposer(model_path)(batch)["scores"].to_pylist()
    (best,) = Proposer(model_path, max_per_image=1)(batch)["scores"].to_pylist()
    (good,) = Proposer(model_path, min_score=everything[1])(batch)["scores"].to_pylist()
    assert (best, good) == (everything[:1], everything[:2])


def test_embeddings_are_a_column_where_the_model_has_them(
    photos: Path, model_path: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    batch = {"path": [str(photos / "2.png"), str(photos / "broken.jpg")]}
    table = Proposer(make_model(tmp_path, is_described=True))(batch)
    assert table["embeddings"].to_pylist() == [ANGLES[:2].tolist(), None]
    assert "embeddings" not in Proposer(model_path)(batch).schema.names


def test_classes_are_columns_where_the_model_has_them(
    photos: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    names = ("cat", "dog", "fish")
    table = Proposer(make_model(tmp_path, class_names=names))({"path": [str(photos / "2.png"), "absent.png"]})
    assert table["labels"].to_pylist() == [[names[label] for label in LABELS[:2]], None]
    assert table["class_scores"].to_pylist() == table["scores"].to_pylist()


def test_a_model_for_one_camera_size_takes_pictures_of_all_sizes(
    paint: Callable[..., Any], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    proposer = Proposer(make_model(tmp_path, source_hw=(96, 160)))
    table = proposer({"image": [paint(192, 320, box=(20, 40, 120, 160), count=1)], "path": ["large"]})
    ((box,),) = table["boxes"].to_pylist()
    assert box == pytest.approx([20, 40, 120, 160], abs=2)


def test_an_empty_batch_gives_an_empty_table(model_path: Path) -> None:
    proposer = Proposer(model_path)
    table = proposer({"path": []})
    assert (len(table), table.schema) == (0, proposer.schema)


def test_a_batch_without_pictures_is_refused(model_path: Path) -> None:
    with pytest.raises(InputError, match="batch: expected a column image, bytes or path, got file_name"):
        Proposer(model_path)({"file_name": ["a.jpg"]})


def test_the_package_imports_nothing_before_its_first_use() -> None:
    code = (
        "import sys, edgerpn.batch, edgerpn.batch.cli, edgerpn.__main__\n"
        "print([name for name in ('ray', 'pyarrow', 'fsspec', 'cv2', 'onnxruntime', 'numpy') if name in sys.modules])\n"
        "import edgerpn.batch.run\n"
        "print([name for name in ('ray', 'torch', 'onnx', 'edgerpn.train') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"
