"""Files: writing them whole, naming content by its hash, fetching them.

Remote files are those of iopath's global path manager: http, https and ftp, and whatever a plug-in
registers a handler for, e.g. ``g_pathmgr.register_handler(S3PathHandler())``.
"""

import hashlib
import os
import re
import secrets
import shutil
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


def is_remote(source: object) -> bool:
    """Whether a text is a URL rather than a path, such as "s3://bucket/folder"."""
    return isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def path_manager(source: str = "") -> Any:
    """The global one of iopath, or one that can download from http, https and ftp.

    Args:
        source: what it is wanted for.

    Raises:
        FileNotFoundError: the source is a URL that no handler has been registered for.
    """
    # Imported here: only few readers of this module need it.
    from iopath.common.file_io import HTTPURLHandler, PathManager, g_pathmgr

    handlers = g_pathmgr._path_handlers
    if not is_remote(source) or source.startswith(tuple(handlers)):
        return g_pathmgr
    manager = PathManager()
    manager.register_handler(HTTPURLHandler())
    if not source.startswith(tuple(manager._path_handlers)):
        known = ", ".join(sorted({*handlers, *manager._path_handlers}))
        raise FileNotFoundError(
            f"{source}: there is no handler for such URLs, only for {known}. A plug-in can add "
            "one: iopath.common.file_io.g_pathmgr.register_handler(...)"
        )
    return manager


def local_path(source: str, official_url: str = "") -> Path:
    """Path of a file that is there; a remote one is downloaded into iopath's cache once.

    Args:
        source: path or URL.
        official_url: where the file can be had, for the message.

    Raises:
        FileNotFoundError: there is no such file, or it cannot be downloaded.
    """
    try:
        path = Path(path_manager(source).get_local_path(source))
    except FileNotFoundError:
        raise
    except (OSError, AssertionError) as error:  # no network, no such page, no space
        raise FileNotFoundError(
            f"cannot download {source} ({error}). Download it on a machine with a network, "
            f"`curl -LO {source}`, and give its path; downloads are kept under {_cache()}"
        ) from error
    if not path.is_file():
        hint = f". It is at {official_url}: `curl -LO {official_url}`, or give the URL as the path"
        raise FileNotFoundError(f"no file at {path.absolute()}{hint if official_url else ''}")
    return path


def remote_names(folder: str) -> list[str]:
    """Names in a remote folder, sorted, those of folders with "/" at the end; none if not there.

    Args:
        folder: URL.

    Raises:
        FileNotFoundError: folders of such URLs cannot be listed, or there is no handler.
        OSError: it cannot be read.
    """
    manager, base = path_manager(folder), f"{folder.rstrip('/')}/"
    try:
        listed = manager.ls(base)
    except FileNotFoundError:
        return []
    except NotImplementedError as error:
        raise FileNotFoundError(f"{folder} cannot be listed; give the URL of a file") from error
    names = set()
    for entry in listed:  # some handlers give whole keys, and the folder itself
        name = entry.rstrip("/").rsplit("/", 1)[-1]
        if entry.rstrip("/") and not base.endswith(f"/{entry}"):
            is_folder = entry.endswith("/") or manager.isdir(f"{base}{name}/")
            names.add(f"{name}/" if is_folder else name)
    return sorted(names)


def download(source: str, target: Path) -> None:
    """Copies a remote file; the target appears when it is complete.

    Raises:
        OSError: it cannot be read.
    """
    with path_manager(source).open(source, "rb") as remote, atomic_write(target, "wb") as file:
        shutil.copyfileobj(remote, file, _CHUNK_BYTES)


def local_folder(source: str) -> Path:
    """A remote folder with all below, downloaded once into a place of its own in iopath's cache.

    Processes of a machine that ask at the same time wait for the one that downloads.

    Args:
        source: URL.

    Raises:
        FileNotFoundError: there is nothing.
    """
    from iopath.common.file_io import file_lock

    folder = cached_place(source.rstrip("/"))
    is_complete = folder.with_name(f"{folder.name}.complete")
    with file_lock(str(folder)):
        if not is_complete.is_file():
            if not remote_names(source):
                raise FileNotFoundError(f"nothing in {source}")
            _download_folder(source.rstrip("/"), folder)
            is_complete.touch()
    return folder


def _download_folder(source: str, target: Path) -> None:
    for name in remote_names(source):
        if name.endswith("/"):
            _download_folder(f"{source}/{name[:-1]}", target / name)
        else:
            download(f"{source}/{name}", target / name)


def cached_place(source: str) -> Path:
    """Where in iopath's cache a copy of a URL belongs: its parts are folders there."""
    scheme, _, rest = source.partition("://")
    parts = [part for part in rest.split("/") if part not in ("", ".", "..")]
    return _cache().joinpath("vimpac_ext", scheme, *parts)


def _cache() -> Path:
    from iopath.common.file_io import get_cache_dir

    return Path(get_cache_dir())
