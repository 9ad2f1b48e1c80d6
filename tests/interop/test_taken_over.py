"""A replica that takes over by its manager's word while its primary lives on."""
import time

import nbd

from fixture import MIB, DiskTest
from harness.qmp import QmpError

SIZE = 1 * MIB


class TakenOver(DiskTest):
    """The primary disk is served by somebody who fails reads once a file is there."""

    def setUp(self):
        super().setUp()
        disk, _ = self.make_disks(SIZE, seed=4)
        socket = self.directory / "disk.nbd"
        self.trouble = self.directory / "trouble"
        self.run_in_background([
            "nbdkit", "--foreground", "--unix", socket, "--filter=error", "file", disk,
            "error-pread-rate=100%", f"error-pread-file={self.trouble}"])
        while not socket.exists():
            time.sleep(0.01)
        self.pair = self.enter_pair(primary_disk=f"nbd+unix:///?socket={socket}")
        self.primary = self.connect(self.pair.primary_uri)
        self.primary.pwrite(b"checkpoint" * 100, 0)
        self.pair.checkpoint()

    def wait_until_behind(self):
        self.pair.primary.wait_for("behind", lambda volume: volume["replicas"][0]["behind"])
        self.assertTrue(self.pair.primary.error()["error"])

    def take_over(self, failover):
        self.pair.secondary.replicate(enable=False, primary=False, failover=failover)
        self.pair.secondary.wait_for("done", lambda volume: volume["stage"] == "done")
        self.connect(self.pair.guest_uri).pwrite(b"foreign" * 100, 0)

    def test_a_twin_answers_reads_that_the_disk_fails(self):
        self.trouble.touch()
        self.assertEqual(self.primary.pread(1000, 0), b"checkpoint" * 100)

    def assert_not_read(self):
        self.assertFalse(self.pair.primary.volume()["replicas"][0]["behind"], "nobody has told it")
        self.trouble.touch()
        with self.assertRaises(nbd.Error):
            self.primary.pread(1000, 0)
        self.wait_until_behind()
        self.trouble.unlink()
        self.assertEqual(self.primary.pread(1000, 0), b"checkpoint" * 100, "its own disk")

    def test_after_a_failover_the_primary_reads_nothing_that_the_guest_there_has_written(self):
        self.take_over(True)
        self.assert_not_read()

    def test_after_a_stop_the_primary_reads_nothing_that_the_guest_there_has_written(self):
        self.take_over(False)
        self.assert_not_read()

    def test_a_new_connection_of_the_primary_changes_nothing(self):
        self.take_over(True)
        self.pair.primary.qmp.call("detach", name="replica0")
        self.pair.primary.qmp.call("attach", name="replica0", uri=self.pair.replica_uri)
        self.trouble.touch()
        with self.assertRaises(nbd.Error):
            self.primary.pread(1000, 0)

    def test_the_next_checkpoint_finds_out_and_says_so_without_a_write(self):
        self.take_over(True)
        with self.assertRaises(QmpError) as caught:
            self.pair.primary.qmp.call("xen-colo-do-checkpoint")
        self.assertIn("has taken over", caught.exception.desc)
        self.wait_until_behind()

    def test_a_flush_does_not_count_it(self):
        self.take_over(True)
        self.primary.flush()
        self.wait_until_behind()

    def test_everybody_else_reads_it_in_every_stage(self):
        self.take_over(True)
        self.assertEqual(self.connect(self.pair.replica_uri).pread(700, 0), b"foreign" * 100)
