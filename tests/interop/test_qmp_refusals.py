"""What no careful manager sends: each is refused with an error object, in words that name what is wrong, and leaves
everything as it was."""
import time

import nbd

from fixture import MIB
from harness.qmp import QmpError
from nodes import NodesTest, buffer_node, file_node, quorum_node, replica_node, secondary_node, unix_address

BLOCK = 4096


class Refusals(NodesTest):
    def test_nodes_that_cannot_be(self):
        self.build_pair()
        disk = {"driver": "file", "filename": str(self.make_disk("spare.raw", MIB))}
        nbd_node = {"driver": "nbd", "server": {"type": "unix", "path": "/nowhere"}}
        for part, node in [
            ("there is no driver 'ceph'", {"driver": "ceph", "node-name": "x"}),
            ("'driver' is missing", {"node-name": "x"}),
            ("'driver' must be a string", {"driver": ["file"], "node-name": "x"}),
            ("'node-name' is missing", disk),
            ("'node-name' must be a string", {**disk, "node-name": 5}),
            ("node has no name", {**disk, "node-name": ""}),
            ("begins with '#'", {**disk, "node-name": "#x"}),
            ("'filename' is missing", {"driver": "file", "node-name": "x"}),
            ("'filename' must be a string", {"driver": "file", "node-name": "x", "filename": True}),
            ("'cache.direct' must be true or false", {**disk, "node-name": "x", "cache": {"direct": "on"}}),
            ("there is no parameter 'cache.writeback'", {**disk, "node-name": "x", "cache": {"writeback": True}}),
            ("there is no parameter 'colour'", {**disk, "node-name": "x", "colour": "blue"}),
            ("'read-only' cannot be true", {**disk, "node-name": "x", "read-only": True}),
            ("No such file", {**disk, "node-name": "x", "filename": "/nowhere/disk"}),
            ("is no block device", {**disk, "node-name": "x", "driver": "host_device"}),
            ("already", {**disk, "node-name": "colo1"}),
            ("already", quorum_node("x", {**disk, "node-name": "y"}, {**disk, "node-name": "y"})),
            ("in use by node 'colo1'", quorum_node("x", "disk1")),
            ("in use by", {**disk, "node-name": "x", "filename": str(self.directory / "primary.raw")}),
            ("there is no node 'nothing'", quorum_node("x", "nothing")),
            ("'vote-threshold' must be 1", quorum_node("x", disk, **{"vote-threshold": 2})),
            ("'vote-threshold' must be a whole number", quorum_node("x", disk, **{"vote-threshold": "1"})),
            ("'read-pattern'", quorum_node("x", disk, **{"read-pattern": "quorum"})),
            ("'children' must have", quorum_node("x")),
            ("must be replicas", quorum_node("x", disk, {**disk, "filename": "/y"})),
            ("'children.0' must be the name of a node or an object", quorum_node("x", 5)),
            ("dirty granule", quorum_node("x", disk, **{"dirty-granule": 1000})),
            ("'mode' is missing", {"driver": "replication", "node-name": "x", "file": nbd_node}),
            ("one of: primary, secondary", {"driver": "replication", "mode": "third", "node-name": "x", "file": nbd_node}),
            ("'top-id' is for mode 'secondary'",
             {"driver": "replication", "mode": "primary", "top-id": "t", "node-name": "x", "file": nbd_node}),
            ("'top-id' is missing",
             {"driver": "replication", "mode": "secondary", "node-name": "x", "file": buffer_node(disk)}),
            ("no NBD export", {"driver": "replication", "mode": "primary", "node-name": "x", "file": {"driver": "raw", "file": disk}}),
            ("twinblock-buffer", secondary_node("x", disk, "x") | {"file": disk}),
            ("'qcow2' is not supported", secondary_node("x", disk, "x") | {"file": {"driver": "qcow2", "file": disk}}),
            ("'file.buffer-size' is missing",
             secondary_node("x", disk, "x") | {"file": {"driver": "twinblock-buffer", "buffer": "memory", "backing": disk}}),
            ("too small", secondary_node("x", disk, "x", size="4K")),
            ("'file.granule'", secondary_node("x", disk, "x", granule="lots")),
            ("granule", secondary_node("x", disk, "x", granule=3)),
            ("'server.type' is missing", {"driver": "nbd", "node-name": "x", "server": {}}),
            ("'server' is missing", {"driver": "nbd", "node-name": "x"}),
            ("'tls-creds' is not supported", {**nbd_node, "node-name": "x", "tls-creds": "c"}),
        ]:
            with self.subTest(node=node):
                if node.get("node-name") is None:
                    node = {key: value for key, value in node.items() if key != "node-name"}
                self.assert_error(self.primary, part, "blockdev-add", **node)
        self.assert_goes_on()

    def assert_goes_on(self):
        """The pair still does what it did."""
        self.connect(self.uri("primary", "colo1")).pwrite(b"+" * BLOCK, 0)
        for daemon in (self.secondary, self.primary):
            daemon.qmp.call("xen-colo-do-checkpoint")
            self.assertEqual(daemon.error(), {"error": False})
        self.assertEqual(self.connect(self.uri("secondary", "top-disk1")).pread(BLOCK, 0), b"+" * BLOCK)

    def test_nested_names_given_twice_are_refused(self):
        line = b'{"execute": "blockdev-add", "arguments": {"driver": "raw", "node-name": "x", "file": {"driver": "file", ' \
               b'"filename": "/a", "filename": "/b"}}}\n'
        with self.assertRaises(QmpError) as caught:
            self.primary.qmp.send(line)
        self.assertIn("'filename' is given twice", caught.exception.desc)
        with self.assertRaises(QmpError) as caught:
            self.primary.qmp.send(b'{"execute": "blockdev-del", "arguments": ["x"]}\n')
        self.assertIn("'arguments' of 'blockdev-del' must be an object", caught.exception.desc)

    def test_servers_and_exports_that_cannot_be(self):
        self.build_pair()
        socket = unix_address(self.directory / "other.nbd")
        add = {"type": "nbd", "id": "e", "node-name": "colo1"}
        for daemon, part, command, arguments in [
            (self.primary, "runs already", "nbd-server-start", {"addr": socket}),
            (self.primary, "another process listens there", "nbd-server-start",
             {"addr": unix_address(self.directory / "secondary.nbd"), "server": "s"}),
            (self.primary, "'addr' is missing", "nbd-server-start", {"server": "s"}),
            (self.primary, "'addr.type' is missing", "nbd-server-start", {"addr": {}}),
            (self.primary, "'addr' must be an object", "nbd-server-start", {"addr": "unix:x"}),
            (self.primary, "'tls-creds' is not supported", "nbd-server-start", {"addr": socket, "tls-creds": "x"}),
            (self.primary, "no NBD server 's' runs", "nbd-server-stop", {"server": "s"}),
            (self.primary, "'type' is missing", "block-export-add", {"id": "e", "node-name": "colo1"}),
            (self.primary, "'vhost-user-blk' are not supported", "block-export-add", {**add, "type": "vhost-user-blk"}),
            (self.primary, "'iothread' is not supported", "block-export-add", {**add, "iothread": "t"}),
            (self.primary, "'id' is missing", "block-export-add", {"type": "nbd", "node-name": "colo1"}),
            (self.primary, "'writable' must be true or false", "block-export-add", {**add, "writable": 1}),
            (self.primary, "an export 'colo1' already", "block-export-add", {**add, "id": "colo1"}),
            (self.primary, "of the name 'colo1' is served there already", "block-export-add", add),
            (self.primary, "there is no node 'nothing'", "nbd-server-add", {"device": "nothing"}),
            (self.primary, "in use by node 'colo1'; export that one", "nbd-server-add", {"device": "disk1"}),
            (self.primary, "export that one", "nbd-server-add", {"device": "replica1"}),
            (self.primary, "there is no export 'nothing'", "nbd-server-remove", {"name": "nothing"}),
            (self.primary, "there is no export 'nothing'", "block-export-del", {"id": "nothing"}),
            (self.primary, "one of: safe, hard", "block-export-del", {"id": "colo1", "mode": "soft"}),
            (self.secondary, "there is no parameter 'devices'", "nbd-server-add", {"device": "colo1", "devices": 1}),
        ]:
            with self.subTest(command=command, arguments=arguments):
                if part == "export that one":
                    part = "replica1"
                self.assert_error(daemon, part, command, **arguments)
        self.assert_goes_on()

    def test_a_node_in_use_is_not_deleted(self):
        self.build_pair()
        for daemon, part, name in [
            (self.primary, "in use by export 'colo1'", "colo1"),
            (self.primary, "in use by node 'colo1'", "disk1"),
            (self.primary, "in use by node 'colo1'", "replica1"),
            (self.secondary, "in use by export 'top-disk1'", "top-disk1"),
            (self.secondary, "in use by node 'top-disk1'", "childs1"),
            (self.secondary, "in use by node", "colo1"),
            (self.primary, "there is no node 'nothing'", "nothing"),
        ]:
            with self.subTest(name=name):
                self.assert_error(daemon, part, "blockdev-del", node_name=name)
        self.primary.qmp.call("nbd-server-remove", name="colo1", mode="hard")
        self.assert_error(self.primary, "in stage running; stop it first", "blockdev-del", node_name="colo1")
        self.primary.qmp.call("nbd-server-add", device="colo1", writable=True)
        self.assert_goes_on()

    def test_children_that_cannot_change(self):
        self.build_pair()
        for part, arguments in [
            ("'parent' is missing", {"node": "replica1"}),
            ("give 'node'", {"parent": "colo1"}),
            ("give one of them", {"parent": "colo1", "node": "replica1", "child": "children.1"}),
            ("in use by node 'colo1'", {"parent": "colo1", "node": "replica1"}),
            ("there is no node 'r'", {"parent": "colo1", "node": "r"}),
            ("there is no node 'q'", {"parent": "q", "node": "replica1"}),
            ("takes no replicas", {"parent": "disk1", "node": "replica1"}),
            ("no child 'children.5'", {"parent": "colo1", "child": "children.5"}),
            ("is its disk", {"parent": "colo1", "child": "children.0"}),
        ]:
            with self.subTest(arguments=arguments):
                self.assert_error(self.primary, part, "x-blockdev-change", **arguments)
        self.assert_goes_on()

    def test_a_replica_of_another_size_is_refused(self):
        self.make_disk("other.raw", 2 * self.SIZE)
        self.build_secondary(disk="other.raw")
        self.build_primary()
        self.assertEqual(self.add_replica(), "")
        self.assert_error(self.primary, "give both the same size", "x-blockdev-change", parent="colo1", node="replica1")
        self.primary.qmp.call("blockdev-del", node_name="replica1")
        handle = self.connect(self.uri("primary", "colo1"))
        handle.pwrite(b"w" * BLOCK, 0)
        handle.flush()

    def test_two_managers_race(self):
        """Of two that want the same, one gets it; which one does not matter."""
        self.build_pair()
        spare = self.make_disk("spare.raw", MIB)
        races = [("blockdev-add", {"driver": "file", "node-name": "x", "filename": str(spare)}),
                 ("blockdev-add", quorum_node("q", "x")),
                 ("block-export-add", {"type": "nbd", "id": "e", "node-name": "q"}),
                 ("block-export-del", {"id": "e"}),
                 ("blockdev-del", {"node-name": "q"}),
                 ("blockdev-del", {"node-name": "x"}),
                 ("x-blockdev-change", {"parent": "colo1", "child": "children.1"}),
                 ("x-blockdev-change", {"parent": "colo1", "node": "replica1"})]
        managers = [self.manager(self.primary) for _ in range(2)]
        for turn in range(10):
            for command, arguments in races:
                for manager in managers:
                    manager.send(command, turn, **arguments)
                answers = [manager.answer() for manager in managers]
                with self.subTest(command=command, answers=answers):
                    self.assertEqual(sorted(key for answer in answers for key in ("return", "error") if key in answer),
                                     ["error", "return"])
                    self.assertEqual([answer["id"] for answer in answers], [turn, turn])
        self.assertEqual(len(self.primary.volume()["replicas"]), 1)

    def test_a_manager_that_leaves_in_the_middle_leaves_nothing_half_done(self):
        self.build_secondary()
        self.build_primary()
        self.add_replica()
        manager = self.manager(self.primary)
        manager.send("blockdev-add", 1, **quorum_node("far", {
            "driver": "nbd", "server": {"type": "unix", "path": str(self.directory / "nobody.nbd")}}))
        manager.send("x-blockdev-change", 2, parent="colo1", node="replica1")
        manager.close()
        self.primary.wait_for("attached", lambda volume: volume["replicas"])
        self.primary.qmp.call("x-blockdev-change", parent="colo1", child="children.1")
        self.assert_error(self.primary, "there is no node 'far'", "blockdev-del", node_name="far")

    def test_commands_in_a_row_are_answered_in_a_row(self):
        manager = self.manager(self.primary)
        for number in range(200):
            manager.send("query-version" if number % 2 else "query-named-block-nodes", {"n": [number, "é\n"]})
        for number in range(200):
            self.assertEqual(manager.answer()["id"], {"n": [number, "é\n"]})

    def test_a_start_without_the_node_on_top_is_refused(self):
        self.secondary.qmp.call("blockdev-add", **secondary_node(
            "half", file_node(self.directory / "secondary.raw", "disk"), "top"))
        start = {"enable": True, "primary": False}
        self.assert_error(self.secondary, "there is no node 'top'", "xen-set-replication", **start)
        self.secondary.qmp.call("blockdev-add", **quorum_node("top", "half"))
        self.secondary.qmp.call("xen-set-replication", **start)
        self.assertEqual(self.secondary.volume()["stage"], "running")

    def test_commands_for_people_answer_with_text(self):
        for line, part in [("info block", "not understood"), ("drive_add", "usage"), ("drive_add -n buddy", "usage"),
                           ("drive_add -n buddy driver=file", "missing"), ("drive_add -n buddy driver=file,filename=/x", "node-name"),
                           ("drive_add -n buddy driver=file,filename=/nowhere,node-name=x", "No such file"),
                           ("drive_add -n buddy driver", "KEY=VALUE"), ("drive_del", "usage"), ("drive_del nothing", "no node")]:
            with self.subTest(line=line):
                self.assertIn(part, self.primary.qmp.call("human-monitor-command", command_line=line))
        path = self.directory / "primary.raw"
        for line in (f"drive_add 0 if=none,driver=raw,file.filename={path},id=colo1", "drive_del colo1"):
            self.assertEqual(self.primary.qmp.call("human-monitor-command", command_line=line), "")
        self.assertEqual(self.primary.qmp.call("query-named-block-nodes"), [])


class Detaching(NodesTest):
    ARGUMENTS = ("--replica-timeout", "1s")

    def test_a_replica_is_detached_in_mid_write(self):
        """The replica does not answer; the write does not wait for it once it is gone, and what it misses is known."""
        self.build_pair()
        handle = self.connect(self.uri("primary", "colo1"))
        handle.pwrite(b"a" * BLOCK, 0)
        self.secondary.process.freeze()
        write = handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"b" * BLOCK)), 0)
        deadline = time.monotonic() + 10
        while not self.primary.volume()["replicas"][0]["in_flight"]:
            handle.poll(0)
            self.assertLess(time.monotonic(), deadline)
        self.primary.qmp.call("x-blockdev-change", parent="colo1", child="children.1")
        while not handle.aio_command_completed(write):
            handle.poll(1000)
            self.assertLess(time.monotonic(), deadline + 30)
        self.assertEqual(self.primary.volume()["replicas"], [])
        self.assertEqual(handle.pread(BLOCK, 0), b"b" * BLOCK)
        self.secondary.process.thaw()
        self.primary.qmp.call("x-blockdev-change", parent="colo1", node="replica1")
        self.primary.wait_for("behind", lambda volume: volume["replicas"][0]["behind"])
