"""What start, checkpoint, stop and failover do to what each side sees.

The cases are those of QEMU's own unit test of its replication driver (tests/unit/test-replication.c), taken as facts,
over NBD and QMP; and the two ways to take over.
"""
import threading

import nbd

from fixture import MIB, DiskTest, twinblock
from harness.qmp import QmpError
from harness.twinblock import is_connected

SIZE = 4 * MIB
HALF = SIZE // 2
OLD = b"\x11" * HALF
OWN = b"\x22" * HALF
SPECULATIVE = b"\x33" * HALF


class RoleTest(DiskTest):
    def setUp(self):
        super().setUp()
        for name in ("primary.raw", "secondary.raw"):
            (self.directory / name).write_bytes(OLD + OLD)

    def on_disk(self, name):
        return (self.directory / name).read_bytes()

    def assert_error_free(self, daemon):
        self.assertEqual(daemon.error(), {"error": False})

    def assert_qmp_refused(self, call, *arguments, **options):
        with self.assertRaises(QmpError) as caught:
            call(*arguments, **options)
        return caught.exception.desc


class PrimaryBeforeStart(RoleTest):
    def setUp(self):
        super().setUp()
        self.pair = self.enter_pair(started=False, joint=False)

    def test_nothing_is_forwarded(self):
        handle = self.connect(self.pair.primary_uri)
        handle.pwrite(OWN, 0)
        handle.flush()
        self.assertEqual(handle.pread(HALF, 0), OWN)
        self.assertEqual(self.on_disk("primary.raw"), OWN + OLD)
        self.assertEqual(self.on_disk("secondary.raw"), OLD + OLD)

    def test_what_needs_a_running_replication_is_refused(self):
        error = self.pair.primary.error()
        self.assertTrue(error["error"])
        self.assertIn("not running", error["desc"])
        self.assertIn("not running", self.assert_qmp_refused(self.pair.primary.qmp.call, "xen-colo-do-checkpoint"))
        self.assertIn("not running",
                      self.assert_qmp_refused(self.pair.primary.replicate, enable=False, primary=True))

    def test_the_other_role_is_refused(self):
        self.assert_qmp_refused(self.pair.primary.replicate, enable=True, primary=False)
        self.assertEqual(self.pair.primary.volume()["stage"], "none")

    def test_start_checkpoint_get_error_and_stop_succeed(self):
        primary = self.pair.primary
        primary.replicate(enable=True, primary=True)
        self.assertIn("running", self.assert_qmp_refused(primary.replicate, enable=True, primary=True))
        self.assert_error_free(primary)
        primary.qmp.call("xen-colo-do-checkpoint")
        self.assert_error_free(primary)
        primary.replicate(enable=False, primary=True)
        self.assertEqual(primary.volume()["stage"], "done")
        self.assert_error_free(primary)

    def test_a_first_full_copy_goes_straight_to_the_secondary_disk(self):
        handle = self.connect(self.pair.replica_uri)
        handle.pwrite(OWN, HALF)
        handle.flush()
        self.assertEqual(self.on_disk("secondary.raw"), OLD + OWN)


class SecondaryBeforeStart(RoleTest):
    def setUp(self):
        super().setUp()
        self.secondary = self.enter_secondary(started=False)

    def test_the_guest_can_neither_read_nor_write(self):
        guest = self.connect(self.secondary.guest_uri)
        self.assert_refused("EIO", guest.pread, 512, 0)
        self.assert_refused("EIO", guest.pwrite, b"x" * 512, 0)
        self.assert_refused("EIO", guest.zero, 512, 0)
        self.assertEqual(self.on_disk("secondary.raw"), OLD + OLD)

    def test_what_needs_a_running_replication_is_refused(self):
        self.assertIn("not running", self.secondary.error()["desc"])
        self.assert_qmp_refused(self.secondary.qmp.call, "xen-colo-do-checkpoint")
        self.assert_qmp_refused(self.secondary.replicate, enable=False, primary=False, failover=True)
        self.assert_qmp_refused(self.secondary.replicate, enable=True, primary=True)
        self.assertEqual(self.secondary.volume()["stage"], "none")


