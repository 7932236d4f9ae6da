"""Fixtures that several test modules share."""

import os
import signal
from pathlib import Path

import pytest

# As `vimpac_ext.command_line.run_tool` does; torch reads it when it is imported.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch  # noqa: E402

# The models of the tests are tiny: a second thread costs more than it gives.
torch.set_num_threads(1)

# In the background of a shell we would ignore Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent


def shared_folder() -> Path:
    """Folder with material that is not part of the repository (real clips), if it is there."""
    return Path(os.environ.get("VIMPAC_EXT_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Folder of numeric fixtures made by running the authors' code."""
    return Path(__file__).resolve().parent / "fixtures"


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """Folder of real clips; skips the test where it is missing."""
    folder = shared_folder() / "real_videos"
    if not folder.is_dir():
        pytest.skip(f"real clips not found in {folder}; set VIMPAC_EXT_SHARED to the folder above")
    return folder
