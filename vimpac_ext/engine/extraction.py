"""Makes the token stores that a configuration trains and tests on."""

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from fvcore.common.config import CfgNode

from vimpac_ext.config import ConfigError, LoadedConfig, stages_of
from vimpac_ext.engine.assembly import build_dataset, build_tokenizer, views_of
from vimpac_ext.engine.devices import device_of
from vimpac_ext.engine.requirements import require_data
from vimpac_ext.files import atomic_write
from vimpac_ext.tasks.extract_tokens import ExtractionSummary, extract

_logger = logging.getLogger(__name__)

_MAX_LISTED = 20  # bad videos in a log line
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # SIGUSR1: SLURM's --signal


class ExtractionStopped(RuntimeError):  # noqa: N818  (not an error)
    """An extraction was stopped from outside; the same command goes on.

    Attributes:
        exit_code: for the shell: 75 ("try again"), or 130 after Ctrl-C.
    """

    def __init__(self, signum: int, store: Path, summary: ExtractionSummary) -> None:
        num_done = summary.num_already_done + summary.num_extracted
        super().__init__(
            f"stopped by {signal.Signals(signum).name}: {num_done} of {summary.num_videos} videos "
            f"are whole in {store}, and the same command goes on from there"
        )
        self.exit_code = 130 if signum == signal.SIGINT else 75


class WorkShare(NamedTuple):
    """Which part of the videos this process takes.

    Attributes:
        shard_id: counts the processes.
        num_shards: how many there are.
        local_id: counts those of this machine; chooses the GPU.
        source: who said so, for the log.
    """

    shard_id: int = 0
    num_shards: int = 1
    local_id: int = 0
    source: str = "default"


def work_share(
    shard_id: int | None = None,
    num_shards: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> WorkShare:
    """This process's share, from the command line, or else from torchrun or srun.

    Args:
        shard_id: from the command line.
        num_shards: from the command line.
        environment: of the process.

    Raises:
        ValueError: only one of the two is given, or a number makes no sense.
    """
    if (shard_id is None) != (num_shards is None):
        raise ValueError("--num_shards and --shard_id go together: give both or none")
    if shard_id is not None and num_shards is not None:
        return _checked(WorkShare(shard_id, num_shards, shard_id, "--shard_id, --num_shards"))
    for rank, size, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
        ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    ):
        if rank in environment and size in environment:
            numbers = [_number(environment, name) for name in (rank, size)]
            local_id = _number(environment, local) if local in environment else numbers[0]
            return _checked(WorkShare(numbers[0], numbers[1], local_id, f"{rank}, {size}"))
    return WorkShare()


def _number(environment: Mapping[str, str], name: str) -> int:
    if not environment[name].isdecimal():
        raise ValueError(
            f"the environment variable {name} is {environment[name]!r}, expected a number"
        )
    return int(environment[name])


def _checked(share: WorkShare) -> WorkShare:
    if not 0 <= share.shard_id < share.num_shards:
        raise ValueError(
            f"shard {share.shard_id} of {share.num_shards} ({share.source}): shards are numbered "
            f"from 0 to the number of shards - 1"
        )
    return share


def extract_stores(
    loaded: LoadedConfig, share: WorkShare | None = None
) -> dict[str, ExtractionSummary]:
    """Extracts TRAIN.TOKEN_STORE and TEST.TOKEN_STORE, as far as the configuration uses them.

    With TRAIN.STAGES, those of every stage.

    What is in a store already is not done again, so a stopped or killed extraction continues.
    Several processes, each with its share, may work on the same stores.

    Args:
        loaded: from `vimpac_ext.engine.prepare`.
        share: of this process; None = everything.

    Returns:
        Phase ("TRAIN", "TEST") -> what was done; also written to ``extraction.json`` in the store
        (``extraction_00003.json`` by shard 3 of several). Phases of stages are "stage_0 TRAIN" and
        so on; a store that several of them use is in it once.

    Raises:
        ConfigError: if the configuration names no token store, or a list of the authors' folders.
        MissingInputError: if a data set is not there.
        VideoDecodeError: for a bad video, if DATA.ON_BAD_VIDEO is "error".
        OSError: if a store cannot be written.
        ExtractionStopped: by SIGINT, SIGTERM or SIGUSR1.
    """
    cfg, share = loaded.cfg, share or WorkShare()
    jobs = _jobs(loaded)
    if not jobs:
        raise ConfigError(f"{loaded.path} names no TRAIN.TOKEN_STORE or TEST.TOKEN_STORE to make")
    require_data(loaded)
    device = _device(loaded, share)
    tokenizer = build_tokenizer(cfg)
    summaries = {}
    for name, (cfg, phase) in jobs.items():
        dataset = build_dataset(cfg, phase)
        store, summary = Path(cfg[phase].TOKEN_STORE), ExtractionSummary()
        _logger.info(
            "%s: this process is shard %d of %d (%s), on %s, of %d videos",
            *(store, share.shard_id, share.num_shards, share.source, device, len(dataset.records)),
        )
        with _stoppable(store, summary):
            extract(
                dataset.records,
                tokenizer,
                store,
                cfg.DATA.TARGET_FPS,
                views_of(cfg, phase),
                annotation_fingerprint=dataset.fingerprint,
                batch_size=cfg.EXTRACT.BATCH_SIZE,
                device=device,
                precision=cfg.EXTRACT.PRECISION,
                num_workers=cfg.EXTRACT.NUM_WORKERS,
                on_bad_video="error" if cfg.DATA.ON_BAD_VIDEO == "error" else "skip",
                timeout=cfg.EXTRACT.TIMEOUT,
                shard_id=share.shard_id,
                num_shards=share.num_shards,
                summary=summary,
            )
        _logger.info("%s: %s", store, describe(summary))
        _write_summary(store, summary)
        summaries[name] = summary
    return summaries


