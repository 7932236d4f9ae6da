"""The authors' token files: LMDB environments whose values are small npz archives.

Key: UTF-8 name of a video. Value: the bytes of an uncompressed npz archive with ``tokens`` int16
(frames, h, w) and a scalar ``label``. Nothing in them is unpickled.
"""

import io
import os
import threading
import zipfile
import zlib
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb
import numpy as np

DATA_FILE = "data.mdb"

# What reading a damaged archive, or something that is none, raises.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,  # a forged size
    OSError,
    RuntimeError,  # includes NotImplementedError
    ValueError,
)
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class SharedEnvironment:
    """A folder that this process has open; closed when no reader holds it any more.

    Attributes:
        environment: of LMDB.
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder; use `share_environment` instead."""
        file = folder / DATA_FILE
        if not file.is_file():
            raise ValueError(f"{folder} has no {DATA_FILE}: it is no token folder of the authors'")
        try:
            self.environment = lmdb.open(str(folder), readonly=True, lock=False, readahead=False)
        except lmdb.Error as error:
            raise ValueError(f"{file} is damaged or in use by other code: {error}") from error
        self._pid = os.getpid()
        self._inode = file.stat().st_ino
        self._file = file
        # Reading behind the end of the file would kill the process.
        num_pages = self.environment.info()["last_pgno"] + 1
        expected = num_pages * self.environment.stat()["psize"]
        if file.stat().st_size < expected:
            self.close()
            raise ValueError(
                f"{file} is cut short: {file.stat().st_size} bytes, its {num_pages} pages need "
                f"{expected}; copy it again"
            )

    @property
    def is_usable(self) -> bool:
        """Whether this process opened it and it was not closed for a replaced file."""
        return self._pid == os.getpid()

    @property
    def is_replaced(self) -> bool:
        """Whether another file has taken the place of the one that is open."""
        return not self._file.is_file() or self._file.stat().st_ino != self._inode

    def close(self) -> None:
        """Close it for all readers; they open the folder again."""
        self._pid = -1
        self.environment.close()


# LMDB refuses to open a path twice in one process, and an environment must not be used across a
# fork: all readers of a process share one, and a forked child opens its own.
_OPEN: WeakValueDictionary[Path, SharedEnvironment] = WeakValueDictionary()
_CHANGING = threading.Lock()


def share_environment(folder: Path, check_replaced: bool = False) -> SharedEnvironment:
    """Open a folder for reading, or return it as this process has it open already.

    Args:
        folder: absolute path, without links, of the folder with ``data.mdb``.
        check_replaced: whether to look if the file is still the one that is open.

    Raises:
        ValueError: there is no LMDB file, or it is damaged or cut short.
    """
    with _CHANGING:
        shared = _OPEN.get(folder)
        if shared is not None and (not shared.is_usable or (check_replaced and shared.is_replaced)):
            shared.close()
            shared = None
        if shared is None:
            _OPEN[folder] = shared = SharedEnvironment(folder)
        return shared


def list_keys(shared: SharedEnvironment) -> np.ndarray:
    """Sorted keys of a folder, as an array of bytes; touches no values."""
    with shared.environment.begin() as transaction:
        return np.array([*transaction.cursor().iternext(values=False)], np.bytes_)


def common_keys(keys: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, list[str]]]:
    """Keys that all views have, sorted; and of every other video the views that lack it."""
    common: np.ndarray = reduce(np.intersect1d, keys.values())
    others = np.setdiff1d(np.concatenate([*keys.values()]), common)
    lacking = np.stack([~np.isin(others, present) for present in keys.values()], axis=1)
    names = [key.decode("utf-8", "surrogateescape") for key in others.tolist()]
    return common, {
        name: [view for view, is_lacking in zip(keys, row, strict=True) if is_lacking]
        for name, row in zip(names, lacking.tolist(), strict=True)
    }


class _Bytes(io.RawIOBase):
    """A value of LMDB as a file: reading it copies (and fetches from disk) only what is asked."""

    def __init__(self, value: memoryview) -> None:
        self._value = value
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._value)}[whence]
        if base + offset < 0:
            raise OSError("seek before the beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self._value[self._position : self._position + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def read_array(value: memoryview, name: str, where: str) -> np.ndarray:
    """Read one array of a video.

    Args:
        value: what LMDB has under the video's key.
        name: "tokens" or "label".
        where: names the video in error messages.

    Returns:
        Integers: (frames, h, w) for "tokens", a scalar for "label".

    Raises:
        ValueError: the value is damaged or not of this format.
    """
    try:
        with zipfile.ZipFile(_Bytes(value)) as archive, archive.open(f"{name}.npy") as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
    except _DAMAGE as error:
        raise _damaged(where, error) from error
    expected = {"tokens": 3, "label": 0}[name]
    if array.ndim != expected or array.dtype.kind not in "iu":
        raise ValueError(
            f"{where} is damaged: {name!r} is a {array.dtype} array of shape {array.shape}, "
            f"expected integers with {expected} dimensions"
        )
    return array


def read_shape(value: memoryview, where: str) -> tuple[int, int, int]:
    """Read frames, height and width of a video's tokens without reading the tokens.

    Raises:
        ValueError: the value is damaged or not of this format.
    """
    try:
        with zipfile.ZipFile(_Bytes(value)) as archive, archive.open("tokens.npy") as member:
            read_header = _HEADER_READERS[np.lib.format.read_magic(member)]
            shape: tuple[int, ...] = read_header(member)[0]
    except _DAMAGE as error:
        raise _damaged(where, error) from error
    if len(shape) != 3:
        raise ValueError(
            f"{where} is damaged: its tokens have shape {shape}, expected (frames, h, w)"
        )
    return shape[0], shape[1], shape[2]


def _damaged(where: str, error: Exception) -> ValueError:
    return ValueError(f"{where} is damaged or no token record ({type(error).__name__}: {error})")
