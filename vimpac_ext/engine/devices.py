"""Where a process computes."""

import torch
from fvcore.common.config import CfgNode


def allow_tf32(allowed: bool) -> None:
    """Whether GPUs round the inputs of float32 products to 10 bits (TensorFloat-32).

    That concerns matrix products, and convolutions, for which PyTorch's own default is to do so.

    Args:
        allowed: both; else neither.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def device_of(cfg: CfgNode, local_rank: int = 0) -> torch.device:
    """CPU, or the GPU of this process.

    Args:
        cfg: configuration.
        local_rank: counts the processes of this machine.

    Raises:
        ValueError: if a GPU is asked for and there is none.
    """
    if cfg.NUM_GPUS == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(
            f"NUM_GPUS is {cfg.NUM_GPUS} but no CUDA device is visible; add NUM_GPUS 0 to run on "
            "the CPU"
        )
    visible = torch.cuda.device_count()
    if visible == 1:  # srun --gpus-per-task=1 shows each process its own
        return torch.device("cuda", 0)
    if local_rank >= visible:
        raise ValueError(
            f"process {local_rank} of this machine has no GPU: {visible} CUDA devices are visible"
        )
    return torch.device("cuda", local_rank)