class Secondary(RoleTest):
    def setUp(self):
        super().setUp()
        self.secondary = self.enter_secondary()
        self.primary = self.connect(self.secondary.replica_uri)
        self.guest = self.connect(self.secondary.guest_uri)

    def fail_over(self):
        self.secondary.replicate(enable=False, primary=False, failover=True)

    def wait_until_done(self):
        return self.secondary.wait_for("done", lambda volume: volume["stage"] == "done")

    def view(self):
        return self.guest.pread(SIZE, 0)

    def test_the_guest_reads_the_secondary_disk(self):
        self.assertEqual(self.view(), OLD + OLD)

    def test_a_second_start_is_refused(self):
        self.assertIn("running", self.assert_qmp_refused(self.secondary.replicate, enable=True, primary=False))

    def test_a_primary_write_leaves_the_view_as_it_was(self):
        self.primary.pwrite(SPECULATIVE, HALF)
        self.assertEqual(self.primary.pread(HALF, HALF), SPECULATIVE)
        self.assertEqual(self.on_disk("secondary.raw"), OLD + SPECULATIVE)
        self.assertEqual(self.view(), OLD + OLD)

    def test_a_guest_write_is_read_back_and_does_not_touch_the_disk(self):
        self.guest.pwrite(OWN, 0)
        self.assertEqual(self.view(), OWN + OLD)
        self.guest.flush()
        self.assertEqual(self.on_disk("secondary.raw"), OLD + OLD)
        self.assertEqual(self.primary.pread(HALF, 0), OLD)

    def test_writes_that_are_no_multiple_of_a_granule_keep_the_rest_right(self):
        self.primary.pwrite(b"p" * 1000, 4000)
        self.guest.pwrite(b"g" * 10, 4090)
        self.primary.pwrite(b"q" * 5000, 4095)
        expected = bytearray(OLD + OLD)
        expected[4090:4100] = b"g" * 10
        self.assertEqual(self.view(), expected)

    def test_zeroes_and_trims_of_the_primary_are_kept_back_as_well(self):
        self.primary.zero(HALF, 1000)
        self.primary.trim(10000, HALF + 50000)
        self.assertEqual(self.view(), OLD + OLD)
        self.secondary.qmp.call("xen-colo-do-checkpoint")
        expected = bytearray(OLD + OLD)
        expected[1000:1000 + HALF] = bytes(HALF)
        expected[HALF + 50000:HALF + 60000] = bytes(10000)
        self.assertEqual(self.view(), expected)

    def test_a_checkpoint_shows_the_primarys_writes_and_drops_the_guests(self):
        self.guest.pwrite(OWN, 0)
        self.primary.pwrite(SPECULATIVE, HALF)
        epoch = self.secondary.volume()["epoch"]
        self.secondary.qmp.call("xen-colo-do-checkpoint")
        self.assertEqual(self.view(), OLD + SPECULATIVE)
        self.assertEqual(self.secondary.volume()["epoch"], epoch + 1)
        self.assertEqual(self.secondary.volume()["buffer"]["used_bytes"], 0)

    def test_get_error_succeeds_while_running_and_after_a_failover(self):
        self.assert_error_free(self.secondary)
        self.guest.pwrite(OWN, 0)
        self.fail_over()
        self.assert_error_free(self.secondary)
        self.wait_until_done()
        self.assert_error_free(self.secondary)

    def test_after_a_failover_the_guest_has_its_own_writes_and_the_old_rest(self):
        self.guest.pwrite(OWN, 0)
        self.primary.pwrite(SPECULATIVE, HALF)
        self.fail_over()
        self.assertEqual(self.view(), OWN + OLD)
        self.guest.pwrite(b"late", 100)
        self.wait_until_done()
        expected = bytearray(OWN + OLD)
        expected[100:104] = b"late"
        self.assertEqual(self.view(), expected)
        self.assertEqual(self.on_disk("secondary.raw"), expected)

    def test_after_a_failover_the_old_primary_is_turned_away(self):
        self.primary.pwrite(SPECULATIVE, HALF)
        self.fail_over()
        self.assert_refused("ESHUTDOWN", self.primary.pwrite, b"w" * 512, 0)
        self.wait_until_done()
        other = self.connect(self.secondary.replica_uri)
        self.assert_refused("ESHUTDOWN", other.pwrite, b"w" * 512, 0)
        self.assert_refused("ESHUTDOWN", other.zero, 512, 0)
        self.assertEqual(self.on_disk("secondary.raw"), OLD + OLD)

    def test_after_a_failover_start_checkpoint_and_stop_are_ignored(self):
        self.guest.pwrite(OWN, 0)
        self.fail_over()
        self.wait_until_done()
        self.guest.pwrite(b"later", HALF)
        for _ in range(2):
            self.secondary.replicate(enable=True, primary=True)
            self.secondary.qmp.call("xen-colo-do-checkpoint")
            self.secondary.replicate(enable=False, primary=True)
            self.secondary.replicate(enable=False, primary=False, failover=True)
        self.assertEqual(self.view(), OWN + b"later" + OLD[5:])
        self.assertEqual(self.secondary.volume()["stage"], "done")

    def test_a_stop_without_failover_leaves_every_write_of_the_primary(self):
        self.guest.pwrite(OWN, 0)
        self.primary.pwrite(SPECULATIVE, HALF)
        self.primary.shutdown()
        self.secondary.replicate(enable=False, primary=False, failover=False)
        self.wait_until_done()
        self.assertEqual(self.view(), OLD + SPECULATIVE)
        self.assertEqual(self.on_disk("secondary.raw"), OLD + SPECULATIVE)

    def test_only_the_connection_that_holds_the_claim_may_modify(self):
        self.primary.pwrite(SPECULATIVE, HALF)
        other = self.connect(self.secondary.replica_uri)
        self.assert_refused("EPERM", other.pwrite, b"o" * 512, 0)
        self.assert_refused("EPERM", other.zero, 512, 0)
        self.assertEqual(other.pread(512, HALF), SPECULATIVE[:512])
        self.primary.shutdown()
        other.pwrite(b"o" * 512, 0)
        self.assertEqual(self.on_disk("secondary.raw")[:512], b"o" * 512)

    def test_failover_is_only_for_stopping(self):
        self.assert_qmp_refused(self.secondary.replicate, enable=True, primary=False, failover=True)
        self.assertEqual(self.secondary.volume()["stage"], "running")


