"""Files: writing them whole, naming content by its hash, fetching them."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_CHUNK_BYTES = 1 << 20


@contextmanager
def atomic_write(
    path: str | Path, mode: str = "w", newline: str | None = None
) -> Iterator[IO[Any]]:
    """Open a file that appears under its name only when it is complete.

    The content goes to a temporary file beside the target, is forced to disk, and replaces the
    target in one step. If the body raises, or the process dies, the old file is untouched.

    Args:
        path: target; missing parent folders are made.
        mode: "w" (UTF-8 text) or "wb".
        newline: as for `open`; "" for the csv module.

    Yields:
        The open file.

    Raises:
        ValueError: if the mode is neither "w" nor "wb".
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"atomic_write replaces whole files: mode {mode!r} is not 'w' or 'wb'")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened by name instead of with `tempfile`, whose files other users of a cluster cannot read.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    text_options: dict[str, Any] = (
        # Names of files that are not valid UTF-8 reach us as surrogates; give back their bytes.
        {"encoding": "utf-8", "errors": "surrogateescape", "newline": newline}
        if mode == "w"
        else {}
    )
    try:
        with temporary.open("x" + mode[1:], **text_options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(*parts: bytes | str | Path, length: int = 16) -> str:
    """Short hash of several parts.

    Args:
        parts: bytes and strings count as they are, a `Path` as the content of that file.
        length: number of hexadecimal digits to keep, at most 64.

    Returns:
        The first digits of the SHA-256; ("ab", "c") and ("a", "bc") differ.
    """
    total = hashlib.sha256()
    for part in parts:
        total.update(_digest(part))
    return total.hexdigest()[:length]


def _digest(part: bytes | str | Path) -> bytes:
    if isinstance(part, str):
        part = part.encode("utf-8", "surrogateescape")
    if isinstance(part, bytes):
        return hashlib.sha256(part).digest()
    digest = hashlib.sha256()
    with part.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.digest()


def local_path(source: str, official_url: str = "") -> Path:
    """Path of a file that is there; downloads a URL into iopath's cache once.

    Args:
        source: path or URL.
        official_url: where the file can be had, for the message.

    Raises:
        FileNotFoundError: there is no such file, or it cannot be downloaded.
    """
    # Imported here: only few readers of this module need it.
    from iopath.common.file_io import HTTPURLHandler, PathManager, get_cache_dir

    path_manager = PathManager()
    path_manager.register_handler(HTTPURLHandler())
    try:
        path = Path(path_manager.get_local_path(source))
    except OSError as error:  # no network, no such page, no space
        raise FileNotFoundError(
            f"cannot download {source} ({error}). Download it on a machine with a network, "
            f"`curl -LO {source}`, and give its path; downloads are kept under {get_cache_dir()}"
        ) from error
    if not path.is_file():
        hint = f". It is at {official_url}: `curl -LO {official_url}`, or give the URL as the path"
        raise FileNotFoundError(f"no file at {path.absolute()}{hint if official_url else ''}")
    return path
