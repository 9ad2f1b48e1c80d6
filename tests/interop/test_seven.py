"""The seven failures of SEMANTICS.md with real faults: what each guest and each manager sees, and what is left.

The disks are served by nbdkit, whose `error` filter fails what it is told to while a file lies there; the buffer of the
fifth lies on a tmpfs that is full. The sixth cannot be provoked: a buffer is emptied by forgetting its index, which
touches no disk.
"""
import random
import subprocess
import time

import nbd

from fixture import MIB, DiskTest
from harness.link import Link
from harness.qmp import QmpError
from harness.twinblock import EXPORT, is_connected

SIZE = 8 * MIB
# Operations that the filter can fail; it knows no flush.
OPERATIONS = ("pread", "pwrite", "zero", "trim")


class Faulty(DiskTest):
    """A pair over disks that can be told to fail. The last checkpoint holds "checkpoint"."""

    def setUp(self):
        super().setUp()
        self.images = self.make_disks(SIZE, seed=11)
        primary, secondary = (self.serve(image) for image in self.images)
        self.link = Link(self.directory / "link.nbd", self.directory / "secondary.nbd")
        self.addCleanup(self.link.__exit__)
        self.pair = self.enter_pair(primary_disk=primary, secondary_disk=secondary, replica_socket="link.nbd",
                                    **self.buffer_options())
        self.guest = self.connect(self.pair.primary_uri)
        self.guest.pwrite(b"checkpoint" * 10_000, 100_000)
        self.pair.checkpoint()
        self.saved = self.guest.pread(SIZE, 0)
        self.view = self.connect(self.pair.guest_uri)
        self.managers = {"primary": self.pair.primary.connect(), "secondary": self.pair.secondary.connect()}
        for manager in self.managers.values():
            self.addCleanup(manager.close)

    def buffer_options(self):
        return {}

    def serve(self, image):
        path = self.directory / f"{image.stem}.server"
        faults = []
        for operation in OPERATIONS:
            trigger = self.trigger(image.stem, operation)
            faults += [f"error-{operation}=EIO", f"error-{operation}-rate=100%", f"error-{operation}-file={trigger}"]
        self.run_in_background(["nbdkit", "--foreground", "--unix", path, "--filter=error", "file", image, *faults],
                               log=f"{path.name}.log")
        deadline = time.monotonic() + 10
        while not path.exists():
            self.assertLess(time.monotonic(), deadline, "nbdkit does not start")
            time.sleep(0.01)
        return f"nbd+unix:///?socket={path}"

    def trigger(self, disk, operation):
        return self.directory / f"{disk}-{operation}.fails"

    def break_disk(self, disk, *operations):
        for operation in operations:
            self.trigger(disk, operation).touch()

    def mend(self, disk):
        for operation in OPERATIONS:
            self.trigger(disk, operation).unlink(missing_ok=True)

    def assert_told(self, side, error):
        """That side's manager hears of it: by an event, by a counter and by get error."""
        self.assert_hears(side, "REPLICATION_ERROR", error=error, volume=EXPORT)
        daemon = getattr(self.pair, side)
        self.assertGreaterEqual(daemon.volume()["errors"][error], 1)
        self.assertTrue(daemon.error()["error"])

    def assert_hears(self, side, event, **data):
        """That side's manager is sent such an event, after others perhaps."""
        deadline = time.monotonic() + 10
        while not data.items() <= self.managers[side].event(event)["data"].items():
            self.assertLess(time.monotonic(), deadline)

    def assert_not_told(self, side):
        daemon = getattr(self.pair, side)
        self.assertEqual(set(daemon.volume()["errors"].values()), {0})

    def assert_behind(self):
        """The replica misses something: no checkpoint, until somebody sees to it."""
        self.pair.primary.wait_for("behind", lambda volume: volume["replicas"][0]["behind"])
        self.assertTrue(self.pair.primary.error()["error"])
        with self.assertRaises(QmpError):
            self.pair.primary.qmp.call("xen-colo-do-checkpoint")
        self.assertEqual(self.view.pread(SIZE, 0), self.saved)

    def assert_failover_gives_the_checkpoint(self):
        self.pair.primary.kill()
        self.pair.failover()
        self.pair.secondary.wait_for("done", lambda volume: volume["stage"] == "done")
        self.assertEqual(self.view.pread(SIZE, 0), self.saved)
        self.assertEqual(self.images[1].read_bytes(), self.saved)


