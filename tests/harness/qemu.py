"""A pair of QEMU processes without a machine that replicate a disk, and nothing else."""
import json
import pathlib
import time

from .process import Process, output_of
from .qmp import Qmp

EXPORT = "disk"
GUEST_EXPORT = "view"


class QemuPair:
    """Primary: a quorum over the raw disk and the replication driver, which sends to the secondary's NBD server.
    Secondary: the raw disk below two qcow2 buffers below the replication driver; the disk and the view are exported.

    Sources: QEMU's docs/block-replication.txt and docs/COLO-FT.txt.
    """

    name = "qemu"

    def __init__(self, directory, size_bytes, binary="qemu-system-x86_64"):
        self.directory = pathlib.Path(directory)
        self.size_bytes = size_bytes
        self._binary = binary
        self.primary_disk = self.directory / "primary.raw"
        self.secondary_disk = self.directory / "secondary.raw"
        self.primary_uri = self._uri(EXPORT, "primary.nbd")
        self.guest_uri = self._uri(GUEST_EXPORT, "secondary.nbd")
        self._processes = []

    def _uri(self, export, socket):
        return f"nbd+unix:///{export}?socket={self.directory / socket}"

    def __enter__(self):
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in self._processes:
            process.kill()

    def _begin(self):
        for buffer in ("hidden", "active"):
            output_of(["qemu-img", "create", "-q", "-f", "qcow2", self.directory / f"{buffer}.qcow2", self.size_bytes])
        self.secondary = self._start("secondary", [
            {"driver": "raw", "node-name": "secondary-disk", "file": self._file("secondary.raw")},
            {"driver": "qcow2", "node-name": "hidden", "file": self._file("hidden.qcow2"),
             "backing": "secondary-disk"},
            {"driver": "qcow2", "node-name": "active", "file": self._file("active.qcow2"), "backing": "hidden"},
            {"driver": "replication", "node-name": "replication", "mode": "secondary", "top-id": "view",
             "file": "active"},
            {"driver": "quorum", "node-name": "view", "vote-threshold": 1, "read-pattern": "fifo",
             "children": ["replication"]},
        ])
        self._export(self.secondary, "secondary.nbd", {EXPORT: "secondary-disk", GUEST_EXPORT: "view"})
        self.primary = self._start("primary", [
            {"driver": "raw", "node-name": "local", "file": self._file("primary.raw")},
            {"driver": "quorum", "node-name": "mirror", "vote-threshold": 1, "read-pattern": "fifo",
             "children": ["local"]},
        ])
        self.primary.call("blockdev-add", driver="replication", node_name="replica", mode="primary", file={
            "driver": "nbd", "export": EXPORT,
            "server": {"type": "unix", "path": str(self.directory / "secondary.nbd")}})
        self.primary.call("x-blockdev-change", parent="mirror", node="replica")
        self._export(self.primary, "primary.nbd", {EXPORT: "mirror"})
        self.secondary.call("xen-set-replication", enable=True, primary=False)
        self.primary.call("xen-set-replication", enable=True, primary=True)

    def _file(self, name):
        return {"driver": "file", "filename": str(self.directory / name)}

    def _start(self, name, nodes):
        control = self.directory / f"{name}.qmp"
        command = [self._binary, "-machine", "none", "-nodefaults", "-display", "none",
                   "-qmp", f"unix:{control},server=on,wait=off"]
        for node in nodes:
            command += ["-blockdev", json.dumps(node)]
        process = Process(command, self.directory / f"{name}.log")
        self._processes.append(process)
        return Qmp(control, is_alive=process.is_alive)

    def _export(self, qmp, socket, nodes):
        qmp.call("nbd-server-start", addr={"type": "unix", "data": {"path": str(self.directory / socket)}})
        for name, node in nodes.items():
            qmp.call("block-export-add", type="nbd", id=name, node_name=node, name=name, writable=True)

    def checkpoint(self):
        """Seconds that a checkpoint of both sides took. No write may be in flight: QEMU would abort."""
        began = time.perf_counter()
        self.secondary.call("xen-colo-do-checkpoint")
        self.primary.call("xen-colo-do-checkpoint")
        return time.perf_counter() - began

    def failover(self):
        """Seconds until the secondary said that it takes over."""
        began = time.perf_counter()
        self.secondary.call("xen-set-replication", enable=False, primary=False, failover=True)
        return time.perf_counter() - began

    def errors(self):
        """What either side has to complain of."""
        answers = {"primary": self.primary.call("query-xen-replication-status"),
                   "secondary": self.secondary.call("query-xen-replication-status")}
        return [f"{side}: {answer.get('desc')}" for side, answer in answers.items() if answer["error"]]

    def cpu_s(self):
        return sum(process.cpu_s() for process in self._processes)
