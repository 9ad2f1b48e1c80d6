"""Each NBD command and each refusal, by libnbd."""
import os
import random
import tempfile

import nbd

from fixture import MIB, DiskTest, PairTest, on_every_export
from harness.process import output_of


class Commands(PairTest):
    SIZE = 16 * MIB

    @on_every_export
    def test_what_was_written_is_read_back(self, handle):
        handle.pwrite(b"a" * 1000, 4095)
        handle.pwrite(b"b", 4096, nbd.CMD_FLAG_FUA)
        self.assertEqual(handle.pread(1000, 4095), b"ab" + b"a" * 998)

    @on_every_export
    def test_zeroes_read_back_with_and_without_holes(self, handle):
        for flags in (0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA):
            handle.pwrite(b"x" * 300000, 100)
            handle.zero(200001, 50000, flags)
            self.assertEqual(handle.pread(300000, 100), b"x" * 49900 + bytes(200001) + b"x" * 50099)

    @on_every_export
    def test_zeroes_that_must_be_fast_are_written_or_refused_but_never_half(self, handle):
        if not handle.can_fast_zero():
            self.skipTest("not announced")
        handle.pwrite(b"y" * MIB, 0)
        try:
            handle.zero(MIB, 0, nbd.CMD_FLAG_FAST_ZERO)
            expected = bytes(MIB)
        except nbd.Error as error:
            self.assertEqual(error.errno, "ENOTSUP")
            expected = b"y" * MIB
        self.assertEqual(handle.pread(MIB, 0), expected)

    @on_every_export
    def test_a_trim_reads_back_as_zeroes(self, handle):
        handle.pwrite(b"z" * 100000, 777)
        handle.trim(50000, 20000, nbd.CMD_FLAG_FUA)
        self.assertEqual(handle.pread(100000, 777), b"z" * 19223 + bytes(50000) + b"z" * 30777)

    @on_every_export
    def test_cache_and_flush_succeed(self, handle):
        handle.cache(MIB, 12345)
        handle.flush()

    @on_every_export
    def test_a_read_comes_in_one_chunk_if_that_is_asked_for(self, handle):
        chunks = []
        handle.pread_structured(64 * 1024, 512, lambda data, offset, status, error: chunks.append(len(data)),
                                nbd.CMD_FLAG_DF)
        self.assertEqual(chunks, [64 * 1024])

    @on_every_export
    def test_block_status_covers_what_was_asked_and_calls_no_data_a_hole(self, handle):
        handle.zero(4 * MIB, 8 * MIB)
        offset = 0
        while offset < self.SIZE:
            found = []
            handle.block_status(self.SIZE - offset, offset,
                                lambda context, at, entries, error: found.extend(entries))
            self.assertGreater(len(found), 0)
            for length, flags in zip(found[::2], found[1::2]):
                self.assertGreater(length, 0)
                if flags & nbd.STATE_ZERO:
                    end = min(offset + length, self.SIZE)
                    self.assertEqual(handle.pread(end - offset, offset), bytes(end - offset))
                offset += length
        found = []
        handle.block_status(self.SIZE, 0, lambda context, at, entries, error: found.extend(entries),
                            nbd.CMD_FLAG_REQ_ONE)
        self.assertEqual(len(found), 2)
        self.assertLessEqual(found[0], self.SIZE)

    @on_every_export
    def test_an_empty_request_does_not_end_the_connection(self, handle):
        for call in (lambda: handle.zero(0, 0), lambda: handle.trim(0, 0), lambda: handle.pwrite(b"", 0)):
            try:
                call()
            except nbd.Error as error:
                self.assertEqual(error.errno, "EINVAL")
        handle.pread(512, 0)

    @on_every_export
    def test_what_lies_beyond_the_end_is_refused(self, handle):
        self.assert_refused("EINVAL", handle.pread, 512, self.SIZE - 511)
        self.assert_refused("EINVAL", handle.pread, 1, 1 << 62)
        self.assert_refused("ENOSPC", handle.pwrite, b"w" * 512, self.SIZE - 511)
        self.assert_refused("ENOSPC", handle.zero, 512, self.SIZE - 511)
        self.assert_refused("EINVAL", handle.trim, 512, self.SIZE - 511)
        self.assert_refused("EINVAL", handle.cache, 512, self.SIZE - 511)
        self.assertEqual(len(handle.pread(511, self.SIZE - 511)), 511)

    def test_requests_overlapping_in_flight_from_four_connections_leave_the_twins_equal(self):
        chance = random.Random(5)
        handles = [self.connect(self.pair.primary_uri) for _ in range(4)]
        pending = []
        for number in range(2000):
            handle = handles[number % 4]
            offset = chance.randrange(0, 256 * 1024)
            length = chance.randrange(1, 100_000)
            kind = chance.randrange(8)
            if kind == 0:
                cookie = handle.aio_zero(length, offset)
            elif kind == 1:
                cookie = handle.aio_trim(length, offset)
            elif kind == 2:
                cookie = handle.aio_flush()
            else:
                cookie = handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([number % 251 + 1]) * length), offset)
            pending.append((handle, cookie))
            while len(pending) > 64:
                finish(*pending.pop(chance.randrange(len(pending))))
        for handle, cookie in pending:
            finish(handle, cookie)
        self.assert_twins(self.pair)


def finish(handle, cookie):
    """Waits for one request; raises what it was answered."""
    while not handle.aio_command_completed(cookie):
        handle.poll(-1)


