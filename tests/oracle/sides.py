"""The two pairs that a script is played on: the same calls of QMP and NBD to either."""
import contextlib
import pathlib

import nbd

from harness.qemu import QemuPair
from harness.qmp import QmpError
from harness.twinblock import TwinblockPair
from script import DISK, PRIMARY, SECONDARY, SECTOR, VIEW

# More than any script fills, as with QEMU, whose buffers have no bound; and enough for granules of any size.
BUFFER_BYTES = 16 << 20
FLAGS = {"fua": nbd.CMD_FLAG_FUA, "no-hole": nbd.CMD_FLAG_NO_HOLE}


class Side:
    """`pair` is there between `prepare` and `clear`; its disks lie in `directory`."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.pair = None
        self._handles = {}

    def make_disks(self, script):
        content = script.disk()
        for name in ("primary.raw", "secondary.raw"):
            (self.directory / name).write_bytes(content)

    def disks(self):
        return {name: (self.directory / f"{name}.raw").read_bytes() for name in ("primary", "secondary")}

    def close(self):
        for handle in self._handles.values():
            try:
                handle.shutdown()
            except nbd.Error:
                pass
        self._handles.clear()

    def play(self, step):
        """A step's outcome: "ok" and what was read, or "error" and which."""
        if step.kind == "together":
            return self._together(step)
        if step.kind == "settle":
            return self.settle()
        try:
            if step.port in (PRIMARY, SECONDARY) and step.kind in MANAGER:
                return "ok", self._manage(step)
            return "ok", self._ask(step)
        except QmpError as error:
            return "error", error.name
        except nbd.Error as error:
            return "error", error.errno

    def _manage(self, step):
        end = getattr(self.pair, step.port)
        is_primary = step.port == PRIMARY
        if step.kind == "status":
            return end.error()["error"]
        if step.kind == "checkpoint":
            end.checkpoint()
        elif step.kind == "start":
            end.replicate(enable=True, primary=is_primary)
        elif step.kind == "start-other":
            end.replicate(enable=True, primary=not is_primary)
        elif step.kind == "start-failover":
            end.replicate(enable=True, primary=is_primary, failover=True)
        else:
            end.replicate(enable=False, primary=is_primary, failover=step.kind == "failover")
        return None

    def _handle(self, port):
        if port not in self._handles:
            handle = nbd.NBD()
            # What is wrong is for the server to refuse.
            handle.set_strict_mode(0)
            # With structured replies QEMU's server ends the connection where a read fails.
            handle.set_request_structured_replies(False)
            handle.connect_uri({PRIMARY: self.pair.primary_uri, VIEW: self.pair.guest_uri,
                                DISK: self.pair.replica_uri}[port])
            self._handles[port] = handle
        return self._handles[port]

    def _ask(self, step):
        handle = self._handle(step.port)
        flags = flags_of(step)
        if "sectors" in step.flags:
            offset, content = whole_sectors(handle, step)
            handle.pwrite(content, offset, flags & nbd.CMD_FLAG_FUA)
        elif step.kind == "read":
            return bytes(handle.pread(step.length, step.offset))
        elif step.kind == "write":
            handle.pwrite(step.content(), step.offset, flags)
        elif step.kind == "zero":
            handle.zero(step.length, step.offset, flags)
        elif step.kind == "trim":
            handle.trim(step.length, step.offset, flags)
        else:
            handle.flush()
        return None

    def _together(self, step):
        """All are sent before the first answer is read; the outcomes in the order of the steps."""
        pending = []
        sectors = {part: whole_sectors(self._handle(part.port), part) for part in step.steps if "sectors" in part.flags}
        for part in step.steps:
            handle, flags = self._handle(part.port), flags_of(part)
            buffer = None
            if part in sectors:
                offset, content = sectors[part]
                buffer = nbd.Buffer.from_bytearray(content)
                cookie = handle.aio_pwrite(buffer, offset, flags=flags & nbd.CMD_FLAG_FUA)
            elif part.kind == "read":
                buffer = nbd.Buffer(part.length)
                cookie = handle.aio_pread(buffer, part.offset)
            elif part.kind == "write":
                buffer = nbd.Buffer.from_bytearray(bytearray(part.content()))
                cookie = handle.aio_pwrite(buffer, part.offset, flags=flags)
            elif part.kind == "zero":
                cookie = handle.aio_zero(part.length, part.offset, flags=flags)
            elif part.kind == "trim":
                cookie = handle.aio_trim(part.length, part.offset, flags=flags)
            else:
                cookie = handle.aio_flush()
            pending.append((part, handle, cookie, buffer))
        return [self._outcome(*each) for each in pending]

    @staticmethod
    def _outcome(part, handle, cookie, buffer):
        try:
            while not handle.aio_command_completed(cookie):
                handle.poll(-1)
            return "ok", bytes(buffer.to_bytearray()) if part.kind == "read" else None
        except nbd.Error as error:
            return "error", error.errno


MANAGER = {"start", "start-other", "start-failover", "stop", "failover", "checkpoint", "status"}


def whole_sectors(handle, step):
    """The sectors that a modification touches as they are to be: offset and content."""
    offset, end = step.offset // SECTOR * SECTOR, -(-step.end // SECTOR) * SECTOR
    content = bytearray(handle.pread(end - offset, offset))
    content[step.offset - offset:step.end - offset] = step.content() if step.kind == "write" else bytes(step.length)
    return offset, content


def flags_of(step):
    flags = 0
    for name in step.flags:
        flags |= FLAGS.get(name, 0)
    return flags


class QemuSide(Side):
    """Both processes are used again for the next script, with new nodes: to start them takes longer than a script."""

    name = "QEMU"

    def prepare(self, script):
        self.make_disks(script)
        if self.pair is None:
            self.pair = QemuPair(self.directory, script.size)
            self.pair.launch()
        self.pair.size_bytes = script.size
        self.pair.build()

    def settle(self):
        self.pair.secondary.wait_until_done()
        return "ok", None

    def clear(self):
        self.close()
        # What still replicates holds its nodes; the disks have been read.
        with contextlib.suppress(QmpError):
            self.pair.secondary.replicate(enable=False, primary=False)
        self.pair.remove()

    def kill(self):
        """Also from another thread, so that nothing waits for an answer any longer."""
        if self.pair is not None:
            self.pair.__exit__()

    def forget(self):
        """The next script gets new processes."""
        self.close()
        self.kill()
        self.pair = None


class TwinblockSide(Side):
    """Without the secondary's control address: a manager calls each side, as it does with QEMU."""

    name = "Twinblock"

    def prepare(self, script):
        self.make_disks(script)
        self.pair = TwinblockPair(
            self.directory, started=False, joint=False, buffer_bytes=BUFFER_BYTES,
            buffer="memory" if script.buffer == "memory" else self.directory / "buffer",
            secondary_arguments=["--granule", script.granule])
        self.pair.__enter__()
        self.pair.wait_until_connected()

    def settle(self):
        self.pair.secondary.wait_for("settled", lambda volume: volume["stage"] != "failover")
        return "ok", None

    def clear(self):
        self.forget()

    def kill(self):
        if self.pair is not None:
            self.pair.__exit__()

    def forget(self):
        self.close()
        self.kill()
        self.pair = None
