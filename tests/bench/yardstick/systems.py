"""What is compared: Twinblock's pair on either back end, a pair of QEMU processes, and a server that replicates nothing.

Each of them serves the disk `primary.raw` of its directory, and a pair mirrors it to `secondary.raw`.
"""
import time
from pathlib import Path

from harness import twinblock
from harness.process import Process, output_of
from harness.qemu import QemuPair
from harness.twinblock import EXPORT, TwinblockPair, free_port

MIB = 1 << 20
BACKENDS = {"posix": "posix", "uring": "io-uring"}


class Twinblock(TwinblockPair):
    """Its disk buffer has room for every granule of the disk, as that of QEMU's pair has no bound, and is its own memory
    unless it is given a file. What else the daemons are told: `both`, and the primary alone."""

    def __init__(self, directory, disk_bytes, backend, granule, tcp=False, buffer="memory", both=(), primary=()):
        chosen = ["--backend", BACKENDS.get(backend, backend), *both]
        super().__init__(directory, buffer=buffer, buffer_bytes=disk_bytes, tcp=tcp, primary_arguments=[*chosen, *primary],
                         secondary_arguments=[*chosen, "--granule", granule])
        self._is_in_memory = buffer == "memory"
        self._buffered_bytes = 0

    def daemons(self):
        return {"primary": self.primary.process, "secondary": self.secondary.process}

    def buffered_bytes(self):
        """Memory of the secondary that its buffer takes: its pages stay, however little it holds later."""
        if not self._is_in_memory:
            return 0
        self._buffered_bytes = max(self._buffered_bytes, self.secondary.volume()["buffer"]["used_bytes"])
        return self._buffered_bytes

    def checkpoint(self):
        self.buffered_bytes()
        return super().checkpoint()

    def require_whole(self):
        """Nothing has failed, nobody is behind, and the view is the last checkpoint."""
        require(not self.errors(), f"errors: {self.errors()}")
        primary, secondary = self.primary.volume(), self.secondary.volume()
        require(not primary["behind"] and not secondary["behind"], f"behind: {primary} {secondary}")
        require(not any(replica["behind"] for replica in primary["replicas"]), f"a replica is behind: {primary}")

    def wait_until_done(self):
        self.secondary.wait_for("done", lambda volume: volume["stage"] == "done", timeout_s=60)


class Qemu(QemuPair):
    """Its hidden and active disks are files beside the disks; their clusters are 64 KiB, which nothing can change."""

    def __init__(self, directory, disk_bytes, tcp=False):
        super().__init__(directory, disk_bytes, tcp=tcp)

    def wait_until_connected(self):
        """It is, once it has started."""

    def daemons(self):
        secondary, primary = self.processes
        return {"primary": primary.process, "secondary": secondary.process}

    def buffered_bytes(self):
        """In files."""
        return 0

    def require_whole(self):
        require(not self.errors(), f"errors: {self.errors()}")

    def wait_until_done(self):
        self.secondary.wait_until_done(patience_s=60)


class Nbdkit:
    """nbdkit's file plugin over the primary disk alone: what the same clients reach without replication."""

    def __init__(self, directory, tcp=False):
        directory = Path(directory)
        if tcp:
            port = free_port()
            where, self.primary_uri = ["-i", "127.0.0.1", "-p", port], f"nbd://127.0.0.1:{port}/{EXPORT}"
        else:
            socket = directory / "nbdkit.nbd"
            where, self.primary_uri = ["-U", socket], f"nbd+unix:///{EXPORT}?socket={socket}"
        self._command = ["nbdkit", "-f", "-e", EXPORT, *where, "file", directory / "primary.raw"]
        self._log = directory / "nbdkit.log"

    def __enter__(self):
        self._process = Process(self._command, self._log)
        deadline = time.monotonic() + 10
        while True:
            try:
                output_of(["nbdinfo", "--size", self.primary_uri])
                return self
            except AssertionError:
                require(time.monotonic() < deadline and self._process.is_alive(), self._process.tail())
                time.sleep(0.02)

    def __exit__(self, *_):
        self._process.kill()

    def daemons(self):
        return {"primary": self._process}

    def cpu_s(self):
        return self._process.cpu_s()


class System:
    """One line of the comparison: what runs, how its clients reach it."""

    def __init__(self, kind, transport, granule=""):
        self.kind, self.transport, self.granule = kind, transport, granule
        self.is_pair = kind != "nbdkit"
        self.name = " ".join(word for word in (kind, granule, transport if transport == "tcp" else "") if word)

    def open(self, directory, disk_bytes):
        """Not started yet: it runs while it is entered."""
        tcp = self.transport == "tcp"
        if self.kind == "qemu":
            return Qemu(directory, disk_bytes, tcp)
        if self.kind == "nbdkit":
            return Nbdkit(directory, tcp)
        return Twinblock(directory, disk_bytes, self.kind, self.granule, tcp)


def chosen(options):
    """The systems that the options ask for, in the order in which they take turns."""
    found = []
    for transport in options.transports:
        granules = options.granules if transport == "unix" else options.granules[:1]
        found.append(System("qemu", transport))
        found += [System(backend, transport, granule) for granule in granules for backend in BACKENDS]
        found.append(System("nbdkit", transport))
    return [system for system in found if system.kind in options.only]


def why_not(backend, directory):
    """Why the daemon cannot run on this back end; `None` if it can."""
    path = Path(directory) / f"probe-{backend}"
    path.mkdir()
    for disk in ("primary.raw", "secondary.raw"):
        (path / disk).write_bytes(bytes(MIB))
    try:
        with Twinblock(path, MIB, backend, "4K"):
            return None
    except AssertionError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[-1] if lines else "it did not start"


def binary():
    return twinblock.binary()


def require(condition, message):
    if not condition:
        raise AssertionError(message)
