"""Rules of the code base that reviewers would otherwise have to remember."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vimpac_ext"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Who may import whom: a package may import those of lower layers and itself.
LAYERS = {
    "files": 0,
    "untrusted": 0,
    "registries": 0,
    "structures": 0,
    "config": 0,
    "build": 0,
    "compat": 0,
    "data": 1,
    "tokenizers": 1,
    "maskers": 1,
    "backbones": 1,
    "heads": 1,
    "losses": 1,
    "visualization": 1,
    "tasks": 2,
    "evaluation": 2,
    "checkpoints": 2,
    "plugins": 2,
    "catalogue": 3,
    "engine": 3,
    "benchmarks": 4,
    "command_line": 2,
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """First component below vimpac_ext of every import in a file, late ones too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules = [node.module]
            if node.module == "vimpac_ext":
                modules = [f"vimpac_ext.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        found |= {m.split(".")[1] for m in modules if m.startswith("vimpac_ext.")}
        assert not any(m.split(".")[0] in ("projects", "tools", "tests") for m in modules)
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):
        return
    own = parts[0]
    for imported in imports(path) - {own}:
        assert LAYERS[imported] < LAYERS[own], f"{own} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_components_take_no_config(path):
    """Only the engine and the config package know configurations."""
    if path.relative_to(PACKAGE).parts[0] in ("engine", "config", "command_line.py"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            names = {a.arg for a in [*node.args.args, *node.args.kwonlyargs]}
            assert not names & {"cfg", "config", "args"}, f"{node.name} in {path.name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_are_short(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 300
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, node.name


def test_the_library_does_not_know_the_projects():
    for path in MODULES:
        assert "projects/vimpac" not in path.read_text(), path
