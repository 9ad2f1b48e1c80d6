"""What lasts: the dirty bitmap over detaching, writes before the start, disks over an orderly end, several volumes."""
import nbd

from fixture import MIB, DiskTest, twinblock
from harness.qmp import QmpError
from harness.twinblock import is_connected

SIZE = 4 * MIB


class Lasting(DiskTest):
    def setUp(self):
        super().setUp()
        self.make_disks(SIZE, seed=10)

    def replica(self, pair):
        return pair.primary.volume()["replicas"][0]

    def test_detach_and_attach_again_keeps_what_is_missing(self):
        pair = self.enter_pair()
        control = ["--control", f"unix:{pair.primary.control_path}"]
        name = self.replica(pair)["name"]
        handle = self.connect(pair.primary_uri)
        handle.pwrite(b"a" * 4096, 0)
        self.assertFalse(self.replica(pair)["behind"])
        twinblock("detach", name, *control)
        handle.pwrite(b"m" * 4096, MIB)
        twinblock("attach", pair.replica_uri, "--name", name, *control)
        pair.primary.wait_for("connected again", is_connected)
        self.assertTrue(self.replica(pair)["behind"])
        # The granule that it misses, and none that it has.
        self.assertEqual(self.replica(pair)["dirty_bytes"], 65536)
        twinblock("detach", name, *control)
        twinblock("attach", pair.replica_uri, "--name", name, *control)
        self.assertEqual(self.replica(pair)["dirty_bytes"], 65536)
        with self.assertRaises(QmpError):
            pair.primary.qmp.call("xen-colo-do-checkpoint")

    def test_a_replica_attached_later_misses_what_was_written_since_the_disk_was_opened(self):
        pair = self.enter_pair()
        control = ["--control", f"unix:{pair.primary.control_path}"]
        self.connect(pair.primary_uri).pwrite(b"a" * 4096, MIB)
        twinblock("detach", self.replica(pair)["name"], *control)
        twinblock("attach", pair.replica_uri, "--name", "another", *control)
        self.assertTrue(self.replica(pair)["behind"])
        self.assertEqual(self.replica(pair)["dirty_bytes"], 65536)

    def test_a_replica_attached_before_the_first_write_is_clean_by_the_operators_word(self):
        pair = self.enter_pair()
        control = ["--control", f"unix:{pair.primary.control_path}"]
        twinblock("detach", self.replica(pair)["name"], *control)
        twinblock("attach", pair.replica_uri, *control)
        self.assertFalse(self.replica(pair)["behind"])

    def test_what_is_written_before_the_start_is_marked(self):
        pair = self.enter_pair(started=False, joint=False)
        handle = self.connect(pair.primary_uri)
        handle.pwrite(b"n" * 4096, MIB)
        self.assertEqual(self.replica(pair)["dirty_bytes"], 65536)
        pair.secondary.replicate(enable=True, primary=False)
        pair.primary.replicate(enable=True, primary=True)
        self.assertTrue(self.replica(pair)["behind"])
        self.assertTrue(pair.primary.error()["error"])

    def test_before_the_start_any_client_may_modify_the_secondary_disk(self):
        pair = self.enter_pair(started=False, joint=False)
        one, two = (self.connect(pair.replica_uri) for _ in range(2))
        one.pwrite(b"1" * 4096, 0)
        two.pwrite(b"2" * 4096, 4096)
        one.zero(4096, 8192)
        self.assert_disk_holds(pair.secondary_disk, 0, b"1" * 4096 + b"2" * 4096 + bytes(4096))
        self.assert_refused("EIO", self.connect(pair.guest_uri).pread, 512, 0)

    def test_a_pair_that_ended_in_order_starts_again_over_the_same_disks(self):
        pair = self.enter_pair()
        self.connect(pair.primary_uri).pwrite(b"x" * MIB, 12345)
        self.assertEqual(pair.primary.process.terminate(), 0)
        self.assertEqual(pair.secondary.process.terminate(), 0)
        self.assert_same_file(pair.primary_disk, pair.secondary_disk)
        pair = self.enter_pair()
        self.assertEqual(self.connect(pair.guest_uri).pread(MIB, 12345), b"x" * MIB)
        self.connect(pair.primary_uri).pwrite(b"y" * MIB, MIB)
        pair.checkpoint()
        self.assert_twins(pair)

    def test_a_daemon_that_is_asked_to_end_answers_what_is_in_flight(self):
        pair = self.enter_pair()
        handle = self.connect(pair.primary_uri)
        cookies = [handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([number + 1]) * 65536), number * 65536)
                   for number in range(32)]
        while handle.aio_in_flight() > 16:
            handle.poll(1000)
        done = [number for number, cookie in enumerate(cookies) if handle.aio_command_completed(cookie)]
        self.assertEqual(pair.primary.process.terminate(), 0)
        self.assertEqual(pair.secondary.process.terminate(), 0)
        self.assert_same_file(pair.primary_disk, pair.secondary_disk)
        for number in done:
            self.assert_disk_holds(pair.primary_disk, number * 65536, bytes([number + 1]) * 65536)


