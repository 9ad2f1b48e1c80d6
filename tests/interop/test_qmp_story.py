"""What a manager of QEMU's replication does, against daemons that start empty: nodes, servers, exports, a replica, start,
checkpoints, failover, and everything taken away again."""
import time

import nbd

from fixture import MIB
from harness.twinblock import is_connected
from nodes import NodesTest, file_node, quorum_node, replica_node, secondary_node, unix_address

BLOCK = 4096


class Story(NodesTest):
    def test_a_pair_is_built_checkpointed_and_failed_over(self):
        self.build_pair()
        primary, guest = self.connect(self.uri("primary", "colo1")), self.connect(self.uri("secondary", "top-disk1"))
        old = guest.pread(BLOCK, 0)
        primary.pwrite(b"1" * BLOCK, 0)
        self.assertEqual(guest.pread(BLOCK, 0), old)
        for daemon in (self.secondary, self.primary):
            daemon.qmp.call("xen-colo-do-checkpoint")
        self.assertEqual(guest.pread(BLOCK, 0), b"1" * BLOCK)
        primary.pwrite(b"2" * BLOCK, 0)
        guest.pwrite(b"g" * BLOCK, BLOCK)
        for daemon in (self.secondary, self.primary):
            self.assertEqual(daemon.error(), {"error": False})
        self.secondary.replicate(enable=False, primary=False, failover=True)
        self.secondary.wait_for("done", lambda volume: volume["stage"] == "done")
        self.assertEqual(guest.pread(BLOCK, 0), b"1" * BLOCK)
        self.assert_disk_holds(self.directory / "secondary.raw", 0, b"1" * BLOCK + b"g" * BLOCK)

    def test_events_tell_volume_and_time(self):
        self.build_pair()
        event = self.secondary.qmp.event("REPLICATION_STAGE")
        self.assertEqual(event["data"], {"volume": "colo1", "stage": "running"})
        self.assertLess(abs(event["timestamp"]["seconds"] - time.time()), 600)
        self.assertEqual(self.primary.qmp.event("REPLICA_STATE")["data"]["replica"], "replica1")

    def test_what_is_there_can_be_asked_for(self):
        self.build_pair()
        nodes = {node["node-name"]: node for node in self.primary.qmp.call("query-named-block-nodes")}
        self.assertEqual(nodes["colo1"]["drv"], "quorum")
        self.assertEqual(nodes["colo1"]["children"], [{"child": "children.0", "node-name": "disk1"},
                                                      {"child": "children.1", "node-name": "replica1"}])
        self.assertEqual(nodes["disk1"]["image"]["virtual-size"], self.SIZE)
        self.assertEqual(self.secondary.qmp.call("query-block-exports"), [
            {"id": name, "type": "nbd", "node-name": name, "name": name, "writable": True, "shutting-down": False}
            for name in ("colo1", "top-disk1")])
        self.assertEqual(self.primary.qmp.call("query-status"), {"running": True, "status": "running"})
        self.assertEqual(self.primary.qmp.call("query-version"), self.primary.qmp.greeting["version"])
        self.assertEqual(self.primary.qmp.call("query-jobs"), [])
        names = {entry["name"] for entry in self.primary.qmp.call("query-commands")}
        self.assertLessEqual({"blockdev-add", "xen-set-replication", "query-replication", "block-export-del"}, names)

    def test_all_is_taken_away_and_built_again(self):
        """Far more often than there are places for volumes, secondaries and replicas."""
        resident = None
        for turn in range(20):
            self.build_pair()
            handle = self.connect(self.uri("primary", "colo1"))
            handle.pwrite(bytes([turn]) * BLOCK, 0)
            handle.flush()
            self.primary.replicate(enable=False, primary=True)
            self.secondary.replicate(enable=False, primary=False, failover=False)
            self.primary.qmp.call("x-blockdev-change", parent="colo1", child="children.1")
            for daemon, names in ((self.primary, ["replica1", "colo1"]), (self.secondary, ["top-disk1", "childs1", "colo1"])):
                daemon.qmp.call("nbd-server-stop")
                for name in names:
                    daemon.qmp.call("blockdev-del", node_name=name)
                nodes, exports, replication, jobs = self.state(daemon)
                self.assertEqual((nodes, exports, replication["volumes"], jobs), ([], [], [], []))
            self.assert_disk_holds(self.directory / "secondary.raw", 0, bytes([turn]) * BLOCK)
            if turn == 4:
                resident = [daemon.memory()["allocated_bytes"] for daemon in (self.primary, self.secondary)]
        for daemon, before in zip((self.primary, self.secondary), resident):
            self.assertLess(daemon.memory()["allocated_bytes"], before + 256 * 1024)

    def test_a_removed_disk_can_be_used_by_others(self):
        path = self.directory / "primary.raw"
        self.primary.qmp.call("blockdev-add", **file_node(path, "d"))
        self.assert_error(self.secondary, "in use", "blockdev-add", **file_node(path, "d"))
        self.primary.qmp.call("blockdev-add", **quorum_node("q", "d"))
        self.primary.qmp.call("blockdev-del", node_name="q")
        # The disk was added by itself, and is still there.
        self.assert_error(self.secondary, "in use", "blockdev-add", **file_node(path, "d"))
        self.primary.qmp.call("blockdev-add", **quorum_node("q2", "d"))
        self.primary.qmp.call("blockdev-del", node_name="q2")
        self.primary.qmp.call("blockdev-del", node_name="d")
        self.secondary.qmp.call("blockdev-add", **file_node(path, "d"))

    def test_everything_in_one_command_each(self):
        call = self.secondary.qmp.call
        call("blockdev-add", **quorum_node("top", secondary_node(
            "half", file_node(self.directory / "secondary.raw", "disk"), "top", buffer=str(self.directory / "buffer"),
            granule="64K", **{"when-full": "break", "stall-max": "100ms"})))
        self.start_server(self.secondary, "secondary")
        call("block-export-add", type="nbd", id="e1", node_name="disk", name="other", writable=True)
        call("block-export-add", type="nbd", id="e2", node_name="top")
        self.secondary.replicate(enable=True, primary=False)
        volume = self.secondary.volume()
        self.assertEqual((volume["name"], volume["granule_bytes"], volume["buffer"]["policy"]), ("disk", 65536, "break"))
        call = self.primary.qmp.call
        control = f"unix:{self.secondary.control_path}"
        call("blockdev-add", **quorum_node(
            "p", file_node(self.directory / "primary.raw", "pd"),
            replica_node("r", self.directory / "secondary.nbd", "other", control=control), **{"dirty-granule": 4096}))
        self.start_server(self.primary, "primary")
        call("nbd-server-add", device="p", name="disk", writable=True, description="as named")
        self.primary.wait_for("connected", is_connected)
        self.primary.replicate(enable=True, primary=True)
        self.connect(self.uri("primary", "disk")).pwrite(b"n" * BLOCK, 0)
        # One act of the pair, over the control address; the secondary is known by its export's name.
        call("xen-colo-do-checkpoint")
        guest = self.connect(self.uri("secondary", "top"))
        self.assertEqual(guest.pread(BLOCK, 0), b"n" * BLOCK)
        self.assertTrue(guest.is_read_only(), "not exported writable")

    def test_disks_that_other_servers_serve(self):
        server = self.directory / "server.nbd"
        self.run_in_background(["nbdkit", "--foreground", "--unix", server, "memory", self.SIZE])
        node = {"driver": "nbd", "server": {"type": "unix", "path": str(server)}}
        for name in ("q1", "q2"):
            for _ in range(100):
                try:
                    self.primary.qmp.call("blockdev-add", **quorum_node(name, node))
                    break
                except Exception:
                    time.sleep(0.05)
            self.start_server(self.primary, "primary")
            self.primary.qmp.call("nbd-server-add", device=name, writable=True)
            handle = self.connect(self.uri("primary", name))
            if name == "q2":
                self.assertEqual(handle.pread(BLOCK, 0), b"q" * BLOCK)
            handle.pwrite(b"q" * BLOCK, 0)
            self.primary.qmp.call("nbd-server-stop")
            self.primary.qmp.call("blockdev-del", node_name=name)

    def test_two_servers_serve_what_each_was_given(self):
        self.build_secondary()
        self.start_server(self.secondary, "guest", server="guests")
        self.secondary.qmp.call("nbd-server-add", device="top-disk1", name="view", server="guests", writable=True)
        self.secondary.qmp.call("nbd-server-remove", name="top-disk1")
        self.connect(self.uri("guest", "view"))
        for side, export in (("secondary", "view"), ("guest", "colo1"), ("secondary", "top-disk1")):
            with self.assertRaises(nbd.Error):
                self.connect(self.uri(side, export))

    def test_clients_of_a_removed_export_are_let_go(self):
        self.build_pair()
        handle, other = (self.connect(self.uri("primary", "colo1")) for _ in range(2))
        self.assert_error(self.primary, "2 client(s)", "nbd-server-remove", name="colo1")
        handle.pwrite(b"s" * BLOCK, 0)
        self.primary.qmp.call("nbd-server-remove", name="colo1", mode="hard")
        for each in (handle, other):
            with self.assertRaises(nbd.Error):
                each.pread(BLOCK, 0)
        self.primary.qmp.call("block-export-add", type="nbd", id="again", node_name="colo1", writable=True)
        self.assertEqual(self.connect(self.uri("primary", "colo1")).pread(BLOCK, 0), b"s" * BLOCK)

    def test_the_command_line_makes_the_same_nodes(self):
        secondary = self.enter_secondary_by_flags()
        nodes = secondary.qmp.call("query-named-block-nodes")
        self.assertEqual([node["drv"] for node in nodes], ["replication", "twinblock-buffer", "file"])
        self.assertEqual([(export["name"], export["node-name"]) for export in secondary.qmp.call("query-block-exports")],
                         [("disk", "disk"), ("view", nodes[0]["node-name"])])
        secondary.qmp.call("nbd-server-start", addr=unix_address(self.directory / "more.nbd"))
        secondary.qmp.call("nbd-server-add", device="disk", name="more")
        self.assertEqual(self.connect(f"nbd+unix:///more?socket={self.directory}/more.nbd").get_size(), self.SIZE)

    def enter_secondary_by_flags(self):
        self.secondary.kill()
        self.secondary.control_path.unlink(missing_ok=True)
        return self.enter_secondary(started=False, buffer_bytes=MIB)


