"""BatchNorm whose training statistics cover the batches of all processes."""

from typing import Any

import torch
from torch import Tensor, distributed, nn


class _SumOverProcesses(torch.autograd.Function):
    """Sum over all processes. Each one's loss depends on it, so its gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


def _num_processes() -> int:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


class SyncBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d`; in distributed training its statistics are those of the global batch.

    With one process, or in eval mode, it is exactly `nn.BatchNorm1d`, and it has the same names in
    its state dict in any case, so a model needs no conversion for distributed training and its
    weights fit both. Unlike `nn.SyncBatchNorm` it works on CPU (gloo), too. The processes may have
    batches of different sizes, but all must call it, as with any collective operation. As there,
    the gradients of weight and bias are those of the process's own clips; DDP averages them.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: share of a batch in the running statistics.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        self.momentum: float

    def forward(self, input: Tensor) -> Tensor:
        """Normalises each channel.

        Args:
            input: floating point (N, C).

        Returns:
            The same shape and dtype.

        Raises:
            ValueError: in training, if the processes together have fewer than two rows: their
                variance would be zero and the result nothing but the bias.
        """
        if not self.training:
            return super().forward(input)
        num_processes = _num_processes()
        if num_processes == 1:
            if len(input) < 2:
                self._refuse(len(input), num_processes)
            return super().forward(input)
        self._check_input_dim(input)
        return self._normalise_together(input, num_processes)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim != 2:
            raise ValueError(f"SyncBatchNorm1d takes (N, C), got {tuple(input.shape)}")

    def _normalise_together(self, input: Tensor, num_processes: int) -> Tensor:
        # Half precision is too coarse for statistics; nn.BatchNorm1d computes in float32, too.
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        sums = _SumOverProcesses.apply(torch.cat([x.sum(0), x.new_full((1,), len(x))]))
        count = sums[-1].detach()
        if len(x) < 2 and count < 2:  # with more rows here no look is needed; it stalls a GPU
            self._refuse(int(count), num_processes)
        mean = sums[:-1] / count
        # Two passes rather than sums of squares, which cancel when the mean is large.
        centred = x - mean
        variance = _SumOverProcesses.apply(centred.square().sum(0)) / count
        self._update_statistics(mean.detach(), variance.detach() * count / (count - 1))
        normalised = centred * torch.rsqrt(variance + self.eps)
        return (normalised * self.weight + self.bias).to(input.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), self.momentum)

    def _refuse(self, num_clips: int, num_processes: int) -> None:
        where = f" over {num_processes} processes" if num_processes > 1 else ""
        raise ValueError(
            f"BatchNorm needs at least 2 clips in a training batch, got {num_clips}{where}: raise "
            "the batch size or use norm='ln' in ProjectionHead"
        )
