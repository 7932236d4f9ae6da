"""Runs whose configuration or output is in remote storage."""

import json
import logging
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode

from vimpac_ext.config import ConfigError, folders_of
from vimpac_ext.engine.checkpoint_files import (
    DamagedCheckpointError,
    checkpoints_in,
    newest_first,
    require_whole,
)
from vimpac_ext.files import (
    atomic_write,
    cached_place,
    download,
    path_manager,
    remote_names,
    sha256_of,
)

_logger = logging.getLogger(__name__)

_RECORD = ".mirrored.json"  # in OUTPUT_DIR: what has been copied
_CHECKPOINTS = "checkpoints"
_CONTINUED = ("metrics.jsonl", "stdout.log")  # files that a continued run adds to


def local_config(source: str) -> Path:
    """A copy of a remote configuration, with its bases where it looks for them.

    It is downloaded anew each time.

    Args:
        source: URL of a YAML file.

    Raises:
        OSError: it cannot be read.
        ConfigError: it leads back to itself.
    """
    return _copy_config(source, ())


def _copy_config(source: str, above: tuple[str, ...]) -> Path:
    if source in above:
        raise ConfigError(f"{source}: _BASE_ leads back to the file itself")
    path = cached_place(source)
    download(source, path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return path  # whoever loads it says what is wrong
    bases = tree.get("_BASE_") if isinstance(tree, dict) else None
    scheme, _, place = source.partition("://")
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            continue  # none, or nothing that can be loaded
        where = posixpath.normpath(posixpath.join(posixpath.dirname(place), base))
        _copy_config(f"{scheme}://{where}", (*above, source))
    return path


class Mirror:
    """A copy of OUTPUT_DIR in remote storage, from which another machine can go on.

    Args:
        folder: OUTPUT_DIR of the whole run.
        remote: URL of a folder for this run alone.
    """

    def __init__(self, folder: Path, remote: str) -> None:
        self.folder = folder
        self.remote = remote.rstrip("/")
        self._can_rename = True

    def fetch(self, places: Sequence[str] = ("",)) -> None:
        """Takes the newest whole checkpoint and the logs, if that is newer than what is here.

        Args:
            places: folders below OUTPUT_DIR that have checkpoints, one of each stage in their
                order. Of the last that has a checkpoint, here or there, the newest is taken, of
                those before it the logs alone.

        Raises:
            OSError: the remote folder cannot be read.
            ConfigError: it holds a run without stages, and this one has some.
        """
        if "" not in places and self.has_checkpoints():
            raise ConfigError(
                f"REMOTE_DIR {self.remote!r} has checkpoints of a run without TRAIN.STAGES; "
                "choose another"
            )
        for index in reversed(range(len(places))):
            has_own = bool(checkpoints_in(self.folder / places[index] / _CHECKPOINTS))
            taken = self._fetch_checkpoint(places[index])
            if taken:
                for place in {"", *places[:index]} - {places[index]}:
                    self._fetch_logs(place)
            if taken or has_own:
                return

    def _fetch_checkpoint(self, place: str) -> bool:
        """Whether one was taken, and the logs beside it."""
        folder = self.folder / place / _CHECKPOINTS
        remote = self._url(place, _CHECKPOINTS)
        here = [path.name for path in checkpoints_in(folder)]
        for name in newest_first(remote_names(remote)):
            if name in here or (here and newest_first([name, here[0]])[0] == here[0]):
                return False
            path = folder / name
            download(f"{remote}/{name}", path)
            try:
                require_whole(path)
            except DamagedCheckpointError as error:
                _logger.warning("%s, as it is in %s; the one before it", error, self.remote)
                path.unlink()
                continue
            logs = self._fetch_logs(place)
            where = f"{place}/{name}" if place else name
            _logger.info("took %s and %d logs from %s", where, logs, self.remote)
            return True
        return False

    def _fetch_logs(self, place: str) -> int:
        """How many there were."""
        logs = set(remote_names(self._url(place))) & set(_CONTINUED)
        for log in logs:
            download(self._url(place, log), self.folder / place / log)
        return len(logs)

    def _url(self, *parts: str) -> str:
        return "/".join([self.remote, *(part for part in parts if part)])

    def has_checkpoints(self, place: str = "") -> bool:
        """Whether there are any in the remote folder.

        Args:
            place: folder below OUTPUT_DIR whose checkpoints are meant: of a stage.

        Raises:
            OSError: it cannot be read.
        """
        return bool(newest_first(remote_names(self._url(place, _CHECKPOINTS))))

    def fetch_same(self, path: Path, digest: str) -> None:
        """Makes sure that a checkpoint here is the one that the main process has.

        Args:
            path: of the checkpoint, below OUTPUT_DIR.
            digest: `sha256_of` the main process's file.

        Raises:
            OSError: the remote folder cannot be read, or has another one, too.
        """
        from iopath.common.file_io import file_lock

        with file_lock(str(path)):
            if path.is_file() and sha256_of(path) == digest:
                return
            download(f"{self.remote}/{path.relative_to(self.folder).as_posix()}", path)
        if sha256_of(path) != digest:
            raise OSError(f"{path.name} in {self.remote} is not the main process's {path}")

    def push(self, keep: int = 0, place: str = "", newest: str = "") -> None:
        """Copies all files that are new or have changed, then removes the oldest checkpoints.

        Args:
            keep: newest checkpoints that stay in the remote folder; 0 = all.
            place: folder below OUTPUT_DIR whose checkpoints are meant: of a stage.
            newest: name of the one that counts as the newest: later ones, which the run has passed
                over, are damaged. The default is the newest that is there.

        Raises:
            OSError: the remote folder cannot be written; what is missing is copied next time.
        """
        record = self._read_record()
        try:
            for path in self._files():
                status = path.stat()
                name = path.relative_to(self.folder).as_posix()
                stamp = [status.st_mtime_ns, status.st_size]
                if record.get(name) != stamp:
                    self._upload(path, name)
                    record[name] = stamp
        finally:
            with atomic_write(self.folder / _RECORD) as file:
                json.dump({"remote": self.remote, "files": record}, file)
        if keep:
            names = newest_first(remote_names(self._url(place, _CHECKPOINTS)))
            first = names.index(newest) if newest in names else 0
            for name in names[first + keep :]:
                path_manager(self.remote).rm(self._url(place, _CHECKPOINTS, name))

    def push_or_warn(self, keep: int = 0, place: str = "", newest: str = "") -> None:
        """As `push`; a failure is logged, since the run itself can go on."""
        try:
            self.push(keep, place, newest)
        except OSError as error:
            _logger.error("%s is behind %s: %s; tried again later", self.remote, self.folder, error)

    def _files(self) -> Iterator[Path]:
        """Checkpoints last: what has one there has its logs, too."""
        paths = sorted(self.folder.rglob("*"), key=lambda p: (p.suffix == ".pyth", p))
        for path in paths:
            hidden = any(part.startswith(".") for part in path.relative_to(self.folder).parts)
            if path.is_file() and not hidden and path.suffix not in (".lock", ".tmp"):
                yield path

    def _read_record(self) -> dict[str, list[int]]:
        path = self.folder / _RECORD
        record = json.loads(path.read_text()) if path.is_file() else {}
        return record["files"] if record.get("remote") == self.remote else {}

    def _upload(self, path: Path, name: str) -> None:
        target = f"{self.remote}/{name}"
        folder, _, last = target.rpartition("/")
        manager = path_manager(target)
        manager.mkdirs(f"{folder}/")
        if path.suffix == ".pyth" and self._can_rename:
            temporary = f"{folder}/.{last}.tmp"
            self._copy(path, temporary)
            try:
                if manager.mv(temporary, target):
                    return
            except NotImplementedError:
                self._can_rename = False  # object stores: a file appears when it is complete
            manager.rm(temporary)
        self._copy(path, target)

    def _copy(self, path: Path, target: str) -> None:
        copied = path_manager(target).copy_from_local(str(path), target, overwrite=True)
        if copied is False:  # some handlers say nothing
            raise OSError(f"cannot write {target}")


def mirror_of(cfg: CfgNode) -> Mirror | None:
    """The mirror that REMOTE_DIR asks for.

    Args:
        cfg: configuration of the run, not of a stage.
    """
    return Mirror(Path(cfg.OUTPUT_DIR), cfg.REMOTE_DIR) if cfg.REMOTE_DIR else None


def fetch_remote_run(cfg: CfgNode) -> None:
    """Takes from REMOTE_DIR what a run or test in OUTPUT_DIR goes on from; the main process's part.

    Args:
        cfg: configuration of the run, not of a stage.

    Raises:
        OSError: REMOTE_DIR cannot be read.
        ConfigError: it holds another kind of run.
    """
    mirror = mirror_of(cfg)
    if mirror is not None and (cfg.TRAIN.AUTO_RESUME or not cfg.TRAIN.ENABLE):
        mirror.fetch(folders_of(cfg))
