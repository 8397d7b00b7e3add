"""A real Slurm of one node, this machine: Debian's packages, without systemd. It needs root."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONF = Path("/etc/slurm/slurm.conf")  # SLURM_CONF is lost inside jobs
OURS = "# written by tests/one_node_slurm.py\n"
SETTINGS = """\
ClusterName=one-node
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
ReturnToService=2
PlugStackConfig=/dev/null
KillWait=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000
PartitionName={partition} Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
PARTITION = "main"


@contextmanager
def slurm(folder: Path, cpus: int) -> Iterator[None]:
    """Run one while the block does; its state and logs are in the folder.

    The node tells of this many CPUs, so that as many jobs run side by side. Raises RuntimeError
    without root or the packages, and where this machine is of another cluster.
    """
    needed = ("munged", "slurmctld", "slurmd", "sbatch")
    missing = [program for program in needed if not shutil.which(program)]
    if os.geteuid() or missing:
        raise RuntimeError(f"a Slurm of one node needs root, and scripts/slurm: {missing} missing")
    if CONF.exists() and not CONF.read_text().startswith(OURS):
        raise RuntimeError(f"{CONF} is of another cluster; run this test elsewhere")
    for place in ("state", "spool"):
        (folder / place).mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    CONF.parent.mkdir(exist_ok=True)
    told = SETTINGS.format(host=host, folder=folder, cpus=cpus, partition=PARTITION)
    CONF.write_text(OURS + told)
    subprocess.run(["install", "-d", "-o", "munge", "/run/munge"], check=True)
    daemons = (
        ["runuser", "-u", "munge", "--", "munged", "--foreground", "--force"],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", host],
    )
    running = [subprocess.Popen(d, stderr=subprocess.DEVNULL) for d in daemons]
    try:
        _wait_until_idle(folder)
        yield
    finally:
        for daemon in reversed(running):
            daemon.terminate()
        for daemon in running:
            daemon.wait(timeout=30)
        CONF.unlink()


def _wait_until_idle(folder: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while _said("sinfo", "-h", "-o", "%t") != "idle":
        if time.monotonic() > end:
            logs = [file.read_text()[-1000:] for file in sorted(folder.glob("*.log"))]
            raise RuntimeError(f"Slurm is not idle after {seconds:g} s: {logs}")
        time.sleep(0.5)


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def jobs(state: str = "RUNNING") -> dict[str, str]:
    """{id: name} of the jobs in a state."""
    lines = _said("squeue", "-h", "--states", state, "-o", "%i %j").splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


def state(job: str) -> str:
    """Of a job that Slurm still remembers, such as CANCELLED."""
    told = _said("scontrol", "show", "job", job)
    return told.split("JobState=")[1].split()[0]
