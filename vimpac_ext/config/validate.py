"""Checks across keys, before any work starts."""

from typing import Any

from vimpac_ext.config.load import ConfigError, LoadedConfig

_CHOICES = {
    "TRAIN.PARALLEL": ("ddp", "fsdp"),
    "TRAIN.PRECISION": ("fp32", "bf16", "fp16"),
    "TEST.PRECISION": ("fp32", "bf16"),
    "EXTRACT.PRECISION": ("fp32", "bf16"),
    "DATA.SAMPLING": ("rate", "segments"),
    "DATA.TOKENS": ("store", "online"),
    "DATA.DECODING_BACKEND": ("pyav", "torchcodec"),
    "DATA.ENSEMBLE_METHOD": ("sum", "max"),
    "DATA.ON_BAD_VIDEO": ("error", "skip", "count_wrong"),
    "TEST.START_RULE": ("linspace", "uniform", "vimpac"),
    "TEST.NUM_SPATIAL_CROPS": (1, 3),
    "KNN.CLIP": ("middle", "random"),
    "SOLVER.LR_POLICY": ("linear", "cosine", "step", "constant"),
    "SOLVER.OPTIMIZING_METHOD": ("adamw", "adamw_original", "adam", "sgd"),
    "SOLVER.NO_DECAY": ("vectors", "original"),
    "WANDB.MODE": ("online", "offline"),
}
_POSITIVE = (
    "DATA.NUM_FRAMES",
    "DATA.SAMPLING_RATE",
    "DATA.TARGET_FPS",
    "DATA.TOKEN_STRIDE",
    "DATA.VOCAB_SIZE",
    "TRAIN.BATCH_SIZE",
    "TRAIN.CHECKPOINT_PERIOD",
    "KNN.TARGET_FPS",
    "KNN.SAMPLING_RATE",
    "KNN.K",
    "KNN.TEMPERATURE",
    "KNN.BATCH_SIZE",
    "TEST.BATCH_SIZE",
    "TEST.NUM_ENSEMBLE_VIEWS",
    "EXTRACT.BATCH_SIZE",
    "EXTRACT.NUM_WORKERS",
    "SOLVER.MAX_EPOCH",
    "SOLVER.BASE_LR",
    "SOLVER.LAYER_DECAY",
    "AUG.NUM_SAMPLE",
    "LOG_PERIOD",
    "NUM_CPU_PROCESSES",
    "DIST_TIMEOUT",
)
_NOT_NEGATIVE = (
    "TRAIN.MICRO_BATCH_SIZE",
    "TRAIN.EVAL_PERIOD",
    "TRAIN.CHECKPOINT_PERIOD_STEPS",
    "TRAIN.KEEP_CHECKPOINTS",
    "TRAIN.EMA_DECAY",
    "TRAIN.KILL_LOSS_EXPLOSION_FACTOR",
    "DATA_LOADER.NUM_WORKERS",
    "EXTRACT.TIMEOUT",
    "MODEL.NUM_CLASSES",
    "SOLVER.MOMENTUM",
    "SOLVER.DAMPENING",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.CLIP_GRAD_L2NORM",
    "SOLVER.WARMUP_RATIO",
    "SOLVER.WARMUP_EPOCHS",
    "SOLVER.WARMUP_STEPS",
    "SOLVER.WARMUP_START_LR",
    "SOLVER.COSINE_END_LR",
    "SOLVER.SCHEDULE_EPOCHS",
    "SOLVER.SCHEDULE_START_EPOCH",
    "NUM_GPUS",
    "RNG_SEED",
    "TENSORBOARD_PICTURES_PERIOD",
)


