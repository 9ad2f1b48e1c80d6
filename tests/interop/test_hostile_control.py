"""What no manager sends: garbage, JSON that is malformed, deep or huge, arguments of every wrong kind; managers that send
half a line, never read, or come by the dozen. A session goes on after each, and others are served meanwhile."""
import json
import random
import socket
import struct
import time

from fixture import MIB, PairTest
from harness.qmp import QmpError

SEED = 20_260_202
PATIENCE_S = 60.0
ANY = {"CommandNotFound", "GenericError"}


class Manager:
    """One connection on the level of bytes."""

    def __init__(self, path, negotiates=True):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(str(path))
        self._unread = b""
        self.message()
        if negotiates:
            self.ask(b'{"execute": "qmp_capabilities"}\n')

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def message(self):
        while b"\n" not in self._unread:
            got = self.socket.recv(1 << 16)
            if not got:
                raise ConnectionError("closed")
            self._unread += got
        line, self._unread = self._unread.split(b"\n", 1)
        return json.loads(line)

    def answer(self):
        """The next message that is no event."""
        while "event" in (message := self.message()):
            pass
        return message

    def ask(self, data):
        self.socket.sendall(data)
        return self.answer()


class ControlTest(PairTest):
    SIZE = 2 * MIB

    def setUp(self):
        super().setUp()
        self.daemons = (self.pair.primary, self.pair.secondary)
        self.tried = 0

    def tearDown(self):
        for daemon in self.daemons:
            self.assertEqual(daemon.volume()["stage"], "running")
            self.assertEqual(daemon.connect().call("query-xen-replication-status"), {"error": False})
        print(f"[{self.tried} tried]", end=" ", flush=True)
        super().tearDown()

    def refused(self, manager, data, context=None):
        """One error comes back, on one line and not without measure, and the session goes on."""
        self.tried += 1
        answer = manager.ask(data)
        self.assertIn("error", answer, context or data[:200])
        self.assertIn(answer["error"]["class"], ANY)
        description = answer["error"]["desc"]
        self.assertTrue(description.isprintable(), repr(description[:200]))
        self.assertLess(len(description), 600)
        self.assertIn("return", manager.ask(b'{"execute": "query-xen-replication-status"}\n'))
        return description


