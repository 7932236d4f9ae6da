"""The AdamW that the authors trained with."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class OriginalAdamW(torch.optim.Optimizer):
    """AdamW as in older releases of Hugging Face's transformers.

    With bias-corrected moments m and v as in Adam, an update is

        p <- p - lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)
        p <- p - lr * weight_decay * p

    so that, other than in `torch.optim.AdamW`, eps stands outside the bias correction (early
    updates are smaller where gradients are tiny) and the decay acts on the updated parameter. The
    state has the names and types of `torch.optim.AdamW`'s: each can continue the other's run.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: decay rates of the moments.
        eps: added to the root of the second moment.
        weight_decay: factor of the decay, multiplied by the learning rate.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"lr={lr}, eps={eps} and weight_decay={weight_decay} must not be negative, "
                f"and betas={tuple(betas)} must be in [0, 1)"
            )
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates all parameters that have a gradient.

        Args:
            closure: computes the loss again, as some optimizers need; may be left out.

        Returns:
            The closure's result.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One call for all parameters of a group: on a GPU a handful of kernels."""
        beta1, beta2 = group["betas"]
        gradients = [p.grad for p in parameters if p.grad is not None]
        states = [self._state_of(p) for p in parameters]
        first = [state["exp_avg"] for state in states]
        second = [state["exp_avg_sq"] for state in states]
        negative_rates = []
        for state in states:
            state["step"] += 1
            step = state["step"].item()  # kept on the CPU: no synchronisation
            correction = math.sqrt(1 - beta2**step) / (1 - beta1**step)
            negative_rates.append(-group["lr"] * correction)
        torch._foreach_mul_(first, beta1)
        torch._foreach_add_(first, gradients, alpha=1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        denominators = torch._foreach_sqrt(second)
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_addcdiv_(parameters, first, denominators, negative_rates)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        elif state["step"].device.type != "cpu":  # the state of a fused torch.optim.AdamW
            state["step"] = state["step"].cpu()
        return state
