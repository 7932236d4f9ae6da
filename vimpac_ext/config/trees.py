"""Nested mappings, and their keys with dots."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

Tree = dict[str, Any]


def plain(tree: Mapping[str, Any]) -> Tree:
    """A copy, of plain dictionaries."""
    return {
        key: plain(value) if isinstance(value, dict) else copy.deepcopy(value)
        for key, value in tree.items()
    }


def nested(values: Mapping[str, Any]) -> Tree:
    """Keys with dots as sections.

    Raises:
        ValueError: if a key is given twice, or both a value and keys below it.
    """
    tree: Tree = {}
    for key, value in values.items():
        *parents, leaf = str(key).split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{key}: {parent} is given both a value and keys below it")
        _put(node, leaf, value, str(key))
    return tree


def _put(node: Tree, name: str, value: Any, key: str) -> None:
    if isinstance(value, dict) and isinstance(node.get(name), dict):
        for inner, inner_value in value.items():
            _put(node[name], inner, inner_value, f"{key}.{inner}")
    elif name in node:
        raise ValueError(f"{key} is given twice, or both a value and keys below it")
    else:
        node[name] = plain(value) if isinstance(value, dict) else value


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that is no section."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def all_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys of sections and values."""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from all_keys(value, f"{prefix}{key}.")


def update(tree: Tree, new: Mapping[str, Any]) -> None:
    """Sets keys; a component section with another NAME takes the place of the old one."""
    for key, value in new.items():
        if _is_merged(tree.get(key), value):
            update(tree[key], value)
        else:
            tree[key] = value


def replace_common(tree: Tree, new: Mapping[str, Any]) -> None:
    """As `update`, but only for keys that the tree has."""
    for key in tree.keys() & new.keys():
        if _is_merged(tree[key], new[key]):
            replace_common(tree[key], new[key])
        else:
            tree[key] = new[key]


def _is_merged(old: Any, new: Any) -> bool:
    return isinstance(old, dict) and isinstance(new, dict) and "NAME" not in new
