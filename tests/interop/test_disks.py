"""Disks and buffers of every kind: served by others, in files, with O_DIRECT, on a file system that is full; and TCP."""
import os
import socket
import subprocess
import tempfile
import time

import nbd

from fixture import MIB, DiskTest
from harness.process import output_of
from harness.twinblock import Daemon, EXPORT, GUEST_EXPORT, is_connected

SIZE = 16 * MIB


class ServedByOthers(DiskTest):
    """Both disks are exports of NBD servers."""

    def serve(self, tool, image, socket_path):
        socket_path.unlink(missing_ok=True)
        command = {
            "nbdkit": ["nbdkit", "--foreground", "--unix", socket_path, "file", image],
            "qemu-nbd": ["qemu-nbd", "--persistent", "--shared=4", "--format=raw", "--discard=unmap", "--socket",
                         socket_path, image],
        }[tool]
        process = self.run_in_background(command, log=f"{socket_path.name}.log")
        while not socket_path.exists():
            time.sleep(0.01)
        return process

    def enter(self, tool):
        self.images = self.make_disks(SIZE, seed=6)
        sockets = [self.directory / f"{name}.server" for name in ("primary", "secondary")]
        servers = [self.serve(tool, image, path) for image, path in zip(self.images, sockets)]
        primary, secondary = (f"nbd+unix:///?socket={path}" for path in sockets)
        pair = self.enter_pair(primary_disk=primary, secondary_disk=secondary)
        pair.primary_disk, pair.secondary_disk = self.images
        return pair, servers, sockets

    def write_some(self, handle, seed):
        for number in range(40):
            handle.pwrite(bytes([seed + number]) * 10_000, (number * 391_939 + seed) % (SIZE - 10_000))
        handle.zero(100_000, 12_345)
        handle.trim(MIB, 5 * MIB)

    def test_a_pair_over_servers_of_either_make_works_to_the_end(self):
        for tool in ("nbdkit", "qemu-nbd"):
            with self.subTest(tool=tool):
                pair, servers, _ = self.enter(tool)
                handle = self.connect(pair.primary_uri)
                self.write_some(handle, 1)
                pair.checkpoint()
                saved = handle.pread(SIZE, 0)
                self.write_some(handle, 100)
                self.assert_twins(pair)
                view = self.connect(pair.guest_uri)
                self.assertEqual(view.pread(SIZE, 0), saved)
                view.pwrite(b"own", 77)
                pair.primary.kill()
                pair.failover()
                pair.secondary.wait_for("done", lambda volume: volume["stage"] == "done")
                self.assertEqual(view.pread(SIZE, 0), saved[:77] + b"own" + saved[80:])
                pair.secondary.kill()
                for server in servers:
                    server.terminate()

    def test_a_server_that_is_started_again_in_mid_write_is_waited_for(self):
        for which in (0, 1):
            with self.subTest(disk=which):
                pair, servers, sockets = self.enter("nbdkit")
                handle = self.connect(pair.primary_uri)
                handle.pwrite(b"b" * 4096, 0)
                expected = bytearray(handle.pread(SIZE, 0))
                cookies = []
                for number in range(64):
                    data = bytes([number + 1]) * 50_000
                    place = number * 60_001
                    expected[place:place + len(data)] = data
                    cookies.append(handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), place))
                    if number == 20:
                        servers[which].kill()
                time.sleep(0.3)
                servers[which] = self.serve("nbdkit", self.images[which], sockets[which])
                deadline = time.monotonic() + 20
                while handle.aio_in_flight() and time.monotonic() < deadline:
                    handle.poll(1000)
                for cookie in cookies:
                    self.assertTrue(handle.aio_command_completed(cookie))
                self.assertEqual(handle.pread(SIZE, 0), expected)
                self.assert_twins(pair)
                pair.checkpoint()
                pair.__exit__()
                for server in servers:
                    server.terminate()


