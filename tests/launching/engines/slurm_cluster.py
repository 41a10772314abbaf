"""A temporary Slurm of four nodes on this machine."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
NODES = 4
# Nodes are named by their addresses: JAX finds the first one without a name service.
CONFIGURATION = """\
ClusterName=t5lite
SlurmctldHost=localhost
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmctldTimeout=15
SlurmdTimeout=15
KillWait=10
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=127.0.0.[1-{nodes}] NodeHostname=localhost NodeAddr=127.0.0.1 \
Port=[{first}-{last}] CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=spot Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 \
PreemptMode=REQUEUE GraceTime=300
PartitionName=prod Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> list[str]:
    """Returns the programs that are missing."""
    paths = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return [name for name in DAEMONS if shutil.which(name, path=paths) is None]


class Cluster:
    """A running cluster; its commands need `environment`."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        paths = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        self.environment = {**os.environ, "PATH": paths, "SLURM_CONF": f"{folder}/slurm.conf"}
        for name in ("state", "spool", "log"):
            (folder / name).mkdir()
        port = _free_ports(NODES + 1)
        text = CONFIGURATION.format(
            folder=folder, port=port, nodes=NODES, first=port + 1, last=port + NODES, user="root"
        )
        (folder / "slurm.conf").write_text(text)
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        self._run(
            *("munged", "--force", f"--key-file={folder}/munge.key"),
            *(f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"),
            *(f"--log-file={folder}/log/munged.log", f"--seed-file={folder}/munge.seed"),
        )
        self._run("slurmctld")
        for number in range(1, NODES + 1):
            self.start_node(number)
        self.wait(lambda: self._run("sinfo", "-h", "-o", "%D %t").split()[:2] == ["4", "idle"])

    def start_node(self, number: int) -> None:
        """Starts the daemon of a node."""
        self._run("slurmd", "-N", f"127.0.0.{number}")

    def kill_node(self, number: int) -> None:
        """Kills a node and everything that runs on it."""
        daemon = int((self._folder / f"slurmd-127.0.0.{number}.pid").read_text())
        os.kill(daemon, signal.SIGKILL)
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                name = f"SLURMD_NODENAME=127.0.0.{number}\0"
                if name.encode() in (process / "environ").read_bytes():
                    # First the daemon of its step, which would report its end.
                    parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                    if "slurmstepd" in pathlib.Path(f"/proc/{parent}/cmdline").read_text():
                        _kill(parent)
                    _kill(int(process.name))

    def run(self, *command: str) -> str:
        """Runs a command of Slurm and returns its output."""
        return self._run(*command)

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    @staticmethod
    def wait(holds, seconds: float = 60) -> None:
        """Waits until a condition holds."""
        # Machines differ by ten times.
        end = time.monotonic() + 10 * seconds
        while not holds():
            assert time.monotonic() < end, "timed out"
            time.sleep(0.2)

    def stop(self) -> None:
        """Stops the cluster."""
        subprocess.run(["scancel", "--user=root"], env=self.environment, capture_output=True)
        for path in self._folder.glob("*.pid"):
            _kill(int(path.read_text()))


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _free_ports(count: int) -> int:
    """Returns the first of `count` consecutive free ports."""
    for first in range(20000 + os.getpid() % 1000 * 10, 32000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, each in enumerate(sockets):
                each.bind(("127.0.0.1", first + offset))
            return first
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
    raise OSError("no free ports")