def _jobs(loaded: LoadedConfig) -> dict[str, tuple[CfgNode, str]]:
    """The stores to make: name -> configuration and phase.

    Raises:
        ConfigError: if stages want different tokens of one store, or a store is a list.
    """
    jobs: dict[str, tuple[CfgNode, str]] = {}
    tokens: dict[str, tuple[object, ...]] = {}
    for index, stage in enumerate(stages_of(loaded)):
        cfg = stage.cfg
        for phase in ("TRAIN", "TEST"):
            store = cfg[phase].TOKEN_STORE
            if not (cfg[phase].ENABLE and store and cfg[phase].DATASET.NAME):
                continue
            if not isinstance(store, str):
                key = f"{phase}.TOKEN_STORE"
                raise ConfigError(
                    f"{key} in {stage.where(key)} is a list, that is of the authors' token "
                    f"folders, which are not extracted: {', '.join(store)}. Give one folder to "
                    f"extract into, or leave this store out with {phase}.ENABLE False"
                )
            name = f"stage_{index} {phase}" if loaded.cfg.TRAIN.STAGES else phase
            wanted = (views_of(cfg, phase), cfg.DATA.TARGET_FPS, dict(cfg[phase].DATASET))
            if loaded.cfg.TRAIN.STAGES and store in tokens:
                if tokens[store] != wanted:
                    raise ConfigError(
                        f"{loaded.path}: {name} wants other videos, views or frames per second of "
                        f"the store {store!r} than a stage before; give each its own TOKEN_STORE"
                    )
                continue
            tokens[store] = wanted
            jobs[name] = cfg, phase
    return jobs


def _device(loaded: LoadedConfig, share: WorkShare) -> torch.device:
    """The CPU, or the GPUs of the machine in turn."""
    device = device_of(loaded.cfg)
    if device.type == "cpu":
        return device
    return torch.device("cuda", share.local_id % torch.cuda.device_count())


class _StopSignal(KeyboardInterrupt):
    """Raised wherever the extraction is: what is committed is safe at any moment."""


@contextmanager
def _stoppable(store: Path, summary: ExtractionSummary) -> Iterator[None]:
    """Turns stop signals into `ExtractionStopped`."""
    received: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        for other in previous:
            signal.signal(other, signal.SIG_DFL if other == signal.SIGINT else signal.SIG_IGN)
        received.append(signum)
        raise _StopSignal

    previous: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # e.g. SIGINT under nohup
                previous[number] = signal.signal(number, stop)
    try:
        yield
    except _StopSignal:
        raise ExtractionStopped(received[0], store, summary) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _write_summary(store: Path, summary: ExtractionSummary) -> None:
    name = "extraction" if summary.num_shards == 1 else f"extraction_{summary.shard_id:05d}"
    content = {
        **asdict(summary),
        "frames_per_second": summary.frames_per_second,
        "decoder_share": summary.decoder_share,
        "tokenizer_share": summary.tokenizer_share,
        "bad_videos": [bad._asdict() for bad in summary.bad_videos],
    }
    with atomic_write(store / f"{name}.json") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def describe(summary: ExtractionSummary) -> str:
    """For the log: videos, frames, failures, rate, where the time went."""
    text = (
        f"{summary.num_videos} videos, {summary.num_already_done} done before, "
        f"{summary.num_extracted} extracted now ({summary.num_frames} frames in "
        f"{summary.seconds:.1f} s, {summary.frames_per_second:.0f} frames/s; "
        f"{summary.num_workers} decoders busy {summary.decoder_share:.0%} of the time, tokenizer "
        f"{summary.tokenizer_share:.0%}), {len(summary.bad_videos)} failed"
    )
    for bad in summary.bad_videos[:_MAX_LISTED]:
        text += f"\n  {bad.video_id}: {bad.reason}"
    if len(summary.bad_videos) > _MAX_LISTED:
        text += f"\n  and {len(summary.bad_videos) - _MAX_LISTED} more, see bad_videos*.jsonl"
    return text
