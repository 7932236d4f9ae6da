"""Reading pickled files of strangers without running anything that they ask for."""

import argparse
import lzma
import pickle
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import torch

# What a damaged or forged file makes readers of pickles and archives raise.
DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,  # a jump outside the file
    RuntimeError,  # includes RecursionError and NotImplementedError
    TypeError,
    ValueError,
)
_PLAIN = (type(None), bool, int, float, str)


def first_line(error: BaseException) -> str:
    """The error in a few words, for messages."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def load_weights(file: str | Path | IO[bytes]) -> Any:
    """`torch.load` of tensors and plain containers only, onto the CPU.

    Args:
        file: path, or open and seekable.

    Raises:
        ValueError: if the file is damaged or asks for anything else; it is not executed.
    """
    try:
        with warnings.catch_warnings():  # it doubts files that it then reads or refuses
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(file, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise ValueError(
            f"damaged, or holds more than tensors and plain values ({first_line(error)})"
        ) from error


class _NamespaceUnpickler(pickle.Unpickler):
    """Knows `argparse.Namespace` and the built-in containers, which need no name."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("argparse", "Namespace"):
            return argparse.Namespace
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not executed")


def load_namespace(file: IO[bytes]) -> dict[str, Any]:
    """Reads a pickled `argparse.Namespace` of plain values.

    Returns:
        Its attributes: None, booleans, numbers, strings, and lists, tuples and dicts of these.

    Raises:
        ValueError: if the file is damaged or holds anything else; it is not executed.
    """
    try:
        namespace = _NamespaceUnpickler(file).load()
    except DAMAGE as error:
        raise ValueError(
            f"damaged, or not a namespace of plain values ({first_line(error)})"
        ) from error
    if not isinstance(namespace, argparse.Namespace):
        raise ValueError(f"not an argparse.Namespace but a {type(namespace).__name__}")
    attributes = vars(namespace)
    for name, value in attributes.items():
        if not isinstance(name, str) or not is_plain(value):
            raise ValueError(f"{name!r} is not a plain value but a {type(value).__name__}")
    return attributes


def is_plain(value: Any, depth: int = 10) -> bool:
    """Whether ``value`` is made of None, booleans, numbers, strings, lists, tuples and dicts."""
    if type(value) in (list, tuple):
        return depth > 0 and all(is_plain(item, depth - 1) for item in value)
    if type(value) is dict:
        return depth > 0 and all(
            type(key) in _PLAIN and is_plain(item, depth - 1) for key, item in value.items()
        )
    return type(value) in _PLAIN
