"""The control socket, the commands that use it, and how a daemon ends."""
import json
import os
import socket
import stat

from fixture import MIB, PairTest, twinblock
from harness.process import output_of
from harness.qmp import QmpError
from harness.twinblock import EXPORT

ERRORS = {"primary_disk", "forward", "copy_before_write", "secondary_disk", "buffer", "empty", "commit"}


class Control(PairTest):
    SIZE = 2 * MIB

    def control(self, daemon):
        return f"unix:{daemon.control_path}"

    def both(self):
        return (self.pair.primary, self.pair.secondary)

    def test_the_socket_is_for_its_owner_alone(self):
        for daemon in self.both():
            self.assertEqual(stat.S_IMODE(os.stat(daemon.control_path).st_mode), 0o600)

    def test_a_greeting_comes_first(self):
        for daemon in self.both():
            self.assertIn("version", daemon.qmp.greeting)

    def test_commands_before_the_handshake_are_refused(self):
        for daemon in self.both():
            with socket.socket(socket.AF_UNIX) as raw:
                raw.settimeout(5)
                raw.connect(str(daemon.control_path))
                file = raw.makefile("rw")
                file.readline()
                file.write('{"execute": "query-replication"}\n')
                file.flush()
                self.assertIn("error", json.loads(file.readline()))

    def test_what_is_not_understood_is_told_and_the_connection_goes_on(self):
        for daemon in self.both():
            with self.assertRaises(QmpError) as caught:
                daemon.qmp.call("make-coffee")
            self.assertEqual(caught.exception.name, "CommandNotFound")
            for line in (b"{]\n", b"[1]\n", b'{"execute": 5}\n', b'{"execute": "xen-set-replication"}\n',
                         b'{"execute": "xen-set-replication", "arguments": {"enable": "yes", "primary": 1}}\n'):
                with self.assertRaises(QmpError, msg=line):
                    daemon.qmp.send(line)
            self.assertEqual(daemon.volume()["stage"], "running")

    def test_an_id_comes_back(self):
        connection = self.pair.primary.connect()
        connection._socket.sendall(b'{"execute": "query-replication", "id": 42}\n')
        self.assertEqual(connection._message()["id"], 42)

    def test_query_replication_describes_each_role(self):
        self.connect(self.pair.primary_uri).pwrite(b"q" * 4096, 0)
        self.pair.checkpoint()
        primary, secondary = (daemon.volume() for daemon in self.both())
        for volume, role in ((primary, "primary"), (secondary, "secondary")):
            with self.subTest(role=role):
                self.assertEqual(volume["role"], role)
                self.assertEqual(volume["name"], "disk")
                self.assertEqual(volume["stage"], "running")
                self.assertEqual(volume["size_bytes"], self.SIZE)
                self.assertLessEqual(set(volume["errors"]), ERRORS)
                self.assertEqual(set(volume["errors"].values()), {0})
                self.assertGreaterEqual(volume["checkpoint_us"]["count"], 1)
                self.assertLessEqual(volume["checkpoint_us"]["p50"], volume["checkpoint_us"]["p99"])
                self.assertLessEqual(volume["checkpoint_us"]["p99"], volume["checkpoint_us"]["max"])
        self.assertNotIn("replicas", secondary)
        self.assertNotIn("buffer", primary)
        self.assertEqual(secondary["granule_bytes"], 4096)
        self.assertEqual({key: secondary["buffer"][key] for key in ("policy", "view", "held", "used_bytes")},
                         {"policy": "stall", "view": "whole", "held": 0, "used_bytes": 0})
        self.assertGreater(secondary["epoch"], 0)
        replica, = primary["replicas"]
        self.assertEqual({key: replica[key] for key in ("connected", "control_connected", "behind", "dirty_bytes", "in_flight")},
                         {"connected": True, "control_connected": True, "behind": False, "dirty_bytes": 0, "in_flight": 0})

    def test_status_tells_people_and_programs_the_same(self):
        for daemon in self.both():
            told = json.loads(twinblock("status", "--json", "--control", self.control(daemon)))
            self.assertEqual(told["volumes"][0]["stage"], "running")
            text = twinblock("status", "--control", self.control(daemon))
            self.assertIn("running", text)
            self.assertNotIn("\x1b", text, "colour, and this is no terminal")

    def test_the_commands_drive_a_pair(self):
        self.connect(self.pair.primary_uri).pwrite(b"c" * 4096, 0)
        twinblock("checkpoint", "--control", self.control(self.pair.primary))
        self.assertEqual(self.connect(self.pair.guest_uri).pread(4096, 0), b"c" * 4096)
        twinblock("stop", "--failover", "--control", self.control(self.pair.secondary))
        self.pair.secondary.wait_for("done", lambda volume: volume["stage"] == "done")
        twinblock("stop", "--control", self.control(self.pair.primary))
        self.assertEqual(self.pair.primary.volume()["stage"], "done")

    def test_a_checkpoint_without_a_control_connection_is_refused_by_that_name_and_status_shows_it(self):
        qmp = self.pair.primary.qmp
        name = self.pair.primary.volume()["replicas"][0]["name"]
        qmp.call("detach", volume=EXPORT, name=name)
        qmp.call("attach", volume=EXPORT, name=name, uri=self.pair.replica_uri,
                 control=f"unix:{self.directory / 'nobody.qmp'}")
        self.pair.primary.wait_for("connected", lambda volume: volume["replicas"][0]["connected"])
        replica, = self.pair.primary.volume()["replicas"]
        self.assertIs(replica["control_connected"], False)
        self.assertIn("no control connection", twinblock("status", "--control", self.control(self.pair.primary)))
        with self.assertRaises(AssertionError) as refused:
            twinblock("checkpoint", "--control", self.control(self.pair.primary))
        self.assertIn(f"replica '{name}': volume '{EXPORT}' has no control connection to it now",
                      str(refused.exception))

    def test_a_refused_command_ends_with_an_error_that_says_why(self):
        with self.assertRaises(AssertionError) as refused:
            twinblock("start", "--control", self.control(self.pair.primary))
        self.assertIn("running", str(refused.exception))

    def test_sigterm_finishes_and_flushes(self):
        handle = self.connect(self.pair.primary_uri)
        handle.pwrite(b"t" * 65536, 12345)
        self.assertEqual(self.pair.primary.process.terminate(), 0)
        self.assertEqual(self.pair.secondary.process.terminate(), 0)
        for disk in (self.pair.primary_disk, self.pair.secondary_disk):
            self.assert_disk_holds(disk, 12345, b"t" * 65536)

    def test_quit_ends_the_daemon(self):
        for daemon in self.both():
            try:
                daemon.qmp.call("quit")
            except ConnectionError:
                pass
            self.assertEqual(daemon.process.wait(), 0)

    def test_many_managers_at_once_are_served(self):
        connections = [self.pair.primary.connect() for _ in range(4)]
        for connection in connections:
            self.assertEqual(connection.call("query-xen-replication-status"), {"error": False})

    def test_help_tells_the_two_ways_to_take_over_apart(self):
        text = twinblock("stop", "--help")
        self.assertIn("--failover", text)
        self.assertIn("checkpoint", text)
        self.assertIn("twinblock", output_of([self.pair.primary.process.command[0], "--version"]))
