"""The public Python package `qemu.qmp`, and its shell, against our daemons. It is fetched for the test; where it cannot be,
the tests are skipped and say so."""
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

from nodes import NodesTest, file_node, quorum_node, secondary_node, unix_address

PACKAGE = "qemu.qmp==0.0.6"
# Builds a secondary, starts it and takes a checkpoint, hears an event, meets an error, asks many things at once. Prints what
# came of it.
SCRIPT = """
import asyncio, json, sys
from qemu.qmp import ExecuteError, QMPClient

async def main(path, commands):
    client = QMPClient("test")
    await client.connect(path)
    with client.listener(("REPLICATION_STAGE",)) as listener:
        for command, arguments in commands:
            await client.execute(command, arguments)
        event = await listener.get()
    try:
        await client.execute("blockdev-del", {"node-name": "disk"})
        error = None
    except ExecuteError as refusal:
        error = str(refusal)
    versions = await asyncio.gather(*(client.execute("query-version") for _ in range(50)))
    print(json.dumps({"greeting": client.greeting._asdict(), "event": event, "error": error, "versions": versions,
                      "nodes": await client.execute("query-named-block-nodes")}, default=dict))
    await client.disconnect()

asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
"""


class Package(NodesTest):
    @classmethod
    def setUpClass(cls):
        cls.place = pathlib.Path(tempfile.mkdtemp(prefix="twinblock-qemu-qmp-"))
        cls.addClassCleanup(shutil.rmtree, cls.place, ignore_errors=True)
        for command in ([sys.executable, "-m", "venv", cls.place], [cls.place / "bin" / "pip", "install", "--quiet", PACKAGE]):
            done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
            if done.returncode:
                why = (done.stderr or done.stdout).strip().splitlines()
                raise unittest.SkipTest(f"{PACKAGE} cannot be fetched here: {why[-1] if why else command}")

    def run_in_place(self, program, *arguments, text=None):
        done = subprocess.run([self.place / "bin" / program, *map(str, arguments)], input=text, capture_output=True, text=True,
                              timeout=60, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def commands(self):
        return [
            ("blockdev-add", file_node(self.directory / "secondary.raw", "disk")),
            ("blockdev-add", secondary_node("half", "disk", "top")),
            ("blockdev-add", quorum_node("top", "half")),
            ("nbd-server-start", {"addr": unix_address(self.directory / "secondary.nbd")}),
            ("nbd-server-add", {"device": "disk", "writable": True}),
            ("xen-set-replication", {"enable": True, "primary": False}),
            ("xen-colo-do-checkpoint", {}),
        ]

    def test_its_client_drives_a_daemon(self):
        told = json.loads(self.run_in_place("python", "-c", SCRIPT, self.secondary.control_path, json.dumps(self.commands())))
        self.assertEqual(told["greeting"]["QMP"]["capabilities"], [])
        self.assertEqual(told["event"]["data"], {"volume": "disk", "stage": "running"})
        self.assertIn("in use by node", told["error"])
        self.assertEqual(told["versions"], [told["greeting"]["QMP"]["version"]] * 50)
        self.assertEqual({node["node-name"] for node in told["nodes"]} & {"disk", "half", "top"}, {"disk", "half", "top"})
        self.assertEqual(self.secondary.volume()["epoch"], 2)

    def test_its_shell_drives_a_daemon(self):
        path = self.directory / "secondary.raw"
        disk = json.dumps({"driver": "file", "filename": str(path)}, separators=(",", ":"))
        lines = [f"blockdev-add driver=raw node-name=disk file={disk}",
                 'blockdev-add driver=twinblock-buffer node-name=buffer buffer=memory buffer-size=1048576 backing=disk',
                 "blockdev-add driver=replication mode=secondary node-name=half top-id=half file=buffer",
                 "xen-set-replication enable=true primary=false",
                 "query-xen-replication-status", "blockdev-add driver=ceph node-name=x"]
        shown = self.run_in_place("qmp-shell", self.secondary.control_path, text="\n".join(lines) + "\n")
        self.assertIn("there is no driver 'ceph'", shown)
        self.assertEqual(self.secondary.volume()["stage"], "running")
        self.assertEqual(self.secondary.error(), {"error": False})
