"""The emulated machine with its disk, and what the host sees of it."""
import json
import pathlib
import re
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(pathlib.Path(__file__).resolve().parent)]
from harness.process import Process, kill_all, output_of  # noqa: E402, F401
from harness.twinblock import EXPORT, GUEST_EXPORT, Daemon, binary, free_port  # noqa: E402, F401
from records import look_at  # noqa: E402, F401

MIB = 1 << 20
# Where the program looks for its settings, behind its memory; and the memory that the machine needs for both.
SETTINGS_AT = 0x80400000
MACHINE_RAM = "16M"


class Machine:
    """One run of the program. `faults` is a configuration of QEMU's blkdebug for its disk."""

    def __init__(self, folder, image, disk, settings="", faults=None, name="machine"):
        self.disk = disk
        self._log = folder / f"{name}.log"
        self._log.unlink(missing_ok=True)
        given = folder / f"{name}.settings"
        given.write_text(settings)
        below = {"driver": "file", "filename": str(disk)}
        if faults:
            config = folder / f"{name}.blkdebug"
            config.write_text(faults)
            below = {"driver": "blkdebug", "config": str(config), "image": below}
        self._command = [
            "qemu-system-riscv64", "-machine", "virt", "-m", MACHINE_RAM, "-accel", "tcg", "-bios", "none",
            "-display", "none", "-monitor", "none", "-serial", f"file:{self._log}",
            "-global", "virtio-mmio.force-legacy=false",
            "-blockdev", json.dumps({"driver": "raw", "node-name": "disk", "file": below}),
            "-device", "virtio-blk-device,drive=disk,werror=report,rerror=report",
            "-netdev", "user,id=net", "-device", "virtio-net-device,netdev=net", "-device", "virtio-rng-device",
            "-device", f"loader,file={given},addr={SETTINGS_AT:#x},force-raw=on", "-kernel", image]
        self._emulator_log = folder / f"{name}.emulator.log"
        self.process = None

    def start(self):
        self.process = Process(self._command, self._emulator_log)
        return self

    def kill(self):
        """SIGKILL: the emulator finishes nothing that it was doing."""
        if self.process:
            self.process.kill()

    def log(self):
        """The lines that it has printed, to their end."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return text[:text.rfind("\n") + 1].splitlines()

    def told(self, pattern):
        """The matches of a pattern in its log."""
        return [match for line in self.log() if (match := re.search(pattern, line))]

    def wait_for(self, pattern, timeout_s=20.0, after=0):
        """The first match of a pattern behind the first `after` ones."""
        def is_told():
            found = self.told(pattern)
            if len(found) <= after and not self.process.is_alive():
                raise AssertionError(f"the machine has ended\n{self.tail()}")
            return found[after:]
        return wait_until(pattern, is_told, timeout_s, self.tail)[0]

    def tail(self):
        """The end of what it and its emulator have said."""
        emulator = self._emulator_log.read_text() if self._emulator_log.exists() else ""
        return "\n".join([*self.log()[-15:], emulator[-500:]])

    def count(self, name):
        """A number of the last report: acknowledged, durable, read, failed, requests, misses, checkpoints …"""
        reports = self.told(rf"^records: .*\b{name}=(\d+)")
        return int(reports[-1][1]) if reports else 0

    def wait_for_count(self, name, least, timeout_s=20.0):
        wait_until(f"{name} >= {least}", lambda: self.count(name) >= least, timeout_s, self.tail)

    def checkpoints(self):
        """Of each checkpoint that was reported: how many records had been acknowledged when it began, and microseconds."""
        return [(int(match[1]), int(match[2])) for match in
                self.told(r"^checkpoint: epoch=\d+ acknowledged=(\d+) micros=(\d+)$")]


def secondary(folder, disk, *arguments, buffer_bytes=16 * MIB):
    """A daemon that keeps a twin, for machines that reach the host at 10.0.2.2; and what to tell them."""
    listen, guest = free_port(), free_port()
    daemon = Daemon("secondary", folder, [
        "--disk", disk, "--listen", f"tcp:127.0.0.1:{listen}", "--export", EXPORT,
        "--guest", f"tcp:127.0.0.1:{guest}", "--guest-export", GUEST_EXPORT, "--buffer", "memory",
        "--buffer-size", buffer_bytes, *arguments], tcp=True)
    daemon.guest_uri = f"nbd://127.0.0.1:{guest}/{GUEST_EXPORT}"
    control = daemon.control.rpartition(":")[2]
    daemon.ports = [listen, guest, int(control)]
    daemon.settings = f"replica=10.0.2.2:{listen} control=10.0.2.2:{control}"
    return daemon


def start_again(daemon):
    """Starts a daemon that was killed at its old addresses. The system gives those of one that used a ring free only some
    time after it has ended."""
    def are_free():
        try:
            for port in daemon.ports:
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except OSError:
            return False
        return True
    wait_until("its addresses are free", are_free)
    daemon.start()


def wait_until(what, is_so, timeout_s=20.0, context=lambda: ""):
    """What `is_so` gives once it is not nothing."""
    deadline = time.monotonic() + timeout_s
    while not (found := is_so()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not so after {timeout_s} s: {what}\n{context()}")
        time.sleep(0.02)
    return found


def twinblock(*arguments):
    return output_of([binary(), *arguments])


def empty_disk(path, length):
    with open(path, "wb") as file:
        file.truncate(length)
    return path


def view_of(daemon, folder):
    """What the guest of a secondary sees, read over NBD."""
    view = folder / "view.raw"
    view.unlink(missing_ok=True)
    output_of(["nbdcopy", daemon.guest_uri, view])
    return view.read_bytes()


def run_to_end(machine, timeout_s=30.0):
    """Starts a machine and waits until it has switched itself off; its exit code."""
    machine.start()
    try:
        return machine.process.wait(timeout_s)
    except (TimeoutError, subprocess.TimeoutExpired):
        raise AssertionError(f"it has not ended\n{machine.tail()}") from None
