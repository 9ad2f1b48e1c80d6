"""Either end of a pair replaced by QEMU's own replication: a QEMU primary with a Twinblock secondary, and a Twinblock
primary with a QEMU secondary. The same calls drive both, as a manager of QEMU makes them: it has stopped the guest
before it tells each side to take a checkpoint."""
import random

import nbd

from fixture import MIB, DiskTest
from harness.qemu import QemuPrimary, QemuProcess, QemuSecondary
from harness.qmp import QmpError
from harness.twinblock import Daemon, EXPORT, is_connected

SIZE = 4 * MIB
UNIT = 512
# More than a cluster of QEMU's buffers and than a piece of ours.
LENGTHS = [UNIT, 4096, 10 * UNIT, 65536, 300 * 1024]
ROUNDS = 3
WRITES = 25


class Story:
    """What is told of both pairs. `primary`, `secondary` and the three URIs are the pair's."""

    def begin(self):
        self.random = random.Random(30)
        self.secondary.replicate(enable=True, primary=False)
        self.primary.replicate(enable=True, primary=True)
        self.guest_of_primary = self.connect(self.primary_uri)
        self.guest_of_secondary = self.connect(self.guest_uri)
        # What the primary's guest reads, and the secondary's.
        self.disk = bytearray((self.directory / "primary.raw").read_bytes())
        self.view = bytearray(self.disk)

    def modify(self):
        """Writes, zeroes, trims and flushes of the primary's guest, some in flight together."""
        handle = self.guest_of_primary
        for number in range(WRITES):
            length = self.random.choice(LENGTHS)
            offset = self.random.randrange(0, (SIZE - length) // UNIT + 1) * UNIT
            kind = self.random.choice(["write", "write", "write", "fua", "zero", "keep zero", "trim", "flush"])
            if kind in ("write", "fua"):
                data = self.random.randbytes(length)
                handle.pwrite(data, offset, nbd.CMD_FLAG_FUA if kind == "fua" else 0)
                self.disk[offset:offset + length] = data
            elif kind in ("zero", "keep zero"):
                handle.zero(length, offset, nbd.CMD_FLAG_NO_HOLE if kind == "keep zero" else 0)
                self.disk[offset:offset + length] = bytes(length)
            elif kind == "trim":
                handle.trim(length, offset)
                self.disk[offset:offset + length] = self.after_trim(self.disk[offset:offset + length])
            else:
                handle.flush()
        places = range(0, SIZE, SIZE // 16)
        data = self.random.randbytes(len(places) * 4096)
        cookies = [handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data[at * 4096:(at + 1) * 4096])), place)
                   for at, place in enumerate(places)]
        for at, (cookie, place) in enumerate(zip(cookies, places)):
            while not handle.aio_command_completed(cookie):
                handle.poll(-1)
            self.disk[place:place + 4096] = data[at * 4096:(at + 1) * 4096]
        handle.flush()

    def speculate(self):
        """Writes of the secondary's guest."""
        for _ in range(WRITES):
            length = self.random.choice(LENGTHS)
            offset = self.random.randrange(0, (SIZE - length) // UNIT + 1) * UNIT
            data = self.random.randbytes(length)
            if self.random.random() < 0.2:
                data = bytes(length)
                self.guest_of_secondary.zero(length, offset)
            else:
                self.guest_of_secondary.pwrite(data, offset)
            self.view[offset:offset + length] = data

    def checkpoint(self):
        self.secondary.checkpoint()
        self.primary.checkpoint()
        self.view[:] = self.disk

    def assert_everybody_sees_what_it_must(self):
        self.assertEqual(self.guest_of_primary.pread(SIZE, 0), self.disk)
        self.assertEqual(self.guest_of_secondary.pread(SIZE, 0), self.view)
        self.assertEqual(self.connect(self.replica_uri).pread(SIZE, 0), self.disk)

    def assert_no_error(self):
        self.assertEqual([self.primary.error(), self.secondary.error()], [{"error": False}] * 2)

    def play(self):
        for _ in range(ROUNDS):
            self.modify()
            self.speculate()
            self.assert_everybody_sees_what_it_must()
            self.modify()
            self.assert_everybody_sees_what_it_must()
            self.checkpoint()
            self.assert_everybody_sees_what_it_must()
            self.assert_no_error()
        self.speculate()
        self.modify()
        self.assert_everybody_sees_what_it_must()
        self.assert_no_error()

    def assert_disks(self, secondary):
        self.assertEqual((self.directory / "primary.raw").read_bytes(), bytes(self.disk))
        self.assertEqual((self.directory / "secondary.raw").read_bytes(), bytes(secondary))

    def leave(self):
        """The primary's machine has died."""
        self.primary.process.kill()
        self.guest_of_primary = None

    def test_failover_leaves_the_checkpoint_and_what_its_guest_wrote(self):
        self.play()
        self.leave()
        self.secondary.replicate(enable=False, primary=False, failover=True)
        self.assertEqual(self.guest_of_secondary.pread(SIZE, 0), self.view)
        self.speculate()
        self.wait_until_done()
        self.assertEqual(self.secondary.error()["error"], False)
        self.assertEqual(self.guest_of_secondary.pread(SIZE, 0), self.view)
        self.speculate()
        self.guest_of_secondary.flush()
        # A promoted secondary has nothing left to do.
        self.secondary.replicate(enable=True, primary=False)
        self.secondary.checkpoint()
        self.secondary.replicate(enable=False, primary=False, failover=True)
        self.assertEqual(self.guest_of_secondary.pread(SIZE, 0), self.view)
        self.assert_disks(secondary=self.view)

    def test_a_stopped_primary_goes_on_alone_and_the_secondary_takes_over_later(self):
        self.play()
        self.primary.replicate(enable=False, primary=True)
        kept = bytes(self.disk)
        self.modify()
        self.assertEqual(self.guest_of_primary.pread(SIZE, 0), self.disk)
        self.assertEqual(self.connect(self.replica_uri).pread(SIZE, 0), kept)
        self.assertEqual(self.guest_of_secondary.pread(SIZE, 0), self.view)
        self.secondary.replicate(enable=False, primary=False, failover=True)
        self.wait_until_done()
        self.assertEqual(self.guest_of_secondary.pread(SIZE, 0), self.view)
        self.assert_disks(secondary=self.view)


class QemuPrimaryTwinblockSecondary(Story, DiskTest):
    def setUp(self):
        super().setUp()
        self.make_disks(SIZE, seed=31)
        self.secondary = self.enter_secondary(started=False)
        process = QemuProcess(self.directory, "qemu")
        self.addCleanup(process.kill)
        self.primary = QemuPrimary(process, self.directory / "primary.raw", self.directory / "secondary.nbd")
        self.primary_uri = self.primary.primary_uri
        self.replica_uri, self.guest_uri = self.secondary.replica_uri, self.secondary.guest_uri
        self.begin()

    def after_trim(self, content):
        """QEMU's quorum answers a trim and does nothing."""
        return content

    def wait_until_done(self):
        self.secondary.wait_for("done", lambda volume: volume["stage"] == "done")

    def test_a_stop_leaves_every_write_of_the_primary(self):
        self.play()
        self.primary.replicate(enable=False, primary=True)
        self.primary.detach()
        self.secondary.wait_for("the end of the claim", lambda volume: not volume["behind"])
        self.secondary.replicate(enable=False, primary=False, failover=False)
        self.assertEqual(self.guest_of_secondary.pread(SIZE, 0), self.disk)
        self.assert_disks(secondary=self.disk)

    def test_a_primary_that_died_leaves_every_write_and_no_checkpoint_of_what_may_be_missing(self):
        self.play()
        self.leave()
        self.secondary.wait_for("in doubt", lambda volume: volume["behind"])
        with self.assertRaises(QmpError):
            self.secondary.checkpoint()
        self.assertEqual(self.guest_of_secondary.pread(SIZE, 0), self.view)
        self.secondary.replicate(enable=False, primary=False, failover=False)
        self.assertEqual(self.guest_of_secondary.pread(SIZE, 0), self.disk)
        self.assert_disks(secondary=self.disk)


class TwinblockPrimaryQemuSecondary(Story, DiskTest):
    def setUp(self):
        super().setUp()
        self.make_disks(SIZE, seed=32)
        process = QemuProcess(self.directory, "qemu")
        self.addCleanup(process.kill)
        self.secondary = QemuSecondary(process, self.directory / "secondary.raw", SIZE)
        self.replica_uri, self.guest_uri = self.secondary.replica_uri, self.secondary.guest_uri
        self.primary = Daemon("primary", self.directory, [
            "--disk", self.directory / "primary.raw", "--replica", self.replica_uri,
            "--listen", f"unix:{self.directory}/primary.nbd", "--export", EXPORT])
        self.addCleanup(self.primary.kill)
        self.primary.start()
        self.primary.wait_for("connected", is_connected)
        self.primary_uri = f"nbd+unix:///{EXPORT}?socket={self.directory}/primary.nbd"
        self.begin()

    def after_trim(self, content):
        return bytes(len(content))

    def wait_until_done(self):
        self.secondary.wait_until_done()

    def test_a_stop_leaves_every_write_of_the_primary_on_the_disk(self):
        self.play()
        self.primary.replicate(enable=False, primary=True)
        # QEMU's stop without failover always answers an error and keeps showing the view; its disk is right.
        with self.assertRaises(QmpError):
            self.secondary.replicate(enable=False, primary=False, failover=False)
        self.assert_disks(secondary=self.disk)
