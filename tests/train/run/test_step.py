"""A step in parts: the gradients and losses equal those of one batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgerpn.errors import ConfigError
from edgerpn.train.config import TrainSettings, load_settings
from edgerpn.train.data.batch import TrainBatch
from edgerpn.train.data.coco import read_coco
from edgerpn.train.data.loader import BatchShare, TrainLoader
from edgerpn.train.learning.assign import AssignConfig, assign, sample
from edgerpn.train.learning.loss import rpn_losses
from edgerpn.train.learning.optimizer import OptimizerConfig, scale_gradients, scaled_learning_rate
from edgerpn.train.network.model import ModelConfig, Rpn, RpnWithMaps
from edgerpn.train.run import step
from edgerpn.train.run.batch_size import largest_that_fits, resolve_batch_size
from edgerpn.train.run.device import choose_compute
from edgerpn.train.run.folder import RunFolder
from edgerpn.train.run.ranks import SINGLE_PROCESS, Ranks
from edgerpn.train.run.setup import RunRequest, read_inputs
from edgerpn.train.run.state import TrainingRun

MakeSettings = Callable[..., TrainSettings]


def expected_gradients(run: TrainingRun, batches: tuple[TrainBatch, ...]) -> tuple[dict[str, torch.Tensor], float]:
    """Of the losses over all images at once, whose passes through the network are those of the parts."""
    levels = [run.model(run.model.normalize(batch.images)) for batch in batches]
    logits_NA = torch.cat([torch.cat([logits for logits, _ in part], dim=1) for part in levels])
    deltas_NA4 = torch.cat([torch.cat([deltas for _, deltas in part], dim=1) for part in levels])
    longest = max(batch.gt_boxes.shape[1] for batch in batches)
    gt_boxes = torch.cat(
        [torch.nn.functional.pad(b.gt_boxes, (0, 0, 0, longest - b.gt_boxes.shape[1])) for b in batches]
    )
    gt_mask = torch.cat([torch.nn.functional.pad(b.gt_mask, (0, longest - b.gt_mask.shape[1])) for b in batches])
    ignored = torch.zeros(len(gt_boxes), 1, 4)
    config = run.settings
    height, width = batches[0].images.shape[1:3]
    anchors = run.anchors_of((height, width))
    assignment = assign(
        anchors,
        gt_boxes,
        gt_mask,
        ignored,
        torch.zeros(len(gt_boxes), 1, dtype=torch.bool),
        image_hw=(height, width),
        config=config.assign,
    )
    generator = torch.Generator().manual_seed(config.loop.seed * 1_000_003)
    sampled_NA = sample(assignment.labels_NA, config=config.assign, generator=generator)
    losses = rpn_losses(logits_NA, deltas_NA4, torch.cat(anchors), assignment, sampled_NA, gt_boxes, config=config.loss)
    losses.total.backward()
    grads = {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}
    run.optimizer.zero_grad()
    return grads, losses.total.item()


@pytest.mark.parametrize("samples", [0, 32])
@pytest.mark.parametrize("passes", [1, 2, 4])
def test_passes_have_the_gradients_of_one_batch(
    passes: int, samples: int, make_run: Callable[..., TrainingRun]
) -> None:
    still = "data.augment={min_visible=0.0}"  # no ignore regions
    texts = (f"assign.samples_per_image={samples}", "data.batch_size=8", f"loop.accumulate={passes}", still)
    expecting, run = make_run("expected", *texts), make_run("run", *texts, "optimizer.max_grad_norm=1e9")
    batches = next(run.loader.steps(0))
    assert [len(batch.images) for batch in batches] == [8 // passes] * passes
    expecting.model.train()
    grads, loss = expected_gradients(expecting, batches)
    figures = step.check_finite(run, step.take_step(run, batches))
    assert figures.loss == pytest.approx(loss, rel=1e-5)
    for name, parameter in run.model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-3, atol=1e-5, msg=name)
    norm = torch.stack([grad.norm() for grad in grads.values()]).norm()
    assert figures.grad_norm == pytest.approx(norm.item(), rel=1e-4)


def test_gradients_are_scaled_and_limited_together() -> None:
    parameters = [
        torch.nn.Parameter(torch.zeros(2)),
        torch.nn.Parameter(torch.zeros(1)),
        torch.nn.Parameter(torch.zeros(1)),
    ]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert scale_gradients(parameters, torch.tensor(2.0), max_norm=100.0).item() == pytest.approx(10.0)
    assert parameters[0].grad.tolist() == [6.0, 0.0]
    # Norm 10 times 0.5 is 5; brought down to 1 it is a tenth of what it was.
    assert scale_gradients(parameters, torch.tensor(0.5), max_norm=1.0).item() == pytest.approx(5.0)
    assert parameters[1].grad.tolist() == pytest.approx([0.8])
    assert parameters[2].grad is None


def test_an_images_sample_does_not_depend_on_the_part_it_comes_in() -> None:
    labels_NA = torch.randint(-1, 2, (6, 200), generator=torch.Generator().manual_seed(0))
    config = AssignConfig(samples_per_image=20)

    def draw(first: int, end: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(4)
        return sample(labels_NA[first:end], config=config, generator=generator, part=(first, 6))

    whole = sample(labels_NA, config=config, generator=torch.Generator().manual_seed(4))
    assert torch.equal(torch.cat([draw(0, 2), draw(2, 6)]), whole)


@pytest.mark.parametrize(("ranks", "passes"), [(2, 1), (1, 2), (2, 2)])
def test_shares_make_up_the_batches_of_one_process(
    ranks: int, passes: int, data_folder: Path, tiny_settings: MakeSettings
) -> None:
    records = read_coco(data_folder / "train.json", data_folder / "images").records[:15]
    # One worker, which reads on from one epoch into the next.
    config = dataclasses.replace(tiny_settings().data, workers=1)
    with TrainLoader(records, config, seed=1) as loader:
        expected = [*loader.epoch(3, start_batch=1), *loader.epoch(4)]
        assert loader.batches_per_epoch == 3
        assert len({batch.images.shape for batch in expected}) == 2  # views of two sizes alternate
    shares = []
    for rank in range(ranks):
        with TrainLoader(
            records, config, seed=1, share=BatchShare(rank=rank, num_ranks=ranks, passes=passes)
        ) as loader:
            assert (loader.batches_per_epoch, loader.batch_size) == (3, 4)
            shares.append([*loader.steps(3, start_batch=1), *loader.steps(4)])
    for number, batch in enumerate(expected):
        parts = [shares[rank][number][part] for part in range(passes) for rank in range(ranks)]
        assert [image_id for part in parts for image_id in part.image_ids] == batch.image_ids
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)


def test_a_batch_that_cannot_be_shared_is_refused(data_folder: Path, tiny_settings: MakeSettings) -> None:
    records = read_coco(data_folder / "train.json", data_folder / "images").records
    compute = choose_compute(tiny_settings().loop)
    three = Ranks(rank=0, size=3)
    with pytest.raises(ConfigError, match=r"expected a multiple of 6 \(3 processes x loop.accumulate 2\).* got 4"):
        resolve_batch_size(tiny_settings("loop.accumulate=2"), records, three, compute, print)
    with pytest.raises(ValueError, match="at least one image for each of 6 parts"):
        TrainLoader(records[:5], tiny_settings().data, seed=0, share=BatchShare(num_ranks=3, passes=2))


def test_an_automatic_batch_size_scales_the_learning_rate_and_logs_it(
    data_folder: Path, tiny_settings: MakeSettings
) -> None:
    records = read_coco(data_folder / "train.json", data_folder / "images").records
    said: list[str] = []
    settings = tiny_settings("data.batch_size=0", "optimizer.reference_batch_size=9", "optimizer.learning_rate=0.3")
    compute = choose_compute(settings.loop)
    alone = resolve_batch_size(settings, records, SINGLE_PROCESS, compute, said.append)
    assert alone.data.batch_size == 9
    assert alone.optimizer.learning_rate == pytest.approx(0.3)
    # Four processes cannot share nine images: twelve, and the square root of 12/9 for AdamW.
    shared = resolve_batch_size(settings, records, Ranks(size=4), compute, said.append)
    assert shared.data.batch_size == 12
    assert shared.optimizer.learning_rate == pytest.approx(0.3 * (12 / 9) ** 0.5)
    assert said[-1].startswith("data.batch_size: 12 images per step")
    assert "optimizer.learning_rate: 0.346, because 0.3 is meant for 9 images" in said[-1]
    assert resolve_batch_size(shared, records, Ranks(size=4), compute, said.append) == shared
    assert len(said) == 2


def test_a_set_too_small_to_be_shared_is_refused_or_the_batch_fitted_to_it(
    data_folder: Path, tiny_settings: MakeSettings
) -> None:
    records = read_coco(data_folder / "train.json", data_folder / "images").records
    settings = tiny_settings("data.batch_size=0", "optimizer.reference_batch_size=16")
    compute = choose_compute(settings.loop)
    with pytest.raises(
        ConfigError, match=r"at least 4 images \(4 processes x loop.accumulate 1\), got a data set of 3"
    ):
        resolve_batch_size(settings, records[:3], Ranks(size=4), compute, print)
    fitted = resolve_batch_size(settings, records[:5], Ranks(size=2), compute, print)
    assert fitted.data.batch_size == 4
    with TrainLoader(records[:5], fitted.data, seed=0, share=BatchShare(num_ranks=2)) as loader:
        assert loader.batch_size == 4


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_gradients_are_exchanged_once_a_step_also_when_the_network_is_wrapped(
    make_run: Callable[..., TrainingRun], tmp_path: Path
) -> None:
    run = make_run("run", "loop.accumulate=2")
    exchanged: list[int] = []

    def count(_: object, bucket: Any) -> Any:
        exchanged.append(bucket.index())
        future: Any = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(RpnWithMaps(run.model))
        # PyTorch compares the annotations, and those of this file are texts.
        count.__annotations__ = {
            "bucket": torch.distributed.GradBucket,  # type: ignore[attr-defined]
            "return": torch.futures.Future[torch.Tensor],
        }
        parallel.register_comm_hook(None, count)
        # torch.compile also returns a callable of another class.
        run.parallel, run.network = parallel, lambda images: parallel(images)
        with run.loader:
            step.take_step(run, next(run.loader.steps(0)))
    finally:
        torch.distributed.destroy_process_group()
    assert exchanged
    assert len(exchanged) == len(set(exchanged))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_norms_that_stay_per_process_are_named(
    make_run: Callable[..., TrainingRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NormAct(torch.nn.BatchNorm2d):
        pass

    def with_another_norm(config: ModelConfig) -> Rpn:
        model = Rpn(config)
        model.add_module("extra", NormAct(4))
        return model

    monkeypatch.setattr("edgerpn.train.run.setup.Rpn", with_another_norm)
    said: list[str] = []
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        make_run("run", ranks=Ranks(size=2), log=said.append).loader.close()
    finally:
        torch.distributed.destroy_process_group()
    assert [line for line in said if line.startswith("loop.sync_batch_norm: NormAct cannot be synchronised")]


def test_compiling_is_refused_with_several_processes(data_folder: Path, tmp_path: Path) -> None:
    request = RunRequest(
        settings=load_settings(overrides=("loop.compile=true",)),
        data=data_folder,
        folder=RunFolder(tmp_path / "run"),
        resume=False,
        backbone_weights=None,
        log=print,
    )
    with pytest.raises(ConfigError, match=r"loop\.compile: expected false with several processes, got true with 2"):
        read_inputs(request, Ranks(size=2))
    assert read_inputs(dataclasses.replace(request, settings=load_settings()), Ranks(size=2)).checkpoint is None


def test_rates_grow_with_the_batch_by_the_kind_of_optimizer() -> None:
    sgd = OptimizerConfig(kind="sgd", learning_rate=0.1, reference_batch_size=4)
    assert scaled_learning_rate(sgd, 16) == pytest.approx(0.4)
    assert scaled_learning_rate(OptimizerConfig(learning_rate=0.1, reference_batch_size=4), 16) == pytest.approx(0.2)
    assert load_settings(preset="paper").optimizer.reference_batch_size == 1


@pytest.mark.parametrize(("room", "limit", "expected"), [(100, 256, 64), (100, 48, 32), (64, 256, 64), (0, 256, 0)])
def test_the_largest_batch_is_found_by_doubling(room: int, limit: int, expected: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= room

    assert largest_that_fits(fits, limit) == expected
    assert tried == sorted(tried)
    assert max(tried) <= limit
