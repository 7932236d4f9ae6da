"""Reads a configuration: defaults <- YAML file (with ``_BASE_``) <- command-line overrides."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from vimpac_ext.config.defaults import COMPONENT_MAPPINGS, DEFAULTS, NUMBER_MAPPINGS
from vimpac_ext.config.trees import Tree, all_keys, flat, nested, plain, replace_common, update

COMMAND_LINE = "the command line"
STAGES = "TRAIN.STAGES"

# PyYAML reads 1e-4 as a string: YAML 1.1 wants 1.0e-4.
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


# Keys that are one text, or a list of such.
_TEXT_OR_LIST = ("DATA.TRAIN_VIEWS", "TOKEN_STORE")


class ConfigError(ValueError):
    """A mistake in a configuration; the message names the key and where it was set."""


@dataclass(frozen=True)
class LoadedConfig:
    """A merged, frozen configuration that remembers where each key was set.

    Attributes:
        path: the YAML file that was asked for.
        cfg: the tree; ``cfg.TRAIN.BATCH_SIZE`` and so on.
        sources: dotted key -> file (or "the command line") of every key that is not a default.
    """

    path: Path
    cfg: CfgNode
    sources: dict[str, str]

    def where(self, key: str) -> str:
        """Where ``key`` was set, for error messages: the file, or "the defaults"."""
        below = [source for name, source in self.sources.items() if name.startswith(f"{key}.")]
        return self.sources.get(key) or (below[-1] if below else "the defaults")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Merges defaults, a YAML file with its bases, and overrides.

    Args:
        path: YAML file; its ``_BASE_`` (relative to the file; of several, a later one wins) is
            merged first.
        overrides: alternating keys and values, e.g. ``["MASKER.num_blocks", "4"]``.

    Raises:
        ConfigError: for an unreadable file, an unknown key (names the nearest one) or a value of
            another type than the default's.
    """
    merger = _Merger(DEFAULTS, {})
    for source, tree in _with_bases(Path(path), ()):
        merger.merge(tree, source)
    given = _parse_overrides(overrides)
    merger.merge(given, COMMAND_LINE)
    for stage in merger.tree["TRAIN"]["STAGES"]:
        replace_common(stage, given)
    return merger.result(Path(path))


def overlaid(loaded: LoadedConfig, tree: Tree, source: str) -> LoadedConfig:
    """A configuration with further keys merged into it.

    Args:
        loaded: is not changed.
        tree: keys, nested.
        source: where they were set, for error messages.

    Raises:
        ConfigError: as `load_config`.
    """
    merger = _Merger(loaded.cfg, loaded.sources)
    merger.merge(tree, source)
    return merger.result(loaded.path)


def _with_bases(path: Path, below: tuple[Path, ...]) -> Iterator[tuple[str, Tree]]:
    """Yields (file, its own keys), bases first."""
    if path.resolve() in below:
        raise ConfigError(f"{path}: _BASE_ leads back to the file itself")
    tree = _read_yaml(path)
    bases = tree.pop("_BASE_", None)
    for base in bases if isinstance(bases, list) else [bases] if bases is not None else []:
        if not isinstance(base, str):
            raise ConfigError(f"{path}: _BASE_ must be one or more file names, found {bases!r}")
        yield from _with_bases(path.parent / base, (*below, path.resolve()))
    yield str(path), tree


def _read_yaml(path: Path) -> Tree:
    if not path.is_file():
        raise ConfigError(f"configuration file not found: {path}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected KEY: value pairs, found {type(tree).__name__}")
    return tree