class SevenFailures(Faulty):
    def test_1_an_error_of_the_primary_disk_is_the_managers_while_a_replica_takes_the_write(self):
        self.break_disk("primary", "pwrite", "zero", "trim")
        self.guest.pwrite(b"only there" * 1000, 1000)
        self.guest.flush()
        self.assert_told("primary", "primary_disk")
        self.assert_not_told("secondary")
        # What was answered is read from where it is.
        self.assertEqual(self.guest.pread(10_000, 1000), b"only there" * 1000)
        self.assert_disk_holds(self.images[1], 1000, b"only there" * 1000)

    def test_1_an_error_of_the_primary_disk_is_the_guests_if_no_replica_takes_the_write(self):
        self.link.cut()
        self.guest.pwrite(b"x", 0)
        self.break_disk("primary", "pwrite", "zero", "trim")
        self.assert_refused("EIO", self.guest.pwrite, b"nowhere" * 1000, 1000)
        self.assert_refused("EIO", self.guest.zero, 10_000, MIB)
        self.assert_told("primary", "primary_disk")
        self.mend("primary")
        self.guest.pwrite(b"again" * 1000, 1000)
        self.guest.flush()
        self.assert_disk_holds(self.images[0], 1000, b"again" * 1000)

    def test_1_a_read_that_the_primary_disk_fails_is_answered_by_the_replica(self):
        self.guest.pwrite(b"since the checkpoint" * 100, 7000)
        self.break_disk("primary", "pread")
        self.assertEqual(self.guest.pread(2000, 7000), b"since the checkpoint" * 100)
        self.assert_told("primary", "primary_disk")
        self.link.cut()
        self.guest.pwrite(b"x", 0)
        self.assert_refused("EIO", self.guest.pread, 2000, 7000)

    def assert_left_behind(self):
        """The replica misses something, and its loss is the manager's; the guest goes on."""
        self.assert_behind()
        self.assert_hears("primary", "REPLICA_STATE", state="disconnected", replica="replica0")
        self.guest.pwrite(b"goes on", 5 * MIB)
        self.assertEqual(self.guest.pread(7, 5 * MIB), b"goes on")
        self.assert_not_told("secondary")
        self.link.mend()
        self.pair.primary.wait_for("connected again", is_connected)
        self.assert_behind()
        self.assert_failover_gives_the_checkpoint()

    def meet_a_cut(self, act):
        """The link is cut before the request."""
        self.guest.pwrite(b"not flushed", 6 * MIB)
        self.link.cut()
        self.pair.primary.wait_for("disconnected", lambda volume: not volume["replicas"][0]["connected"])
        act()
        self.assert_left_behind()

    def be_cut_off(self, begin):
        """The link is cut while the request is on its way."""
        self.link.freeze()
        cookie = begin()
        self.pair.primary.wait_for("forwarded", lambda volume: volume["replicas"][0]["in_flight"] > 0)
        self.link.cut()
        self.link.thaw()
        while not self.guest.aio_command_completed(cookie):
            self.guest.poll(-1)
        self.assert_told("primary", "forward")
        self.assert_left_behind()

    def test_2_a_write_that_cannot_be_forwarded_is_the_managers_and_leaves_the_guest_alone(self):
        self.meet_a_cut(lambda: self.guest.pwrite(b"w" * 5000, 300_000))

    def test_2_a_write_that_is_cut_off_is_the_managers_and_leaves_the_guest_alone(self):
        self.be_cut_off(lambda: self.guest.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"w" * 5000)), 300_000))

    def test_2_zeroes_that_cannot_be_forwarded_are_the_managers_and_leave_the_guest_alone(self):
        self.meet_a_cut(lambda: self.guest.zero(5000, 0))

    def test_2_zeroes_that_are_cut_off_are_the_managers_and_leave_the_guest_alone(self):
        self.be_cut_off(lambda: self.guest.aio_zero(5000, 0))

    def test_2_a_trim_that_cannot_be_forwarded_is_the_managers_and_leaves_the_guest_alone(self):
        self.meet_a_cut(lambda: self.guest.trim(MIB, MIB))

    def test_2_a_trim_that_is_cut_off_is_the_managers_and_leaves_the_guest_alone(self):
        self.be_cut_off(lambda: self.guest.aio_trim(MIB, MIB))

    def test_2_a_flush_that_cannot_be_forwarded_is_the_managers_and_leaves_the_guest_alone(self):
        self.meet_a_cut(self.guest.flush)

    def test_2_a_flush_that_is_cut_off_is_the_managers_and_leaves_the_guest_alone(self):
        self.be_cut_off(self.guest.aio_flush)

    def test_3_a_keep_that_fails_answers_an_error_and_never_writes_through(self):
        before = self.images[1].read_bytes()
        self.break_disk("secondary", "pread")
        self.guest.pwrite(b"not kept" * 1000, 2 * MIB)
        self.assertEqual(self.guest.pread(8000, 2 * MIB), b"not kept" * 1000)
        self.assert_told("primary", "forward")
        self.assert_told("secondary", "copy_before_write")
        self.assertEqual(self.images[1].read_bytes(), before)
        self.mend("secondary")
        self.assert_behind()
        with self.assertRaises(QmpError):
            self.pair.secondary.qmp.call("xen-colo-do-checkpoint")
        self.assert_failover_gives_the_checkpoint()

    def test_4_an_error_of_the_secondary_disk_is_both_managers(self):
        self.break_disk("secondary", "pwrite", "zero", "trim")
        self.guest.pwrite(b"not there" * 1000, 3 * MIB)
        self.guest.zero(10_000, 4 * MIB)
        self.assertEqual(self.guest.pread(9000, 3 * MIB), b"not there" * 1000)
        self.assert_told("primary", "forward")
        self.assert_told("secondary", "secondary_disk")
        self.mend("secondary")
        self.assert_behind()
        with self.assertRaises(QmpError):
            self.pair.secondary.qmp.call("xen-colo-do-checkpoint")
        self.assert_failover_gives_the_checkpoint()

    def test_4_a_read_of_the_secondarys_guest_that_its_disk_fails(self):
        self.break_disk("secondary", "pread")
        self.assert_refused("EIO", self.view.pread, 4096, 6 * MIB)
        self.assert_told("secondary", "secondary_disk")
        self.assert_not_told("primary")
        self.mend("secondary")
        self.assertEqual(self.view.pread(SIZE, 0), self.saved)

    def test_7_a_commit_that_fails_halfway_is_told_and_goes_on_when_it_is_tried_again(self):
        rng = random.Random(7)
        expected = bytearray(self.saved)
        half = SIZE // 2
        for place in range(0, half, 256 * 1024):
            data = rng.randbytes(5000)
            self.view.pwrite(data, place)
            expected[place:place + 5000] = data
        self.view.zero(MIB, half)
        expected[half:half + MIB] = bytes(MIB)
        self.guest.pwrite(b"rolled back" * 10_000, 500_000)
        self.pair.primary.kill()
        # The commit goes through the disk in its order: the first half is written, the zeroes then fail.
        self.break_disk("secondary", "zero", "trim")
        secondary, errors = self.pair.secondary, 0
        self.pair.failover()
        self.assert_told("secondary", "commit")
        for _ in range(2):
            self.assert_hears("secondary", "REPLICATION_STAGE", stage="failover-failed")
            self.assertGreater(secondary.volume()["errors"]["commit"], errors)
            errors = secondary.volume()["errors"]["commit"]
            self.assertTrue(secondary.error()["error"])
            # The guest goes on with the view while the disk fails, and its new writes are not lost either.
            self.view.pwrite(b"meanwhile", half - 100)
            expected[half - 100:half - 91] = b"meanwhile"
            self.assertEqual(self.view.pread(SIZE, 0), bytes(expected))
            self.assertEqual(self.images[1].read_bytes()[:half - 100], bytes(expected[:half - 100]))
            with self.assertRaises(QmpError):
                secondary.replicate(enable=False, primary=False, failover=False)
            self.pair.failover()
        secondary.wait_for("failed", lambda volume: volume["stage"] == "failover-failed")
        self.mend("secondary")
        self.pair.failover()
        secondary.wait_for("done", lambda volume: volume["stage"] == "done")
        self.assertEqual(self.view.pread(SIZE, 0), bytes(expected))
        self.assertEqual(self.images[1].read_bytes(), bytes(expected))


