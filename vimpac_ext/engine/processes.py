"""Runs configurations in as many processes as they, or the launcher, ask for."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from vimpac_ext.command_line import start_logging
from vimpac_ext.config import ConfigError, LoadedConfig
from vimpac_ext.engine.config_changes import config_changes
from vimpac_ext.engine.devices import device_of
from vimpac_ext.engine.distributed import Membership, from_main, gather, is_main, open_store
from vimpac_ext.engine.launch import prepare, run
from vimpac_ext.engine.local_processes import run_local_processes
from vimpac_ext.engine.placement import LaunchError, Placement, Shard, placement_of
from vimpac_ext.engine.remote import fetch_remote_run
from vimpac_ext.files import atomic_write


@dataclass(frozen=True)
class RunRequest:
    """What to run, as given on the command line.

    Attributes:
        files: configurations, run one after the other.
        overrides: alternating keys and values, for all of them.
        plugins: modules to import first.
    """

    files: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()

    def prepare(self) -> list[LoadedConfig]:
        """Reads and checks the configurations, see `vimpac_ext.engine.prepare`."""
        return [prepare(file, self.overrides, self.plugins) for file in self.files]


def launch(request: RunRequest, shard: Shard | None = None) -> int:
    """Runs configurations, each in its processes; what tools/run_net.py does.

    Under torchrun or srun this process is one of those that they started. Else it runs alone, or
    starts NUM_GPUS processes (NUM_CPU_PROCESSES where that is 0) and waits for them.

    Args:
        request: what to run.
        shard: this node among several on which the same command was given.

    Returns:
        Exit code: 0, or that of the first process that failed.

    Raises:
        LaunchError: if processes cannot be started or do not find each other.
        ConfigError: for a mistake in a configuration, or another one in another process.
    """
    shard = shard or Shard()
    placement = placement_of(os.environ)
    if placement is not None:
        if shard.count > 1:
            raise LaunchError(f"--num_shards is for plain python, not for {placement.launcher}")
        run_as(placement, request)
        return 0
    for file, loaded in zip(request.files, request.prepare(), strict=True):
        num_local = loaded.cfg.NUM_GPUS or loaded.cfg.NUM_CPU_PROCESSES
        if num_local * shard.count == 1:
            _run_alone(loaded)
            continue
        one = RunRequest((file,), request.overrides, request.plugins)
        code = start_processes(one, loaded.cfg, shard)
        if code:
            return code
    return 0


def start_processes(
    request: RunRequest,
    cfg: CfgNode,
    shard: Shard,
    on_signal: Callable[[int], None] = lambda signum: None,
) -> int:
    """Starts this node's processes, even if it is one, and waits; node 0 opens the port for all.

    Args:
        request: what each of them runs.
        cfg: that of the request; says how many processes.
        shard: this node.
        on_signal: called with each signal that is passed on to them.

    Returns:
        Exit code of the first process that failed; 0 if none did.

    Raises:
        LaunchError: if they cannot be started.
        ProcessDiedError: if one was killed by a signal.
    """
    num_local = cfg.NUM_GPUS or cfg.NUM_CPU_PROCESSES
    device_of(cfg)  # is there any GPU?
    if torch.cuda.device_count() < cfg.NUM_GPUS:
        raise LaunchError(
            f"NUM_GPUS is {cfg.NUM_GPUS} but {torch.cuda.device_count()} CUDA devices are visible"
        )
    # One machine needs no agreed port.
    host, port = shard.address() if shard.count > 1 else ("127.0.0.1", 0)
    store = open_store(host, port, cfg.DIST_TIMEOUT) if shard.index == 0 else None
    placements = [
        Placement(
            rank=shard.index * num_local + local_rank,
            world_size=shard.count * num_local,
            local_rank=local_rank,
            host=host,
            port=store.port if store else port,
            hosts_store=False,
            launcher="plain python",
        )
        for local_rank in range(num_local)
    ]

    def tell_all() -> None:
        Membership(placements[0]).tell_of_failure()

    arguments = [(place, request) for place in placements]
    return run_local_processes(run_as, arguments, tell_all, on_signal)


def run_as(placement: Placement, request: RunRequest) -> None:
    """Runs in this process, as one of those that a launcher has started.

    Args:
        placement: of this process.
        request: what all of them run.
    """
    if placement.world_size == 1:
        for loaded in request.prepare():
            _run_alone(loaded)
        return
    with Membership(placement) as membership:
        for index, loaded in enumerate(request.prepare()):
            device = device_of(loaded.cfg, placement.local_rank)
            membership.join(f"run {index}", device, loaded.cfg.DIST_TIMEOUT)
            _require_same_config(loaded)
            folder = _output_folder(loaded.cfg) if is_main() else None
            from_main(None)  # waits for the main process to find that it can write
            start_logging(folder, quiet=not is_main())
            run(loaded, placement.local_rank)
            membership.leave()


def _run_alone(loaded: LoadedConfig) -> None:
    start_logging(_output_folder(loaded.cfg))
    run(loaded)


def _output_folder(cfg: CfgNode) -> Path:
    """OUTPUT_DIR, with the logs of a run that goes on on this machine, before logging starts."""
    folder = _require_writable(cfg)
    if cfg.REMOTE_DIR:
        start_logging()  # on the terminal alone: stdout.log is one of the files to fetch
        fetch_remote_run(cfg)
    return folder


def _require_writable(cfg: CfgNode) -> Path:
    """Makes OUTPUT_DIR and tries to write there."""
    folder = Path(cfg.OUTPUT_DIR)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / ".writable", "wb") as file:
            file.write(b"\0" * 4096)
        (folder / ".writable").unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise LaunchError(f"OUTPUT_DIR {str(folder)!r} cannot be written: {reason}") from error
    return folder


def _require_same_config(loaded: LoadedConfig) -> None:
    """Every process finds out at the same place, so that none waits for another."""
    text = loaded.cfg.dump()
    hashes = gather(hashlib.sha256(text.encode()).hexdigest())
    if len(set(hashes)) == 1:
        return
    texts = gather(text)
    other = next(i for i, digest in enumerate(hashes) if digest != hashes[0])
    changes = "; ".join(config_changes(texts[0], texts[other]))
    raise ConfigError(
        f"the processes have different configurations (process 0 -> process {other}): {changes}"
    )