def validate(loaded: LoadedConfig) -> None:
    """Checks ranges, choices and keys that must agree.

    Raises:
        ConfigError: naming the key, where it was set, what was found and what is valid.
    """
    _check_split_files(loaded)
    _check_knn(loaded)
    for key, choices in _CHOICES.items():
        _require(loaded, key, _value(loaded, key) in choices, f"one of {_listed(choices)}")
    for key in _POSITIVE:
        _require(loaded, key, _value(loaded, key) > 0, "positive")
    for key in _NOT_NEGATIVE:
        _require(loaded, key, _value(loaded, key) >= 0, "zero or more")
    _require(loaded, "SOLVER.WARMUP_RATIO", loaded.cfg.SOLVER.WARMUP_RATIO < 1, "below 1")
    _require(loaded, "SOLVER.LAYER_DECAY", loaded.cfg.SOLVER.LAYER_DECAY <= 1, "at most 1 (off)")
    scales = loaded.cfg.SOLVER.LR_SCALES
    _require(loaded, "SOLVER.LR_SCALES", all(s > 0 for s in scales.values()), "positive factors")
    _require(loaded, "TRAIN.EMA_DECAY", loaded.cfg.TRAIN.EMA_DECAY < 1, "below 1")
    betas = loaded.cfg.SOLVER.BETAS
    in_range = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
    _require(loaded, "SOLVER.BETAS", in_range, "two numbers in [0, 1)")
    distance = loaded.cfg.DATA.MAX_PAIR_DISTANCE
    is_number = isinstance(distance, (int, float)) and not isinstance(distance, bool)
    _require(
        loaded,
        "DATA.MAX_PAIR_DISTANCE",
        distance is None or (is_number and distance >= 0),
        "null or a number of seconds, zero or more",
    )
    _check_sampling(loaded)
    _check_batch(loaded)
    _check_schedule(loaded)
    _check_momentum(loaded)
    _check_crops(loaded)
    shown = loaded.cfg.TENSORBOARD or loaded.cfg.WANDB.ENABLE
    key = "TENSORBOARD_PICTURES_PERIOD"
    _require(loaded, key, shown or not _value(loaded, key), "0 without TENSORBOARD")


def _check_sampling(loaded: LoadedConfig) -> None:
    data = loaded.cfg.DATA
    if data.SAMPLING == "segments":
        why = "since DATA.SAMPLING is segments"
        _require(loaded, "DATA.SAMPLING_RATE", data.SAMPLING_RATE == 1, f"1, {why}")
        _require(loaded, "DATA.MAX_PAIR_DISTANCE", data.MAX_PAIR_DISTANCE is None, f"null, {why}")
        if loaded.cfg.KNN.ENABLE:
            _require(loaded, "KNN.SAMPLING_RATE", loaded.cfg.KNN.SAMPLING_RATE == 1, f"1, {why}")


def _check_split_files(loaded: LoadedConfig) -> None:
    for name in ("TRAIN", "TEST", "KNN.TRAIN", "KNN.TEST"):
        dataset = _value(loaded, f"{name}.DATASET").NAME
        key = f"{name}.TOKEN_SPLIT_FILE"
        fits = not (dataset and _value(loaded, key))
        _require(loaded, key, fits, f"empty, since {name}.DATASET ({dataset}) says which videos")


def check_folders(loaded: LoadedConfig) -> None:
    """Checks where a run writes; `stages_of` gives its stages folders below that.

    Raises:
        ConfigError: as `validate`.
    """
    local = "://" not in loaded.cfg.OUTPUT_DIR
    _require(loaded, "OUTPUT_DIR", local, "a folder of this machine; REMOTE_DIR takes a copy of it")
    remote = loaded.cfg.REMOTE_DIR
    _require(loaded, "REMOTE_DIR", not remote or "://" in remote, "empty or a URL")


def _check_knn(loaded: LoadedConfig) -> None:
    if not loaded.cfg.KNN.ENABLE:
        return
    train = loaded.cfg.TRAIN
    watched = not train.ENABLE or train.EVAL_PERIOD > 0
    _require(loaded, "TRAIN.EVAL_PERIOD", watched, "positive, since KNN.ENABLE is True")
    for part in ("TRAIN", "TEST"):
        key = f"KNN.{part}.TOKEN_STORE"
        given = bool(_value(loaded, key) or loaded.cfg.KNN[part].DATASET.NAME)
        expected = f"given (or KNN.{part}.DATASET, for frames), since KNN.ENABLE is True"
        _require(loaded, key, given, expected)


