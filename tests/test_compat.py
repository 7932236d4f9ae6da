"""Each test runs in an interpreter of its own: what was imported before would decide it."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

IMPORTS = """
import timm, torchvision
import pytorchvideo.data, pytorchvideo.models, pytorchvideo.transforms
import torchvision.transforms.functional_tensor as old
import torchvision.transforms._functional_tensor as new
assert old is new
"""

FAILING_NMS = """
import torch, torchvision
from torchvision.ops import nms, roi_pool
if torchvision.extension._has_ops():
    print("compiled")
else:
    boxes, scores = torch.zeros(1, 4), torch.zeros(1)
    for call in (
        lambda: nms(boxes, scores, 0.5),
        lambda: torch.ops.torchvision.nms(boxes, scores, 0.5),
        lambda: roi_pool(torch.zeros(1, 1, 4, 4), [boxes], 2),
    ):
        try:
            call()
        except RuntimeError as error:
            print(error)
"""


def run(code, *folders):
    """What a script prints, with folders before everything else on the module path."""
    path = [str(folder) for folder in (*folders, REPOSITORY)]
    script = f"import sys; sys.path[:0] = {path!r}\n{code}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_imports_work_and_missing_operators_explain_themselves():
    output = run(
        "from vimpac_ext import compat\ncompat.install()\ncompat.install()\n"
        + IMPORTS
        + FAILING_NMS
        + "from pytorchvideo.transforms import RandAugment\n"
        "for _ in range(5): RandAugment()(torch.rand(2, 3, 8, 8))\n"
    )
    lines = output.splitlines()
    if lines == ["compiled"]:
        pytest.skip("torchvision's compiled library loads here")
    assert len(lines) == 3
    for line in lines:
        assert "pip install --force-reinstall --no-deps torchvision==" in line


def test_works_after_a_failed_import():
    run(
        "try:\n    import torchvision\nexcept RuntimeError:\n    pass\n"
        "from vimpac_ext import compat\ncompat.install()\n"
        "import torchvision, pytorchvideo.transforms"
    )


def fake_torchvision(folder, init=""):
    package = folder / "torchvision"
    (package / "transforms").mkdir(parents=True)
    (package / "__init__.py").write_text(init)
    for name in ("__init__", "functional_tensor", "_functional_tensor"):
        (package / "transforms" / f"{name}.py").touch()


def test_nothing_is_changed_where_nothing_is_broken(tmp_path):
    fake_torchvision(tmp_path)
    run(
        "import torch\nfrom vimpac_ext import compat\ncompat.install()\n"
        "assert not hasattr(torch.ops.torchvision, 'nms')\n"
        "assert 'torchvision.transforms._functional_tensor' not in sys.modules\n"
        "import torchvision.transforms.functional_tensor as old\n"
        "assert old.__name__ == 'torchvision.transforms.functional_tensor'\n",
        tmp_path,
    )


def test_other_errors_are_not_hidden(tmp_path):
    fake_torchvision(tmp_path, "raise RuntimeError('something else')")
    run(
        "from vimpac_ext import compat\n"
        "try:\n    compat.install()\nexcept RuntimeError as error:\n"
        "    assert str(error) == 'something else'\nelse:\n    raise AssertionError\n",
        tmp_path,
    )


def test_torchvision_may_be_missing(tmp_path):
    run(
        "import importlib.util\n"
        "find_spec = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'torchvision' else "
        "find_spec(name)\n"
        "from vimpac_ext import compat\n"
        "assert 'torchvision' not in sys.modules\n"
        "compat.install()\n"
        "assert 'torchvision' not in sys.modules\n"
    )
