"""Watches what a piece of a training step computes and keeps: matrix products and memory."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten


class MatrixCall(NamedTuple):
    """One matrix product, convolution or attention.

    Attributes:
        operator: what was called.
        arguments: positional, tensors included.
        keywords: the others.
        flops: floating-point operations, a multiply-add counted as two.
    """

    operator: Any
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    flops: int


class StepRecorder(TorchDispatchMode):
    """Counts the operations inside ``with``; changes nothing of what they compute.

    Backward passes are seen, too. What a backward pass computes for the second time, for activation
    checkpointing, is counted apart. Not for `torch.inference_mode` (`torch.no_grad` is fine), and
    blind to what is inside a compiled module.

    Args:
        on_call: called with every matrix product that is not a repetition; its tensors must be
            copied or forgotten.
        own: tensors such as parameters, which are no activations.

    Attributes:
        flops: of the matrix products, convolutions and attention, repetitions left out.
        repeated_flops: of those that activation checkpointing repeats.
    """

    def __init__(
        self,
        on_call: Callable[[MatrixCall], None] | None = None,
        own: Iterable[Tensor] = (),
    ) -> None:
        super().__init__()
        self.flops = 0
        self.repeated_flops = 0
        self._on_call = on_call
        self._own = _storages(own)
        self._made: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: Any = None
    ) -> Any:
        keywords = keywords or {}
        result = func(*arguments, **keywords)
        flops = _flops(func, arguments, keywords, result)
        if flops:
            if _is_in_backward() and torch.is_grad_enabled():
                self.repeated_flops += flops
            else:
                self.flops += flops
                if self._on_call is not None:
                    self._on_call(MatrixCall(func, arguments, keywords, flops))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                reference = StorageWeakRef(leaf.untyped_storage())
                if reference.cdata not in self._own:
                    # Kept: while it is, no other storage gets the same address.
                    self._made.setdefault(reference.cdata, reference)
        return result

    def live_bytes(self, own: Iterable[Tensor] = ()) -> int:
        """Memory of the tensors made inside that are still in use.

        Between forward and backward pass: the activations that are kept for the backward pass.

        Args:
            own: tensors made inside that are no activations either.
        """
        left_out = _storages(own)
        return sum(
            # As large as it is now: gathered weights are emptied, not forgotten.
            torch.UntypedStorage._new_with_weak_ptr(cdata).nbytes()
            for cdata, reference in self._made.items()
            if cdata not in left_out and not reference.expired()
        )


def _storages(tensors: Iterable[Tensor]) -> set[int]:
    return {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in tensors}


def _is_in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _attention_flops(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Two matrix products: (..., S, e) with (..., K, e) and (..., S, K) with (..., K, f)."""
    scores = query.shape[:-1].numel() * key.shape[-2]
    return 2 * scores * (query.shape[-1] + value.shape[-1])


def _flops(func: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any], result: Any) -> int:
    packet = getattr(func, "_overloadpacket", None)
    # PyTorch's list has no attention on CPU.
    if packet is _aten._scaled_dot_product_flash_attention_for_cpu:
        return _attention_flops(*arguments[:3])
    if packet is _aten._scaled_dot_product_flash_attention_for_cpu_backward:
        # Five products: the scores again, and the gradients of weights, query, key and value.
        return _attention_flops(*arguments[1:4]) * 5 // 2
    formula = flop_registry.get(packet)
    return int(formula(*arguments, **keywords, out_val=result)) if formula else 0
