"""Batches: the same numbers however they are made, and clear errors when they cannot be."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from edgerpn import settings
from edgerpn.errors import DataError
from edgerpn.train.data.augment import AugmentConfig, draw_tiles
from edgerpn.train.data.batch import TrainBatch
from edgerpn.train.data.coco import ImageRecord
from edgerpn.train.data.loader import DataConfig, TrainLoader, _BatchPlan

# On one core the DataLoader warns about two workers.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

CONFIG = DataConfig(input_hw=(48, 64), batch_size=4, workers=0)
STILL = AugmentConfig(
    flip_probability=0, scale_range=(1, 1), aspect_jitter=0, color_probability=0, mosaic_probability=0
)


def make_records(folder: Path, count: int, width: int = 80, height: int = 50) -> list[ImageRecord]:
    """Images 100, 101, ... of noise with one bright rectangle, which is their object; every third is a negative."""
    records = []
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        objects = np.zeros((0, 4), np.float32)
        if number % 3:
            x, y = width // 4, height // 5
            pixels[y : 3 * y, x : 3 * x] = 255
            objects = np.array([[x, y, 3 * x, 3 * y]], np.float32)
        file = folder / f"{number}.jpg"
        assert cv2.imwrite(str(file), pixels)
        crowds = np.array([[0, 0, 30, 30]] * (number % 2), np.float32).reshape(-1, 4)
        records.append(
            ImageRecord(
                image_id=100 + number,
                file=file,
                hw=(height, width),
                boxes_xyxy=objects,
                ignore_xyxy=crowds,
                box_classes=np.full(len(objects), number),
            )
        )
    return records


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRecord]:
    return make_records(tmp_path_factory.mktemp("images"), 14)


def config_with(workers: int = 0, batch_size: int = 4, augment: AugmentConfig = CONFIG.augment) -> DataConfig:
    return DataConfig(input_hw=CONFIG.input_hw, batch_size=batch_size, workers=workers, augment=augment)


def assert_same(found: Iterable[TrainBatch], expected: Iterable[TrainBatch]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.image_ids == other.image_ids
        for name in ("images", "gt_boxes", "gt_mask", "ignore_boxes", "ignore_mask"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def worker_pids() -> set[int]:
    return {process.pid for process in multiprocessing.active_children() if process.pid is not None}


def test_a_batch_has_the_promised_shapes_and_types(records: list[ImageRecord]) -> None:
    with TrainLoader(records, CONFIG, seed=1) as loader:
        batch = next(iter(loader.epoch(0)))
    assert batch.images.shape == (4, 48, 64, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.gt_boxes.dtype == batch.ignore_boxes.dtype == torch.float32
    assert batch.gt_boxes.shape == (*batch.gt_mask.shape, 4)
    assert batch.ignore_boxes.shape == (*batch.ignore_mask.shape, 4)
    assert batch.gt_mask.dtype == batch.ignore_mask.dtype == torch.bool
    assert len(batch.image_ids) == 4
    assert all(isinstance(image_id, int) for image_id in batch.image_ids)


def test_every_worker_count_gives_the_same_batches_over_several_epochs(records: list[ImageRecord]) -> None:
    with TrainLoader(records, config_with(workers=0), seed=1) as loader:
        expected = [list(loader.epoch(epoch)) for epoch in range(3)]
    for workers in (1, 2):
        with TrainLoader(records, config_with(workers=workers), seed=1) as loader:
            for epoch in range(3):
                assert_same(loader.epoch(epoch), expected[epoch])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_resumed_in_the_middle_continues_with_the_same_batches(
    records: list[ImageRecord], workers: int
) -> None:
    with TrainLoader(records, config_with(workers=workers), seed=1) as loader:
        whole = list(loader.epoch(5))
        for start in range(4):
            assert_same(loader.epoch(5, start_batch=start), whole[start:])


def test_an_epoch_left_in_the_middle_does_not_disturb_the_next(records: list[ImageRecord]) -> None:
    with TrainLoader(records, config_with(workers=2), seed=1) as loader:
        whole = list(loader.epoch(1))
        next(iter(loader.epoch(0)))
        assert_same(loader.epoch(1), whole)


def test_workers_read_on_into_the_next_epoch(records: list[ImageRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    keys_of = _BatchPlan.keys_of

    def note(plan: _BatchPlan, epoch: int, start_batch: int) -> object:
        asked.append((epoch, start_batch))
        return keys_of(plan, epoch, start_batch)

    monkeypatch.setattr(_BatchPlan, "keys_of", note)
    with TrainLoader(records, config_with(workers=1), seed=1) as loader:
        list(loader.epoch(4, start_batch=1))
        assert asked == [(4, 1), (5, 0)]
        list(loader.epoch(5))
        assert asked == [(4, 1), (5, 0), (6, 0)]
        # At another position the workers restart.
        list(loader.epoch(4, start_batch=1))
        assert asked[3:] == [(4, 1), (5, 0)]


def test_an_epoch_shows_each_image_at_most_once_and_epochs_and_seeds_differ(records: list[ImageRecord]) -> None:
    orders = []
    for seed, epoch in ((1, 0), (1, 1), (2, 0)):
        with TrainLoader(records, CONFIG, seed=seed) as loader:
            assert loader.batches_per_epoch == 3
            batches = list(loader.epoch(epoch))
        orders.append([image_id for batch in batches for image_id in batch.image_ids])
        assert len(set(orders[-1])) == 12
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_an_image_looks_different_in_another_epoch_and_listed_twice(records: list[ImageRecord]) -> None:
    with TrainLoader([records[1]] * 2, CONFIG, seed=1) as loader:
        first, second = (next(iter(loader.epoch(epoch))).images for epoch in (0, 1))
    views = [*first, *second]
    assert not any(torch.equal(views[one], views[other]) for one in range(4) for other in range(one))


def test_a_set_smaller_than_a_batch_is_one_batch(records: list[ImageRecord]) -> None:
    with TrainLoader(records[:3], CONFIG, seed=1) as loader:
        assert loader.batches_per_epoch == 1
        (batch,) = loader.epoch(0)
    assert sorted(batch.image_ids) == [100, 101, 102]


def test_large_jpegs_decoded_at_a_fraction_keep_their_boxes_in_place(tmp_path: Path) -> None:
    # 803 x 501 into 64 x 48: at scale 1 a twelfth, decoded at 1/8.
    large = make_records(tmp_path, 6, width=803, height=501)
    config = config_with(batch_size=6, augment=AugmentConfig(color_probability=0, min_visible=0, mosaic_probability=0))
    seen = 0
    with TrainLoader(large, config, seed=1) as loader:
        for epoch in range(5):
            (batch,) = loader.epoch(epoch)
            for pixels, found, is_box in zip(batch.images.numpy(), batch.gt_boxes, batch.gt_mask, strict=True):
                if is_box[0]:
                    bright = np.argwhere(pixels[:, :, 0] > 160)
                    corners = np.concatenate([bright.min(axis=0)[::-1], bright.max(axis=0)[::-1] + 1])
                    np.testing.assert_allclose(found[0].numpy(), corners, atol=1.5)
                    seen += 1
    # Four of the six have an object, a quarter of the image and in its middle.
    assert seen == 20


def test_workers_outlive_epochs_and_end_with_the_loader(records: list[ImageRecord]) -> None:
    before = worker_pids()
    loader = TrainLoader(records, config_with(workers=2), seed=1)
    assert worker_pids() == before
    list(loader.epoch(0))
    workers = worker_pids() - before
    assert len(workers) == 2
    running = loader.epoch(1)
    next(running)
    assert worker_pids() - before == workers
    loader.close()
    assert worker_pids() == before
    with pytest.raises(RuntimeError, match="loader closed"):
        next(running)
    with pytest.raises(RuntimeError, match="the loader is closed"):
        loader.epoch(2)
    loader.close()


def test_workers_leave_an_interrupt_to_the_training_process(records: list[ImageRecord]) -> None:
    before = worker_pids()
    with TrainLoader(records, config_with(workers=1), seed=1) as loader:
        expected = list(loader.epoch(0))
        batches = loader.epoch(0)
        first = next(batches)
        for pid in worker_pids() - before:
            os.kill(pid, signal.SIGINT)
        assert_same([first, *batches], expected)


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_killed_worker_is_an_error_and_not_a_hang(records: list[ImageRecord], is_gone: bool) -> None:
    before = worker_pids()
    with TrainLoader(records, config_with(workers=1, batch_size=1), seed=1) as loader:
        batches = loader.epoch(0)
        next(batches)
        (worker,) = (process for process in multiprocessing.active_children() if process.pid not in before)
        worker.kill()
        if is_gone:
            worker.join()
        with pytest.raises(DataError, match=r"a worker process for training images died .*--shm-size"):
            list(batches)


TRAINING = """
import pickle, sys, time
from edgerpn.train.data.loader import DataConfig, TrainLoader
from edgerpn.train.data.augment import draw_tiles
if __name__ == "__main__":
    loader = TrainLoader(pickle.load(sys.stdin.buffer), DataConfig(workers=2), seed=1)
    next(loader.epoch(0))
    print("started", flush=True)
    time.sleep(60)
