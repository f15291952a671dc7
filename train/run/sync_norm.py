"""Batch norm over the images of all processes, so that a divided batch is normalised as a whole.

PyTorch's SyncBatchNorm works on GPUs only; the class here does the same on CPUs, with gloo.

Legend of shape suffixes: N images of this process, C channels, H and W rows and columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional


def synchronize_norms(module: nn.Module, device: torch.device) -> tuple[str, ...]:
    """Replaces every plain batch norm below `module`; the names in the state dict do not change.

    Returns:
        Names of other classes of batch norm that remain, such as timm's with a built-in activation: these normalise
        the images of each process separately.
    """
    leftover = set()
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, _synchronized(child, device))
            elif isinstance(child, nn.modules.batchnorm._BatchNorm):
                leftover.add(type(child).__name__)
    return tuple(sorted(leftover))


def _synchronized(norm: nn.BatchNorm2d, device: torch.device) -> nn.Module:
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    new = CpuSyncBatchNorm(norm.num_features, norm.eps, norm.momentum)
    new.train(norm.training)
    # The same tensors, not copies: existing references stay valid.
    new._parameters, new._buffers = norm._parameters, norm._buffers
    return new


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm whose training statistics cover the images of all processes; each must have at least one image."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        if not self.training or not distributed.is_initialized():
            return super().forward(x)
        y, mean, var, count = _SyncNormalize.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)), momentum)
        return y


class _SyncNormalize(torch.autograd.Function):
    """Ioffe and Szegedy 2015 (arXiv:1502.03167), algorithm 1 and its gradients, with sums over all processes."""

    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> tuple[Tensor, ...]:
        local_var_C, local_mean_C = torch.var_mean(x_NCHW.float(), (0, 2, 3), correction=0)
        count = torch.full_like(local_mean_C, x_NCHW.numel() / x_NCHW.shape[1]).double()
        # In float64, because the difference of two squares would lose digits in float32.
        means = local_mean_C.double()
        sums_3C = torch.stack((count, count * means, count * (local_var_C.double() + means.square())))
        distributed.all_reduce(sums_3C)
        count = sums_3C[0]
        mean_C = sums_3C[1] / count
        var_C = (sums_3C[2] / count - mean_C.square()).clamp(min=0).float()
        mean_C, count = mean_C.float(), count.float()
        y_NCHW = functional.batch_norm(x_NCHW, mean_C, var_C, weight_C, bias_C, False, 0.0, eps)
        ctx.save_for_backward(x_NCHW, weight_C, mean_C, (var_C + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean_C, var_C, count)
        return y_NCHW, mean_C, var_C, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x_NCHW, weight_C, mean_C, inverse_std_C, count = ctx.saved_tensors
        grad_NCHW = grads[0].float()
        centered_NCHW = x_NCHW.float() - mean_C[:, None, None]
        grad_bias_C = grad_NCHW.sum((0, 2, 3))
        grad_weight_C = (grad_NCHW * centered_NCHW).sum((0, 2, 3)) * inverse_std_C
        # The gradients of the parameters stay local; DistributedDataParallel averages them.
        means_2C = torch.stack((grad_bias_C, grad_weight_C))
        distributed.all_reduce(means_2C)
        means_2C = means_2C / count
        slope_C = means_2C[1] * inverse_std_C
        grad_x_NCHW = grad_NCHW - means_2C[0][:, None, None] - centered_NCHW * slope_C[:, None, None]
        grad_x_NCHW = grad_x_NCHW.mul_((weight_C * inverse_std_C)[:, None, None])
        return grad_x_NCHW.to(grads[0].dtype), grad_weight_C, grad_bias_C, None
