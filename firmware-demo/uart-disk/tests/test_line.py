"""One machine, and one client on its serial line."""
import os
import pathlib
import random
import tempfile
import time
import unittest

import nbd

from harness.process import Process, output_of

MIB = 1 << 20


class Line(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="uart-disk-")
        self.addCleanup(folder.cleanup)
        folder = pathlib.Path(folder.name)
        socket = folder / "line"
        # It waits for somebody at the other end before it is switched on.
        self.machine = Process([
            "qemu-system-riscv64", "-machine", "virt", "-m", "16M", "-accel", "tcg", "-bios", "none", "-display", "none",
            "-monitor", "none", "-serial", f"unix:{socket},server=on,wait=on", "-kernel", os.environ["UART_DISK"]],
            folder / "emulator.log")
        self.addCleanup(self.machine.kill)
        deadline = time.monotonic() + 20
        while not socket.exists():
            self.assertLess(time.monotonic(), deadline, self.machine.tail())
            time.sleep(0.01)
        self.uri = f"nbd+unix:///disk?socket={socket}"

    def client(self):
        handle = nbd.NBD()
        handle.set_strict_mode(0)
        handle.connect_uri(self.uri)
        return handle

    def assert_off(self):
        """The machine has said goodbye too, and all was well."""
        self.assertEqual(self.machine.wait(20), 0, self.machine.tail())

    def test_nbdinfo_shows_the_export(self):
        told = output_of(["nbdinfo", "--no-content", self.uri])
        for text in ("export-size: 1048576", "1 MiB of RAM behind a serial line", "protocol: newstyle-fixed"):
            self.assertIn(text, told)

    def test_what_is_written_is_read_back_whatever_its_length_and_place(self):
        handle = self.client()
        rng = random.Random(5)
        expected = bytearray(MIB)
        for offset, length in [(0, 1), (511, 2), (4095, 4098), (10_001, 5000), (MIB - 7, 7)]:
            content = rng.randbytes(length)
            handle.pwrite(content, offset)
            expected[offset:offset + length] = content
        handle.zero(5000, 1000)
        expected[1000:6000] = bytes(5000)
        handle.flush()
        # More than the line, the session and the windows hold at a time.
        self.assertEqual(handle.pread(20_000, 0), bytes(expected[:20_000]))
        self.assertEqual(handle.pread(7, MIB - 7), bytes(expected[-7:]))
        handle.shutdown()
        self.assert_off()

    def test_requests_in_flight_together_are_all_answered(self):
        handle = self.client()
        blocks = [bytearray([number]) * 1000 for number in range(1, 11)]
        cookies = {handle.aio_pwrite(nbd.Buffer.from_bytearray(block), number * 5000)
                   for number, block in enumerate(blocks)}
        while cookies := {cookie for cookie in cookies if not handle.aio_command_completed(cookie)}:
            handle.poll(100)
        for number, block in enumerate(blocks):
            self.assertEqual(handle.pread(1000, number * 5000), bytes(block))
        handle.shutdown()
        self.assert_off()

    def test_what_is_no_request_is_refused_and_the_line_stays_usable(self):
        handle = self.client()
        for action, errno in [(lambda: handle.pread(512, MIB), "EINVAL"), (lambda: handle.pwrite(b"x", MIB), "ENOSPC")]:
            with self.assertRaises(nbd.Error) as caught:
                action()
            self.assertEqual(caught.exception.errno, errno)
        self.assertEqual(handle.pread(16, 0), bytes(16))
        handle.shutdown()
        self.assert_off()

    def test_an_export_that_there_is_not_is_refused(self):
        handle = nbd.NBD()
        with self.assertRaises(nbd.Error):
            handle.connect_uri(self.uri.replace("disk?", "other?"))