"""


def test_workers_end_when_the_training_process_is_killed(records: list[ImageRecord], tmp_path: Path) -> None:
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, script], stdin=pipe, stdout=pipe) as training:
        assert training.stdin is not None
        assert training.stdout is not None
        pickle.dump(records, training.stdin)
        training.stdin.close()
        assert training.stdout.readline() == b"started\n"
        training.kill()
        # The pipe ends when the last process that writes to it has ended.
        assert select.select([training.stdout], [], [], 20)[0]
        assert training.stdout.read() == b""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always imports from the current folder first")
def test_workers_import_nothing_from_the_current_folder(records: list[ImageRecord], tmp_path: Path) -> None:
    script, folder = tmp_path / "training.py", tmp_path / "data"
    script.write_text(TRAINING.replace("time.sleep(60)", "loader.close()"))
    folder.mkdir()
    for name in ("queue", "random"):
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong file')")
    done = subprocess.run(
        [sys.executable, script], input=pickle.dumps(records), capture_output=True, check=False, cwd=folder
    )
    assert (done.returncode, done.stdout) == (0, b"started\n"), done.stderr.decode()


ON_ONE_CORE = """
import os, pickle, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from edgerpn.train.data.loader import DataConfig, TrainLoader
if __name__ == "__main__":
    with TrainLoader(pickle.load(sys.stdin.buffer), DataConfig(workers=2), seed=1) as loader:
        next(loader.epoch(0))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system gives a process all cores")