class FullBuffer(RoleTest):
    """A buffer of a quarter of the disk."""

    QUARTER = SIZE // 4

    def enter(self, policy, *more):
        self.secondary = self.enter_secondary(buffer_bytes=self.QUARTER, arguments=["--when-full", policy, *more])
        self.primary = self.connect(self.secondary.replica_uri)
        self.guest = self.connect(self.secondary.guest_uri)

    def test_stall_refuses_what_cannot_be_kept_and_preserves_the_view(self):
        self.enter("stall", "--stall-max", "200ms")
        self.primary.pwrite(SPECULATIVE[:self.QUARTER], 0)
        self.assert_refused("ENOSPC", self.primary.pwrite, SPECULATIVE[:4096], HALF)
        self.assertEqual(self.guest.pread(SIZE, 0), OLD + OLD)
        self.assertEqual(self.on_disk("secondary.raw")[HALF:], OLD)

    def test_stall_lets_a_checkpoint_make_room(self):
        self.enter("stall", "--stall-max", "10s")
        self.primary.pwrite(SPECULATIVE[:self.QUARTER], 0)
        cookie = self.primary.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(SPECULATIVE[:4096])), HALF)
        self.secondary.wait_for("holding a write", lambda volume: volume["buffer"]["held"] > 0)
        self.secondary.qmp.call("xen-colo-do-checkpoint")
        while not self.primary.aio_command_completed(cookie):
            self.primary.poll(-1)
        # The held write belongs to the new epoch.
        self.assertEqual(self.guest.pread(4096, HALF), OLD[:4096])
        self.assertEqual(self.guest.pread(4096, 0), SPECULATIVE[:4096])

    def test_break_writes_through_and_the_view_is_broken_until_the_checkpoint(self):
        self.enter("break")
        self.primary.pwrite(SPECULATIVE, 0)
        self.assertEqual(self.secondary.volume()["buffer"]["view"], "broken")
        self.assert_refused("EIO", self.guest.pread, 512, 0)
        self.assert_qmp_refused(self.secondary.replicate, enable=False, primary=False, failover=True)
        self.secondary.qmp.call("xen-colo-do-checkpoint")
        self.assertEqual(self.guest.pread(SIZE, 0), SPECULATIVE + OLD)
        self.assertEqual(self.secondary.volume()["buffer"]["view"], "whole")

    def test_a_guest_write_that_finds_no_slot_is_refused(self):
        self.enter("stall")
        self.guest.pwrite(OWN[:self.QUARTER], 0)
        self.assert_refused("ENOSPC", self.guest.pwrite, OWN[:4096], HALF)
        self.guest.pwrite(b"again", 10)
        self.assertEqual(self.guest.pread(5, 10), b"again")


