"""Training on an NVIDIA GPU: the numbers of the CPU, no waiting in a step, repeatable runs, and lack of memory.

python -m pytest -m gpu tests/train/test_cuda.py
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from edgerpn.errors import TrainingStoppedError
from edgerpn.train.checkpoint import load_checkpoint, load_model
from edgerpn.train.config import TrainSettings
from edgerpn.train.data.coco import read_coco, read_image
from edgerpn.train.learning.muon import orthogonalize
from edgerpn.train.network.detector import Detector, detect
from edgerpn.train.recall.average_recall import average_recall
from edgerpn.train.run.batch_size import resolve_batch_size
from edgerpn.train.run.device import choose_compute, place
from edgerpn.train.run.folder import read_log
from edgerpn.train.run.loop import TrainResult, run_training
from edgerpn.train.run.ranks import SINGLE_PROCESS, Ranks
from edgerpn.train.run.state import TrainingRun
from edgerpn.train.run.step import check_finite, take_step

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(280)]

MakeSettings = Callable[..., TrainSettings]
Start = Callable[..., TrainResult]
PRECISIONS = ("off", "bf16", "fp16")
OPTIMIZERS = ("muon", "adamw", "sgd")
# The paper's settings: sampled anchors, and other losses.
PAPER = (
    "assign.kind=max_iou",
    "assign.samples_per_image=64",
    "loss.objectness=bce",
    "loss.box=smooth_l1",
    "model.objectness=softmax",
    "optimizer.kind=sgd",
)
# 24 steps, evaluated at 5, 10, 15, 20 and 24.
SHORT = ("loop.epochs=6", "loop.evaluations=5")


@pytest.fixture(autouse=True)
def as_on_a_cpu() -> Iterator[None]:
    """Convolutions in float32, not in TF32; and PyTorch left as it was."""
    before = torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.use_deterministic_algorithms(before[1])


@pytest.fixture
def memory_limit() -> Iterator[Callable[[float], None]]:
    """Sets how many bytes of the GPU this process may use; at the end it may use all."""
    total = torch.cuda.get_device_properties(0).total_memory

    def limit(num_bytes: float) -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(num_bytes / total)

    yield limit
    limit(total)


@pytest.fixture
def start(data_folder: Path, tmp_path: Path, tiny_settings: MakeSettings) -> Start:
    """Trains on the GPU into `tmp_path` / name with tiny settings and further `--set` texts."""

    def run(name: str, *texts: str, **options: object) -> TrainResult:
        settings = tiny_settings("loop.device=cuda", *texts)
        return run_training(settings, data=data_folder, output=tmp_path / name, **options)  # type: ignore[arg-type]

    return run


def losses(history: Sequence[dict[str, float]]) -> list[float]:
    return [row["loss"] for row in history if "loss" in row]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_float32_has_the_losses_and_recall_of_the_cpu(start: Start, kind: str) -> None:
    texts = (f"optimizer.kind={kind}", "optimizer.learning_rate=5e-4", "loop.epochs=4")
    found, expected = start("gpu", *texts), start("cpu", *texts, "loop.device=cpu")
    pairs = zip(losses(found.history), losses(expected.history), strict=True)
    for step, (on_gpu, on_cpu) in enumerate(pairs):
        # Roundings grow with the steps.
        assert on_gpu == pytest.approx(on_cpu, rel=1e-3 if step < 4 else 0.02), step
    assert found.metrics["AR@100"] == pytest.approx(expected.metrics["AR@100"], abs=0.02)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_loses_as_float32_does(start: Start, amp: str) -> None:
    texts = ("optimizer.learning_rate=5e-3", "optimizer.warmup_steps=5", "loop.epochs=20")
    found, expected = start("mixed", *texts, f"loop.amp={amp}"), start("whole", *texts)
    # Training on 16 images depends on every rounding; float16 also skips steps to find its scale.
    means = [np.reshape(losses(result.history), (-1, 16)).mean(axis=1) for result in (found, expected)]
    assert means[0] == pytest.approx(means[1], rel=0.2)
    assert means[0][-1] < 0.9 * means[0][0]


@pytest.mark.parametrize("shape", [(2, 16, 144), (1, 144, 16), (3, 128, 1152)])
def test_muon_makes_the_steps_of_the_cpu(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = orthogonalize(matrices)
    assert (orthogonalize(matrices.cuda()).cpu() - expected).norm() < 2e-3 * expected.norm()


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("texts", [*((f"optimizer.kind={kind}",) for kind in OPTIMIZERS), PAPER], ids=" ".join)
def test_the_host_never_waits_within_a_step(
    make_run: Callable[..., TrainingRun], texts: tuple[str, ...], amp: str
) -> None:
    run = make_run("run", "loop.device=cuda", *texts, f"loop.amp={amp}")
    with run.loader:
        steps = list(run.loader.steps(0))
        for batches in steps[:2]:  # what is made once
            take_step(run, batches)
            run.progress.step += 1
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            record = take_step(run, steps[2])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert check_finite(run, record).loss > 0


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_float16_step_that_overflows_moves_nothing(make_run: Callable[..., TrainingRun], kind: str) -> None:
    run = make_run("run", "loop.device=cuda", "loop.amp=fp16", f"optimizer.kind={kind}")
    run.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**60)
    before = [weight.detach().clone() for weight in run.parameters]
    with run.loader:
        steps = list(run.loader.steps(0))
        check_finite(run, take_step(run, steps[0]))
        assert run.scaler.get_scale() == 2.0**59
        assert all(torch.equal(weight, old) for weight, old in zip(run.parameters, before, strict=True))
        run.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
        check_finite(run, take_step(run, steps[1]))
    assert not any(torch.equal(weight, old) for weight, old in zip(run.parameters, before, strict=True))


@pytest.mark.parametrize("amp", PRECISIONS)
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(start: Start, amp: str) -> None:
    texts = (*SHORT, f"loop.amp={amp}")

    def interrupt(line: str) -> None:
        if line.startswith("step 5,"):
            os.kill(os.getpid(), signal.SIGINT)

    whole = start("whole", *texts)
    assert start("parts", *texts, log=interrupt).interrupted
    parts = start("parts", *texts, resume=True)
    assert losses(parts.history) == pytest.approx(losses(whole.history), rel=1e-5)
    found, expected = load_checkpoint(parts.last), load_checkpoint(whole.last)
    assert found.metrics == expected.metrics
    for name, value in expected.weights.items():
        assert torch.equal(found.weights[name], value), name


def test_a_checkpoint_opens_on_a_cpu_and_finds_there_what_it_found_on_the_gpu(start: Start, data_folder: Path) -> None:
    result = start("run", *SHORT, "optimizer.learning_rate=5e-3", "loop.amp=bf16")
    assert all(value.device.type == "cpu" for value in load_checkpoint(result.best).weights.values())
    dataset = read_coco(data_folder / "val.json", data_folder / "images", verify="none")
    found = {}
    for device in ("cpu", "cuda"):
        model, checkpoint = load_model(result.best)
        detector = Detector(model.eval(), checkpoint.settings.proposals, network_hw=checkpoint.settings.data.input_hw)
        placed = place(detector, torch.device(device))
        found[device] = [(r.image_id, detect(placed, read_image(r.file))) for r in dataset.records]
    for (_, own), (_, expected) in zip(found["cuda"], found["cpu"], strict=True):
        num = min(10, len(own), len(expected))
        np.testing.assert_allclose(own.scores[:num], expected.scores[:num], atol=1e-3)
        np.testing.assert_allclose(own.boxes[0], expected.boxes[0], atol=0.1)
    recalls = {}
    for device, proposals in found.items():
        rows = [row for image_id, of_image in proposals for row in of_image.to_coco(image_id)]
        recalls[device] = average_recall(dataset.coco_ground_truth(), rows)["AR@100"]
    assert recalls["cuda"] == pytest.approx(recalls["cpu"], abs=0.005)


# Large enough for images to need more memory than weights.
LARGE = ("data.input_hw=[384, 384]", "data.view_sides_px=[]", "data.batch_size=16", "loop.epochs=1", "loop.amp=bf16")


def test_the_advice_for_a_lack_of_memory_helps(start: Start, memory_limit: Callable[[float], None]) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    start("roomy", *LARGE, "loop.accumulate=16")
    memory_limit(1.5 * torch.cuda.max_memory_reserved())
    with pytest.raises(TrainingStoppedError, match=r"out of memory with 16 images a step.* loop.accumulate=2, "):
        start("tight", *LARGE)
    assert losses(start("parts", *LARGE, "loop.accumulate=16").history)


def test_the_batch_that_fits_is_chosen_and_the_learning_rate_with_it(
    data_folder: Path, tiny_settings: MakeSettings, memory_limit: Callable[[float], None]
) -> None:
    dataset = read_coco(data_folder / "train.json", data_folder / "images", verify="none")
    settings = tiny_settings("loop.device=cuda", *LARGE, "data.batch_size=0")
    compute = choose_compute(settings.loop)
    lines: list[str] = []

    def chosen() -> TrainSettings:
        return resolve_batch_size(settings, dataset.records, SINGLE_PROCESS, compute, lines.append)

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    assert chosen().data.batch_size == 16, "all images there are"
    memory_limit(0.6 * torch.cuda.max_memory_reserved())
    found = chosen()
    assert found.data.batch_size in (4, 8)
    rate = settings.optimizer.learning_rate * (found.data.batch_size / settings.optimizer.reference_batch_size) ** 0.5
    assert found.optimizer.learning_rate == pytest.approx(rate)
    assert f"{found.data.batch_size} images per step, the largest power of 2 that the GPU holds" in lines[-1]


@pytest.mark.slow
def test_a_compiled_network_has_the_losses_of_the_other(start: Start) -> None:
    texts = ("optimizer.learning_rate=5e-4", "loop.epochs=4", "loop.amp=bf16")
    lines: list[str] = []
    found, expected = start("compiled", *texts, "loop.compile=true", log=lines.append), start("plain", *texts)
    assert not [line for line in lines if "not possible" in line]
    assert losses(found.history) == pytest.approx(losses(expected.history), rel=0.05)


def test_collectives_use_nccl_also_for_a_single_process(make_run: Callable[..., TrainingRun]) -> None:
    # Two processes need two GPUs; one that acts as the first of two uses the same calls.
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    try:
        run = make_run("run", "loop.device=cuda", ranks=Ranks(size=2))
        assert isinstance(run.parallel, DistributedDataParallel)
        assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in run.model.modules())
        assert run.ranks.broadcast_from_first(run.weights.values()) == 0
        assert run.ranks.agree(3.0, True) == (3.0, True)
        with run.loader:
            for batches in run.loader.steps(0):
                assert check_finite(run, take_step(run, batches)).loss > 0
        assert run.ranks.broadcast_from_first(run.parameters) == 0
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs a GPU for each of two processes")
def test_two_gpus_have_the_losses_of_one(
    start: Start, data_folder: Path, tmp_path: Path, tiny_texts: tuple[str, ...]
) -> None:
    texts = ("loop.device=cuda", "optimizer.learning_rate=5e-4", "loop.epochs=4")
    options = [word for text in (*tiny_texts, *texts) for word in ("--set", text)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = ["-m", "edgerpn", "train", "--data", str(data_folder), "--out", str(tmp_path / "two"), *options]
    done = subprocess.run([sys.executable, *launcher, *command], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on each of 2 processes" in done.stdout
    assert "weights of the processes differed" not in done.stdout
    found = losses(read_log(tmp_path / "two" / "log.csv"))
    assert found == pytest.approx(losses(start("one", *texts).history), rel=0.02)
