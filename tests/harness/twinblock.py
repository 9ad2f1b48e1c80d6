"""A pair of Twinblock daemons on unix sockets."""
import os
import pathlib
import socket
import time

from .process import Process
from .qmp import Qmp, Replicating

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPORT = "disk"
GUEST_EXPORT = "view"


def binary():
    """The daemon to test: TWINBLOCK, or what `cargo build --release` leaves."""
    if "TWINBLOCK" in os.environ:
        return pathlib.Path(os.environ["TWINBLOCK"])
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "twinblock"


def with_backend(arguments):
    """The back end to test: TWINBLOCK_BACKEND, or what the daemon takes by itself. A configuration file that names none
    is made to."""
    backend = os.environ.get("TWINBLOCK_BACKEND")
    if not backend or "--backend" in arguments:
        return arguments
    if "--config" not in arguments:
        return [*arguments, "--backend", backend]
    config = pathlib.Path(arguments[arguments.index("--config") + 1])
    text = config.read_text()
    if "backend" not in text:
        config.write_text(f'backend = "{backend}"\n{text}')
    return arguments


def free_port():
    """A port of the loopback interface that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Daemon(Replicating):
    """One daemon: its process and, while it runs, its control connection."""

    def __init__(self, role, directory, arguments, tcp=False):
        self.directory = pathlib.Path(directory)
        self.control_path = ("127.0.0.1", free_port()) if tcp else self.directory / f"{role}.qmp"
        self.control = f"tcp:127.0.0.1:{self.control_path[1]}" if tcp else f"unix:{self.control_path}"
        self._command = [binary(), role, *with_backend(arguments), "--control", self.control]
        self._log = self.directory / f"{role}.log"
        self.process = None
        self.qmp = None

    def launch(self):
        """Starts the process without waiting until it serves."""
        self.process = Process(self._command, self._log)

    def connect(self, **options):
        """A further control connection; returns once the daemon serves."""
        try:
            return Qmp(self.control_path, is_alive=self.process.is_alive, **options)
        except (ConnectionError, TimeoutError) as error:
            raise AssertionError(f"{error}\n{' '.join(self.process.command)}\n{self.process.tail()}") from None

    def start(self):
        self.launch()
        self.qmp = self.connect()

    def kill(self):
        if self.qmp:
            self.qmp.close()
        if self.process:
            self.process.kill()

    def volume(self, index=0):
        return self.qmp.call("query-replication")["volumes"][index]

    def memory(self):
        """What the process has allocated so far, over all its threads, and what it occupies."""
        return self.qmp.call("x-query-memory")

    def resident_kib(self, field="VmRSS"):
        """What the system says that it occupies, its program included; with `VmHWM` the most so far."""
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
        raise AssertionError(f"no {field} of {self.process.pid}")

    def wait_for(self, what, is_reached, timeout_s=10.0):
        """The volume's state once `is_reached(volume)`; `what` is said if it never is."""
        deadline = time.monotonic() + timeout_s
        while True:
            volume = self.volume()
            if is_reached(volume):
                return volume
            if time.monotonic() > deadline:
                raise AssertionError(f"not {what} after {timeout_s} s: {volume}\n{self.process.tail()}")
            time.sleep(0.02)


def is_connected(volume):
    """Whether all replicas of a volume can be reached, and a checkpoint could include them."""
    return all(replica["connected"] and replica.get("control_connected", True) for replica in volume["replicas"])


class TwinblockPair:
    """The daemons over `primary.raw` and `secondary.raw` in `directory`, which must exist and be of one size.

    The three addresses: `primary_uri` for the primary's guest, `replica_uri` for what replicates to the secondary,
    `guest_uri` for the secondary's guest.
    """

    name = "twinblock"

    def __init__(self, directory, buffer="memory", buffer_bytes=64 << 20, started=True, joint=True,
                 primary_arguments=(), secondary_arguments=(), primary_disk=None, secondary_disk=None,
                 replica_socket=None, tcp=False):
        directory = pathlib.Path(directory)
        self.directory = directory
        self.primary_disk = primary_disk or directory / "primary.raw"
        self.secondary_disk = secondary_disk or directory / "secondary.raw"
        sockets = ["primary.nbd", "secondary.nbd", "guest.nbd"]
        self._ports = {name: free_port() for name in sockets} if tcp else {}
        self.primary_uri = self._uri(EXPORT, "primary.nbd")
        self.replica_uri = self._uri(EXPORT, "secondary.nbd")
        self.guest_uri = self._uri(GUEST_EXPORT, "guest.nbd")
        primary_address, secondary_address, guest_address = (self._address(name) for name in sockets)
        start = ["--start"] if started else []
        self.joint = joint
        self.secondary = Daemon("secondary", directory, [
            "--disk", self.secondary_disk, "--listen", secondary_address, "--export", EXPORT,
            "--guest", guest_address, "--guest-export", GUEST_EXPORT, "--buffer", buffer,
            "--buffer-size", buffer_bytes, *secondary_arguments, *start], tcp)
        control = ["--replica-control", self.secondary.control] if joint else []
        self.primary = Daemon("primary", directory, [
            "--disk", self.primary_disk, "--replica", self._uri(EXPORT, replica_socket or "secondary.nbd"), *control,
            "--listen", primary_address, "--export", EXPORT, *primary_arguments, *start], tcp)

    def _address(self, socket):
        return f"tcp:127.0.0.1:{self._ports[socket]}" if self._ports else f"unix:{self.directory / socket}"

    def _uri(self, export, socket):
        if socket in self._ports:
            return f"nbd://127.0.0.1:{self._ports[socket]}/{export}"
        return f"nbd+unix:///{export}?socket={self.directory / socket}"

    def __enter__(self):
        try:
            self.secondary.start()
            self.primary.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.primary.kill()
        self.secondary.kill()

    def wait_until_connected(self):
        """Until the primary has reached its replica."""
        self.primary.wait_for("connected", is_connected)

    def checkpoint(self):
        """Seconds that a checkpoint of the pair took; the guests may go on meanwhile."""
        began = time.perf_counter()
        if not self.joint:
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
        return self.primary.process.cpu_s() + self.secondary.process.cpu_s()