class _StrictLoader(yaml.SafeLoader):
    """The safe YAML loader, but a key given twice is an error instead of a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _parse_overrides(overrides: Sequence[str]) -> Tree:
    if len(overrides) % 2:
        raise ConfigError(
            f"overrides are KEY VALUE pairs; found {len(overrides)} words: {' '.join(overrides)}"
        )
    values: Tree = {}
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        try:
            values[key] = yaml.safe_load(text) if text else ""  # an empty word is no null
        except yaml.YAMLError:
            values[key] = text
    return _nested(values)


class _Merger:
    """The tree merged so far, with the source of every key."""

    def __init__(self, tree: Mapping[str, Any], sources: Mapping[str, str]) -> None:
        self.tree: Tree = plain(tree)
        self.sources = dict(sources)

    def result(self, path: Path) -> LoadedConfig:
        cfg = CfgNode(self.tree)
        cfg.freeze()
        return LoadedConfig(path, cfg, self.sources)

    def merge(self, new: Mapping[str, Any], source: str) -> None:
        self._merge_section(self.tree, new, "", source)

    def _merge_section(self, old: Tree, new: Mapping[str, Any], prefix: str, source: str) -> None:
        for key, value in new.items():
            path = f"{prefix}{key}"
            if key not in old:
                raise _unknown_key(path, source)
            if path in COMPONENT_MAPPINGS:
                self._merge_mapping(old[key], value, path, source)
            elif path in NUMBER_MAPPINGS:
                self._merge_numbers(old[key], value, path, source)
            elif path == STAGES:
                old[key] = _stages(old[key], value, source)
                self.sources[path] = source
            elif isinstance(old[key], dict) and "NAME" in old[key]:
                old[key] = self._merge_component(old[key], value, path, source)
            elif isinstance(old[key], dict):
                _require_mapping(value, path, source)
                self._merge_section(old[key], value, f"{path}.", source)
            else:
                old[key] = _converted(path, old[key], value, source)
                self.sources[path] = source

    def _merge_mapping(self, old: Tree, new: Any, path: str, source: str) -> None:
        _require_mapping(new, path, source)
        for name, section in new.items():
            if section is None:
                old.pop(name, None)
                self._forget(f"{path}.{name}")
                continue
            default = old.get(name, {"NAME": ""})
            old[name] = self._merge_component(default, section, f"{path}.{name}", source)
            if not old[name]["NAME"]:
                raise ConfigError(f"{path}.{name} in {source} has no NAME")

    def _merge_numbers(self, old: Tree, new: Any, path: str, source: str) -> None:
        _require_mapping(new, path, source)
        for name, value in flat(new):  # names may have dots
            if value is None:
                old.pop(name, None)
            else:
                old[name] = _converted(f"{path}.{name}", 1.0, value, source)
            self.sources[path] = source

    def _merge_component(self, old: Tree, new: Any, path: str, source: str) -> Tree:
        if isinstance(new, str):  # "MASKER: BlockMasker" for one without arguments
            new = {"NAME": new}
        _require_mapping(new, path, source)
        for key in new:
            if key != "NAME" and (not isinstance(key, str) or key != key.lower()):
                raise ConfigError(
                    f"{path}.{key} in {source}: expected NAME or a lower-case argument of the "
                    "component's constructor"
                )
        if new.get("NAME", old["NAME"]) != old["NAME"]:
            # Arguments of one component mean nothing to another.
            old = {"NAME": ""}
            self._forget(path)
        self.sources.update({f"{path}.{key}": source for key in new})
        return {**old, **{key: _decoded(value) for key, value in new.items()}}

    def _forget(self, path: str) -> None:
        for key in [key for key in self.sources if key.startswith(f"{path}.")]:
            del self.sources[key]


def _nested(values: Mapping[str, Any]) -> Tree:
    try:
        return nested(values)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _stages(old: list[Tree], new: Any, source: str) -> list[Tree]:
    """A new list of stages, or changes of some of the old ones, given as {position: changes}."""
    if isinstance(new, list):
        for position, stage in enumerate(new):
            _require_mapping(stage, f"{STAGES}[{position}]", source)
        return [_nested(stage) for stage in new]
    _require_mapping(new, STAGES, source)
    stages = [plain(stage) for stage in old]
    for position, changes in new.items():
        if not str(position).isdecimal() or int(position) >= len(stages):
            valid = ", ".join(map(str, range(len(stages)))) or "there are none"
            raise ConfigError(f"{STAGES} in {source} has no stage {position!r}: {valid}")
        _require_mapping(changes, f"{STAGES}[{position}]", source)
        update(stages[int(position)], _nested(changes))
    return stages


def _require_mapping(value: Any, path: str, source: str) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} in {source} is a section of keys, found {value!r}")


def _decoded(value: Any) -> Any:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return value


def _converted(path: str, default: Any, value: Any, source: str) -> Any:
    """``value`` as the type of ``default``, or an error; a default of None takes any value."""
    value = _decoded(value)
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if default is None or type(value) is type(default):
        return value
    if (
        path.endswith(_TEXT_OR_LIST)
        and isinstance(value, list)
        and all(isinstance(item, str) for item in value)
    ):
        return value
    raise ConfigError(
        f"{path} in {source} must be {type(default).__name__} (like {default!r}), "
        f"found {type(value).__name__} {value!r}"
    )


def _unknown_key(path: str, source: str) -> ConfigError:
    known = list(all_keys(DEFAULTS))
    nearest = difflib.get_close_matches(path, known, n=1, cutoff=0.6)
    if not nearest:  # the right key in the wrong section
        leaf = path.rsplit(".", 1)[-1]
        nearest = [key for key in known if key.rsplit(".", 1)[-1] == leaf][:1]
    section = path.rpartition(".")[0]
    valid = [key for key in known if key.rpartition(".")[0] == section]
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ";"
    listed = f" {section or 'the top'} has {', '.join(key.split('.')[-1] for key in valid)}"
    return ConfigError(f"unknown key {path!r} in {source}{hint}{listed if valid else ''}")
