"""QEMU processes without a machine that replicate a disk, and nothing else: either end of a pair, and a pair of them.

Sources: QEMU's docs/block-replication.txt and docs/COLO-FT.txt.
"""
import pathlib
import time

from .process import Process, output_of
from .qmp import Qmp, QmpError, Replicating
from .twinblock import EXPORT, GUEST_EXPORT, free_port


def socket_address(address):
    """As QEMU has it: a path, or a host and a port."""
    if isinstance(address, tuple):
        return {"type": "inet", "host": address[0], "port": str(address[1])}
    return {"type": "unix", "path": str(address)}


class QemuProcess:
    """One process with an NBD server and no block nodes yet."""

    def __init__(self, directory, name, binary="qemu-system-x86_64", tcp=False):
        self.directory = pathlib.Path(directory)
        self.socket = ("127.0.0.1", free_port()) if tcp else self.directory / f"{name}.nbd"
        control = self.directory / f"{name}.qmp"
        self.process = Process([binary, "-machine", "none", "-nodefaults", "-display", "none",
                                "-qmp", f"unix:{control},server=on,wait=off"], self.directory / f"{name}.log")
        try:
            self.qmp = Qmp(control, is_alive=self.process.is_alive)
            self.serve(self.socket)
        except BaseException:
            self.process.kill()
            raise

    def serve(self, socket):
        address = socket_address(socket)
        self.qmp.call("nbd-server-start", addr={"type": address.pop("type"), "data": address})

    def add(self, name, driver, **options):
        """A block node."""
        self.qmp.call("blockdev-add", driver=driver, node_name=name, **options)

    def add_raw(self, name, disk):
        """Over an image, or over what a description of a node says."""
        self.add(name, "raw", file=disk if isinstance(disk, dict) else {"driver": "file", "filename": str(disk)})

    def export(self, node, name):
        """What is written to the export reaches the node."""
        self.qmp.call("block-export-add", type="nbd", id=name, node_name=node, name=name, writable=True)

    def remove(self, exports, nodes):
        """Takes exports and nodes away again, in this order; clients are disconnected."""
        for name in exports:
            self.qmp.call("block-export-del", id=name, mode="hard")
        for name in nodes:
            self._retry(lambda: self.qmp.call("blockdev-del", node_name=name))

    @staticmethod
    def _retry(act, patience_s=5.0):
        """A connection that ends and a job that ends hold their nodes a little longer."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return act()
            except QmpError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    def uri(self, export):
        if isinstance(self.socket, tuple):
            return f"nbd://{self.socket[0]}:{self.socket[1]}/{export}"
        return f"nbd+unix:///{export}?socket={self.socket}"

    def kill(self):
        self.qmp.close()
        self.process.kill()


class QemuSecondary(Replicating):
    """The raw disk below two qcow2 buffers below the replication driver; the disk and the view are exported."""

    NODES = ["view", "replication", "active", "hidden", "secondary-disk"]

    def __init__(self, process, disk, size_bytes, top_id="view", hidden=None):
        self.process = process.process
        self.qmp = process.qmp
        self._qemu = process
        directory = process.directory
        for buffer in ("hidden", "active"):
            make_qcow2(directory / f"{buffer}.qcow2", size_bytes)
        process.add_raw("secondary-disk", disk)
        process.add("hidden", "qcow2", backing="secondary-disk",
                    file=hidden or {"driver": "file", "filename": str(directory / "hidden.qcow2")})
        process.add("active", "qcow2", backing="hidden",
                    file={"driver": "file", "filename": str(directory / "active.qcow2")})
        process.add("replication", "replication", mode="secondary", top_id=top_id, file="active")
        process.add("view", "quorum", vote_threshold=1, read_pattern="fifo", children=["replication"])
        process.export("secondary-disk", EXPORT)
        process.export("view", GUEST_EXPORT)
        self.replica_uri = process.uri(EXPORT)
        self.guest_uri = process.uri(GUEST_EXPORT)

    def remove(self):
        self._qemu.remove([GUEST_EXPORT, EXPORT], self.NODES)

    def wait_until_done(self, patience_s=10.0):
        """Until a failover is complete: only then it stops to speak of an error."""
        deadline = time.monotonic() + patience_s
        while self.error()["error"]:
            if time.monotonic() > deadline:
                raise AssertionError(f"the failover is not complete: {self.error()}")
            time.sleep(0.002)


class QemuPrimary(Replicating):
    """A quorum over the raw disk and the replication driver, which sends to an NBD server at `replica_socket`."""

    def __init__(self, process, disk, replica_socket, attached=True, **nbd_options):
        self.process = process.process
        self.qmp = process.qmp
        self._qemu = process
        process.add_raw("local", disk)
        process.add("mirror", "quorum", vote_threshold=1, read_pattern="fifo", children=["local"])
        self._replica = {"driver": "nbd", "export": EXPORT, "server": socket_address(replica_socket),
                         **nbd_options}
        if attached:
            self.attach()
        process.export("mirror", EXPORT)
        self.primary_uri = process.uri(EXPORT)

    def attach(self):
        self._qemu.add("replica", "replication", mode="primary", file=self._replica)
        self.qmp.call("x-blockdev-change", parent="mirror", node="replica")

    def detach(self):
        self.qmp.call("x-blockdev-change", parent="mirror", child="children.1")
        self._qemu.remove([], ["replica"])

    def remove(self):
        self._qemu.remove([EXPORT], [])
        self._qemu._retry(self.detach)
        self._qemu.remove([], ["mirror", "local"])


def make_qcow2(path, size_bytes, made={}):
    """An empty image; made once for each size, since that takes longer than all else that starts a pair."""
    if size_bytes not in made:
        output_of(["qemu-img", "create", "-q", "-f", "qcow2", path, size_bytes])
        made[size_bytes] = pathlib.Path(path).read_bytes()
    pathlib.Path(path).write_bytes(made[size_bytes])


class QemuPair:
    """Two processes over `primary.raw` and `secondary.raw` in `directory`, replicating once it is entered."""

    name = "qemu"

    def __init__(self, directory, size_bytes, binary="qemu-system-x86_64", replica_socket=None, tcp=False):
        self.directory = pathlib.Path(directory)
        self.size_bytes = size_bytes
        self._binary = binary
        self._replica_socket = replica_socket
        self._tcp = tcp
        self.primary_disk = self.directory / "primary.raw"
        self.secondary_disk = self.directory / "secondary.raw"
        self.processes = []

    def __enter__(self):
        try:
            self.launch()
            self.build()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()

    def launch(self):
        for name in ("secondary", "primary"):
            self.processes.append(QemuProcess(self.directory, name, self._binary, self._tcp))

    def build(self):
        """The nodes of a pair that does not replicate yet."""
        secondary, primary = self.processes
        self.secondary = QemuSecondary(secondary, self.secondary_disk, self.size_bytes)
        self.primary = QemuPrimary(primary, self.primary_disk, self._replica_socket or secondary.socket)
        self.primary_uri, self.guest_uri = self.primary.primary_uri, self.secondary.guest_uri
        self.replica_uri = self.secondary.replica_uri

    def start(self):
        self.secondary.replicate(enable=True, primary=False)
        self.primary.replicate(enable=True, primary=True)

    def remove(self):
        """Takes all nodes away, so that others can be built in the same processes."""
        self.primary.remove()
        self.secondary.remove()

    def checkpoint(self):
        """Seconds that a checkpoint of both sides took. No write may be in flight: QEMU would abort."""
        began = time.perf_counter()
        self.secondary.checkpoint()
        self.primary.checkpoint()
        return time.perf_counter() - began

    def failover(self):
        """Seconds until the secondary said that it takes over."""
        began = time.perf_counter()
        self.secondary.replicate(enable=False, primary=False, failover=True)
        return time.perf_counter() - began

    def errors(self):
        """What either side has to complain of."""
        answers = {"primary": self.primary.error(), "secondary": self.secondary.error()}
        return [f"{side}: {answer.get('desc')}" for side, answer in answers.items() if answer["error"]]

    def cpu_s(self):
        return sum(process.process.cpu_s() for process in self.processes)
