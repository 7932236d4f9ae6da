"""Makes torchvision, and with it timm and pytorchvideo 0.1.5, importable on today's torch.

Two things break. A torchvision build whose compiled library does not fit the installed torch (a
CUDA build beside a CPU-only torch, say) fails to import, because it describes operators that the
library would have declared. And pytorchvideo imports ``torchvision.transforms.functional_tensor``,
which torchvision has renamed. Call `install` before importing any of them::

    from vimpac_ext import compat

    compat.install()
    import timm
"""

import importlib
import importlib.util
import sys
from importlib.metadata import version
from typing import NoReturn

import torch

# The operators that torchvision describes on import whether or not its library was loaded.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_OLD_MODULE = "torchvision.transforms.functional_tensor"
_NEW_MODULE = "torchvision.transforms._functional_tensor"

_declared: list[torch.library.Library] = []  # an operator lives as long as its library object


def install() -> None:
    """Makes the imports work; changes nothing where nothing is broken. May be called repeatedly.

    Afterwards a compiled operator that is missing raises a `RuntimeError` that says which
    torchvision to install. Without torchvision there is nothing to do.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        _declare_missing_operators()
        importlib.import_module("torchvision")
        _explain_missing_operators()
    _alias_functional_tensor()


def _declare_missing_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        name = schema.split("(")[0]
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
            library.impl(name, _raise_missing_operator, "CompositeExplicitAutograd")
    _declared.append(library)


def _explain_missing_operators() -> None:
    """Replaces torchvision's own check, whose message does not say what to install."""
    for name, module in list(sys.modules.items()):
        if name.startswith("torchvision.") and hasattr(module, "_assert_has_ops"):
            module._assert_has_ops = _raise_missing_operator  # type: ignore[attr-defined]


def _raise_missing_operator(*_: object) -> NoReturn:
    variant = torch.__version__.partition("+")[2]
    index = f" --index-url https://download.pytorch.org/whl/{variant}" if variant else ""
    raise RuntimeError(
        f"this operator needs torchvision's compiled library, but the installed torchvision "
        f"{version('torchvision')} was not built for torch {torch.__version__}. Install the "
        f"matching build: pip install --force-reinstall --no-deps "
        f"torchvision=={version('torchvision').partition('+')[0]}{index}"
    )


def _alias_functional_tensor() -> None:
    if _OLD_MODULE in sys.modules or importlib.util.find_spec(_OLD_MODULE) is not None:
        return
    # Not `transforms.functional`: its functions of the same names take other arguments.
    sys.modules[_OLD_MODULE] = importlib.import_module(_NEW_MODULE)
