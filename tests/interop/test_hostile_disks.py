"""Disks and buffers that change under a running daemon, and pairs whose sides do not fit: nobody crashes, no guest is given
zeroes for what is gone, and the manager is told."""
import os
import subprocess

import nbd

from fixture import MIB, DiskTest
from harness.twinblock import Daemon, EXPORT

SIZE = 8 * MIB
PATIENCE_S = 60.0


class Shrinking(DiskTest):
    """Somebody makes the file shorter that a daemon serves."""

    def setUp(self):
        super().setUp()
        self.images = self.make_disks(SIZE, seed=11)
        self.content = self.images[0].read_bytes()

    def logged(self, daemon, text):
        return [line for line in daemon.process.tail(1 << 20).splitlines() if text in line]

    def told_as_hole(self, handle, offset):
        """Whether the export says that there is a hole."""
        told = []
        try:
            handle.block_status(4096, offset, lambda _, __, extents, ___: told.extend(extents[1::2]) or 0)
        except nbd.Error as error:
            self.assertEqual(error.errno, "EIO")
        return any(told)

    def test_what_is_gone_of_a_sparse_disk_is_not_told_to_be_a_hole(self):
        self.images[0] = self.make_disk("primary.raw", SIZE)
        handle = self.enter_primary()[1]
        self.assertTrue(self.told_as_hole(handle, SIZE // 2))
        os.truncate(self.images[0], SIZE // 4)
        self.assertFalse(self.told_as_hole(handle, SIZE // 2))
        self.assertTrue(self.told_as_hole(handle, 0))

    def enter_primary(self):
        primary = Daemon("primary", self.directory, ["--disk", self.images[0], "--listen",
                                                     f"unix:{self.directory}/primary.nbd", "--export", EXPORT, "--start"])
        self.addCleanup(primary.kill)
        primary.start()
        handle = self.connect(f"nbd+unix:///{EXPORT}?socket={self.directory}/primary.nbd",
                              contexts=[nbd.CONTEXT_BASE_ALLOCATION])
        return primary, handle

    def test_what_is_gone_of_a_primary_disk_is_an_error_and_no_zeroes(self):
        primary, handle = self.enter_primary()
        for length in (SIZE // 2, SIZE // 2 - 1000, 0):
            os.truncate(self.images[0], length)
            for offset in (SIZE // 2, SIZE - 4096, length):
                self.assert_refused("EIO", handle.pread, 4096, offset)
            self.assert_refused("EIO", handle.pread, 2 * MIB, max(length - MIB, 0))
            # Nobody may copy it as a hole.
            self.assertEqual(self.told_as_hole(handle, SIZE // 2), False)
            if length:
                self.assertEqual(handle.pread(4096, 4096), self.content[4096:8192])
        volume = primary.volume()
        self.assertGreaterEqual(volume["errors"]["primary_disk"], 1)
        self.assertTrue(primary.error()["error"])
        self.assertTrue(self.logged(primary, "primary_disk"))
        # It grows again by what is written, and goes on.
        handle.pwrite(b"w" * 4096, SIZE - 4096)
        self.assertEqual(handle.pread(4096, SIZE - 4096), b"w" * 4096)
        handle.flush()
        self.assertEqual(primary.process.terminate(), 0)

    def test_a_pair_serves_its_guest_from_the_replica_what_is_gone_of_the_primary_disk(self):
        pair = self.enter_pair()
        handle = self.connect(pair.primary_uri)
        os.truncate(self.images[0], MIB)
        self.assertEqual(handle.pread(4096, SIZE // 2), self.content[SIZE // 2:SIZE // 2 + 4096])
        self.assertGreaterEqual(pair.primary.volume()["errors"]["primary_disk"], 1)

    def test_what_is_gone_of_a_secondary_disk_fails_the_keep_and_is_told_on_both_sides(self):
        pair = self.enter_pair()
        os.truncate(self.images[1], MIB)
        view = self.connect(pair.guest_uri)
        self.assert_refused("EIO", view.pread, 4096, SIZE // 2)
        handle = self.connect(pair.primary_uri)
        handle.pwrite(b"n" * 4096, SIZE // 2)
        handle.flush()
        self.assertEqual(handle.pread(4096, SIZE // 2), b"n" * 4096)
        pair.primary.wait_for("behind", lambda volume: volume["replicas"][0]["behind"], PATIENCE_S)
        errors = pair.secondary.volume()["errors"]
        self.assertGreaterEqual(errors["copy_before_write"] + errors["secondary_disk"], 1)
        self.assertTrue(pair.secondary.error()["error"])
        self.assertTrue(self.logged(pair.secondary, "error"))
        self.assertEqual(view.pread(4096, 0), self.content[:4096])

    def test_a_buffer_that_is_cut_short_gives_errors_and_no_wrong_bytes(self):
        pair = self.enter_pair(buffer=self.directory / "buffer", buffer_bytes=4 * MIB)
        handle, view = self.connect(pair.primary_uri), self.connect(pair.guest_uri)
        handle.pwrite(b"n" * MIB, 0)
        self.assertEqual(view.pread(4096, 8192), self.content[8192:12288])
        os.truncate(self.directory / "buffer", 0)
        self.assert_refused("EIO", view.pread, 4096, 8192)
        self.assertGreaterEqual(pair.secondary.volume()["errors"]["buffer"], 1)
        self.assertEqual(view.pread(4096, 4 * MIB), self.content[4 * MIB:4 * MIB + 4096])
        pair.checkpoint()
        self.assertEqual(view.pread(4096, 8192), b"n" * 4096)

    def test_disks_that_are_removed_or_replaced_while_they_are_served_stay_what_they_were(self):
        pair = self.enter_pair()
        for image in self.images:
            image.unlink()
            image.write_bytes(b"another")
        handle = self.connect(pair.primary_uri)
        handle.pwrite(b"s" * 4096, 0)
        pair.checkpoint()
        self.assertEqual(self.connect(pair.guest_uri).pread(8192, 0), b"s" * 4096 + self.content[4096:8192])


class Unlike(DiskTest):
    """The two sides of a pair do not fit."""

    def enter(self, primary_bytes, secondary_bytes):
        self.make_disk("primary.raw", primary_bytes, seed=12)
        self.make_disk("secondary.raw", secondary_bytes, seed=12)
        secondary = self.enter_secondary()
        primary = Daemon("primary", self.directory, [
            "--disk", self.directory / "primary.raw", "--listen", f"unix:{self.directory}/primary.nbd", "--export", EXPORT,
            "--replica", secondary.replica_uri, "--replica-control", f"unix:{secondary.control_path}", "--start"])
        self.addCleanup(primary.kill)
        primary.start()
        return primary, secondary

    def test_disks_of_different_size_are_not_replicated_and_the_guest_goes_on(self):
        for primary_bytes, secondary_bytes in ((4 * MIB, 4 * MIB - 512), (4 * MIB - 512, 4 * MIB), (4 * MIB, 64 * 1024)):
            with self.subTest(primary=primary_bytes, secondary=secondary_bytes):
                (self.directory / "primary.log").unlink(missing_ok=True)
                primary, secondary = self.enter(primary_bytes, secondary_bytes)
                before = (self.directory / "secondary.raw").read_bytes()
                handle = self.connect(f"nbd+unix:///{EXPORT}?socket={self.directory}/primary.nbd")
                handle.pwrite(b"d" * 4096, 0)
                handle.flush()
                self.assertEqual(handle.pread(4096, 0), b"d" * 4096)
                volume = primary.wait_for("behind", lambda volume: volume["replicas"][0]["behind"], PATIENCE_S)
                self.assertFalse(volume["replicas"][0]["connected"])
                self.assertEqual((self.directory / "secondary.raw").read_bytes(), before)
                said = [line for line in primary.process.tail(1 << 20).splitlines() if "bytes and the other disk" in line]
                self.assertTrue(said)
                for size in (primary_bytes, secondary_bytes):
                    self.assertIn(str(size), said[0])
                self.assertLess(len(said), 5)
                primary.kill()
                secondary.kill()


class NoSpace(DiskTest):
    """The primary disk lies on a file system without room for what is written to it."""

    def test_a_write_that_finds_no_room_is_answered_so_and_the_daemon_goes_on(self):
        place = self.directory / "small"
        place.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "twinblock", place], capture_output=True)
        if mounted.returncode != 0:
            self.skipTest(f"no tmpfs can be mounted: {mounted.stderr.decode().strip()}")
        self.addCleanup(subprocess.run, ["umount", "--lazy", place], check=True)
        with open(place / "disk.raw", "wb") as file:
            file.truncate(SIZE)
        primary = Daemon("primary", self.directory, ["--disk", place / "disk.raw", "--listen",
                                                     f"unix:{self.directory}/primary.nbd", "--export", EXPORT, "--start"])
        self.addCleanup(primary.kill)
        primary.start()
        handle = self.connect(f"nbd+unix:///{EXPORT}?socket={self.directory}/primary.nbd")
        self.assert_refused(("ENOSPC", "EIO"), handle.pwrite, b"x" * 4 * MIB, 0)
        self.assertGreaterEqual(primary.volume()["errors"]["primary_disk"], 1)
        handle.trim(SIZE, 0)
        handle.pwrite(b"y" * 4096, 0)
        self.assertEqual(handle.pread(4096, 0), b"y" * 4096)
