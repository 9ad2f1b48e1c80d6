"""Which back end does the I/O: what is asked for, what there is, and what is said where there is none."""
import errno
import os
import pathlib
import sys

from fixture import MIB, DiskTest
from harness import without_ring
from harness.process import Process, output_of
from harness.twinblock import Daemon, binary


class Backend(DiskTest):
    def setUp(self):
        super().setUp()
        self.disk = self.make_disk("disk.raw", MIB, seed=1)

    def daemon(self, *arguments):
        daemon = Daemon("primary", self.directory, ["--disk", self.disk, "--listen", f"unix:{self.directory}/nbd",
                                                    "--export", "disk", *arguments])
        self.addCleanup(daemon.kill)
        return daemon

    def without_ring(self, number, backend):
        """A daemon where the system gives no ring."""
        daemon = self.daemon("--backend", backend)
        daemon._command = [sys.executable, without_ring.__file__, number, *daemon._command]
        return daemon

    def backend_of(self, daemon):
        return daemon.qmp.call("query-replication")["backend"]

    def serves(self):
        output_of(["qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", "-c", "flush", "-c", "read -P 7 0 64k",
                   f"nbd+unix:///disk?socket={self.directory}/nbd"])
        self.assertEqual(pathlib.Path(self.disk).read_bytes()[:64 << 10], bytes([7]) * (64 << 10))

    def test_what_is_asked_for_is_used_and_told(self):
        wanted = os.environ.get("TWINBLOCK_BACKEND", "posix")
        for backend in {"posix", wanted}:
            daemon = self.daemon("--backend", backend)
            daemon.start()
            self.assertEqual(self.backend_of(daemon), backend)
            shown = output_of([binary(), "status", "--control", daemon.control])
            self.assertRegex(shown, rf"backend +{backend}\n")
            self.serves()
            self.assertEqual(daemon.process.terminate(), 0)

    def test_where_there_is_no_ring_files_and_sockets_go_by_posix_calls_and_one_line_says_why(self):
        for number, reason in ((errno.EPERM, "kernel.io_uring_disabled"), (errno.ENOSYS, "Linux 6.0")):
            with self.subTest(reason=reason):
                daemon = self.without_ring(number, "auto")
                daemon.start()
                self.assertEqual(self.backend_of(daemon), "posix")
                self.serves()
                lines = [line for line in daemon.process.tail().splitlines() if "io_uring" in line]
                self.assertEqual(len(lines), 1, lines)
                self.assertIn(reason, lines[0])
                daemon.kill()
                daemon._log.unlink()

    def test_a_ring_that_is_asked_for_and_not_there_is_refused_with_what_to_do(self):
        for number, hint in ((errno.EPERM, "kernel.io_uring_disabled"), (errno.ENOSYS, "Linux 6.0")):
            with self.subTest(hint=hint):
                daemon = self.without_ring(number, "io-uring")
                daemon.launch()
                self.assertNotEqual(daemon.process.wait(), 0)
                lines = daemon.process.tail().splitlines()
                self.assertEqual(len(lines), 1, lines)
                for word in ("io-uring", hint, "posix"):
                    self.assertIn(word, lines[0])
                daemon._log.unlink()

