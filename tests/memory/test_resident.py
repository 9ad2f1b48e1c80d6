"""How much memory the daemons occupy (VmRSS: their program and libraries included), whatever the size of the disk."""
import time

import nbd

from fixture import MIB, DiskTest
from harness.load import KIB, KINDS, Load

TIB = 1 << 40
SECONDARY_KIB_MAX = 16 * KIB
PRIMARY_KIB_MAX = 24 * KIB
# Of a primary for each further TiB of which every part was written: a bit for each 64 KiB that was written at all, that
# its replica has not flushed, and that a flush under way covers.
BITMAPS_KIB_PER_TIB = 3 * 2 * KIB
# Of its own for each granule of 4 KiB that is in the buffer: 35.4 bytes, in whole pages.
INDEX_KIB_PER_GIB = 9 * KIB + 256
# A buffer that was used is given back when it was of no use for a second; a load's worth takes some of them.
REST_S = 15


class Resident(DiskTest):
    def begin(self, disk_bytes, buffer_bytes=64 * MIB, **options):
        self.primary_max = PRIMARY_KIB_MAX + max(0, disk_bytes - TIB) // TIB * BITMAPS_KIB_PER_TIB
        self.make_disks(disk_bytes)
        self.pair = self.enter_pair(buffer_bytes=buffer_bytes, **options)

    def resident(self, field="VmRSS"):
        return self.pair.primary.resident_kib(field), self.pair.secondary.resident_kib(field)

    def assert_index_costs(self, before_kib, kib_max):
        """What the secondary has taken since, when nothing else is left of it."""
        deadline = time.monotonic() + REST_S
        while (cost := self.resident()[1] - before_kib) > kib_max and time.monotonic() < deadline:
            time.sleep(0.1)
        print(f"{cost} KiB for the index", end=" ... ", flush=True)
        self.assertLessEqual(cost, kib_max)

    def assert_small(self, when, secondary_more_kib=0):
        """Within the limits, once what a load has left behind was given back."""
        deadline = time.monotonic() + REST_S
        secondary_max = SECONDARY_KIB_MAX + secondary_more_kib
        while True:
            primary, secondary = self.resident()
            if (primary <= self.primary_max and secondary <= secondary_max) or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        print(f"{when}: primary {primary} KiB, secondary {secondary} KiB", end=" ... ", flush=True)
        self.assertLessEqual(primary, self.primary_max, f"primary, {when}")
        self.assertLessEqual(secondary, secondary_max, f"secondary, {when}")

    def use(self, secondary_more_kib=0):
        """Requests of every kind and length everywhere, from many connections, with checkpoints between. Meanwhile both
        stay within their limits."""
        contexts = [nbd.CONTEXT_BASE_ALLOCATION]
        for uri in (self.pair.primary_uri, self.pair.guest_uri):
            load = Load([self.connect(uri, contexts=contexts) for _ in range(4)], depth=32)
            for kind in KINDS:
                for _ in range(4):
                    load.run(kind, 250 if kind not in ("fua", "flush") else 25)
                    self.pair.primary.qmp.call("xen-colo-do-checkpoint")
        primary, secondary = self.resident("VmHWM")
        print(f"under load: primary {primary} KiB, secondary {secondary} KiB", end=" ... ", flush=True)
        self.assertLessEqual(primary, self.primary_max, "primary, under load")
        self.assertLessEqual(secondary, SECONDARY_KIB_MAX + secondary_more_kib, "secondary, under load")

    def test_a_disk_of_a_tebibyte_before_and_after_a_load(self):
        for buffer, more_kib in ((self.directory / "buffer", 0), ("memory", 64 * KIB)):
            with self.subTest(buffer=buffer):
                self.begin(TIB, buffer=buffer)
                self.assert_small("at start")
                self.use(more_kib)
                self.assert_small("after a load", more_kib)
                self.pair.__exit__()

    def test_a_disk_of_four_tebibytes_before_and_after_a_load(self):
        self.begin(4 * TIB, buffer=self.directory / "buffer")
        self.assert_small("at start")
        self.use()
        self.assert_small("after a load")

    def fill(self, granule_bytes, share):
        """Writes every second granule, so that each is a run of its own, until the buffer holds so much of its size."""
        handle = self.connect(self.pair.guest_uri)
        payload = nbd.Buffer.from_bytearray(bytearray(b"f" * granule_bytes))
        wanted = int(self.pair.secondary.volume()["buffer"]["size_bytes"] * share) // granule_bytes
        for number in range(wanted):
            while handle.aio_in_flight() >= 64:
                handle.poll(-1)
            handle.aio_pwrite(payload, number * 2 * granule_bytes, completion=lambda error: 1)
        while handle.aio_in_flight():
            handle.poll(-1)
        self.assertEqual(self.pair.secondary.volume()["buffer"]["used_bytes"], wanted * granule_bytes)

    def test_the_index_of_a_full_buffer(self):
        """It is paid for as the buffer fills up; with a buffer in a file there is nothing else to pay."""
        for granule, gib in (("4K", 1), ("64K", 1)):
            with self.subTest(granule=granule):
                granule_bytes = int(granule[:-1]) * KIB
                self.begin(TIB, buffer=self.directory / "buffer", buffer_bytes=gib << 30,
                           secondary_arguments=["--granule", granule])
                before = self.resident()[1]
                self.assertLessEqual(before, SECONDARY_KIB_MAX // 2, "an index that nothing is in")
                self.fill(granule_bytes, 0.99)
                index_kib_max = INDEX_KIB_PER_GIB * gib * 4096 // granule_bytes
                self.assert_index_costs(before, index_kib_max + KIB)
                self.assert_small(f"1 GiB of buffer full of granules of {granule}", index_kib_max)
                self.pair.__exit__()
                (self.directory / "buffer").unlink()

    def test_a_buffer_in_memory_costs_what_it_holds(self):
        self.begin(TIB, buffer_bytes=256 * MIB)
        before = self.resident()[1]
        self.fill(4 * KIB, 0.99)
        full = self.resident()[1]
        self.assertGreater(full, before + 250 * KIB)
        self.assert_small("256 MiB of buffer full", 256 * KIB + INDEX_KIB_PER_GIB // 4)