class TwoVolumes(DiskTest):
    """Two volumes in one daemon on either side."""

    def setUp(self):
        super().setUp()
        d = self.directory
        for disk in ("p0", "p1", "s0", "s1"):
            self.make_disk(f"{disk}.raw", SIZE, seed=11)
        self.secondary = self.enter_configured("secondary", [("secondary", {
            "export": f"disk{index}", "disk": d / f"s{index}.raw", "listen": f"unix:{d}/s.nbd",
            "guest": f"unix:{d}/g.nbd", "buffer": "memory", "buffer-size": "8M"}) for index in (0, 1)], start=True)
        self.primary = self.enter_configured("primary", [("primary", {
            "export": f"disk{index}", "disk": d / f"p{index}.raw", "listen": f"unix:{d}/p.nbd",
            "replica": [{"name": "twin", "uri": self.uri("s", index), "control": f"unix:{d}/secondary.qmp"}],
        }) for index in (0, 1)], start=True)
        for volume in range(2):
            self.primary.wait_for("connected", lambda _: all(
                is_connected(each) for each in self.primary.qmp.call("query-replication")["volumes"]))
        self.before = (d / "p0.raw").read_bytes()

    def uri(self, socket, index):
        return f"nbd+unix:///disk{index}?socket={self.directory}/{socket}.nbd"

    def views(self):
        return [self.connect(self.uri("g", index)).pread(SIZE, 0) for index in (0, 1)]

    def test_one_checkpoint_covers_both(self):
        for index in (0, 1):
            self.connect(self.uri("p", index)).pwrite(bytes([index + 1]) * 4096, 4096)
        self.assertEqual(self.views(), [self.before] * 2)
        self.primary.qmp.call("xen-colo-do-checkpoint")
        for index, view in enumerate(self.views()):
            self.assertEqual(view[4096:8192], bytes([index + 1]) * 4096)

    def test_an_order_of_writes_over_both_is_kept_by_every_checkpoint(self):
        """The guest writes n to the first disk and, once that is answered, to the second."""
        handles = [self.connect(self.uri("p", index)) for index in (0, 1)]
        views = [self.connect(self.uri("g", index)) for index in (0, 1)]
        for number in range(1, 60):
            for handle in handles:
                handle.pwrite(bytes([number]) * 512, 0)
            if number % 10 == 0:
                self.primary.qmp.call("xen-colo-do-checkpoint")
                self.assertEqual([view.pread(512, 0) for view in views], [bytes([number]) * 512] * 2)

    def test_one_that_refuses_stops_the_walk_before_any_has_acted(self):
        self.secondary.qmp.call("xen-set-replication", enable=False, primary=False, failover=False, volume="disk1",
                                force=True)
        self.primary.qmp.call("xen-set-replication", enable=False, primary=True, volume="disk1")
        # The first is running, so that starting all is refused, and the second stays as it is.
        with self.assertRaises(QmpError) as refused:
            self.primary.qmp.call("xen-set-replication", enable=True, primary=True)
        self.assertIn("disk0", refused.exception.desc)
        self.assertEqual([volume["stage"] for volume in self.primary.qmp.call("query-replication")["volumes"]],
                         ["running", "done"])

    def test_a_failover_of_the_node_takes_both_over(self):
        for index in (0, 1):
            self.connect(self.uri("p", index)).pwrite(b"lost" * 1024, 0)
        self.primary.kill()
        self.secondary.qmp.call("xen-set-replication", enable=False, primary=False, failover=True)
        self.assertEqual(self.views(), [self.before] * 2)
