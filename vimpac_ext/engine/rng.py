"""The global random states of a process, as something that a checkpoint can hold."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from vimpac_ext.engine.distributed import rank


def rng_state() -> dict[str, Any]:
    """States of torch (CPU and this process's GPU), NumPy and Python; plain values and tensors."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(numpy, dict)
    version, numbers, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": {
            **numpy,
            "state": {**numpy["state"], "key": torch.from_numpy(numpy["state"]["key"].astype(int))},
        },
        "python": (version, numbers, gauss_next),
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Goes back to the states that `rng_state` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    key = state["numpy"]["state"]["key"].numpy().astype(np.uint32)
    numpy = {**state["numpy"], "state": {**state["numpy"]["state"], "key": key}}
    np.random.set_state(numpy)  # noqa: NPY002
    random.setstate(state["python"])


def seed_rng(seed: int) -> None:
    """Seeds torch (all devices), NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def part_ways(seed: int, update: int) -> None:
    """From here on each process draws numbers of its own, which the run has not drawn before.

    Args:
        seed: of the run.
        update: updates done.
    """
    if update:
        seed_rng(int(np.random.SeedSequence((seed, update, rank())).generate_state(1)[0]))
    elif rank():
        seed_rng(seed * 1_000_003 + rank())


@contextmanager
def kept_rng() -> Iterator[None]:
    """What is drawn inside changes nothing outside."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
