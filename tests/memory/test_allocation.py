"""After the first requests of each kind neither daemon allocates or frees anything, on any of its threads."""
import pathlib
import tempfile

import nbd

from fixture import MIB, DiskTest
from harness.load import KIB, KINDS, Load

DISK_BYTES = 256 * MIB
BUFFER_BYTES = 64 * MIB
# What is counted of each kind, and what comes before.
COUNT = 2000
WARM_UP_COUNT = 200
# Checkpoints between requests, so that they always find the buffer neither full nor empty for long.
BATCH = 50


class Allocation(DiskTest):
    """A pair, two connections to each of its guests' exports, and managers."""

    def begin(self, **options):
        self.make_disks(DISK_BYTES)
        self.pair = self.enter_pair(buffer_bytes=BUFFER_BYTES, **options)
        self.primary_load, self.guest_load = (
            Load([self.connect(uri, contexts=[nbd.CONTEXT_BASE_ALLOCATION]) for _ in range(2)])
            for uri in (self.pair.primary_uri, self.pair.guest_uri))

    def run_load(self, load, kind, count):
        for _ in range(count // BATCH):
            load.run(kind, BATCH)
            self.pair.primary.qmp.call("xen-colo-do-checkpoint")

    def counts(self):
        """What neither daemon may change."""
        return {name: {key: memory[key] for key in ("allocations", "deallocations", "allocated_bytes")}
                for name, memory in (("primary", self.pair.primary.memory()),
                                     ("secondary", self.pair.secondary.memory()))}

    def assert_none(self, what, count, act):
        """`act(count)` costs no allocation, and neither does asking."""
        act(WARM_UP_COUNT)
        self.counts()
        before = self.counts()
        self.assertEqual(self.counts(), before, "the question itself")
        act(count)
        self.assertEqual(self.counts(), before, f"{count} times {what}")

    def assert_requests_allocate_nothing(self, count=COUNT, flush_count=COUNT):
        for side, load in (("the primary", self.primary_load), ("the guest of the secondary", self.guest_load)):
            for kind in KINDS:
                each = flush_count if kind in ("flush", "fua") else count
                with self.subTest(side=side, kind=kind):
                    self.assert_none(f"{kind} by {side}", each, lambda number: self.run_load(load, kind, number))
        for daemon in (self.pair.primary, self.pair.secondary):
            for command in ("query-replication", "query-xen-replication-status"):
                with self.subTest(command=command):
                    self.assert_none(command, count, lambda number: [daemon.qmp.call(command) for _ in range(number)])

    def test_over_unix_sockets_with_disks_and_buffer_in_memory(self):
        self.begin()
        self.assert_requests_allocate_nothing()

    def test_over_tcp_with_disks_and_buffer_on_a_disk(self):
        """Files that block: helper threads carry them."""
        self.use_directory(pathlib.Path(tempfile.gettempdir()))
        self.begin(tcp=True, buffer=self.directory / "buffer")
        self.assert_requests_allocate_nothing(flush_count=COUNT // 4)

    def test_over_disks_that_other_servers_serve(self):
        sockets = [self.directory / f"{name}.server" for name in ("primary", "secondary")]
        for socket in sockets:
            self.run_in_background(["nbdkit", "--foreground", "--unix", socket, "memory", DISK_BYTES], f"{socket.name}.log")
        self.begin(**{f"{socket.stem}_disk": f"nbd+unix:///?socket={socket}" for socket in sockets})
        self.assert_requests_allocate_nothing()

    def test_checkpoints_that_a_primary_takes_by_itself_because_the_buffer_fills_up(self):
        self.make_disks(DISK_BYTES)
        self.pair = self.enter_pair(buffer_bytes=4 * MIB, primary_arguments=["--checkpoint-every", "50ms"])
        load = Load([self.connect(self.pair.primary_uri) for _ in range(4)], lengths=[4 * KIB, 64 * KIB])
        # The buffer is full of what was there before, many times over.
        load.run("write", COUNT)
        self.assert_none("write", 10 * COUNT, lambda count: load.run("write", count))
        self.assertGreater(self.pair.primary.volume()["checkpoint_us"]["count"], 10)

    def test_checkpoints_of_a_secondary_that_is_managed_by_itself(self):
        self.make_disks(DISK_BYTES)
        self.pair = self.enter_pair(buffer_bytes=BUFFER_BYTES, joint=False)
        load = Load([self.connect(self.pair.primary_uri)], depth=1, lengths=[4 * KIB])

        def act(count):
            for _ in range(count):
                load.run("write", 1)
                self.pair.checkpoint()
        self.assert_none("checkpoints of each", COUNT, act)