class BufferInAFile(DiskTest):
    def test_the_view_is_kept_there(self):
        self.make_disks(SIZE, seed=7)
        before = (self.directory / "secondary.raw").read_bytes()
        for direct in (False, True):
            with self.subTest(direct=direct):
                if direct:
                    self.use_directory(tempfile.gettempdir())
                    self.make_disks(SIZE, seed=7)
                more = ["--direct"] if direct else []
                pair = self.enter_pair(buffer=self.directory / "buffer", primary_arguments=more,
                                       secondary_arguments=more)
                handle = self.connect(pair.primary_uri)
                handle.pwrite(b"f" * 4 * MIB, 4096)
                handle.zero(2 * MIB, 8 * MIB)
                view = self.connect(pair.guest_uri)
                self.assertEqual(view.pread(SIZE, 0), before)
                view.pwrite(b"g" * 8192, 1 * MIB)
                self.assert_twins(pair)
                pair.primary.kill()
                pair.failover()
                pair.secondary.wait_for("done", lambda volume: volume["stage"] == "done")
                expected = before[:MIB] + b"g" * 8192 + before[MIB + 8192:]
                self.assertEqual(view.pread(SIZE, 0), expected)
                self.assertEqual(pair.secondary_disk.read_bytes(), expected)
                pair.__exit__()


class FullFileSystem(DiskTest):
    """The buffer's file lies on a file system with less room than it may take."""

    def setUp(self):
        super().setUp()
        self.make_disks(SIZE, seed=8)
        place = self.directory / "small"
        place.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "twinblock", place], capture_output=True)
        if mounted.returncode != 0:
            self.skipTest(f"no tmpfs can be mounted: {mounted.stderr.decode().strip()}")
        self.addCleanup(subprocess.run, ["umount", "--lazy", place], check=True)
        self.pair = self.enter_pair(buffer=place / "buffer", buffer_bytes=8 * MIB)

    def test_a_keep_that_fails_leaves_the_replica_behind_and_the_view_whole(self):
        before = self.pair.secondary_disk.read_bytes()
        handle = self.connect(self.pair.primary_uri)
        handle.pwrite(b"e" * 4 * MIB, 0)
        handle.flush()
        self.assertEqual(handle.pread(4 * MIB, 0), b"e" * 4 * MIB)
        volume = self.pair.primary.wait_for("behind", lambda volume: volume["replicas"][0]["behind"])
        self.assertGreaterEqual(volume["errors"]["forward"], 1)
        self.assertGreaterEqual(self.pair.secondary.volume()["errors"]["copy_before_write"], 1)
        self.assertTrue(self.pair.primary.error()["error"])
        self.assertTrue(self.pair.secondary.error()["error"])
        view = self.connect(self.pair.guest_uri)
        self.assertEqual(view.pread(SIZE, 0), before)
        self.assert_refused("EIO", view.pwrite, b"g" * 2 * MIB, 8 * MIB)
        self.pair.failover()
        self.pair.secondary.wait_for("done", lambda volume: volume["stage"] == "done")
        self.assertEqual(view.pread(SIZE // 2, 0), before[:SIZE // 2])


class OverTcp(DiskTest):
    def free_port(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    def test_a_pair_speaks_tcp_everywhere_and_two_exports_share_an_address(self):
        primary_disk, secondary_disk = self.make_disks(SIZE, seed=9)
        guest, replication = (self.free_port() for _ in range(2))
        secondary = Daemon("secondary", self.directory, [
            "--disk", secondary_disk, "--listen", f"tcp:127.0.0.1:{replication}", "--export", EXPORT,
            "--guest", f"tcp:127.0.0.1:{replication}", "--guest-export", GUEST_EXPORT, "--buffer", "memory",
            "--buffer-size", "16M", "--start"])
        primary = Daemon("primary", self.directory, [
            "--disk", primary_disk, "--listen", f"tcp:127.0.0.1:{guest}", "--export", EXPORT,
            "--replica", f"nbd://127.0.0.1:{replication}/{EXPORT}", "--replica-control",
            f"unix:{secondary.control_path}", "--start"])
        for daemon in (secondary, primary):
            self.addCleanup(daemon.kill)
            daemon.start()
        primary.wait_for("connected", is_connected)
        handle = self.connect(f"nbd://127.0.0.1:{guest}/{EXPORT}")
        handle.pwrite(b"t" * 3 * MIB, 1000)
        handle.flush()
        self.assert_same_file(primary_disk, secondary_disk)
        primary.qmp.call("xen-colo-do-checkpoint")
        view = self.connect(f"nbd://127.0.0.1:{replication}/{GUEST_EXPORT}")
        self.assertEqual(view.pread(3 * MIB, 1000), b"t" * 3 * MIB)
