"""A replica that is dead, frozen or slow, and a primary that dies in the middle of its writes."""
import random
import threading
import time

import nbd

from fixture import MIB, DiskTest, twinblock
from harness.link import Link
from harness.qmp import QmpError
from harness.twinblock import is_connected

SIZE = 8 * MIB
# A replica that does not answer is given up after this time; until then the guest waits.
REPLICA_TIMEOUT = "2s"
PATIENCE_S = 20.0


class FailingReplica(DiskTest):
    """A pair whose replication goes over a link that the test can disturb. The last checkpoint holds "checkpoint", and
    writes after it are answered but in no checkpoint."""

    def setUp(self):
        super().setUp()
        self.make_disks(SIZE, seed=2)
        self.link = Link(self.directory / "link.nbd", self.directory / "secondary.nbd")
        self.addCleanup(self.link.__exit__)
        # Control does not go over the link.
        self.pair = self.enter_pair(replica_socket="link.nbd",
                                    primary_arguments=["--replica-timeout", REPLICA_TIMEOUT])
        self.primary = self.connect(self.pair.primary_uri)
        self.primary.pwrite(b"checkpoint" * 10_000, 100_000)
        self.pair.checkpoint()
        self.saved = self.connect(self.pair.guest_uri).pread(SIZE, 0)
        self.primary.pwrite(b"afterwards" * 20_000, 50_000)

    def write_on(self):
        """Writes of the primary's guest go on, at the latest after the time-out."""
        began = time.monotonic()
        self.primary.pwrite(b"late" * 5_000, SIZE // 2)
        self.assertLess(time.monotonic() - began, PATIENCE_S)
        began = time.monotonic()
        for number in range(50):
            self.primary.pwrite(bytes([number]) * 4096, SIZE // 2 + number * 4096)
        self.primary.flush()
        self.assertLess(time.monotonic() - began, PATIENCE_S)
        self.assertEqual(self.primary.pread(4096, SIZE // 2 + 49 * 4096), bytes([49]) * 4096)

    def assert_behind(self):
        volume = self.pair.primary.wait_for("behind", lambda volume: volume["replicas"][0]["behind"], PATIENCE_S)
        self.assertGreater(volume["replicas"][0]["dirty_bytes"], 0)
        self.assertTrue(self.pair.primary.error()["error"])
        for _ in range(2):
            with self.assertRaises(QmpError):
                self.pair.primary.qmp.call("xen-colo-do-checkpoint")

    def assert_failover_gives_the_checkpoint(self):
        self.pair.primary.kill()
        self.pair.failover()
        self.assertEqual(self.connect(self.pair.guest_uri).pread(SIZE, 0), self.saved)
        self.pair.secondary.wait_for("done", lambda volume: volume["stage"] == "done")
        self.assertEqual(self.pair.secondary_disk.read_bytes(), self.saved)

    def test_a_dead_replica_is_left_behind(self):
        self.pair.secondary.process.kill()
        self.write_on()
        self.assert_behind()

    def test_a_replica_whose_link_was_cut_is_left_behind(self):
        self.link.cut()
        self.write_on()
        self.assert_behind()
        self.assert_failover_gives_the_checkpoint()

    def test_a_replica_that_comes_back_stays_behind_until_it_has_everything(self):
        self.link.cut()
        self.write_on()
        self.link.mend()
        self.pair.primary.wait_for("connected again", is_connected, PATIENCE_S)
        self.primary.pwrite(b"more", 0)
        self.assert_behind()
        self.assert_failover_gives_the_checkpoint()

    def restart_secondary(self):
        self.pair.secondary.kill()
        self.pair.secondary.start()
        self.pair.primary.wait_for("connected again", is_connected, PATIENCE_S)

    def test_a_replica_that_was_started_anew_is_behind_by_what_no_flush_has_covered(self):
        self.restart_secondary()
        self.assert_behind()
        # Of the whole granules, what was written since the checkpoint and before.
        self.assertEqual(self.pair.primary.volume()["replicas"][0]["dirty_bytes"], 4 * 65536)

    def test_a_replica_that_was_started_anew_after_a_flush_misses_nothing(self):
        self.primary.flush()
        self.restart_secondary()
        self.assertFalse(self.pair.primary.volume()["replicas"][0]["behind"])
        self.primary.pwrite(b"more", SIZE // 2)
        self.pair.checkpoint()
        self.assertEqual(self.connect(self.pair.guest_uri).pread(4, SIZE // 2), b"more")
        self.assert_twins(self.pair)

    def test_a_replica_that_was_never_gone_misses_nothing_when_its_link_is_back(self):
        self.link.cut()
        self.pair.primary.wait_for("disconnected", lambda volume: not volume["replicas"][0]["connected"], PATIENCE_S)
        self.link.mend()
        self.pair.primary.wait_for("connected again", is_connected, PATIENCE_S)
        self.assertFalse(self.pair.primary.volume()["replicas"][0]["behind"])

    def test_a_frozen_replica_is_left_behind(self):
        self.pair.secondary.process.freeze()
        try:
            self.write_on()
            self.assert_behind()
        finally:
            self.pair.secondary.process.thaw()
        self.assert_failover_gives_the_checkpoint()

    def test_with_a_frozen_replica_no_write_is_answered_before_the_time_out_unless_its_granule_is_dirty(self):
        self.pair.secondary.process.freeze()
        try:
            began = time.monotonic()
            cookies = [self.primary.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"w" * 4096)), place)
                       for place in (0, 3 * MIB, 5 * MIB)]
            while time.monotonic() < began + 1.5:
                self.primary.poll(100)
                self.assertFalse(any(self.primary.aio_command_completed(cookie) for cookie in cookies))
            while self.primary.aio_in_flight():
                self.primary.poll(1000)
            waited = time.monotonic() - began
            self.assertGreater(waited, 1.9)
            self.assertLess(waited, PATIENCE_S)
            # These granules are dirty now; and others need not wait for a replica that is given up.
            began = time.monotonic()
            for place in (0, 3 * MIB, 5 * MIB):
                self.primary.pwrite(b"again" * 800, place)
            self.assertLess(time.monotonic() - began, 1.0)
            self.assert_behind()
        finally:
            self.pair.secondary.process.thaw()
        self.assert_failover_gives_the_checkpoint()

    def test_a_link_that_swallows_everything_is_given_up(self):
        self.link.freeze()
        self.write_on()
        self.assert_behind()
        self.link.cut()
        self.link.thaw()
        self.assert_failover_gives_the_checkpoint()

    def test_a_link_far_too_slow_is_given_up(self):
        self.link.delay_s = PATIENCE_S / 2
        self.write_on()
        self.assert_behind()
        self.link.cut()
        self.assert_failover_gives_the_checkpoint()

    def test_a_slow_link_delays_but_loses_nothing(self):
        self.link.delay_s = 0.02
        for number in range(20):
            self.primary.pwrite(bytes([number + 1]) * 10_000, number * 9_000)
        self.pair.checkpoint()
        self.assert_twins(self.pair)


class KilledPrimary(DiskTest):
    """The primary is killed while many writes are in flight."""

    BLOCK = 4096

    def setUp(self):
        super().setUp()
        self.make_disks(SIZE, seed=3)
        self.pair = self.enter_pair()
        self.acknowledged = bytearray(self.pair.primary_disk.read_bytes())
        self.uncertain = set()

    def write_until_it_dies(self):
        """Writes at depth 32, each place once; `acknowledged` is what was answered, `uncertain` what was not."""
        chance = random.Random(8)
        handle = self.connect(self.pair.primary_uri)
        places = list(range(0, SIZE, self.BLOCK))
        chance.shuffle(places)
        killer = threading.Timer(0.05, self.pair.primary.process.kill)
        killer.start()
        pending = {}
        try:
            for number, place in enumerate(places):
                data = bytearray([number % 251 + 1]) * self.BLOCK
                self.uncertain.add(place)
                pending[handle.aio_pwrite(nbd.Buffer.from_bytearray(data), place)] = (place, data)
                while len(pending) >= 32:
                    handle.poll(-1)
                    self.collect(handle, pending)
        except nbd.Error:
            pass
        killer.join()

    def collect(self, handle, pending):
        for cookie in list(pending):
            if handle.aio_command_completed(cookie):
                place, data = pending.pop(cookie)
                self.acknowledged[place:place + self.BLOCK] = data
                self.uncertain.discard(place)

    def test_a_stop_without_failover_leaves_every_acknowledged_write(self):
        self.write_until_it_dies()
        # The primary's connection ended in the middle, so the manager has to say that this is meant.
        twinblock("stop", "--force", "--control", f"unix:{self.pair.secondary.control_path}")
        self.pair.secondary.wait_for("done", lambda volume: volume["stage"] == "done")
        disk = self.pair.secondary_disk.read_bytes()
        for place in range(0, SIZE, self.BLOCK):
            if place not in self.uncertain:
                self.assertEqual(disk[place:place + self.BLOCK], self.acknowledged[place:place + self.BLOCK], place)

    def test_a_failover_leaves_nothing_of_what_came_after_the_checkpoint(self):
        before = bytes(self.acknowledged)
        self.write_until_it_dies()
        self.pair.failover()
        self.assertEqual(self.connect(self.pair.guest_uri).pread(SIZE, 0), before)
        self.pair.secondary.wait_for("done", lambda volume: volume["stage"] == "done")
        self.assertEqual(self.pair.secondary_disk.read_bytes(), before)
