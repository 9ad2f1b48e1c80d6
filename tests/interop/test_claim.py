"""Who may modify the secondary disk, and prepare and commit as a primary of any make would send them."""
import threading
import time

import nbd

from fixture import MIB, DiskTest
from harness.qmp import QmpError
from harness.twinblock import EXPORT

SIZE = 4 * MIB
ONE = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32


class ClaimTest(DiskTest):
    def setUp(self):
        super().setUp()
        self.make_disk("secondary.raw", SIZE, seed=5)
        self.before = (self.directory / "secondary.raw").read_bytes()
        self.secondary = self.enter_secondary()

    def connect_as(self, identity):
        context = f"twinblock:primary={identity}"
        handle = self.connect(self.secondary.replica_uri, contexts=[context])
        self.assertTrue(handle.can_meta_context(context))
        return handle

    def guest_reads(self, length, offset=0):
        return self.connect(self.secondary.guest_uri).pread(length, offset)


class Claim(ClaimTest):
    def test_an_identity_that_is_malformed_is_no_context(self):
        for name in ("twinblock:primary=", "twinblock:primary=12", f"twinblock:primary={'g' * 32}"):
            handle = self.connect(self.secondary.replica_uri, contexts=[name])
            self.assertFalse(handle.can_meta_context(name))

    def test_the_same_primary_on_a_new_connection_takes_the_claim_over_and_the_old_connection_ends(self):
        old = self.connect_as(ONE)
        old.pwrite(b"o" * 4096, 0)
        new = self.connect_as(ONE)
        new.pwrite(b"n" * 4096, 0)
        with self.assertRaises(nbd.Error):
            old.pwrite(b"late" * 1024, 0)
        self.assertEqual(new.pread(4096, 0), b"n" * 4096)

    def test_another_primary_is_refused_until_the_holder_has_gone(self):
        holder = self.connect_as(ONE)
        holder.pwrite(b"h" * 4096, 0)
        for other in (self.connect_as(OTHER), self.connect(self.secondary.replica_uri)):
            self.assert_refused("EPERM", other.pwrite, b"x" * 4096, 0)
            self.assert_refused("EPERM", other.trim, 4096, 0)
            self.assertEqual(other.pread(4096, 0), b"h" * 4096)
            other.flush()
        holder.shutdown()
        other.pwrite(b"x" * 4096, 0)

    def test_a_holder_that_ends_without_a_word_puts_checkpoints_in_doubt_until_one_is_forced(self):
        holder = self.connect_as(ONE)
        holder.pwrite(b"h" * 4096, 0)
        self.drop(holder)
        self.secondary.wait_for("in doubt", lambda volume: volume["behind"])
        with self.assertRaises(QmpError):
            self.secondary.qmp.call("xen-colo-do-checkpoint")
        self.assertEqual(self.guest_reads(4096), self.before[:4096])
        self.secondary.qmp.call("xen-colo-do-checkpoint", force=True)
        self.assertEqual(self.guest_reads(4096), b"h" * 4096)

    def drop(self, handle):
        """Closes a connection's socket without a goodbye."""
        import socket
        socket.socket(fileno=handle.aio_get_fd()).shutdown(socket.SHUT_RDWR)


class PrepareAndCommit(ClaimTest):
    def setUp(self):
        super().setUp()
        self.primary = self.connect_as(ONE)
        for number in range(3):
            self.primary.pwrite(bytes([number + 1]) * 4096, number * 4096)
        self.epoch = self.secondary.volume()["epoch"]

    def prepare(self, qmp=None, epoch=None, claim=ONE, modifications=3):
        return (qmp or self.secondary.qmp).call("checkpoint-prepare", volume=EXPORT, claim=claim, modifications=modifications,
                                                epoch=self.epoch if epoch is None else epoch)

    def commit(self, epoch=None, claim=ONE):
        return self.secondary.qmp.call("checkpoint-commit", volume=EXPORT, claim=claim,
                                       epoch=self.epoch if epoch is None else epoch)

    def outcome(self):
        return self.secondary.qmp.call("checkpoint-outcome", volume=EXPORT)["epoch"]

    def assert_refused_because(self, word, call, *arguments, **options):
        with self.assertRaises(QmpError) as caught:
            call(*arguments, **options)
        self.assertIn(word, caught.exception.desc)
        self.assertEqual(self.outcome(), self.epoch)
        self.assertEqual(self.guest_reads(3 * 4096), self.before[:3 * 4096])

    def test_both_together_take_a_checkpoint(self):
        self.prepare()
        self.assertEqual(self.guest_reads(3 * 4096), self.before[:3 * 4096])
        self.commit()
        self.assertEqual(self.outcome(), self.epoch + 1)
        self.assertEqual(self.guest_reads(3 * 4096), b"".join(bytes([n]) * 4096 for n in (1, 2, 3)))

    def test_a_stale_epoch_is_refused(self):
        self.assert_refused_because("epoch", self.prepare, epoch=self.epoch - 1)
        self.assert_refused_because("epoch", self.prepare, epoch=self.epoch + 1)
        self.prepare()
        self.assert_refused_because("epoch", self.commit, epoch=self.epoch + 1)
        self.commit()
        with self.assertRaises(QmpError):
            self.commit()
        self.assertEqual(self.outcome(), self.epoch + 1)

    def test_another_claim_is_refused(self):
        self.assert_refused_because("claim", self.prepare, claim=OTHER)
        self.prepare()
        self.assert_refused_because("claim", self.commit, claim=OTHER)
        self.commit()

    def test_a_commit_without_prepare_is_refused(self):
        self.assert_refused_because("", self.commit)

    def test_a_count_that_is_too_low_is_refused(self):
        self.assert_refused_because("modifications", self.prepare, modifications=2)

    def test_a_prepare_waits_for_modifications_that_are_still_to_come(self):
        answered = threading.Event()
        qmp = self.secondary.connect()

        def prepare():
            self.prepare(qmp, modifications=5)
            answered.set()

        thread = threading.Thread(target=prepare)
        thread.start()
        self.assertFalse(answered.wait(0.2))
        self.primary.pwrite(b"4" * 4096, 3 * 4096)
        self.assertFalse(answered.wait(0.2))
        self.primary.zero(4096, 4 * 4096)
        self.assertTrue(answered.wait(5))
        thread.join()
        self.commit()
        self.assertEqual(self.guest_reads(2 * 4096, 3 * 4096), b"4" * 4096 + bytes(4096))

    def test_a_write_after_the_prepare_makes_it_void(self):
        self.prepare()
        self.primary.pwrite(b"after" * 100, 0)
        self.assert_refused_because("", self.commit)

    def test_reads_and_flushes_do_not_count(self):
        self.primary.pread(4096, 0)
        self.primary.flush()
        self.prepare()
        self.commit()

    def test_an_unknown_volume_is_refused(self):
        with self.assertRaises(QmpError):
            self.secondary.qmp.call("checkpoint-outcome", volume="nobody")
        with self.assertRaises(QmpError):
            self.secondary.qmp.call("checkpoint-prepare", volume="nobody", epoch=self.epoch, claim=ONE, modifications=3)

    def test_a_primary_that_dies_between_the_two_leaves_the_last_checkpoint(self):
        self.prepare()
        self.primary.shutdown()
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            self.assertEqual(self.guest_reads(4096), self.before[:4096])
            time.sleep(0.1)
        self.secondary.replicate(enable=False, primary=False, failover=True)
        self.assertEqual(self.guest_reads(SIZE), self.before)