class FullBufferOfAPair(RoleTest):
    """A buffer of a quarter of the disk, and a primary whose guest must not be disturbed."""

    QUARTER = SIZE // 4

    def enter(self, *secondary, primary=()):
        self.pair = self.enter_pair(buffer_bytes=self.QUARTER, secondary_arguments=secondary,
                                    primary_arguments=primary)
        self.primary = self.connect(self.pair.primary_uri)
        self.guest = self.connect(self.pair.guest_uri)

    def write_in_background(self, data, offset):
        """Its end is waited for with `join`."""
        thread = threading.Thread(target=self.primary.pwrite, args=(data, offset), daemon=True)
        thread.start()
        return thread

    def test_without_a_checkpoint_the_replica_is_behind_and_the_view_is_preserved(self):
        self.enter("--stall-max", "200ms")
        self.primary.pwrite(SPECULATIVE, 0)
        self.primary.pwrite(SPECULATIVE, HALF)
        self.assertEqual(self.primary.pread(SIZE, 0), SPECULATIVE + SPECULATIVE)
        self.assertTrue(self.pair.primary.volume()["replicas"][0]["behind"])
        self.assertTrue(self.pair.secondary.error()["error"])
        self.assertEqual(self.guest.pread(SIZE, 0), OLD + OLD)
        self.assert_qmp_refused(self.pair.primary.qmp.call, "xen-colo-do-checkpoint")
        self.assertEqual(self.guest.pread(SIZE, 0), OLD + OLD)
        self.pair.failover()
        self.pair.secondary.wait_for("done", lambda volume: volume["stage"] == "done")
        self.assertEqual(self.on_disk("secondary.raw"), OLD + OLD)

    def test_a_primary_that_takes_checkpoints_by_itself_takes_one_at_once(self):
        # The next one in its rhythm would come long after the writes were refused.
        self.enter("--stall-max", "5s", primary=["--checkpoint-every", "60s"])
        for _ in range(3):
            self.primary.pwrite(SPECULATIVE, 0)
            self.primary.pwrite(OWN, HALF)
        self.assertGreater(self.pair.primary.volume()["checkpoint_us"]["count"], 3)
        self.assert_twins(self.pair)

    def test_a_checkpoint_by_command_lets_the_held_writes_go_on(self):
        self.enter("--stall-max", "10s")
        self.primary.pwrite(OWN[:self.QUARTER], 0)
        write = self.write_in_background(SPECULATIVE[:self.QUARTER], HALF)
        self.pair.secondary.wait_for("holding a write", lambda volume: volume["buffer"]["held"] > 0)
        self.pair.primary.qmp.call("xen-colo-do-checkpoint")
        write.join(5)
        self.assertFalse(write.is_alive(), "the write is still held")
        self.assertEqual(self.guest.pread(SIZE, 0), OWN[:self.QUARTER] + (OLD + OLD)[self.QUARTER:])
        self.assert_twins(self.pair)

    def test_a_failover_answers_held_writes_and_their_bytes_are_not_on_the_disk(self):
        self.enter("--stall-max", "60s")
        self.primary.pwrite(OWN[:self.QUARTER], 0)
        write = self.write_in_background(SPECULATIVE, HALF)
        self.pair.secondary.wait_for("holding a write", lambda volume: volume["buffer"]["held"] > 0)
        self.pair.failover()
        write.join(5)
        self.assertFalse(write.is_alive(), "the write is still held")
        self.assertTrue(self.pair.primary.volume()["replicas"][0]["behind"])
        self.pair.secondary.wait_for("done", lambda volume: volume["stage"] == "done")
        self.assertEqual(self.on_disk("secondary.raw"), OLD + OLD)

    def test_break_lets_everything_through_and_a_checkpoint_of_the_pair_mends_the_view(self):
        self.enter("--when-full", "break")
        self.primary.pwrite(SPECULATIVE, 0)
        self.assert_refused("EIO", self.guest.pread, 512, 0)
        self.assert_refused("EIO", self.guest.pwrite, b"x" * 512, 0)
        self.assertIn("stop", self.assert_qmp_refused(self.pair.failover))
        self.assertEqual(self.pair.secondary.volume()["stage"], "running")
        self.assertFalse(self.pair.primary.volume()["replicas"][0]["behind"])
        self.pair.checkpoint()
        self.assertEqual(self.guest.pread(SIZE, 0), SPECULATIVE + OLD)
        self.assert_twins(self.pair)


