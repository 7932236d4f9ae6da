"""A model of which every process holds a part of each weight: PyTorch's FSDP2.

A task is built, and a run restored, as in one process; `shard` then parts weights and optimizer
state in place. `whole_state` and `whole` put them together again, for checkpoints and evaluation,
so that neither knows of shards: a checkpoint fits any number of processes, sharded or not.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vimpac_ext.engine.distributed import is_main, world_size

_WHOLE = "_whole_before_sharding"  # attribute of a sharded task


def is_sharded(task: nn.Module) -> bool:
    """Whether `shard` has been applied."""
    return _WHOLE in vars(task)


def shard(
    task: Any, optimizer: torch.optim.Optimizer, precision: str, device: torch.device
) -> None:
    """Parts a task and its optimizer's state among the processes, in place; all call this.

    Each module of ``task.backbone.layers``, where there is such an attribute, is gathered only
    while it is computed; all else (embeddings, to which heads may be tied, and heads) is gathered
    for the whole step. So a backbone without ``layers`` is gathered as a whole.

    Args:
        task: in main memory, so that no device has to hold all of it; goes to ``device``.
        optimizer: of the task's parameters; may have a state.
        precision: with "bf16" the layers are gathered as bfloat16, take bfloat16 inputs, and their
            gradients are summed in float32. The parts themselves, all weights outside the layers,
            and layers with BatchNorm or 3-D max pooling stay float32.
        device: of this process.

    Raises:
        ValueError: a parameter is a single number, which cannot be parted.
    """
    # Imported here: it takes half a second that other runs need not pay.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    for parameter in task.parameters():
        dist.broadcast(parameter.data, src=0)  # as DistributedDataParallel does
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    whole_copy = copy.deepcopy(task)
    mesh = init_device_mesh(device.type, (world_size(),))
    # Outside the layers autocast chooses; frames, say, must not be cast.
    as_stored = MixedPrecisionPolicy(cast_forward_inputs=False)
    layers = list(layers_of(task))
    for layer in layers:
        # What leaves the last one is float32, as under autocast alone.
        leaves = torch.float32 if layer is layers[-1] else None
        half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, leaves)
        in_half = precision == "bf16" and not _needs_float32(layer)
        fully_shard(layer, mesh=mesh, mp_policy=half if in_half else as_stored)
    fully_shard(task, mesh=mesh, mp_policy=as_stored)
    register_fsdp_forward_method(task, "training_step")
    task.to(device)  # buffers that no parameter stands beside
    object.__setattr__(task, _WHOLE, whole_copy)  # past nn.Module's registration
    _shard_optimizer(optimizer, names, dict(task.named_parameters()))


def layers_of(task: Any) -> Iterable[nn.Module]:
    """The modules of ``task.backbone.layers``; none where there is no such list of modules."""
    layers = getattr(getattr(task, "backbone", None), "layers", None)
    return layers if isinstance(layers, (nn.ModuleList, nn.Sequential)) else ()


def _needs_float32(layer: nn.Module) -> bool:
    """Whether something in it does not go with weights in bfloat16.

    The statistics of BatchNorm are float32; on a CPU the result of a 3-D maximum is, too, under
    autocast, and no norm takes it with such weights.
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.MaxPool3d)
    return any(isinstance(module, kinds) for module in layer.modules())


def exchange_gradients(task: Any, wanted: bool) -> None:
    """Decides whether the next backward pass of a sharded task sums gradients over processes.

    If not they are kept whole in each process, and the next one that does sums them all.
    """
    task.set_requires_gradient_sync(wanted)


def whole(task: Any) -> Any:
    """A task with all weights, for evaluation; all processes call this.

    Returns:
        A copy on the same device, or the task itself if it is not sharded.
    """
    if not is_sharded(task):
        return task
    device = next(task.parameters()).device
    result = copy.deepcopy(getattr(task, _WHOLE)).to(device)
    own = result.state_dict()
    for name, value in task.state_dict().items():
        own[name].copy_(_gathered(value))
    return result


def whole_state(tree: Any) -> Any:
    """Nested dictionaries with whole tensors in place of parted ones; all processes call this.

    Returns:
        In the main process parted tensors have become whole ones in main memory, in the others
        None. All else is as it was.
    """
    if isinstance(tree, Mapping):
        found = {name: whole_state(value) for name, value in tree.items()}
        return found if any(found[name] is not tree[name] for name in tree) else tree
    if not _is_parted(tree):
        return tree
    value = _gathered(tree)
    return value.cpu() if is_main() else None


def local(value: Tensor) -> Tensor:
    """This process's part of a tensor, which shares its memory; the tensor itself if not parted."""
    return value.to_local() if _is_parted(value) else value  # type: ignore[attr-defined, no-any-return]


def copy_into(target: Tensor, value: Tensor) -> None:
    """Overwrites a tensor, parted or not, with a whole one that every process has."""
    local(target).copy_(_like(value, target))


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scales gradients, parted or not, to a norm of at most ``max_norm``.

    Returns:
        The norm before that, of all parts together; a scalar.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    return _gathered(norm)


def _shard_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
    parameters: Mapping[str, nn.Parameter],
) -> None:
    """Gives an optimizer the parted parameters, and their parts of its state."""
    for group in optimizer.param_groups:
        before = group["params"]
        group["params"] = [parameters[names[id(parameter)]] for parameter in before]
        for old, new in zip(before, group["params"], strict=True):
            if old not in optimizer.state:
                continue
            state = optimizer.state.pop(old)
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == old.shape:
                    part = new.detach().clone()
                    copy_into(part, value)
                    state[key] = part
                elif isinstance(value, Tensor) and group.get("fused"):
                    state[key] = value.to(new.device)  # where the fused kernels want "step"
            optimizer.state[new] = state


def _is_parted(value: Any) -> bool:
    # By a method of DTensor, whose module takes long to import.
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def _gathered(value: Any) -> Tensor:
    gathered: Tensor = value.full_tensor() if _is_parted(value) else value
    return gathered


def _like(value: Tensor, target: Any) -> Tensor:
    """This process's part of a whole tensor, parted as ``target`` is."""
    if not _is_parted(target):
        return value
    from torch.distributed.tensor import distribute_tensor

    # No source: every process has the whole, so nothing needs to be sent.
    on_device = value.to(target.device)
    return local(
        distribute_tensor(on_device, target.device_mesh, target.placements, src_data_rank=None)
    )
