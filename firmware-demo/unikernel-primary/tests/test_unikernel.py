"""One machine, one disk, and what may happen to both and to the replica."""
import os
import pathlib
import tempfile
import unittest

from machine import (MIB, Machine, empty_disk, look_at, run_to_end, secondary, start_again, twinblock, view_of,
                     wait_until)

DISK_BYTES = 32 * MIB
FILLING = b"\xee" * DISK_BYTES
# In the middle of the records, after some 80 of them.
SECTOR = 640


def fault(kind, sector=SECTOR, once=True):
    """A configuration of blkdebug: requests of a kind (read, write, flush) that touch a sector fail."""
    where = f'sector = "{sector}"\n' if kind != "flush" else ""
    return (f'[inject-error]\nevent = "none"\niotype = "{kind}"\nerrno = "5"\n{where}'
            f'once = "{"on" if once else "off"}"\n')


class UnikernelTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="unikernel-primary-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.disk = empty_disk(self.folder / "primary.raw", DISK_BYTES)

    def machine(self, settings="", **options):
        machine = Machine(self.folder, os.environ["UNIKERNEL"], self.disk, settings, **options)
        self.addCleanup(machine.kill)
        return machine

    def secondary(self, *arguments, length=DISK_BYTES, filling=None, **options):
        twin = empty_disk(self.folder / "secondary.raw", length)
        if filling:
            twin.write_bytes(filling)
        daemon = secondary(self.folder, twin, *arguments, "--start", **options)
        daemon.start()
        self.addCleanup(daemon.kill)
        daemon.disk = twin
        return daemon

    def connected(self, settings, **options):
        """A machine that has reached its replica and works."""
        machine = self.machine(settings, **options).start()
        machine.wait_for(r"^replica: state=Some\(Current\)")
        machine.wait_for(r"^checkpoint: ")
        return machine

    def assert_nothing_changed(self, machine):
        self.assertEqual([match.string for match in machine.told("IS NOT WHAT IT WAS|refused:|panic|exception")], [])


class Alone(UnikernelTest):
    def test_without_a_replica_a_write_that_the_disk_fails_is_told_to_the_workload(self):
        machine = self.machine("rate=2000 records=400", faults=fault("write"))
        self.assertEqual(run_to_end(machine), 0, machine.tail())
        self.assertEqual(len(machine.told(r"^event: Error\(PrimaryDisk\)")), 1)
        self.assertEqual(len(machine.told(r"^store: record \d+: write failed: EIO; once more")), 1)
        self.assertEqual((machine.count("failed"), machine.count("durable")), (1, 400))
        self.assertEqual(look_at(self.disk.read_bytes()).count, 400)
        self.assert_nothing_changed(machine)

    def test_without_a_replica_a_flush_that_the_disk_fails_makes_nothing_durable(self):
        machine = self.machine("rate=2000 records=400", faults=fault("flush"))
        self.assertEqual(run_to_end(machine), 0, machine.tail())
        told = machine.told(r"^store: flush failed: EIO; once more|^records: .* durable=(\d+)")
        first = next(at for at, match in enumerate(told) if match[1] is None)
        self.assertEqual([match[1] for match in told[:first] if match[1] != "0"], [])
        self.assertEqual((machine.count("failed"), machine.count("durable")), (1, 400))

    def test_what_cannot_be_read_at_the_start_is_not_taken_for_the_end_of_the_records(self):
        self.assertEqual(run_to_end(self.machine("rate=2000 records=200")), 0)
        machine = self.machine("rate=2000 records=300", faults=fault("read"), name="second")
        self.assertEqual(run_to_end(machine), 0, machine.tail())
        self.assertEqual(len(machine.told(r"^store: at \d+: read failed: EIO; once more")), 1)
        self.assertEqual(machine.told(r"^store: (\d+) records found")[0][1], "200")
        self.assertEqual(look_at(self.disk.read_bytes()).count, 300)

    def test_killed_in_mid_write_it_finds_every_durable_record_again_and_goes_on(self):
        machine = self.machine("rate=3000").start()
        machine.wait_for_count("durable", 500)
        machine.kill()
        durable = machine.count("durable")
        machine = self.machine("rate=3000", name="second").start()
        found = int(machine.wait_for(r"^store: (\d+) records found")[1])
        self.assertGreaterEqual(found, durable)
        machine.wait_for_count("durable", found + 100)
        machine.kill()
        self.assertGreaterEqual(look_at(self.disk.read_bytes()).count, machine.count("durable"))
        self.assert_nothing_changed(machine)

    def test_settings_that_it_does_not_know_are_refused(self):
        machine = self.machine("rate=100 speed=2")
        self.assertEqual(run_to_end(machine), 1)
        self.assertEqual(len(machine.told("^cannot begin: a word of the settings")), 1)


