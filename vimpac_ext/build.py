"""Turns a config section into a component: registry lookup, argument checks, construction."""

import difflib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from fvcore.common.registry import Registry


class BuildError(ValueError):
    """A section that cannot become a component; the message names the section and the fix."""


def build(registry: Registry, section: Mapping[str, Any], where: str = "", **runtime: Any) -> Any:
    """Builds the component that a config section describes.

    Args:
        registry: where ``section["NAME"]`` is looked up.
        section: ``NAME`` and the constructor's keyword arguments.
        where: what the section is called in messages, e.g. "MASKER in my.yaml".
        runtime: values that only the program knows (``grid``, ``vocab_size``, ...); each is given
            to the constructor if it asks for it by name.

    Raises:
        BuildError: for an unregistered name, an unknown or missing argument, or a value of the
            wrong type; it lists what is valid.
    """
    component, arguments = _checked(registry, section, where, runtime.keys())
    wanted = _parameters(component)
    return component(**arguments, **{k: v for k, v in runtime.items() if k in wanted})


def check(
    registry: Registry, section: Mapping[str, Any], where: str, runtime_names: Sequence[str]
) -> None:
    """Raises the `BuildError` that `build` would raise, without constructing anything."""
    _checked(registry, section, where, runtime_names)


def wants(registry: Registry, section: Mapping[str, Any], name: str) -> bool:
    """Whether the section's component asks for the runtime argument ``name``."""
    return name in _parameters(_lookup(registry, section, ""))


def needs(registry: Registry, section: Mapping[str, Any], name: str) -> bool:
    """Whether the section's component asks for ``name`` and has no default for it."""
    parameter = _parameters(_lookup(registry, section, "")).get(name)
    return parameter is not None and parameter.default is parameter.empty


def signature(component: Any) -> str:
    """``Name(arg: type = default, ...)`` for messages."""
    return f"{component.__name__}{inspect.signature(component)}".replace("typing.", "")


def _checked(
    registry: Registry, section: Mapping[str, Any], where: str, runtime_names: typing.Iterable[str]
) -> tuple[Any, dict[str, Any]]:
    component = _lookup(registry, section, where)
    arguments = {key: _plain(value) for key, value in section.items() if key != "NAME"}
    parameters = _parameters(component)
    prefix = f"{where}: " if where else ""
    hints = _type_hints(component)
    for name, value in arguments.items():
        if name in runtime_names and name in parameters:
            raise BuildError(
                f"{prefix}{name!r} of {component.__name__} is set by the program; remove it"
            )
        if name not in parameters and not _takes_any(component):
            raise BuildError(
                f"{prefix}{component.__name__} has no argument {name!r}{_nearest(name, parameters)}"
                f"; it takes {signature(component)}"
            )
        if name in hints and not _matches(value, hints[name]):
            raise BuildError(
                f"{prefix}{name} of {component.__name__} must be {_type_name(hints[name])}, "
                f"found {type(value).__name__} {value!r}"
            )
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and name not in arguments
        and name not in runtime_names
    ]
    if missing:
        raise BuildError(
            f"{prefix}{component.__name__} needs {', '.join(missing)}; "
            f"it takes {signature(component)}"
        )
    return component, arguments


def _lookup(registry: Registry, section: Mapping[str, Any], where: str) -> Any:
    prefix = f"{where}: " if where else ""
    name = section.get("NAME", "")
    registered = sorted(key for key, _ in registry)
    if not name:
        raise BuildError(
            f"{prefix}no NAME given; registered in {registry._name}: {', '.join(registered)}"
        )
    if name not in registered:
        raise BuildError(
            f"{prefix}{name!r} is not registered in {registry._name}{_nearest(name, registered)}"
            f"; registered: {', '.join(registered) or 'nothing'}. A component of your own is "
            "registered by importing its module: --plugin my_package.my_module"
        )
    return registry.get(name)


def _parameters(component: Any) -> dict[str, inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(component).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in kinds}


def _takes_any(component: Any) -> bool:
    parameters = inspect.signature(component).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _type_hints(component: Any) -> dict[str, Any]:
    function = component.__init__ if inspect.isclass(component) else component
    return typing.get_type_hints(function)


def _plain(value: Any) -> Any:
    """Config nodes as plain dictionaries, so that components never see a config."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _matches(value: Any, hint: Any) -> bool:
    """Whether a YAML value fits a type hint; hints that YAML cannot express always fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, option) for option in arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    if hint in (list, tuple) or origin in (list, tuple, Sequence):
        items = [item for item in arguments if item is not Ellipsis]
        if not isinstance(value, list) or isinstance(value, str):
            return False
        if origin is tuple and Ellipsis not in arguments and items:
            return len(items) == len(value) and all(map(_matches, value, items))
        return not items or all(_matches(item, items[0]) for item in value)
    if hint is dict or origin in (dict, Mapping):
        return isinstance(value, dict)
    return True


def _type_name(hint: Any) -> str:
    return hint.__name__ if inspect.isclass(hint) else str(hint).replace("typing.", "")


def _nearest(name: str, valid: typing.Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
