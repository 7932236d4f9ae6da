"""Which of a run's processes this one is, as told by the environment or the command line."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

# Ports that jobs are spread over: above the well-known ones, below the ephemeral ones of Linux.
_FIRST_PORT, _NUM_PORTS = 15_000, 15_000


class LaunchError(ValueError):
    """Processes that cannot be started or cannot find each other; the message says why."""


@dataclass(frozen=True)
class Placement:
    """One process of a run.

    Attributes:
        rank: 0 to world_size - 1.
        world_size: processes of the run.
        local_rank: counts the processes of one machine; also the index of the GPU.
        host: machine where the processes find each other.
        port: port there.
        hosts_store: whether this process opens that port itself (else a launcher has done it).
        launcher: what started the processes, for messages.
        attempt: tells restarts of the same run on the same port apart.
    """

    rank: int
    world_size: int
    local_rank: int
    host: str
    port: int
    hosts_store: bool
    launcher: str
    attempt: str = "0"


@dataclass(frozen=True)
class Shard:
    """PySlowFast's way to name the nodes of a run, each of which starts its own processes.

    Attributes:
        index: of this node (``--shard_id``).
        count: of nodes (``--num_shards``).
        init_method: ``tcp://host:port`` of node 0 (``--init_method``); "" for one node.
    """

    index: int = 0
    count: int = 1
    init_method: str = ""

    def address(self) -> tuple[str, int]:
        """Host and port of node 0.

        Raises:
            LaunchError: if the numbers or the address make no sense.
        """
        if not 0 <= self.index < self.count:
            raise LaunchError(
                f"--shard_id is {self.index}, must be from 0 to {self.count - 1} (--num_shards - 1)"
            )
        match = re.fullmatch(r"tcp://(.+):(\d+)", self.init_method)
        if not match or not 0 < int(match[2]) < 65536:
            raise LaunchError(
                f"--init_method is {self.init_method!r}, must be tcp://HOST:PORT of node 0 "
                "when --num_shards is above 1"
            )
        return match[1].strip("[]"), int(match[2])


def placement_of(environment: Mapping[str, str]) -> Placement | None:
    """The placement that torchrun or srun gave to this process, or None where neither did.

    Args:
        environment: of the process.

    Raises:
        LaunchError: if a variable is missing or no number.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _torchrun(environment)
    num_tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or "1"
    if "SLURM_PROCID" in environment and _number("SLURM_NTASKS", num_tasks) > 1:
        return _srun(environment, _number("SLURM_NTASKS", num_tasks))
    return None


def _torchrun(environment: Mapping[str, str]) -> Placement:
    rank = _number_of(environment, "RANK")
    launcher_hosts = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Placement(
        rank=rank,
        world_size=_number_of(environment, "WORLD_SIZE"),
        local_rank=_number_of(environment, "LOCAL_RANK"),
        host=_required(environment, "MASTER_ADDR"),
        port=_number_of(environment, "MASTER_PORT"),
        hosts_store=rank == 0 and not launcher_hosts,
        launcher="torchrun",
        attempt=environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
    )


def _srun(environment: Mapping[str, str], num_tasks: int) -> Placement:
    rank = _number_of(environment, "SLURM_PROCID")
    host, port = slurm_address(environment)
    return Placement(
        rank=rank,
        world_size=num_tasks,
        local_rank=_number_of(environment, "SLURM_LOCALID"),
        host=host,
        port=port,
        hosts_store=rank == 0,
        launcher="srun",
    )


def slurm_address(environment: Mapping[str, str]) -> tuple[str, int]:
    """First machine of a SLURM job and a port that follows from the job's number.

    MASTER_ADDR and MASTER_PORT take their places if they are set.

    Args:
        environment: of a process of the job.

    Raises:
        LaunchError: if a variable is missing or no number.
    """
    host = environment.get("MASTER_ADDR")
    if not host:
        host = first_host(_required(environment, "SLURM_JOB_NODELIST"))
    job = _number_of(environment, "SLURM_JOB_ID")
    port = environment.get("MASTER_PORT") or str(_FIRST_PORT + job % _NUM_PORTS)
    return host, _number("MASTER_PORT", port)


def first_host(node_list: str) -> str:
    """First machine of a SLURM node list: "gpu[07-09,12],cpu1" -> "gpu07".

    Raises:
        LaunchError: if it is no node list.
    """
    match = re.match(r"([^,\[\]]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", node_list)
    if match is None:
        raise LaunchError(f"SLURM_JOB_NODELIST is {node_list!r}, expected e.g. 'gpu[07-09,12]'")
    return "".join(part or "" for part in match.groups())


def _required(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        others = [other for other in ("RANK", "SLURM_PROCID") if other in environment]
        raise LaunchError(f"{others[0]} is set but {name} is not; start with torchrun or srun")
    return environment[name]


def _number_of(environment: Mapping[str, str], name: str) -> int:
    return _number(name, _required(environment, name))


def _number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise LaunchError(f"the environment variable {name} is {text!r}, expected a number")
    return int(text)
