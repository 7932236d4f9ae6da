"""Writes token folders as the authors' extraction does."""

import io
from pathlib import Path

import lmdb
import numpy as np


def record(tokens, label=0, **others):
    """The value of a video."""
    buffer = io.BytesIO()
    np.savez(buffer, tokens=np.asarray(tokens, np.int16), label=np.int16(label), **others)
    return buffer.getvalue()


def write_token_folder(folder: Path, values: dict[str, bytes]) -> Path:
    """Writes (or adds to) the LMDB of one view."""
    folder.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(folder), map_size=2**26) as environment:
        with environment.begin(write=True) as transaction:
            for name, value in values.items():
                transaction.put(name.encode(), value)
        environment.sync(True)
    (folder / "lock.mdb").unlink()
    return folder