class Text(ControlTest):
    def test_malformed_json_is_answered_with_an_error_and_the_session_goes_on(self):
        lines = [b"x\n", b"{]\n", b"[]\n", b"5\n", b"null\n", b'"execute"\n', b"{}\n", b'{"execute"}\n', b'{"execute": }\n',
                 b"{'execute': 'quit'}\n", b'{"execute": "quit",}\n', b'{"execute": "quit" "id": 1}\n', b'{execute: "quit"}\n',
                 b'{"execute": "q\\x"}\n', b'{"execute": "\\u12"}\n',
                 b'{"execute": "\\ud800"}\n', b'{"execute": tru}\n', b'{"execute": 01}\n', b'{"execute": 1.}\n', b'{"execute": -}\n',
                 b'{"execute": 1e}\n', b'{"execute": +1}\n', b'{"execute": NaN}\n', b'{"execute": .5}\n', b'{"execute": 0x1}\n',
                 b'{"a": 1, "a": 2}\n', b'// comment\n', b'{"execute": "a\tb"}\n', b"\x00\n", b"{\x00}\n",
                 b'{"execute": "quit\x00"}\n', b"\xff\xfe\n", b"\xc3\x28\n", b'{"execute": "\xc3\x28"}\n', b'{"execute": "\xed\xa0\x80"}\n',
                 b'\xef\xbb\xbf{"execute": "query-replication"}\n', b'{"execute": "\x1b[31m"}\n', b'{"\xf0\x9f\x98\x80": 1}\n']
        for daemon in self.daemons:
            for line in lines:
                with Manager(daemon.control_path) as manager:
                    self.tried += 1
                    manager.socket.sendall(line)
                    self.assertIn("error", manager.answer(), line)
                    # What is left of the line may be answered too; whoever begins anew is understood.
                    manager.socket.sendall(b'\xff\n{"execute": "query-xen-replication-status", "id": "last"}\n')
                    for _ in range(10):
                        answer = manager.answer()
                        if answer.get("id") == "last":
                            break
                    self.assertEqual(answer, {"return": {"error": False}, "id": "last"}, line)

    def test_a_hundred_thousand_levels_are_refused(self):
        for daemon in self.daemons:
            with Manager(daemon.control_path) as manager:
                for opening, closing in ((b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")):
                    for inner in (b"1", b""):
                        text = opening * 100_000 + inner + closing * 100_000
                        self.refused(manager, text + b"\n", opening)
                        self.refused(manager, b'{"execute": "query-replication", "arguments": ' + text + b"}\n", opening)
                # Never closed: the next byte 0xff begins anew.
                self.refused(manager, b"[" * 100_000 + b"\xff\n", "never closed")

    def test_messages_of_megabytes_are_refused_and_the_rest_of_them_is_dropped(self):
        for daemon in self.daemons:
            before = resident_bytes(daemon.process)
            with Manager(daemon.control_path) as manager:
                for text in (b'{"execute": "' + b"q" * (3 * MIB) + b'"}\n', b'{"execute": "quit", "id": "' + b"i" * (2 * MIB) + b'"}\n',
                             b" " * (2 * MIB) + b"x\n", b'{"a": [' + b"1," * MIB + b"1]}\n", b'"' + b"\\" * (5 * MIB) + b'"\n'):
                    self.refused(manager, text, text[:20])
                # As long as is allowed.
                self.refused(manager, b'{"execute": "' + b"q" * (MIB - 100) + b'"}\n', "long name")
                self.refused(manager, b'{"execute": "query-replication", "arguments": {"' + b"k" * (MIB - 100) + b'": 1}}\n', "key")
                self.refused(manager, b'{"execute": "query-xen-replication-status", "arguments": {"volume": "' + b"v" * 900_000
                             + b'"}}\n', "volume")
            self.assertLess(resident_bytes(daemon.process) - before, 16 * MIB)

    def test_random_and_changed_messages_do_not_hurt(self):
        chance = random.Random(SEED)
        good = [b'{"execute": "query-replication"}\n', b'{"execute": "query-commands", "id": [1, {"a": "b"}]}\n',
                b'{"execute": "xen-colo-do-checkpoint", "arguments": {"volume": "none"}}\n',
                b'{"execute": "attach", "arguments": {"uri": "nbd://x/y", "volume": "none", "sync": "full"}}\n',
                b'{"execute": "checkpoint-prepare", "arguments": {"volume": "none", "epoch": 5, "claim": "00", "modifications": 1}}\n']
        for daemon in self.daemons:
            for _ in range(400):
                self.tried += 1
                if chance.randrange(4) == 0:
                    data = chance.randbytes(chance.randrange(1, 3000))
                else:
                    data = bytearray(chance.choice(good) * chance.randrange(1, 4))
                    for _ in range(chance.randrange(1, 6)):
                        place = chance.randrange(len(data))
                        data[place:place + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
                if b"quit" in data:
                    continue
                with Manager(daemon.control_path, negotiates=chance.randrange(4) != 0) as manager:
                    try:
                        manager.socket.sendall(data)
                        manager.socket.shutdown(socket.SHUT_WR)
                        while manager.socket.recv(1 << 16):
                            pass
                    except (BrokenPipeError, ConnectionResetError):
                        pass

    def test_every_beginning_of_a_session_ends_well(self):
        session = b'{"execute": "qmp_capabilities"}\n{"execute": "query-replication", "id": "\\u00e4"}\r\n'
        for daemon in self.daemons:
            for length in range(len(session)):
                self.tried += 1
                with Manager(daemon.control_path, negotiates=False) as manager:
                    manager.socket.sendall(session[:length])


class Arguments(ControlTest):
    def call(self, command, arguments):
        return json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"

    def test_unknown_commands_members_and_arguments_are_named(self):
        for daemon in self.daemons:
            with Manager(daemon.control_path) as manager:
                for name in ("", "Quit", "quit ", "human-monitor-command", "q" * 1000, "\u00e4", "\x1b[31m", "a\nb", "__proto__"):
                    self.refused(manager, json.dumps({"execute": name}).encode() + b"\n", name)
                self.assertIn("make-coffee", self.refused(manager, b'{"execute": "make-coffee"}\n'))
                self.assertIn("sugar", self.refused(manager, self.call("query-replication", {"sugar": 1})))
                self.assertIn("milk", self.refused(manager, b'{"execute": "query-replication", "milk": 1}\n'))
                self.refused(manager, b'{"execute": "query-replication", "execute": "quit"}\n')
                self.refused(manager, b'{"execute": "query-replication", "\\u0065xecute": "quit"}\n')
                self.refused(manager, b'{"execute": "xen-colo-do-checkpoint", "arguments": {"force": true, "force": false}}\n')
                self.refused(manager, b'{"execute": "query-replication", "id": "' + b"i" * 5000 + b'"}\n')

    def test_arguments_of_every_wrong_kind_are_refused(self):
        values = [None, True, 5, -1, 1.5, 1e400, "", "x", "\x00", [], [1], {}, {"a": 1}, 1 << 64, -(1 << 70), 10 ** 400]
        known = {"xen-set-replication": ("enable", "primary", "failover", "force", "volume"),
                 "xen-colo-do-checkpoint": ("force", "volume"), "query-xen-replication-status": ("volume",),
                 "attach": ("volume", "uri", "name", "control", "sync"), "detach": ("volume", "name"),
                 "checkpoint-prepare": ("volume", "epoch", "claim", "modifications"),
                 "checkpoint-commit": ("volume", "epoch", "claim", "together"), "checkpoint-outcome": ("volume",),
                 "qmp_capabilities": ("enable",), "query-replication": (), "query-commands": ()}
        # What goes with each so that only the value that is tried is wrong.
        rest = {"attach": {"uri": "nbd://x/y", "volume": "none"}, "detach": {"name": "x", "volume": "none"},
                "xen-set-replication": {"enable": True, "primary": True, "volume": "none"},
                "xen-colo-do-checkpoint": {"volume": "none"},
                "checkpoint-prepare": {"volume": "none", "epoch": 1, "claim": "0" * 32, "modifications": 1},
                "checkpoint-commit": {"volume": "none", "epoch": 1, "claim": "0" * 32}}
        for daemon in self.daemons:
            with Manager(daemon.control_path) as manager:
                for command, names in known.items():
                    for arguments in ("5", "[]", "null", '"x"', "true"):
                        self.refused(manager, f'{{"execute": "{command}", "arguments": {arguments}}}\n'.encode())
                    for name in names:
                        for value in values:
                            if (command, name, value) == ("qmp_capabilities", "enable", []):
                                continue
                            arguments = {**rest.get(command, {}), name: value}
                            self.refused(manager, self.call(command, arguments).replace(b"Infinity", b"1e400"))

    def test_uris_and_names_of_replicas_that_cannot_be_used_are_refused_on_one_line(self):
        with Manager(self.pair.primary.control_path) as manager:
            for uri in ("", "x", "nbd://", "nbds://x/y", "nbd+unix:///x", "nbd://x/y\n", "nbd+unix:///x?socket=" + "s" * 200,
                        "nbd+unix:///" + "e" * 5000 + "?socket=/x", "nbd://no-such-host.invalid/x"):
                self.refused(manager, self.call("attach", {"uri": uri}), uri)
            for name in ("", "n" * 65, "a\nb", "\x1b[31m"):
                self.refused(manager, self.call("attach", {"uri": "nbd+unix:///x?socket=/nowhere", "name": name}), name)
            for control in ("", "x", "unix:", "tcp:x", "unix:" + "c" * 200):
                self.refused(manager, self.call("attach", {"uri": "nbd+unix:///x?socket=/nowhere", "name": "other",
                                                           "control": control}), control)
        self.assertEqual(len(self.pair.primary.volume()["replicas"]), 1, "none was attached")


class Behaviour(ControlTest):
    def test_half_a_line_keeps_nobody_waiting(self):
        for daemon in self.daemons:
            halves = []
            for text in (b"", b"{", b'{"execute": "quit"', b'"' * 3, b"[" * 1000, b'{"execute": "' + b"x" * 100_000):
                halves.append(Manager(daemon.control_path))
                halves[-1].socket.sendall(text)
                self.tried += 1
            self.assertEqual(daemon.qmp.call("query-xen-replication-status"), {"error": False})
            self.assertEqual(halves[2].ask(b', "id": 1, "extra": 2}\n')["error"]["class"], "GenericError")
            for half in halves:
                half.socket.close()

    def test_bytes_that_come_one_by_one_are_understood(self):
        for daemon in self.daemons:
            with Manager(daemon.control_path) as manager:
                for byte in b'{"execute": "query-xen-replication-status", "id": 7}\n':
                    manager.socket.sendall(bytes([byte]))
                    self.tried += 1
                self.assertEqual(manager.answer(), {"return": {"error": False}, "id": 7})

    def test_a_manager_that_never_reads_is_let_go_and_takes_no_more_than_its_share(self):
        for daemon in self.daemons:
            before = resident_bytes(daemon.process)
            deaf = [Manager(daemon.control_path) for _ in range(8)]
            line = b'{"execute": "query-replication"}\n' * 100
            for manager in deaf:
                manager.socket.setblocking(False)
            alive = list(deaf)
            deadline = time.monotonic() + PATIENCE_S
            while alive:
                self.assertLess(time.monotonic(), deadline, "a manager that does not read is never let go")
                for manager in list(alive):
                    try:
                        manager.socket.send(line)
                        self.tried += 1
                    except BlockingIOError:
                        pass
                    except (BrokenPipeError, ConnectionResetError):
                        alive.remove(manager)
                self.assertEqual(daemon.qmp.call("query-xen-replication-status"), {"error": False})
            self.assertLess(resident_bytes(daemon.process) - before, 32 * MIB)
            said = [line for line in daemon.process.tail(1 << 20).splitlines() if "does not read its answers" in line]
            self.assertIn(len(said), (1, 2, 3))
            for manager in deaf:
                manager.socket.close()

    def test_managers_that_come_and_go_by_the_hundred_leave_nothing_behind(self):
        for daemon in self.daemons:
            for number in range(300):
                self.tried += 1
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(daemon.control_path))
                    client.send((b"", b"{", b'{"execute": "qmp_capabilities"}\n')[number % 3])
                    if number % 2:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connections = [daemon.connect() for _ in range(14)]
            for connection in connections:
                connection.call("query-commands")
                connection.close()

    def test_commands_of_a_manager_that_has_gone_do_not_hurt(self):
        self.connect(self.pair.primary_uri).pwrite(b"g" * 4096, 0)
        for _ in range(20):
            with Manager(self.pair.primary.control_path) as manager:
                manager.socket.sendall(b'{"execute": "xen-colo-do-checkpoint"}\n' * 3)
                self.tried += 1
        self.pair.checkpoint()

    def test_nbd_on_a_control_socket_and_qmp_on_an_export_do_not_hurt(self):
        for daemon in self.daemons:
            with Manager(daemon.control_path) as manager:
                self.refused(manager, b"IHAVEOPT" + bytes(20) + b"\n")
        for name in ("primary.nbd", "secondary.nbd", "guest.nbd"):
            self.tried += 1
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE_S)
                client.connect(str(self.directory / name))
                client.sendall(b'{"execute": "qmp_capabilities"}\n')
                received = b""
                try:
                    while got := client.recv(100):
                        received += got
                except ConnectionResetError:
                    pass
                self.assertEqual(received[:8], b"NBDMAGIC"[:len(received[:8])])

    def test_an_operation_that_is_refused_changes_nothing(self):
        before = [daemon.volume()["epoch"] for daemon in self.daemons]
        for daemon, primary in zip(self.daemons, (True, False)):
            for arguments in ({"enable": True, "primary": primary}, {"enable": True, "primary": not primary}):
                with self.assertRaises(QmpError):
                    daemon.qmp.call("xen-set-replication", **arguments)
                self.tried += 1
        with self.assertRaises(QmpError):
            self.pair.secondary.qmp.call("checkpoint-commit", volume="disk", epoch=before[1], claim="0" * 32)
        self.assertEqual([daemon.volume()["epoch"] for daemon in self.daemons], before)


def resident_bytes(process):
    for line in open(f"/proc/{process.pid}/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the daemon has no memory")