def _check_batch(loaded: LoadedConfig) -> None:
    train = loaded.cfg.TRAIN
    if train.MICRO_BATCH_SIZE:
        _require(
            loaded,
            "TRAIN.MICRO_BATCH_SIZE",
            train.BATCH_SIZE % train.MICRO_BATCH_SIZE == 0,
            f"0 or a divisor of TRAIN.BATCH_SIZE ({train.BATCH_SIZE})",
        )
    sharded = train.PARALLEL == "fsdp"
    fits = not (sharded and train.PRECISION == "fp16")
    _require(loaded, "TRAIN.PRECISION", fits, "fp32 or bf16, since TRAIN.PARALLEL is fsdp")
    fits = not (sharded and loaded.cfg.MODEL.CHANNELS_LAST)
    _require(loaded, "MODEL.CHANNELS_LAST", fits, "False, since TRAIN.PARALLEL is fsdp")
    if train.ENABLE:
        as_built = loaded.cfg.TEST.CHECKPOINT_FILE_PATH == "none"
        _require(
            loaded,
            "TEST.CHECKPOINT_FILE_PATH",
            not as_built,
            "a checkpoint or empty while TRAIN.ENABLE is True",
        )
        on_bad = loaded.cfg.DATA.ON_BAD_VIDEO
        allowed = on_bad != "count_wrong" or loaded.cfg.MODEL.NUM_CLASSES > 0
        _require(loaded, "DATA.ON_BAD_VIDEO", allowed, "error or skip for a task without labels")


def _check_schedule(loaded: LoadedConfig) -> None:
    solver = loaded.cfg.SOLVER
    if solver.SCHEDULE_EPOCHS:
        done = solver.SCHEDULE_START_EPOCH + solver.MAX_EPOCH
        _require(
            loaded,
            "SOLVER.SCHEDULE_EPOCHS",
            done <= solver.SCHEDULE_EPOCHS,
            f"0 or at least SCHEDULE_START_EPOCH + MAX_EPOCH ({done})",
        )

    both = solver.WARMUP_EPOCHS > 0 and solver.WARMUP_STEPS > 0
    _require(loaded, "SOLVER.WARMUP_STEPS", not both, "0 where WARMUP_EPOCHS is given")
    if solver.LR_POLICY == "step":
        fits = len(solver.STEPS) == len(solver.LRS) and sorted(solver.STEPS) == solver.STEPS
        numbers = f"as many rising epochs as LRS has factors ({len(solver.LRS)})"
        _require(loaded, "SOLVER.STEPS", fits, numbers)


def _check_momentum(loaded: LoadedConfig) -> None:
    solver = loaded.cfg.SOLVER
    if solver.OPTIMIZING_METHOD == "sgd" and solver.NESTEROV:
        fits = solver.MOMENTUM > 0 and solver.DAMPENING == 0
        _require(loaded, "SOLVER.NESTEROV", fits, "False unless MOMENTUM > 0 and DAMPENING = 0")


def _check_crops(loaded: LoadedConfig) -> None:
    cfg = loaded.cfg
    stride = cfg.DATA.TOKEN_STRIDE
    sections = (cfg.TRAIN, cfg.TEST, cfg.KNN.TRAIN, cfg.KNN.TEST)
    has_tokens = cfg.TOKENIZER.NAME or cfg.DATA.TOKENS == "online"
    has_tokens = has_tokens or any(section.TOKEN_STORE for section in sections)
    for key in ("DATA.TRAIN_CROP_SIZE", "DATA.TEST_CROP_SIZE"):
        size = _value(loaded, key)
        _require(loaded, key, size > 0, "positive")
        fits = not has_tokens or size % stride == 0
        _require(loaded, key, fits, f"a multiple of DATA.TOKEN_STRIDE ({stride})")


def _value(loaded: LoadedConfig, key: str) -> Any:
    node = loaded.cfg
    for name in key.split("."):
        node = node[name]
    return node


def _listed(choices: tuple[object, ...]) -> str:
    return ", ".join(map(str, choices))


def _require(loaded: LoadedConfig, key: str, condition: bool, expected: str) -> None:
    if not condition:
        found = _value(loaded, key)
        raise ConfigError(f"{key} in {loaded.where(key)} must be {expected}, found {found!r}")