class Replicated(UnikernelTest):
    def test_both_disks_are_equal_in_the_end_and_a_clean_goodbye_leaves_nothing_in_doubt(self):
        replica = self.secondary()
        # As fast as it can, until everything is done.
        machine = self.machine(f"{replica.settings} rate=1000000 records=1500 checkpoint-ms=100")
        self.assertEqual(run_to_end(machine), 0, machine.tail())
        self.assertEqual((machine.count("durable"), machine.count("failed"), machine.count("misses")), (1500, 0, 0))
        self.assert_nothing_changed(machine)
        self.assertGreater(len(machine.checkpoints()), 0)
        self.assertEqual(self.disk.read_bytes(), replica.disk.read_bytes())
        wait_until("the client has gone", lambda: not replica.volume()["behind"])
        twinblock("checkpoint", "--control", replica.control)
        self.assertEqual(look_at(view_of(replica, self.folder)).count, 1500)

    def test_stopped_without_a_failover_the_secondary_has_every_record_that_was_acknowledged(self):
        replica = self.secondary()
        machine = self.connected(f"{replica.settings} rate=2000")
        machine.wait_for_count("acknowledged", 1000)
        promised = machine.checkpoints()[-1][0]
        machine.wait_for_count("acknowledged", promised + 1)
        machine.kill()
        twinblock("stop", "--control", replica.control)
        found = look_at(replica.disk.read_bytes())
        self.assertGreaterEqual(found.count, machine.count("acknowledged"))
        self.assertGreater(found.count, promised)

    def test_a_replica_that_is_lost_does_not_stop_it_and_is_behind_when_it_is_back(self):
        replica = self.secondary()
        machine = self.connected(f"{replica.settings} rate=1000 checkpoint-ms=100")
        replica.kill()
        machine.wait_for(r"^replica: state=Some\(Disconnected\)", after=1)
        taken, acknowledged = len(machine.checkpoints()), machine.count("acknowledged")
        machine.wait_for_count("acknowledged", acknowledged + 300)
        self.assertGreater(machine.count("misses"), 0)
        start_again(replica)
        machine.wait_for(r"^replica: state=Some\(Behind\)")
        machine.wait_for_count("acknowledged", acknowledged + 800)
        # It goes on without: no checkpoint while something is missing there.
        self.assertEqual(len(machine.checkpoints()), taken)
        self.assertGreater(machine.count("misses"), 0)
        self.assertEqual(machine.count("failed"), 0)
        self.assert_nothing_changed(machine)

    def test_a_write_that_only_the_replica_took_is_none_of_the_workloads_business_and_is_read_from_there(self):
        replica = self.secondary()
        machine = self.machine(f"{replica.settings} rate=500 checkpoint-ms=100", faults=fault("write")).start()
        machine.wait_for(r"^event: Error\(PrimaryDisk\)")
        machine.wait_for(r"^replica: state=Some\(Behind\)")
        taken = len(machine.checkpoints())
        machine.wait_for_count("read", 300)
        self.assertEqual(machine.count("failed"), 0, machine.tail())
        self.assert_nothing_changed(machine)
        # The twins differ: no checkpoint until that is mended.
        self.assertEqual(len(machine.checkpoints()), taken)
        self.assertEqual(machine.count("misses"), 65536)
        machine.kill()
        here, there = look_at(self.disk.read_bytes()), look_at(replica.disk.read_bytes())
        self.assertLess(here.count, 120, "the disk never took it")
        self.assertGreaterEqual(there.count, machine.count("acknowledged"))

    def test_a_flush_that_the_disk_fails_counts_if_the_replica_has_flushed(self):
        replica = self.secondary()
        machine = self.machine(f"{replica.settings} rate=1000 records=300", faults=fault("flush"))
        self.assertEqual(run_to_end(machine), 0, machine.tail())
        self.assertEqual(len(machine.told(r"^event: Error\(PrimaryDisk\)")), 1)
        self.assertEqual((machine.count("failed"), machine.count("durable")), (0, 300))

    def test_a_primary_that_was_killed_and_comes_back_takes_no_checkpoint_until_somebody_forces_one(self):
        replica = self.secondary()
        machine = self.connected(f"{replica.settings} rate=1000 checkpoint-ms=100")
        machine.wait_for_count("durable", 300)
        machine.kill()
        promised = machine.checkpoints()[-1][0]
        machine = self.machine(f"{replica.settings} rate=1000 checkpoint-ms=100", name="second").start()
        found = int(machine.wait_for(r"^store: (\d+) records found")[1])
        machine.wait_for(r"^no checkpoint: Missing")
        machine.wait_for_count("durable", found + 200)
        self.assertEqual(machine.checkpoints(), [])
        # The last view is still there to take over with.
        self.assertGreaterEqual(look_at(view_of(replica, self.folder)).count, promised)
        self.assert_nothing_changed(machine)

    def test_a_replica_that_takes_over_while_it_lives_gets_nothing_more_and_does_not_stop_it(self):
        replica = self.secondary()
        machine = self.connected(f"{replica.settings} rate=1000 checkpoint-ms=100")
        machine.wait_for_count("checkpoints", 3)
        twinblock("stop", "--failover", "--control", replica.control)
        machine.wait_for(r"^replica: state=Some\(Behind\)")
        taken = machine.checkpoints()
        wait_until("the commit is done", lambda: replica.volume()["stage"] == "done")
        view = look_at(view_of(replica, self.folder))
        self.assertGreaterEqual(view.count, taken[-1][0])
        self.assertFalse(view.torn)
        machine.wait_for_count("durable", machine.count("acknowledged") + 300)
        self.assertEqual((machine.count("failed"), machine.checkpoints()), (0, taken))
        self.assertEqual(look_at(view_of(replica, self.folder)), view)
        self.assert_nothing_changed(machine)

    def test_a_full_buffer_is_a_reason_for_a_checkpoint_before_it_is_due(self):
        # What is overwritten must be kept: holes would take no room.
        self.disk.write_bytes(FILLING)
        replica = self.secondary("--stall-max", "10s", filling=FILLING, buffer_bytes=1 * MIB)
        machine = self.machine(f"{replica.settings} rate=1000 checkpoint-ms=60000 records=1500")
        self.assertEqual(run_to_end(machine), 0, machine.tail())
        self.assertGreater(len(machine.checkpoints()), 2, machine.tail())
        self.assertEqual((machine.count("durable"), machine.count("misses")), (1500, 0))
        self.assertEqual(self.disk.read_bytes(), replica.disk.read_bytes())

    def test_a_replica_of_another_size_is_refused_for_good_and_the_work_goes_on(self):
        replica = self.secondary(length=DISK_BYTES // 2)
        machine = self.machine(f"{replica.settings} rate=500").start()
        machine.wait_for(r"^replica: cannot be used: SizeDiffers")
        machine.wait_for_count("durable", 100)
        replica.kill()
        self.assertEqual(replica.disk.read_bytes(), bytes(DISK_BYTES // 2))
        # Whatever is there afterwards is not what was to be replicated to.
        empty_disk(replica.disk, DISK_BYTES)
        start_again(replica)
        machine.wait_for_count("durable", machine.count("durable") + 1000)
        self.assertEqual(len(machine.told(r"^replica: cannot be used")), 1)
        self.assertEqual(machine.told(r"state=Some\((Current|Behind)\)"), [])
        self.assertEqual(machine.checkpoints(), [])