def test_more_workers_than_cores_cause_no_warning(records: list[ImageRecord], tmp_path: Path) -> None:
    script = tmp_path / "training.py"
    script.write_text(ON_ONE_CORE)
    command = [sys.executable, str(script)]
    done = subprocess.run(command, input=pickle.dumps(records), capture_output=True, check=True)
    assert done.stderr == b""


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_broke_after_the_check_is_named(tmp_path: Path, workers: int) -> None:
    broken = make_records(tmp_path, 4)
    data = broken[2].file.read_bytes()
    with TrainLoader(broken, config_with(workers=workers), seed=1) as loader:
        broken[2].file.write_bytes(data[: len(data) // 2])
        with pytest.raises(DataError, match=r"^.*2\.jpg: truncated: the JPEG has no end marker$"):
            list(loader.epoch(0))
        broken[2].file.unlink()
        with pytest.raises(DataError, match=r"^.*2\.jpg: cannot be read: No such file or directory$"):
            list(loader.epoch(0))
        assert cv2.imwrite(str(broken[2].file), np.zeros((9, 7, 3), np.uint8))
        with pytest.raises(DataError, match=r"2\.jpg: .*changed since it was checked: 7 x 9 .*, expected 80 x 50$"):
            list(loader.epoch(0))
        # The workers still run.
        broken[2].file.write_bytes(data)
        assert len(list(loader.epoch(0))) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_the_models_random_numbers_are_left_alone(records: list[ImageRecord], workers: int) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    with TrainLoader(records, config_with(workers=workers), seed=1) as loader:
        list(loader.epoch(0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_two_epochs_at_once_are_refused(records: list[ImageRecord]) -> None:
    with TrainLoader(records, CONFIG, seed=1) as loader:
        first = loader.epoch(0)
        next(first)
        second = loader.epoch(1)
        with pytest.raises(RuntimeError, match="another epoch was started"):
            next(first)
        assert len(list(second)) == 3


def test_arguments_out_of_range_are_refused(records: list[ImageRecord]) -> None:
    with pytest.raises(ValueError, match="records: expected at least one image"):
        TrainLoader([], CONFIG, seed=1)
    with pytest.raises(ValueError, match="seed: expected 0 or more, got -1"):
        TrainLoader(records, CONFIG, seed=-1)
    with TrainLoader(records, CONFIG, seed=1) as loader:
        with pytest.raises(ValueError, match=r"expected 0 or more and 0\.\.3, got 0 and 4"):
            loader.epoch(0, start_batch=4)
        with pytest.raises(ValueError, match="got -1 and 0"):
            loader.epoch(-1)


def test_views_take_turns_and_show_objects_at_the_scale_of_the_input(records: list[ImageRecord]) -> None:
    config = DataConfig(input_hw=(96, 128), view_sides_px=(64, 0), batch_size=4, workers=0, augment=STILL)
    assert config.views_hw == ((64, 64), (96, 128))
    with TrainLoader(records, config, seed=1) as loader:
        epochs = [list(loader.epoch(number)) for number in (0, 1)]
        (taken_up,) = loader.epoch(1, start_batch=2)
        assert_same([taken_up], epochs[1][2:])
    # Three batches per epoch: the second epoch continues where the first one ended.
    sides = [tuple(batch.images.shape[1:3]) for batch in epochs[0] + epochs[1]]
    assert sides == [(64, 64), (96, 128)] * 3
    fit = min(96 / 50, 128 / 80)
    whole = epochs[0][1]
    boxes = whole.gt_boxes[whole.gt_mask]
    expected = torch.tensor([40 * fit, 20 * fit]).expand(len(boxes), 2)
    assert len(boxes)
    torch.testing.assert_close(boxes[:, 2:] - boxes[:, :2], expected, rtol=0, atol=1.0)
    part = epochs[0][0]
    sizes = (part.gt_boxes[..., 2:] - part.gt_boxes[..., :2])[part.gt_mask]
    # A view of 64 x 64 may cut an object; the part in view has the same scale as in the whole.
    assert len(sizes)
    assert sizes[:, 1].max() == pytest.approx(20 * fit, abs=1)
    assert (sizes[:, 0] <= 64).all()
    assert DataConfig(view_sides_px=()).views_hw == (DataConfig().input_hw,)


def test_a_mosaic_shows_four_images_with_their_boxes_in_place(records: list[ImageRecord]) -> None:
    mosaic = dataclasses.replace(STILL, mosaic_probability=1.0, scale_range=(0.5, 0.5))
    config = DataConfig(input_hw=(96, 128), batch_size=14, workers=0, augment=mosaic)
    with TrainLoader(records, config, seed=1) as loader:
        (batch,) = loader.epoch(0)
        assert_same([batch], loader.epoch(0))
    counts = batch.gt_mask.sum(dim=1)
    assert counts.max() > 1  # an image of these has one object at most
    for image, boxes, mask in zip(batch.images, batch.gt_boxes, batch.gt_mask, strict=True):
        for x1, y1, x2, y2 in boxes[mask].round().int().tolist():
            # Objects are white in a dark picture; a pixel of the edge may be mixed.
            assert image[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].float().mean() > 200


def test_tiles_fill_the_view() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        tiles = draw_tiles((40, 64), rng)
        covered = np.zeros((40, 64), int)
        for tile in tiles:
            covered[tile.top : tile.top + tile.hw[0], tile.left : tile.left + tile.hw[1]] += 1
            assert min(tile.hw) >= 10
        assert (covered == 1).all()


def test_small_views_are_no_mosaics(records: list[ImageRecord]) -> None:
    augment = dataclasses.replace(STILL, mosaic_probability=1.0)
    plain = DataConfig(input_hw=(31, 64), batch_size=4, workers=0, augment=STILL)
    with (
        TrainLoader(records, plain, seed=1) as one,
        TrainLoader(records, dataclasses.replace(plain, augment=augment), seed=1) as other,
    ):
        assert_same(one.epoch(0), other.epoch(0))


@pytest.mark.parametrize("key", ["batch_size", "workers", "input_hw", "view_sides_px"])
def test_settings_out_of_range_are_refused(key: str) -> None:
    value = "[-1, 64]" if key in ("input_hw", "view_sides_px") else "-1"
    with pytest.raises(ValueError, match=f"command line: {key}: expected "):
        settings.load(DataConfig, overrides=[f"{key}={value}"])


def test_settings_survive_toml_and_every_one_is_documented(tmp_path: Path) -> None:
    config = config_with(workers=3, augment=STILL)
    file = tmp_path / "data.toml"
    file.write_text(settings.to_toml(config))
    assert settings.load(DataConfig, files=[file]) == config
    for cls in (DataConfig, AugmentConfig):
        assert set(settings.field_docs(cls)) == set(cls.__dataclass_fields__)
