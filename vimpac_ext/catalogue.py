"""Lists what is registered, with signatures, by reading source files.

Importing every component takes seconds (torch); reading their source takes a tenth of one. Only
components registered by a decorator ``@REGISTRY.register()`` are found this way, which is how the
documentation tells users to register theirs.
"""

import ast
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

from vimpac_ext.plugins import BUILTIN_PACKAGES, PluginError, see_working_directory
from vimpac_ext.registries import ALL_REGISTRIES


def catalogue(plugins: Iterable[str] = ()) -> str:
    """Text with every registry, its components and their signatures.

    Args:
        plugins: dotted names of further modules to read.

    Raises:
        PluginError: if a plug-in module is not found.
    """
    entries: dict[str, list[str]] = {name: [] for name in ALL_REGISTRIES}
    for path in [*_builtin_sources(), *map(_plugin_source, plugins)]:
        for registry, component in _registered(ast.parse(path.read_text(encoding="utf-8"))):
            entries.setdefault(registry, []).append(_signature(component))
    lines = []
    for registry, signatures in entries.items():
        lines.append(registry)
        lines += [f"  {signature}" for signature in sorted(signatures)] or ["  (nothing)"]
    return "\n".join(lines)


def _builtin_sources() -> Iterator[Path]:
    root = Path(__file__).parent
    for package in BUILTIN_PACKAGES:
        yield from sorted((root / package).rglob("*.py"))


def _plugin_source(module: str) -> Path:
    see_working_directory()
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise PluginError(f"plug-in {module!r} not found")
    return Path(spec.origin)


def _registered(tree: ast.Module) -> Iterator[tuple[str, ast.ClassDef]]:
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            match decorator:
                case ast.Call(func=ast.Attribute(value=ast.Name(id=registry), attr="register")):
                    yield registry, node


def _signature(component: ast.ClassDef) -> str:
    for node in component.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            arguments = ast.unparse(node.args).removeprefix("self").removeprefix(", ")
            return f"{component.name}({arguments})"
    return f"{component.name}()"