class LargeRequests(PairTest):
    """A disk of holes and a buffer that may keep all of it."""

    SIZE = 1280 * MIB
    SEED = None

    def setUp(self):
        self.OPTIONS = {"buffer_bytes": self.SIZE}
        super().setUp()

    def test_a_read_of_32_mib_is_served(self):
        pattern = random.Random(3).randbytes(32 * MIB)
        handle = self.connect(self.pair.primary_uri)
        handle.pwrite(pattern, 12345)
        for name, uri in self.exports()[:2]:
            with self.subTest(export=name):
                self.assertEqual(self.connect(uri).pread(32 * MIB, 12345), pattern)
        self.assertEqual(self.connect(self.pair.guest_uri).pread(32 * MIB, 12345), bytes(32 * MIB))
        self.assert_twins(self.pair)

    def test_a_zero_of_1_gib_is_served(self):
        handle = self.connect(self.pair.primary_uri)
        for start in (0, 200 * MIB, 1023 * MIB):
            handle.pwrite(b"d" * MIB, start + 77)
        self.pair.checkpoint()
        handle.zero(1 << 30, 77)
        self.assertEqual(handle.pread(MIB, 200 * MIB + 77), bytes(MIB))
        self.assert_twins(self.pair)
        view = self.connect(self.pair.guest_uri)
        for start in (0, 200 * MIB, 1023 * MIB):
            self.assertEqual(view.pread(MIB, start + 77), b"d" * MIB)

    def test_more_than_the_largest_payload_is_refused_or_served_and_the_daemon_goes_on(self):
        handle = self.connect(self.pair.primary_uri, strict=False)
        try:
            handle.pread(32 * MIB + 1, 0)
        except nbd.Error as error:
            self.assertIn(error.errno, ("EINVAL", "EOVERFLOW", "ENOMEM", ""))
        self.assertEqual(len(self.connect(self.pair.primary_uri).pread(512, 0)), 512)


class ReadOnlyView(PairTest):
    SIZE = 8 * MIB
    OPTIONS = {"secondary_arguments": ["--guest-read-only"]}

    def test_modifications_are_refused(self):
        handle = self.connect(self.pair.guest_uri, strict=False)
        self.assertTrue(handle.is_read_only())
        self.assert_refused("EPERM", handle.pwrite, b"r" * 512, 0)
        self.assert_refused("EPERM", handle.zero, 512, 0)
        self.assert_refused("EPERM", handle.trim, 512, 0)
        handle.pread(512, 0)


class DirectDisk(DiskTest):
    """Daemons that open their disks with O_DIRECT, on this machine's own disk."""

    SIZE = 8 * MIB

    def setUp(self):
        super().setUp()
        self.use_directory(tempfile.gettempdir())
        image, _ = self.make_disks(self.SIZE, seed=4)
        try:
            os.close(os.open(image, os.O_RDWR | os.O_DIRECT))
        except OSError as error:
            self.skipTest(f"{image}: {error}")
        self.pair = self.enter_pair(primary_arguments=["--direct"], secondary_arguments=["--direct"])

    def test_misaligned_requests_are_refused_and_others_reach_both_disks(self):
        handle = self.connect(self.pair.primary_uri, strict=False)
        block = handle.get_block_size(nbd.SIZE_MINIMUM)
        self.assertGreaterEqual(block, 512)
        self.assert_refused("EINVAL", handle.pread, block, block // 2)
        self.assert_refused("EINVAL", handle.pwrite, b"m" * (block // 2), 0)
        handle.pwrite(b"d" * 16 * block, 3 * block)
        handle.zero(4 * block, 5 * block)
        handle.pwrite(b"D" * MIB, 2 * MIB)
        self.assertEqual(handle.pread(4 * block, 2 * block),
                         self.connect(self.pair.guest_uri).pread(block, 2 * block) + b"d" * 2 * block + bytes(block))
        self.assert_twins(self.pair)


class AlignedDisk(DiskTest):
    """A primary over a disk with blocks of 4096 bytes, which nbdkit serves."""

    SIZE = 8 * MIB

    def setUp(self):
        super().setUp()
        image, _ = self.make_disks(self.SIZE, seed=4)
        socket = self.directory / "aligned.nbd"
        self.run_in_background(["nbdkit", "--foreground", "--unix", socket, "--filter=blocksize-policy", "file", image,
                                "blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=32M",
                                "blocksize-error-policy=error"])
        self.pair = self.enter_pair(primary_disk=f"nbd+unix:///?socket={socket}")
        self.pair.primary_disk = image

    def test_the_block_size_is_passed_on(self):
        handle = self.connect(self.pair.primary_uri)
        self.assertEqual(handle.get_block_size(nbd.SIZE_MINIMUM), 4096)

    def test_misaligned_requests_are_refused(self):
        handle = self.connect(self.pair.primary_uri, strict=False)
        self.assert_refused("EINVAL", handle.pread, 4096, 512)
        self.assert_refused("EINVAL", handle.pread, 512, 4096)
        self.assert_refused("EINVAL", handle.pwrite, b"m" * 512, 0)
        self.assert_refused("EINVAL", handle.zero, 4096, 1)
        handle.pread(4096, 4096)

    def test_aligned_writes_reach_both_disks(self):
        output_of(["qemu-io", "-f", "raw", "-c", "write -P 7 4k 1M", "-c", "write -z 2M 1M", "-c", "flush",
                   self.pair.primary_uri])
        self.assert_twins(self.pair)
