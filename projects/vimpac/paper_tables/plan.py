"""From a row to the stages that it needs: which commands, in which folders, with which names.

A stage's folder is named by the hash of its resolved configuration and of the stages that it builds
on, so rows (and tables) that have a stage in common find it done.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from paper_tables.probing import NUM_CLIPS, probing_protocol
from paper_tables.resolved import flat, grid_of, hidden_share, resolve, words_of
from paper_tables.spec import PROBE, PROJECT, REPOSITORY, Overrides, Row, Table, TableError
from paper_tables.stages import RowPlan, Stage
from vimpac_ext.data.store_format import FORMAT_VERSION
from vimpac_ext.data.synthetic import RECIPE_VERSION
from vimpac_ext.data.synthetic_motion import MotionTask
from vimpac_ext.engine.assembly import build_tokenizer
from vimpac_ext.engine.features import AS_BUILT
from vimpac_ext.files import sha256_of
from vimpac_ext.maskers import num_blocks_for_ratio

# Keys that do not change what comes out.
_FREE_KEYS = ("OUTPUT_DIR", "LOG_PERIOD", "TENSORBOARD", "DATA_LOADER")
# Overrides that an extraction of tokens needs to know.
_DATA_KEYS = ("PLUGINS", "DATA.", "EXTRACT.", "TOKENIZER.", "TEST.", "TRAIN.DATASET", "NUM_GPUS")
# The demo's held-out videos: other ones than any seed below a thousand is trained on.
_HELDOUT_SEED = 1000
_HELDOUT_COUNTS = {"train": 0, "validation": 0, "unlabelled": 200}

# Overrides that choose videos, paths to override, and the stages that make them.
_Videos = tuple[Overrides, dict[str, Any], list[Stage]]


class Planner:
    """Plans rows.

    Args:
        table: at the size to run.
        root: folder of all runs; shared by all tables and sizes.
        settings: further overrides for all rows, by "pretrain", "finetune" or "both".
    """

    def __init__(
        self, table: Table, root: Path, settings: Mapping[str, Overrides] | None = None
    ) -> None:
        self.table = table
        self.root = root
        self.settings = settings or {}

    def plan(self, row: Row, seed: int) -> RowPlan:
        """Stages of a row; nothing is written and nothing run.

        Raises:
            ValueError: if a configuration of the row is wrong; names the key.
        """
        pretrain: list[Stage] = []
        for config in row.pretrain:
            pretrain.append(self._training(config, self.pretrain_overrides(row), seed, pretrain))
        end = self._probe if self.table.size == PROBE else self._training
        finetune = {
            target.name: end(
                target.config, self.finetune_overrides(target.overrides), seed, pretrain
            )
            for target in row.targets
        }
        heldout = self._heldout(row, seed, pretrain[-1]) if pretrain else None
        return RowPlan(row, seed, tuple(pretrain), heldout, finetune)

    def pretrain_overrides(self, row: Row) -> Overrides:
        """All that a row changes in pre-training."""
        overrides = {**row.pretrain_overrides, **self._settings("pretrain")}
        if row.blocks_at_same_ratio:
            grid = grid_of(resolve(row.pretrain[-1], overrides))
            ratio = hidden_share(resolve(row.pretrain[-1], {}))
            overrides["MASKER.num_blocks"] = num_blocks_for_ratio(grid, ratio)
        if row.uniform_at_same_ratio:
            ratio = hidden_share(resolve(row.pretrain[-1], overrides))
            overrides = {k: v for k, v in overrides.items() if not k.startswith("MASKER.")}
            overrides |= {"MASKER.NAME": "UniformMasker", "MASKER.ratio": round(ratio, 4)}
        return overrides

    def finetune_overrides(self, overrides: Overrides) -> Overrides:
        """All that is changed in a target's fine-tuning."""
        return {**overrides, **self._settings("finetune")}

    def _settings(self, stage: str) -> Overrides:
        return {**self.settings.get("both", {}), **self.settings.get(stage, {})}

    def _training(self, config: str, overrides: Overrides, seed: int, before: list[Stage]) -> Stage:
        """A run of ``tools/run_net.py``, from the stage before if it wants a checkpoint."""
        cfg = resolve(config, {**overrides, "RNG_SEED": seed})
        paths, needs = self._data(config, overrides, cfg, seed)
        kind = "finetune" if cfg.TEST.ENABLE and cfg.TEST.DATASET.NAME else "pretrain"
        if cfg.TRAIN.CHECKPOINT_FILE_PATH and before:
            paths["TRAIN.CHECKPOINT_FILE_PATH"] = before[-1].folder
            needs.append(before[-1])
        return self._stage(
            kind, "tools/run_net.py", config, {**overrides, "RNG_SEED": seed}, paths, needs
        )

    def _probe(self, config: str, overrides: Overrides, seed: int, before: list[Stage]) -> Stage:
        """Linear classifiers on frozen features, instead of a fine-tuning."""
        cfg = resolve(config, overrides)
        paths, needs = self._data(config, overrides, cfg, seed)
        overrides = {**overrides, "TEST.NUM_ENSEMBLE_VIEWS": NUM_CLIPS, "TRAIN.ENABLE": False}
        overrides["RNG_SEED"] = seed
        if cfg.TRAIN.CHECKPOINT_FILE_PATH and before:
            paths["TEST.CHECKPOINT_FILE_PATH"] = before[-1].folder
            needs.append(before[-1])
        else:
            overrides["TEST.CHECKPOINT_FILE_PATH"] = AS_BUILT
        protocol = _text(probing_protocol())
        script = str(PROJECT / "probe.py")
        return self._stage("probe", script, config, overrides, paths, needs, facts=(protocol,))

    def _heldout(self, row: Row, seed: int, pretrained: Stage) -> Stage:
        """Losses on videos that the pre-training has not seen, their centre as in pre-training."""
        config = row.pretrain[-1]
        overrides = self.pretrain_overrides(row) | {
            "RNG_SEED": seed,
            "TRAIN.ENABLE": False,
            "TEST.ENABLE": True,
            "TEST.NUM_SPATIAL_CROPS": 1,
        }
        if self.table.size == "full":
            more, paths, needs = self._test_videos(row, resolve(config, overrides))
        else:
            more, paths, needs = self._unseen_videos(config, overrides, seed)
        paths["TEST.CHECKPOINT_FILE_PATH"] = pretrained.folder
        script = str(PROJECT / "heldout.py")
        return self._stage("heldout", script, config, overrides | more, paths, [*needs, pretrained])

    def _unseen_videos(self, config: str, overrides: Overrides, seed: int) -> _Videos:
        """Unlabelled videos of the demo, as long as those of pre-training."""
        trained = resolve(config, overrides).TRAIN.DATASET
        more = {f"TEST.DATASET.{key}": value for key, value in trained.items()}
        videos = self.videos(seed, heldout=True)
        cfg = resolve(config, overrides | more)
        tokens = self._demo_tokens(config, overrides | more, cfg, "TEST", videos)
        paths: dict[str, Any] = {"DATA.PATH_TO_DATA_DIR": videos.folder / "videos"}
        return more, paths | {"TEST.TOKEN_STORE": tokens.folder / "store"}, [videos, tokens]

    def _test_videos(self, row: Row, cfg: CfgNode) -> _Videos:
        """Test videos of the first target, at the frame rate of pre-training."""
        target = row.targets[0]
        tested = resolve(target.config, self.finetune_overrides(target.overrides))
        rate = tested.DATA.TARGET_FPS * cfg.DATA.SAMPLING_RATE / cfg.DATA.TARGET_FPS
        if rate != int(rate):
            raise TableError(
                f"row {row.name!r}: the held-out tokens have {tested.DATA.TARGET_FPS} frames per "
                "second, which is not a multiple of the rate of pre-training"
            )
        more = {
            "PLUGINS": list(tested.PLUGINS),
            "DATA.TARGET_FPS": tested.DATA.TARGET_FPS,
            "DATA.SAMPLING_RATE": int(rate),
            **{f"TEST.DATASET.{key}": value for key, value in tested.TEST.DATASET.items()},
        }
        test_only = {**target.overrides, "TRAIN.ENABLE": False}
        paths, needs = self._data(target.config, test_only, tested, 0, phases=("TEST",))
        return more, paths, needs

    def _data(
        self,
        config: str,
        overrides: Overrides,
        cfg: CfgNode,
        seed: int,
        phases: tuple[str, ...] = ("TRAIN", "TEST"),
    ) -> tuple[dict[str, Any], list[Stage]]:
        """Paths of data and stores to override, and the stages that make them."""
        stores = {
            phase: cfg[phase].TOKEN_STORE
            for phase in phases
            if cfg[phase].TOKEN_STORE and cfg[phase].DATASET.NAME
            and (cfg[phase].ENABLE or len(phases) == 1)
        }  # fmt: skip
        if self.table.size == "full":
            paths: dict[str, Any] = {"DATA.PATH_TO_DATA_DIR": cfg.DATA.PATH_TO_DATA_DIR}
            needs = []
            for phase, store in stores.items():
                paths[f"{phase}.TOKEN_STORE"] = store
                if isinstance(store, str):  # a list is of the authors' folders: nothing to make
                    needs.append(self._tokens(config, overrides, phase, dict(paths), [], store))
            return paths, needs
        videos = self.videos(seed)
        paths = {"DATA.PATH_TO_DATA_DIR": videos.folder / "videos"}
        needs = [videos]
        for phase in stores:
            tokens = self._demo_tokens(config, overrides, cfg, phase, videos)
            paths[f"{phase}.TOKEN_STORE"] = tokens.folder / "store"
            needs.append(tokens)
        return paths, needs

    def videos(self, seed: int, heldout: bool = False) -> Stage:
        """The demo's videos: drawn anew for each seed, so that the spread includes theirs.

        Args:
            seed: not negative.
            heldout: unlabelled ones only, of another seed, for the losses of pre-training.
        """
        recipe = {"version": RECIPE_VERSION, "seed": seed, **asdict(MotionTask())}
        command = _command("tools/make_demo_data.py")
        if heldout:
            recipe |= {"seed": seed + _HELDOUT_SEED, **_HELDOUT_COUNTS}
            for name, count in _HELDOUT_COUNTS.items():
                command += [f"--num-{name}", str(count)]
        key = sha256_of("demo videos", _text(recipe), length=10)
        folder = self.root / f"data-{key}"
        command += ["--output", str(folder / "videos"), "--seed", str(recipe["seed"])]
        return Stage("data", key, folder, tuple(command))

    def _demo_tokens(
        self, config: str, overrides: Overrides, cfg: CfgNode, phase: str, videos: Stage
    ) -> Stage:
        # Not by the name of the data set: the demo's data sets of one split are the same videos.
        crop = cfg.DATA.TRAIN_CROP_SIZE if phase == "TRAIN" else cfg.DATA.TEST_CROP_SIZE
        views = cfg.DATA.TRAIN_VIEWS if phase == "TRAIN" else cfg.TEST.NUM_SPATIAL_CROPS
        data = (cfg.DATA.TARGET_FPS, cfg.DATA.VOCAB_SIZE, cfg.DATA.TOKEN_STRIDE, crop, views)
        tokenizer = _fingerprint(_text(cfg.TOKENIZER), cfg)
        split = cfg[phase].DATASET.get("split")
        facts = [videos.key, tokenizer, split, data, cfg.EXTRACT, FORMAT_VERSION]
        key = sha256_of(*(_text(fact) for fact in facts), length=10)
        folder = self.root / f"tokens-{key}"
        paths = {"DATA.PATH_TO_DATA_DIR": videos.folder / "videos"}
        paths[f"{phase}.TOKEN_STORE"] = folder / "store"
        return self._tokens(config, overrides, phase, paths, [videos], "", key)

    def _tokens(
        self,
        config: str,
        overrides: Overrides,
        phase: str,
        paths: dict[str, Any],
        needs: list[Stage],
        produced: str,
        key: str = "",
    ) -> Stage:
        other = {"TRAIN": "TEST", "TEST": "TRAIN"}[phase]
        overrides = {k: v for k, v in overrides.items() if k.startswith(_DATA_KEYS)}
        overrides |= {f"{phase}.ENABLE": True, f"{other}.ENABLE": False}
        key = key or sha256_of(produced, length=10)
        return self._stage(
            "tokens", "tools/extract_tokens.py", config, overrides, paths, needs, produced, key
        )

    def _stage(
        self,
        kind: str,
        script: str,
        config: str,
        overrides: Overrides,
        paths: Mapping[str, Any],
        needs: list[Stage],
        produced: str = "",
        key: str = "",
        facts: tuple[str, ...] = (),
    ) -> Stage:
        cfg = resolve(config, overrides)
        if not key:
            keys = {k: v for k, v in flat(cfg).items() if not k.startswith(_FREE_KEYS)}
            # Where things lie says nothing; what they are does: the keys of what is needed.
            own = {k: v for k, v in keys.items() if k not in paths or self.table.size == "full"}
            key = sha256_of(kind, _text(own), *(need.name for need in needs), *facts, length=10)
        folder = self.root / f"{kind}-{key}"
        places = {k: v if isinstance(v, list) else str(v) for k, v in paths.items()}
        words = {**overrides, **places, "OUTPUT_DIR": str(folder)}
        command = [*_command(script), "--cfg", _relative(config), *words_of(words)]
        device = "cuda" if cfg.NUM_GPUS else "cpu"
        return Stage(kind, key, folder, tuple(command), tuple(needs), produced, device)


def _command(script: str) -> list[str]:
    return [sys.executable, _relative(script)]


def _relative(path: str) -> str:
    """Below the working directory in short, else absolute."""
    full = REPOSITORY / path
    return str(full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else full)


def _fingerprint(section: str, cfg: CfgNode) -> str:
    if section not in _FINGERPRINTS:
        _FINGERPRINTS[section] = str(build_tokenizer(cfg).fingerprint)
    return _FINGERPRINTS[section]


_FINGERPRINTS: dict[str, str] = {}  # tokenizer section -> fingerprint; building it takes a while


def _text(fact: Any) -> str:
    return json.dumps(fact, sort_keys=True, default=str)