class FullBuffer(NodesTest):
    """The primary takes checkpoints by itself, and here it does so only when it hears that the buffer fills up."""

    ARGUMENTS = ("--checkpoint-every", "1h")

    def test_a_primary_that_calls_the_volume_otherwise_hears_that_its_buffer_is_full(self):
        call = self.secondary.qmp.call
        call("blockdev-add", **quorum_node("top", secondary_node(
            "half", file_node(self.directory / "secondary.raw", "disk"), "top", size="512K", **{"stall-max": "1h"})))
        self.start_server(self.secondary, "secondary")
        call("nbd-server-add", device="disk", name="far", writable=True)
        self.secondary.replicate(enable=True, primary=False)
        call = self.primary.qmp.call
        call("blockdev-add", **quorum_node(
            "near", file_node(self.directory / "primary.raw", "pd"),
            replica_node("r", self.directory / "secondary.nbd", "far", control=f"unix:{self.secondary.control_path}")))
        self.start_server(self.primary, "primary")
        call("nbd-server-add", device="near", writable=True)
        self.primary.wait_for("connected", is_connected)
        self.primary.replicate(enable=True, primary=True)
        guest = self.connect(self.uri("primary", "near"))
        for place in range(0, self.SIZE, 16 * BLOCK):
            guest.pwrite(b"f" * 16 * BLOCK, place)
        told = self.secondary.qmp.event("BUFFER_FULL")["data"]
        self.assertEqual((told["volume"], told["export"]), ("disk", "far"))
        self.assertGreater(self.primary.volume()["checkpoint_us"]["count"], 0)
        self.assertEqual(self.primary.error(), {"error": False})


class FromAFile(NodesTest):
    def enter_empty(self, name):
        """As the others, but of a file that describes no volume."""
        return self.enter_configured(name, [], checkpoint_timeout="3s")

    def test_a_daemon_of_a_file_without_a_volume_is_given_one(self):
        self.build_pair()
        self.connect(self.uri("primary", "colo1")).pwrite(b"v" * BLOCK, 0)
        self.secondary.qmp.call("xen-colo-do-checkpoint")
        self.assertEqual(self.connect(self.uri("secondary", "top-disk1")).pread(BLOCK, 0), b"v" * BLOCK)
