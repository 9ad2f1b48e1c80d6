"""Clients that stop in the middle of a long write, and the others."""
import time

from fixture import MIB, PairTest
from harness import wire
from harness.twinblock import EXPORT


class StoppedInAWrite(PairTest):
    SIZE = 16 * MIB

    def test_checkpoints_are_taken_and_others_write_while_a_client_never_sends_the_rest_of_a_write(self):
        stopped = wire.Wire(self.directory / "primary.nbd")
        self.addCleanup(stopped.close)
        stopped.go(EXPORT)
        stopped.request(wire.WRITE, 8 * MIB, MIB, b"s" * (300 << 10))
        # Its first piece has reached the secondary.
        deadline = time.monotonic() + 10
        while self.pair.secondary.volume()["buffer"]["used_bytes"] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        other = self.connect(self.pair.primary_uri)
        view = self.connect(self.pair.guest_uri)
        for number in range(3):
            content = bytes([number + 1]) * 4096
            other.pwrite(content, 4096)
            self.pair.primary.qmp.call("xen-colo-do-checkpoint")
            self.assertEqual(view.pread(4096, 4096), content)
        # The rest comes after all, and counts.
        stopped.send(b"s" * (MIB - (300 << 10)))
        self.assertEqual(stopped.reply().error, 0)
        self.pair.primary.qmp.call("xen-colo-do-checkpoint")
        self.assertEqual(view.pread(MIB, 8 * MIB), b"s" * MIB)
        self.assert_twins(self.pair)
