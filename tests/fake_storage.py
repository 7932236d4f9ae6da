"""A plug-in for remote storage: fake:// URLs, which stand for the folder $FAKE_STORAGE."""

import os
import shutil
from pathlib import Path

from iopath.common.file_io import PathHandler, g_pathmgr


class FakeStorage(PathHandler):
    """Knows the operations of iopath's S3 handler, which has no mv, and folders end in "/"."""

    def _get_supported_prefixes(self):
        return ["fake://"]

    def _place(self, path):
        return Path(os.environ["FAKE_STORAGE"]) / path.removeprefix("fake://")

    def _open(self, path, mode="r", buffering=-1, **kwargs):
        if os.environ.get("FAKE_STORAGE_IS_DOWN"):
            raise OSError("connection lost")
        return self._place(path).open(mode)

    def _get_local_path(self, path, force=False, **kwargs):
        target = Path(os.environ["FVCORE_CACHE"]) / path.removeprefix("fake://")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self._place(path), target)
        return str(target)

    def _copy_from_local(self, local_path, dst_path, overwrite=False, **kwargs):
        target = self._place(dst_path)
        if os.environ.get("FAKE_STORAGE_IS_DOWN") or (target.exists() and not overwrite):
            return False
        shutil.copy(local_path, target)
        return True

    def _ls(self, path, **kwargs):
        assert path.endswith("/")
        return [entry.name for entry in self._place(path).iterdir()]

    def _isdir(self, path, **kwargs):
        assert path.endswith("/")
        return self._place(path).is_dir()

    def _mkdirs(self, path, **kwargs):
        assert path.endswith("/")
        self._place(path).mkdir(parents=True, exist_ok=True)

    def _rm(self, path, **kwargs):
        self._place(path).unlink()


class RenamingStorage(FakeStorage):
    """moving:// URLs of the same folder; a file that is there is not replaced."""

    def _get_supported_prefixes(self):
        return ["moving://"]

    def _place(self, path):
        return super()._place(path.removeprefix("moving://"))

    def _mv(self, src_path, dst_path, **kwargs):
        source, target = self._place(src_path), self._place(dst_path)
        if target.exists():
            return False
        source.rename(target)
        return True


for handler in (FakeStorage(), RenamingStorage()):
    g_pathmgr.register_handler(handler)
