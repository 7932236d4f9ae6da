"""Whether two runs ended with the same checkpoint, to the last bit."""

import hashlib

import torch

from vimpac_ext.engine.checkpoint import newest_checkpoint, read_checkpoint


def content_hash(folder):
    """Of all that the newest checkpoint of a run holds, but for the configuration.

    That names the folder of the run.
    """
    checkpoint = read_checkpoint(newest_checkpoint(folder / "checkpoints"))
    digest = hashlib.sha256()

    def add(value):
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(f"{key}:".encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        elif isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.flatten().contiguous().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())

    add({key: value for key, value in checkpoint.items() if key != "cfg"})
    return digest.hexdigest()
