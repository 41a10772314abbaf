"""A fake cloud of TPUs: Google's API on loopback, and workers with a real sshd.

`gcloud` is real. A slice has two workers, at port 22 of two loopback addresses, each with its own
home; it becomes active after two queries.
"""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import time

from tests.launching.engines.json_api import serve

STATES = ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
PARENT = "projects/p/locations/z"


def missing():
    """Returns the requirements that this machine does not meet."""
    needed = ("gcloud", "/usr/sbin/sshd", "ssh-keygen", "ssh")
    unmet = [name for name in needed if shutil.which(name) is None]
    with socket.socket() as probe:
        try:
            probe.bind(("127.1.2.3", 22))
        except OSError:
            unmet.append("port 22 of loopback")
    return unmet


class Cloud:
    """A fake Cloud TPU and its workers, until stopped.

    Attributes:
        environment: makes gcloud use this API.
        created, deleted: names of queued resources, in order.
        outages: number of further queries that the API does not answer.
        refused: the error with which the API rejects new resources; None to accept them.
    """

    def __init__(self, folder, worker_environment):
        self.folder = folder
        self.resources, self.created, self.deleted, self.refused = {}, [], [], None
        self.outages, self._metadata = 0, {}
        net = f"127.{random.randint(1, 254)}.{random.randint(0, 254)}"
        self.hosts = [f"{net}.1", f"{net}.2"]
        server = self._server = serve(self._answer)
        url = f"http://127.0.0.1:{server.server_port}/"
        home = folder / "home"
        (home / ".ssh").mkdir(parents=True)
        self._key = home / ".ssh" / "google_compute_engine"
        self._keygen(self._key)
        self.environment = {
            "HOME": str(home),
            "CLOUDSDK_CONFIG": str(folder / "gcloud"),
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": url,
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{url}compute/v1/",
            "CLOUDSDK_CORE_PROJECT": "p",
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
            "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
            # Each query starts gcloud, which takes a second of processor time.
            "T5LITE_POLL_SECONDS": "4",
        }
        self._daemons = [self._sshd(i, worker_environment) for i in range(2)]

    def _keygen(self, path):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)

    def _sshd(self, index, environment):
        own_folder = self.folder / f"worker{index}"
        (own_folder / "home").mkdir(parents=True)
        self._keygen(own_folder / "host_key")
        pathlib.Path("/run/sshd").mkdir(exist_ok=True)
        variables = {
            **environment,
            "HOME": str(own_folder / "home"),
            "JAX_PROCESS_ID": str(index),
            "JAX_NUM_PROCESSES": "2",
        }
        words = " ".join(f'"{name}={value}"' for name, value in variables.items())
        (own_folder / "config").write_text(
            f"Port 22\nListenAddress {self.hosts[index]}\nHostKey {own_folder}/host_key\n"
            f"AuthorizedKeysFile {self._key}.pub\nPidFile {own_folder}/pid\nStrictModes no\n"
            f"UsePAM no\nPermitRootLogin yes\nSetEnv {words}\n"
            f"Subsystem sftp internal-sftp -d {own_folder}/home\n"
        )
        command = ["/usr/sbin/sshd", "-D", "-e", "-f", own_folder / "config"]
        with (own_folder / "log").open("w") as log:
            return subprocess.Popen(command, stderr=log, stdout=log)

    def home(self, index):
        """Returns the home of a worker."""
        return self.folder / f"worker{index}" / "home"

    def preempt(self, name):
        """Removes the machines of a slice: all processes are killed, all files are lost."""
        self.resources[name]["state"] = {"state": "SUSPENDED"}
        self._kill_workers()

    def _kill_workers(self):
        homes = [str(self.home(index)) for index in range(2)]
        for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
            try:
                words = path.read_text(errors="replace").split("\0")
                if any(f"HOME={home}" in words for home in homes):
                    os.kill(int(path.parent.name), signal.SIGKILL)
            except OSError:
                continue
        for home in homes:
            # A process that was just killed may write a last file.
            shutil.rmtree(home, ignore_errors=True)
            pathlib.Path(home).mkdir(exist_ok=True)

    def stop(self):
        """Stops the cloud."""
        self._kill_workers()
        for daemon in self._daemons:
            daemon.kill()
            daemon.wait()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, method, path, query, body):
        with (self.folder / "requests.log").open("a") as file:
            file.write(f"{method} {path} {query} {json.dumps(body)}\n")
        path = re.sub("^/(v2[^/]*/)?", "", path)
        kind, name = [*path.removeprefix(f"{PARENT}/").split("/"), ""][:2]
        # Every operation succeeds at once; its name says what it is about.
        node = {"name": f"{PARENT}/nodes/{name}"}
        done = {"name": f"{PARENT}/operations/{name}", "done": True, "response": node}
        if path == "compute/v1/projects/p":
            return 200, {
                "name": "p",
                "commonInstanceMetadata": {"fingerprint": "YWFh", "items": []},
            }
        if kind == "operations":
            return 200, done
        if kind == "queuedResources" and method == "POST":
            if self.refused:
                return 429, {"error": self.refused}
            name = query["queuedResourceId"][0]
            if name in self.resources:
                text = f"Resource '{PARENT}/queuedResources/{name}' already exists"
                return 409, {"error": {"code": 409, "message": text, "status": "ALREADY_EXISTS"}}
            full = f"{PARENT}/queuedResources/{name}"
            state = {"state": "ACCEPTED"}
            self.resources[name] = {**body, "name": full, "state": state, "looked": 0}
            self.created.append(name)
            return 200, done
        if kind == "queuedResources" and method == "DELETE":
            if self.resources.pop(name, None) is None:
                return 404, {"error": {"code": 404, "message": "no such", "status": "NOT_FOUND"}}
            self.deleted.append(name)
            return 200, done
        if kind == "queuedResources" and self.outages:
            self.outages -= 1
            return 503, {"error": {"code": 503, "message": "try later", "status": "UNAVAILABLE"}}
        if kind == "queuedResources":
            for resource in self.resources.values():
                if resource["state"]["state"] != "SUSPENDED":
                    resource["state"] = {"state": STATES[min(resource["looked"], 2)]}
                    resource["looked"] += 1
            found = list(self.resources.values())
            return 200, self.resources[name] if name else {"queuedResources": found}
        if kind == "nodes" and method == "PATCH":
            self._metadata = body["metadata"]
            return 200, done
        if kind == "nodes":
            ends = [
                {"ipAddress": host, "port": 8470, "accessConfig": {"externalIp": host}}
                for host in self.hosts
            ]
            return 200, {
                "name": f"{PARENT}/nodes/{name}",
                "state": "READY",
                "health": "HEALTHY",
                "networkEndpoints": ends,
                "metadata": self._metadata,
                "acceleratorType": "v5litepod-8",
            }
        return 404, {"error": {"code": 404, "message": path, "status": "NOT_FOUND"}}


def free_port():
    """Returns a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait(condition, seconds):
    """Waits until a condition holds."""
    # Machines differ by ten times.
    end = time.monotonic() + 10 * seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)
