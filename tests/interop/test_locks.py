"""An image has one writer: Twinblock and QEMU respect each other's locks."""
import subprocess
import time

from fixture import MIB, PairTest, DiskTest
from harness.process import output_of
from harness.twinblock import Daemon, EXPORT


class HeldByTwinblock(PairTest):
    SIZE = MIB

    def refused(self, *command):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=30)
        self.assertNotEqual(done.returncode, 0, done.stdout)
        self.assertIn("lock", done.stdout + done.stderr)

    def test_qemus_tools_refuse_an_image_that_a_daemon_holds(self):
        for disk in (self.pair.primary_disk, self.pair.secondary_disk):
            with self.subTest(disk=disk.name):
                self.refused("qemu-io", "-f", "raw", "-c", "write 0 512", disk)
                self.refused("qemu-img", "convert", "-f", "raw", "-O", "raw", disk, self.directory / "copy.raw")

    def test_a_second_daemon_refuses_it_too_and_names_it(self):
        other = self.directory / "other"
        other.mkdir()
        daemon = Daemon("primary", other, ["--disk", self.pair.primary_disk, "--listen", f"unix:{other}/primary.nbd",
                                           "--export", EXPORT])
        self.addCleanup(daemon.kill)
        daemon.launch()
        self.assertNotEqual(daemon.process.wait(), 0)
        self.assertIn("primary.raw", daemon.process.tail())

    def test_the_image_is_free_once_the_daemon_has_ended(self):
        self.pair.__exit__()
        for disk in (self.pair.primary_disk, self.pair.secondary_disk):
            output_of(["qemu-io", "-f", "raw", "-c", "write 0 512", disk])


class HeldByQemu(DiskTest):
    def test_a_daemon_refuses_an_image_that_qemu_nbd_holds(self):
        primary, _ = self.make_disks(MIB)
        socket = self.directory / "holder.nbd"
        self.run_in_background(["qemu-nbd", "--persistent", "--format=raw", "--socket", socket, primary])
        while not socket.exists():
            time.sleep(0.01)
        daemon = Daemon("primary", self.directory, ["--disk", primary, "--listen",
                                                    f"unix:{self.directory}/primary.nbd", "--export", EXPORT])
        self.addCleanup(daemon.kill)
        daemon.launch()
        self.assertNotEqual(daemon.process.wait(), 0)
        said = daemon.process.tail()
        self.assertIn("primary.raw", said)
        self.assertIn("lock", said)