class FifthFailure(Faulty):
    """The buffer's file lies on a file system that has less room than it may take."""

    def buffer_options(self):
        place = self.directory / "small"
        place.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "twinblock", place], capture_output=True)
        if mounted.returncode != 0:
            self.skipTest(f"no tmpfs can be mounted: {mounted.stderr.decode().strip()}")
        self.addCleanup(subprocess.run, ["umount", "--lazy", place], check=True)
        return {"buffer": place / "buffer", "buffer_bytes": 4 * MIB}

    def test_5_an_error_of_the_buffer_is_the_secondary_guests_and_its_managers(self):
        written = 0
        with self.assertRaises(Exception) as caught:
            for written in range(0, 4 * MIB, 65536):
                self.view.pwrite(b"g" * 65536, written)
        self.assertEqual(caught.exception.errno, "EIO")
        self.assert_told("secondary", "buffer")
        self.assert_not_told("primary")
        # What was answered before is there, and what was not is old.
        self.assertEqual(self.view.pread(written, 0), b"g" * written)
        self.assertEqual(self.view.pread(SIZE - 4 * MIB, 4 * MIB), self.saved[4 * MIB:])
        # A checkpoint makes room.
        self.pair.secondary.qmp.call("xen-colo-do-checkpoint")
        self.view.pwrite(b"after" * 1000, 0)
        self.assertEqual(self.view.pread(5000, 0), b"after" * 1000)
