"""Reads the weights in a `torch.save` file without running anything that the file asks for.

OpenAI published the DALL-E networks as whole pickled modules. Unpickling such a file normally
imports and calls whatever it names. Here every name becomes an inert class that only remembers its
arguments; what it would have built is understood afterwards, from that record.

Both containers of `torch.save` are read: the zip archive and the older plain stream.
"""

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from vimpac_ext.untrusted import DAMAGE

_LEGACY_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_ZIP_SIGNATURE = b"PK\x03\x04"
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Inert:
    """Stands for any class or function that a pickle names; calling it does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.pickled_arguments = args


class _Storage(NamedTuple):
    """The memory of a tensor: where its data is in the file."""

    key: str
    dtype: torch.dtype
    num_elements: int


class _InertUnpickler(pickle.Unpickler):
    """Builds dicts, lists, numbers and strings; everything else is `_Inert`."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.named: set[str] = set()
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        self.named.add(f"{module}.{name}")
        return type(name, (_Inert,), {"__module__": module})

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # the older stream wraps each module class with its source code
            return pid[1]
        _, storage_type, key, _, num_elements, *view = pid
        if any(view):
            raise ValueError("views of storages are not supported")
        storage = _Storage(str(key), _DTYPES[storage_type.__name__], int(num_elements))
        return self.storages.setdefault(storage.key, storage)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Reads the parameters and buffers of a saved module, or a saved state dict.

    Args:
        path: file written by ``torch.save(module)`` or ``torch.save(module.state_dict())``.

    Returns:
        Name, as in a state dict, to tensor on the CPU.

    Raises:
        ValueError: damaged, not written by `torch.save`, or without any tensor.
    """
    with Path(path).open("rb") as file:
        try:
            is_zip = file.read(len(_ZIP_SIGNATURE)) == _ZIP_SIGNATURE
            file.seek(0)
            unpickler, saved, memory = _read_zip(file) if is_zip else _read_legacy(file)
            tensors = {name: _tensor(record, memory) for name, record in _named_records(saved)}
        except DAMAGE as error:
            raise ValueError(
                f"{path}: damaged, or not written by torch.save ({type(error).__name__}: {error})"
            ) from error
    if not tensors:
        raise ValueError(
            f"{path}: holds no module and no state dict. Its pickle names "
            f"{', '.join(sorted(unpickler.named)[:5]) or 'nothing'}; nothing of it was executed"
        )
    return tensors


_Contents = tuple[_InertUnpickler, Any, dict[str, Tensor]]


def _read_zip(file: IO[bytes]) -> _Contents:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError("the archive has no data.pkl")
        root = names[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist():
            _require_little_endian(archive.read(f"{root}byteorder") == b"little")
        with archive.open(names[0]) as pickled:
            unpickler = _InertUnpickler(pickled)
            saved = unpickler.load()
        memory = {
            key: _flat_tensor(storage, archive.read(f"{root}data/{key}"))
            for key, storage in unpickler.storages.items()
        }
    return unpickler, saved, memory


def _read_legacy(file: IO[bytes]) -> _Contents:
    """Header pickles, the object, the list of storage keys, then (count, data) for each key."""
    if _InertUnpickler(file).load() != _LEGACY_MAGIC_NUMBER:
        raise ValueError("the magic number is missing")
    _InertUnpickler(file).load()  # version of the format: only one was ever written
    _require_little_endian(_InertUnpickler(file).load()["little_endian"] is True)
    unpickler = _InertUnpickler(file)
    saved = unpickler.load()
    memory = {}
    for key in _InertUnpickler(file).load():
        storage = unpickler.storages[key]
        (num_elements,) = struct.unpack("<q", file.read(8))
        if num_elements != storage.num_elements:
            raise ValueError(f"storage {key} has {num_elements} elements in place of {storage[2]}")
        memory[key] = _flat_tensor(storage, file.read(num_elements * storage.dtype.itemsize))
    return unpickler, saved, memory


def _require_little_endian(is_little: bool) -> None:
    if not is_little:
        raise ValueError("written on a big-endian machine")


def _flat_tensor(storage: _Storage, data: bytes) -> Tensor:
    if len(data) != storage.num_elements * storage.dtype.itemsize:
        raise EOFError(f"storage {storage.key} is incomplete")
    if not data:
        return torch.empty(0, dtype=storage.dtype)
    return torch.frombuffer(bytearray(data), dtype=storage.dtype)


def _named_records(saved: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name and pickled record of each tensor in a module (recursively) or a state dict."""
    if isinstance(saved, dict):
        for name, value in saved.items():
            if _tensor_record(value) is not None:
                yield f"{prefix}{name}", value
    elif isinstance(saved, _Inert):
        yield from _named_records(getattr(saved, "_parameters", {}), prefix)
        yield from _named_records(getattr(saved, "_buffers", {}), prefix)
        for name, child in getattr(saved, "_modules", {}).items():
            yield from _named_records(child, f"{prefix}{name}.")


def _tensor_record(value: Any) -> tuple[Any, ...] | None:
    """Arguments of the `_rebuild_tensor_v2` call that ``value`` stands for, if it does."""
    if not isinstance(value, _Inert):
        return None
    called = f"{type(value).__module__}.{type(value).__name__}"
    if called == "torch._utils._rebuild_parameter":
        return _tensor_record(value.pickled_arguments[0])
    return value.pickled_arguments if called == "torch._utils._rebuild_tensor_v2" else None


def _tensor(value: Any, memory: dict[str, Tensor]) -> Tensor:
    record = _tensor_record(value)
    assert record is not None
    storage, offset, size, stride = record[:4]
    # as_strided refuses whatever would reach outside the storage.
    return memory[storage.key].as_strided(size, stride, offset).clone()