class Pair(RoleTest):
    """Both daemons; the checkpoint is one act of the primary."""

    def setUp(self):
        super().setUp()
        self.pair = self.enter_pair()
        self.primary = self.connect(self.pair.primary_uri)
        self.guest = self.connect(self.pair.guest_uri)

    def test_a_write_reaches_the_secondary_disk_and_not_the_view(self):
        self.primary.pwrite(SPECULATIVE, HALF)
        self.assertEqual(self.guest.pread(SIZE, 0), OLD + OLD)
        self.assert_twins(self.pair)

    def test_one_checkpoint_moves_both_sides(self):
        self.primary.pwrite(SPECULATIVE, HALF)
        epoch = self.pair.secondary.volume()["epoch"]
        self.pair.primary.qmp.call("xen-colo-do-checkpoint")
        self.assertEqual(self.guest.pread(SIZE, 0), OLD + SPECULATIVE)
        self.assertEqual(self.pair.secondary.volume()["epoch"], epoch + 1)
        self.assertEqual(self.pair.primary.volume()["checkpoint_us"]["count"], 1)

    def test_a_primary_that_takes_checkpoints_by_itself_moves_the_view(self):
        self.pair.__exit__()
        pair = self.enter_pair(primary_arguments=["--checkpoint-every", "50ms"])
        self.connect(pair.primary_uri).pwrite(OWN, 0)
        pair.primary.wait_for("several checkpoints taken", lambda volume: volume["checkpoint_us"]["count"] > 3)
        self.assertEqual(self.connect(pair.guest_uri).pread(SIZE, 0), OWN + OLD)

    def test_a_failover_after_the_primary_was_killed_gives_the_last_checkpoint_and_the_guests_writes(self):
        self.primary.pwrite(SPECULATIVE, HALF)
        self.pair.checkpoint()
        self.primary.pwrite(b"lost" * 1000, 0)
        self.guest.pwrite(b"kept", 5)
        self.pair.primary.kill()
        self.pair.failover()
        expected = bytearray(OLD + SPECULATIVE)
        expected[5:9] = b"kept"
        self.assertEqual(self.guest.pread(SIZE, 0), expected)
        self.pair.secondary.wait_for("done", lambda volume: volume["stage"] == "done")
        self.assertEqual(self.on_disk("secondary.raw"), expected)

    def test_after_the_secondarys_failover_the_primary_goes_on_alone_and_says_so(self):
        self.pair.failover()
        self.primary.pwrite(OWN, 0)
        self.primary.flush()
        self.assertEqual(self.on_disk("primary.raw"), OWN + OLD)
        self.assertEqual(self.on_disk("secondary.raw"), OLD + OLD)
        self.assertTrue(self.pair.primary.error()["error"])
        self.assertTrue(self.pair.primary.volume()["replicas"][0]["behind"])

    def test_a_stopped_primary_forwards_nothing_and_its_replica_misses_what_was_written(self):
        self.pair.primary.replicate(enable=False, primary=True)
        self.primary.pwrite(OWN, 0)
        self.assertEqual(self.on_disk("secondary.raw"), OLD + OLD)
        self.pair.primary.replicate(enable=True, primary=True)
        self.assertTrue(self.pair.primary.error()["error"])
        replica = self.pair.primary.volume()["replicas"][0]
        self.assertTrue(replica["behind"])
        self.assertGreaterEqual(replica["dirty_bytes"], HALF)

    def test_replicas_are_detached_and_attached_while_it_runs(self):
        control = f"unix:{self.pair.primary.control_path}"
        name = self.pair.primary.volume()["replicas"][0]["name"]
        twinblock("detach", name, "--control", control)
        self.assertEqual(self.pair.primary.volume()["replicas"], [])
        self.primary.pwrite(OWN, 0)
        self.assertEqual(self.on_disk("secondary.raw"), OLD + OLD)
        twinblock("attach", self.pair.replica_uri, "--control", control)
        self.pair.primary.wait_for("connected again", is_connected)
        self.assertTrue(self.pair.primary.volume()["replicas"][0]["behind"])

    def test_a_replica_of_another_size_is_refused(self):
        other = self.directory / "other"
        other.mkdir()
        (other / "secondary.raw").write_bytes(OLD)
        self.directory, usual = other, self.directory
        small = self.enter_secondary()
        self.directory = usual
        with self.assertRaises(AssertionError) as refused:
            twinblock("attach", small.replica_uri, "--control", f"unix:{self.pair.primary.control_path}")
        self.assertIn("size", str(refused.exception))
