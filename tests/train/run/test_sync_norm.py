"""Batch norm over two processes on the CPU: real ones, joined by gloo, against PyTorch's batch norm over all images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing, nn

from edgerpn.train.run.sync_norm import CpuSyncBatchNorm, synchronize_norms

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="needs torch.distributed")


def make_norm(dtype: torch.dtype) -> tuple[nn.BatchNorm2d, torch.Tensor, torch.Tensor]:
    """A norm with weights, six images of which rank 0 gets four, and the gradient of their outputs."""
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    images = torch.randn(6, 3, 5, 4, generator=generator) * 3 + 100
    grad = torch.randn(6, 3, 5, 4, generator=generator)
    return norm, images.to(dtype), grad.to(dtype)


def passes(module: nn.Module, images: torch.Tensor, grad: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output and gradients of one pass in training, and the statistics that it leaves."""
    images = images.clone().requires_grad_()
    output = module(images)
    output.backward(grad)
    state = {name: value.detach().clone() for name, value in module.state_dict().items() if "running" in name}
    grads = {f"grad {name}": parameter.grad for name, parameter in module.named_parameters()}
    return {"output": output.detach(), "grad images": images.grad, **grads, **state}


def work(rank: int, folder: str, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", 2)  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    norm, images, grad = make_norm(dtype)
    module = nn.Sequential(norm)
    assert not synchronize_norms(module, torch.device("cpu"))
    share = slice(0, 4) if rank == 0 else slice(4, 6)
    torch.save(passes(module, images[share], grad[share]), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, while idle threads exist
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.bfloat16, 5e-2)])
def test_two_processes_normalise_as_one(dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    start = multiprocessing.start_processes  # type: ignore[attr-defined]
    start(work, (str(tmp_path), dtype), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    norm, images, grad = make_norm(dtype)
    expected = passes(nn.Sequential(norm), images, grad)
    for name in ("output", "grad images"):
        found = torch.cat((first[name], second[name]))
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected[name].float(), rtol=tolerance, atol=tolerance, msg=name)
    for name in ("grad 0.weight", "grad 0.bias"):
        # Of the two halves; DistributedDataParallel adds them up.
        torch.testing.assert_close(first[name] + second[name], expected[name], rtol=10 * tolerance, atol=10 * tolerance)
    for name in ("0.running_mean", "0.running_var"):
        torch.testing.assert_close(first[name], expected[name], rtol=tolerance, atol=tolerance)
        assert torch.equal(first[name], second[name])


def test_replaced_norms_keep_their_tensors_and_names() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    before: dict[str, Any] = dict(model.state_dict(keep_vars=True))
    assert not synchronize_norms(model, torch.device("cpu"))
    inner = model[1]
    assert isinstance(inner, nn.Sequential)
    assert isinstance(inner[0], CpuSyncBatchNorm)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is value for name, value in before.items())


def test_norms_of_other_classes_stay_and_are_reported() -> None:
    class NormAct(nn.BatchNorm2d):
        pass

    model = nn.Sequential(NormAct(4))
    assert synchronize_norms(model, torch.device("cpu")) == ("NormAct",)
    assert type(model[0]) is NormAct


def test_in_a_process_on_its_own_it_is_plain_batch_norm() -> None:
    norm, images, grad = make_norm(torch.float32)
    module = nn.Sequential(make_norm(torch.float32)[0])
    synchronize_norms(module, torch.device("cpu"))
    found, expected = passes(module, images, grad), passes(nn.Sequential(norm), images, grad)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
