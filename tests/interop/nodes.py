"""Daemons that start empty and are told everything over QMP."""
import json
import socket

from fixture import MIB, DiskTest
from harness.qmp import QmpError
from harness.twinblock import Daemon


def file_node(path, name):
    return {"driver": "raw", "node-name": name, "file": {"driver": "file", "filename": str(path)}}


def buffer_node(backing, size="4M", **more):
    return {"driver": "twinblock-buffer", "buffer": "memory", "buffer-size": size, "backing": backing, **more}


def secondary_node(name, backing, top_id, **more):
    return {"driver": "replication", "mode": "secondary", "node-name": name, "top-id": top_id,
            "file": buffer_node(backing, **more)}


def quorum_node(name, *children, **more):
    return {"driver": "quorum", "node-name": name, "vote-threshold": 1, "read-pattern": "fifo",
            "children": list(children), **more}


def replica_node(name, socket_path, export, **more):
    return {"driver": "replication", "mode": "primary", "node-name": name, **more,
            "file": {"driver": "nbd", "server": {"type": "unix", "path": str(socket_path)}, "export": export}}


def unix_address(path):
    return {"type": "unix", "data": {"path": str(path)}}


class Manager:
    """A connection on the level of lines, for answers that come in any order."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rw")
        self.file.readline()
        self.send("qmp_capabilities", 0)
        self.answer()

    def send(self, command, identifier, **arguments):
        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.file.write(json.dumps({"execute": command, "arguments": arguments, "id": identifier}) + "\n")
        self.file.flush()

    def answer(self):
        while "event" in (message := json.loads(self.file.readline())):
            pass
        return message

    def close(self):
        self.file.close()
        self.socket.close()


class NodesTest(DiskTest):
    """Two daemons that serve nothing yet, and their disks."""

    SIZE = 2 * MIB
    # Of both daemons.
    ARGUMENTS = ()

    def setUp(self):
        super().setUp()
        self.make_disks(self.SIZE, seed=7)
        self.primary, self.secondary = (self.enter_empty(name) for name in ("primary", "secondary"))

    def enter_empty(self, name):
        daemon = Daemon("daemon", self.directory, self.ARGUMENTS)
        daemon.control_path = self.directory / f"{name}.qmp"
        daemon.control = f"unix:{daemon.control_path}"
        daemon._command[-1] = daemon.control
        daemon._log = self.directory / f"{name}.log"
        self.addCleanup(daemon.kill)
        daemon.start()
        return daemon

    def manager(self, daemon):
        manager = Manager(daemon.control_path)
        self.addCleanup(manager.close)
        return manager

    def uri(self, side, export):
        return f"nbd+unix:///{export}?socket={self.directory}/{side}.nbd"

    def start_server(self, daemon, side, **more):
        daemon.qmp.call("nbd-server-start", addr=unix_address(self.directory / f"{side}.nbd"), **more)

    def build_secondary(self, disk="secondary.raw", **more):
        call = self.secondary.qmp.call
        call("blockdev-add", **file_node(self.directory / disk, "colo1"))
        call("blockdev-add", **secondary_node("childs1", "colo1", "top-disk1", **more))
        call("blockdev-add", **quorum_node("top-disk1", "childs1"))
        self.start_server(self.secondary, "secondary")
        for device in ("colo1", "top-disk1"):
            call("nbd-server-add", device=device, writable=True)

    def build_primary(self):
        call = self.primary.qmp.call
        call("blockdev-add", **quorum_node("colo1", file_node(self.directory / "primary.raw", "disk1")))
        self.start_server(self.primary, "primary")
        call("nbd-server-add", device="colo1", writable=True)

    def add_replica(self, name="replica1"):
        return self.primary.qmp.call("human-monitor-command", command_line=(
            f"drive_add -n buddy driver=replication,mode=primary,node-name={name},file.driver=nbd,"
            f"file.path={self.directory}/secondary.nbd,file.export=colo1"))

    def build_pair(self, started=True):
        self.build_secondary()
        self.build_primary()
        self.assertEqual(self.add_replica(), "")
        self.primary.qmp.call("x-blockdev-change", parent="colo1", node="replica1")
        if started:
            self.secondary.replicate(enable=True, primary=False)
            self.primary.replicate(enable=True, primary=True)

    def state(self, daemon):
        """All that a refused command must leave as it is."""
        return [daemon.qmp.call(command) for command in
                ("query-named-block-nodes", "query-block-exports", "query-replication", "query-jobs")]

    def assert_error(self, daemon, part, command, **arguments):
        """Refused with these words, and nothing has changed."""
        before = self.state(daemon)
        with self.assertRaises(QmpError, msg=f"{command} {arguments}") as caught:
            daemon.qmp.call(command, **arguments)
        self.assertEqual(caught.exception.name, "GenericError")
        self.assertIn(part, caught.exception.desc, f"{command} {arguments}")
        self.assertEqual(self.state(daemon), before, f"{command} {arguments}")
