"""Registers components: the library's own, and those of modules that the user names."""

import importlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Iterable

ENTRY_POINT_GROUP = "vimpac_ext.plugins"
BUILTIN_PACKAGES = ("data", "tokenizers", "maskers", "backbones", "heads", "losses", "tasks")

_logger = logging.getLogger(__name__)


class PluginError(ImportError):
    """A plug-in module that cannot be imported."""


def import_builtin_components() -> None:
    """Imports every package that registers components of the library."""
    for package in BUILTIN_PACKAGES:
        importlib.import_module(f"vimpac_ext.{package}")


def import_plugins(modules: Iterable[str]) -> None:
    """Imports plug-in modules, then those that installed packages announce.

    Modules are found on ``sys.path`` and in the working directory.

    Args:
        modules: dotted module names, e.g. ``my_lab.masking``.

    Raises:
        PluginError: if a named module is missing or fails; the message says which and why.
    """
    see_working_directory()
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise PluginError(
                f"plug-in {module!r} cannot be imported: {error}. Plug-ins are dotted module names "
                f"found from the working directory or an installed package"
            ) from error
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        entry_point.load()
        _logger.info("plug-in %s from an installed package", entry_point.value)


def see_working_directory() -> None:
    """Lets modules of the working directory be imported, whichever tool was started."""
    if os.getcwd() not in sys.path:  # noqa: PTH109  (sys.path holds strings)
        sys.path.append(os.getcwd())  # noqa: PTH109
