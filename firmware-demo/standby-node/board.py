"""The emulated board with a card, and what the host sees of it."""
import pathlib
import struct
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from harness.process import Process, kill_all, output_of  # noqa: E402
from harness.qmp import Qmp, QmpError  # noqa: E402
from harness.twinblock import EXPORT, GUEST_EXPORT, Daemon, binary, free_port, is_connected  # noqa: E402
from debugger import Debugger  # noqa: E402
from switch import Switch  # noqa: E402

MIB = 1 << 20
SECTOR = 512
BLOCK = 4096
DISK_BYTES = 8 * MIB
# A card's size is a power of two.
CARD_BYTES = 16 * MIB
# Each partition: its kind in the table, its start and its length.
DISK_AT = MIB
PARTITIONS = [(0x83, DISK_AT, DISK_BYTES), (0xda, DISK_AT + DISK_BYTES, 4 * MIB)]
NBD_PORT = 10809
CONTROL_PORT = 10810
# There is nothing that could be executed.
NOWHERE = 0xe000_0000


class Node:
    """The emulated board."""

    def __init__(self, folder, image, switch_seed=None):
        """With a seed its network is a switch that can be told to lose frames."""
        self.card = folder / "card.raw"
        self._image = image
        self._log = folder / "node.defmt"
        self._debugger = folder / "debugger"
        self._folder = folder
        self.nbd_port, self.control_port = free_port(), free_port()
        self.control = f"tcp:127.0.0.1:{self.control_port}"
        self.process = None
        forwards = ",".join(f"hostfwd=tcp:127.0.0.1:{here}-10.0.2.15:{there}" for here, there in
                            [(self.nbd_port, NBD_PORT), (self.control_port, CONTROL_PORT)])
        self.switch = None if switch_seed is None else Switch(folder, forwards, switch_seed)
        self._network = self.switch.netdev if self.switch else f"user,restrict=on,{forwards}"

    def launch(self):
        """Starts it without waiting until it serves."""
        self.process = Process([
            "qemu-system-arm", "-machine", "lm3s6965evb", "-cpu", "cortex-m3", "-accel", "tcg", "-display", "none",
            "-monitor", "none", "-serial", f"file:{self._log}", "-drive", f"if=sd,format=raw,file={self.card}",
            "-gdb", f"unix:{self._debugger},server=on,wait=off",
            "-netdev", f"{self._network},id=net", "-net", "nic,model=stellaris,netdev=net",
            "-kernel", self._image], self._folder / "emulator.log")

    def start(self):
        self.launch()
        wait_until("the node answers", self.status_or_none)

    def derail(self):
        """Lets the program jump to where nothing is: from the fault only the watchdog gets it out."""
        with Debugger(self._debugger) as debugger:
            debugger.jump(NOWHERE)
            debugger.detach()

    def uri(self, export):
        return f"nbd://127.0.0.1:{self.nbd_port}/{export}"

    def status_or_none(self):
        command = [binary(), "status", "--json", "--control", self.control, "--timeout", "2s"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return answer.stdout if answer.returncode == 0 else None

    def log(self, decoder):
        """The lines of its log, decoded."""
        with open(self._log, "rb") as log:
            done = subprocess.run([decoder, "-e", self._image, "stdin"], stdin=log, capture_output=True,
                                  text=True, timeout=30)
        return done.stdout.splitlines()


def wait_until(what, is_so, timeout_s=20.0):
    """What `is_so` gives once it is not nothing."""
    deadline = time.monotonic() + timeout_s
    while not (found := is_so()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not so after {timeout_s} s: {what}")
        time.sleep(0.05)
    return found


def twinblock(*arguments):
    return output_of([binary(), *arguments])


def make_card(path, content):
    """A card with a partition table, the disk's content and room for a buffer."""
    first = bytearray(SECTOR)
    for number, (kind, start, length) in enumerate(PARTITIONS):
        beyond = b"\xfe\xff\xff"
        struct.pack_into("<B3sB3sII", first, 446 + 16 * number, 0, beyond, kind, beyond, start // SECTOR, length // SECTOR)
    first[510:] = b"\x55\xaa"
    with open(path, "wb") as card:
        card.truncate(CARD_BYTES)
        card.write(first)
        card.seek(DISK_AT)
        card.write(content)


def connect(uri):
    """An NBD client."""
    import nbd
    handle = nbd.NBD()
    handle.connect_uri(uri)
    return handle
