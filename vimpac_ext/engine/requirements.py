"""Looks for all that a run needs before it starts; says in one message what is missing."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from vimpac_ext.config import ConfigError, LoadedConfig, last_stage, load_config, stages_of
from vimpac_ext.data import has_tokens
from vimpac_ext.engine.checkpoint import find_checkpoint
from vimpac_ext.engine.stage_progress import unfinished_stages
from vimpac_ext.files import is_remote


class MissingInputError(FileNotFoundError):
    """Files that a run needs are not there; lists them and the commands to make them."""


def require_inputs(loaded: LoadedConfig) -> None:
    """Checks data sets, token stores and checkpoints of the enabled phases, of every stage.

    Raises:
        MissingInputError: listing all that is missing, where it was looked for and what makes it.
    """
    stages = unfinished_stages(loaded) if loaded.cfg.TRAIN.ENABLE else [last_stage(loaded)]
    missing = []
    for stage in stages:
        sections = _sections(stage)
        if stage.cfg.KNN.ENABLE:
            sections |= {f"KNN.{part}": stage.cfg.KNN[part] for part in ("TRAIN", "TEST")}
        missing += [*_missing_data(stage, sections), *_missing_stores(stage, sections)]
    _report(loaded, [*missing, *_missing_checkpoints(loaded)])


def require_data(loaded: LoadedConfig) -> None:
    """Checks the data sets only; what an extraction needs.

    Raises:
        MissingInputError: as `require_inputs`.
    """
    missing = [
        text for stage in stages_of(loaded) for text in _missing_data(stage, _sections(stage))
    ]
    _report(loaded, missing)


def _report(loaded: LoadedConfig, missing: Sequence[str]) -> None:
    if missing:
        listed = "\n".join(f"  - {text}" for text in dict.fromkeys(missing))
        raise MissingInputError(f"{loaded.path} cannot run yet:\n{listed}")


def _phases(loaded: LoadedConfig) -> list[str]:
    return [phase for phase in ("TRAIN", "TEST") if loaded.cfg[phase].ENABLE]


def _sections(loaded: LoadedConfig) -> dict[str, CfgNode]:
    """The sections of the enabled phases, which have DATASET and TOKEN_STORE, by name."""
    return {phase: loaded.cfg[phase] for phase in _phases(loaded)}


def _missing_data(loaded: LoadedConfig, sections: Mapping[str, CfgNode]) -> Iterator[str]:
    looked_for: set[str] = set()
    for used in sections.values():
        section = used.DATASET
        root = section.get("root", loaded.cfg.DATA.PATH_TO_DATA_DIR)
        if section.NAME and root not in looked_for and not Path(root).is_dir():
            looked_for.add(root)
            yield (
                f"data set {section.NAME}: folder {root!r} not found (from "
                f"{Path.cwd()}). Download it and set DATA.PATH_TO_DATA_DIR; the demo's is made "
                f"by: python tools/make_demo_data.py --output {root or 'FOLDER'}"
            )


def _missing_stores(loaded: LoadedConfig, sections: Mapping[str, CfgNode]) -> Iterator[str]:
    for name, section in sections.items():
        store, split_file = section.TOKEN_STORE, section.TOKEN_SPLIT_FILE
        if not isinstance(store, str):  # the authors' folders, which nothing here makes
            for item in store:
                if not has_tokens([item]):
                    yield f"{name}.TOKEN_STORE: no token folders of the authors' in {item!r}"
        elif store and not has_tokens(store):
            yield (
                f"{name}.TOKEN_STORE: no token store in {store!r}. Make it: "
                f"python tools/extract_tokens.py --cfg {_extracted_by(loaded, name)}"
            )
        if split_file and not Path(split_file).is_file():
            yield f"{name}.TOKEN_SPLIT_FILE: there is no file {split_file!r}"


def _extracted_by(loaded: LoadedConfig, name: str) -> str:
    if name in ("TRAIN", "TEST"):
        return str(loaded.path)
    return f"CONFIG, with a config whose TRAIN.TOKEN_STORE is that of {name}"


def _missing_checkpoints(loaded: LoadedConfig) -> Iterator[str]:
    cfg = loaded.cfg
    wanted = {"TRAIN": cfg.TRAIN.CHECKPOINT_FILE_PATH}
    wanted["TEST"] = cfg.TEST.CHECKPOINT_FILE_PATH
    phases = set(_phases(loaded))
    if not cfg.TRAIN.ENABLE:
        wanted["TEST"] = wanted["TEST"] or cfg.OUTPUT_DIR
        phases |= {"TEST"} if cfg.KNN.ENABLE else set()
    for phase in sorted(phases, reverse=True):
        path = wanted[phase]
        if not path or (phase == "TEST" and path == "none"):
            continue
        try:
            find_checkpoint(path)
        except FileNotFoundError as error:
            why = f" ({error})" if is_remote(path) else ""
            yield (
                f"{phase}.CHECKPOINT_FILE_PATH: no checkpoint in {path!r}{why}. "
                f"{_command_for_checkpoint(loaded, Path(path))}"
            )


def _command_for_checkpoint(loaded: LoadedConfig, path: Path) -> str:
    """The command whose OUTPUT_DIR is (above) ``path``, from the configs around."""
    files = [Path(os.path.normpath(source)) for source in set(loaded.sources.values())]
    folders = {loaded.path.parent, *(file.parent for file in files if file.is_file())}
    makers: dict[Path, Path] = {}
    beside = {file for folder in folders for file in folder.glob("*.yaml")}
    above = {file for folder in folders for file in folder.parent.glob("*.yaml")}
    for candidate in sorted(beside | above):
        try:
            makers.setdefault(Path(load_config(candidate).cfg.OUTPUT_DIR), candidate)
        except ConfigError:
            continue
    for output in (path, *path.parents):
        if output in makers and makers[output] != loaded.path:
            return f"Make it: python tools/run_net.py --cfg {makers[output]}"
    return "Give the path of a checkpoint, or the OUTPUT_DIR of a run that has one"
