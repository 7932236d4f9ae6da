import pytest

from vimpac_ext.engine.placement import LaunchError, Placement, Shard, first_host, placement_of

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
SRUN = {
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_ID": "4000123",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
}


def test_the_environments_of_the_launchers_are_understood():
    assert placement_of({}) is None
    assert placement_of(TORCHRUN) == Placement(
        3, 4, 1, "node0", 29500, hosts_store=False, launcher="torchrun", attempt="2"
    )
    srun = placement_of(SRUN)
    assert srun == Placement(0, 8, 0, "gpu07", 15_000 + 4000123 % 15_000, True, "srun")
    other = placement_of({**SRUN, "SLURM_PROCID": "5", "SLURM_LOCALID": "1"})
    assert (other.rank, other.local_rank, other.port, other.hosts_store) == (5, 1, srun.port, False)
    mine = placement_of({**SRUN, "MASTER_ADDR": "login", "MASTER_PORT": "777"})
    assert (mine.host, mine.port) == ("login", 777)
    # torchrun inside a SLURM job decides.
    assert placement_of({**SRUN, **TORCHRUN}).launcher == "torchrun"
    # One task, or a batch script: nobody to meet.
    assert placement_of({**SRUN, "SLURM_NTASKS": "1"}) is None
    assert placement_of({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("localhost", "localhost"),
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("a1,b[2-3]", "a1"),
        ("rack-3n[4,9]-ib", "rack-3n4-ib"),
    ],
)
def test_the_first_machine_of_a_node_list(nodes, host):
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"RANK": "one"}, "RANK is 'one', expected a number"),
        ({"MASTER_PORT": ""}, "RANK is set but MASTER_PORT is not"),
    ],
)
def test_half_an_environment_is_an_error(change, expected):
    with pytest.raises(LaunchError, match=expected):
        placement_of({**TORCHRUN, **change})


def test_shards_have_a_number_and_an_address():
    assert Shard(1, 2, "tcp://node0:9999").address() == ("node0", 9999)
    assert Shard(1, 2, "tcp://[::1]:9999").address() == ("::1", 9999)
    with pytest.raises(LaunchError, match="--shard_id is 2, must be from 0 to 1"):
        Shard(2, 2, "tcp://node0:9999").address()
    for wrong in ("", "node0:9999", "tcp://node0", "tcp://node0:0"):
        with pytest.raises(LaunchError, match="must be tcp://HOST:PORT"):
            Shard(0, 2, wrong).address()
