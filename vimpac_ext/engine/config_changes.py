"""In which keys two saved configurations differ."""

from collections.abc import Mapping
from typing import Any

import yaml


def config_changes(before: str, now: str, free_keys: tuple[str, ...] = ()) -> list[str]:
    """Lists what differs, as "KEY old -> new".

    Args:
        before: YAML text of a configuration.
        now: of another one.
        free_keys: beginnings of keys that may differ.
    """
    old, new = _flat(yaml.safe_load(before)), _flat(yaml.safe_load(now))
    return [
        f"{key} {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(free_keys)
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        flat.update(_flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return flat
