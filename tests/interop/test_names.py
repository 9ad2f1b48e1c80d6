"""A name server that does not answer, while a daemon serves: it has a network and a resolver's file of its own."""
import subprocess
import sys
import time

from harness.twinblock import Daemon
from nodes import NodesTest, file_node, quorum_node, replica_node

# Started within the new name spaces: a loopback interface, a name server that swallows what it is asked, then the daemon.
INSIDE = """
import array, fcntl, os, socket, struct, subprocess, sys
swallowing = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
name = struct.pack("16sh", b"lo", 1 | 64)
fcntl.ioctl(swallowing, 0x8914, name)
swallowing.bind(("127.0.0.1", 53))
swallowing.set_inheritable(True)
for path in ("resolv.conf", "nsswitch.conf", "hosts"):
    subprocess.run(["mount", "--bind", f"{sys.argv[1]}/{path}", f"/etc/{path}"], check=True)
os.execv(sys.argv[2], sys.argv[2:])
"""


class NamesTest(NodesTest):
    """The primary alone is in its own name spaces."""

    # Who is asked for names.
    SOURCE = "dns"

    def setUp(self):
        self.has_spaces = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True).returncode == 0
        if not self.has_spaces:
            self.skipTest("no name spaces can be made")
        super().setUp()

    def enter_empty(self, name):
        if name != "primary":
            return super().enter_empty(name)
        (self.directory / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:1\n")
        (self.directory / "nsswitch.conf").write_text(f"hosts: {self.SOURCE}\n")
        self.hosts = self.directory / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n")
        daemon = Daemon("daemon", self.directory, ())
        daemon.control_path = self.directory / "primary.qmp"
        daemon._command[-1] = f"unix:{daemon.control_path}"
        daemon._log = self.directory / "primary.log"
        daemon._command = ["unshare", "--mount", "--net", sys.executable, "-c", INSIDE, self.directory, *daemon._command]
        self.addCleanup(daemon.kill)
        daemon.start()
        return daemon


class NewName(NamesTest):
    SOURCE = "files"

    def test_a_name_that_was_unknown_is_asked_for_again_soon(self):
        self.build_primary()
        manager = self.manager(self.primary)
        manager.socket.settimeout(3.0)

        def attach():
            manager.send("attach", "attach", uri="nbd://replica.example/x", name="r1")
            try:
                return manager.answer()["error"]["desc"]
            except TimeoutError:
                return "it is being connected to"

        self.assertIn("cannot resolve", attach())
        self.hosts.write_text("127.0.0.1 replica.example\n")
        deadline = time.monotonic() + 30
        while "cannot resolve" in attach():
            self.assertLess(time.monotonic(), deadline, "it is not asked for again")
            time.sleep(0.2)


class SilentNameServer(NamesTest):
    def test_guests_and_managers_are_served_while_a_name_is_looked_up(self):
        self.build_primary()
        guest = self.connect(self.uri("primary", "colo1"))
        manager = self.manager(self.primary)
        remote = replica_node("far", "", "x")
        remote["file"]["server"] = {"type": "inet", "host": "replica.example", "port": "10809"}
        commands = {
            "attach": {"uri": "nbd://replica.example/x", "name": "r1"},
            "blockdev-add": quorum_node("q", file_node(self.make_disk("spare.raw", self.SIZE), "d"), remote),
            "human-monitor-command": {"command-line": "drive_add -n buddy driver=nbd,node-name=n,host=other.example,port=1"},
        }
        before = self.state(self.primary)
        for command, arguments in commands.items():
            manager.send(command, command, **arguments)
        manager.send("query-status", "status")
        # Had one of them been looked up in between, it would have been answered first.
        self.assertEqual(manager.answer()["id"], "status")
        guest.pwrite(b"n" * 4096, 0)
        self.assertEqual(guest.pread(4096, 0), b"n" * 4096)
        told = {}
        for _ in commands:
            answer = manager.answer()
            told[answer["id"]] = answer
        for command in ("attach", "blockdev-add"):
            self.assertIn("no answer in time", told[command]["error"]["desc"])
        # A node alone needs no connection.
        self.assertEqual(told["human-monitor-command"]["return"], "")
        self.primary.qmp.call("blockdev-del", node_name="n")
        self.assertEqual(self.state(self.primary)[0], before[0])
