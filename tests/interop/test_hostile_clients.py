"""Clients that misbehave by what they do not do: half-open connections by the thousand, replies that nobody reads, bytes
that come one by one, and clients that go away in every state. Others go on meanwhile."""
import errno
import resource
import select
import socket
import struct
import threading
import time

import nbd

from fixture import MIB, DiskTest, PairTest, disconnect, twinblock
from harness import wire
from harness.twinblock import Daemon, EXPORT, GUEST_EXPORT
from harness.wire import Wire

HALF_OPEN = 10_000
# What `--max-connections` is unless said otherwise, and how many of these one of two addresses leaves to the other.
PLACES, LEFT = 32, 4
PATIENCE_S = 60.0


def descriptors(count):
    """Lets this process have so many more descriptors, as far as the system allows; how many it can have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, max(soft, count + 200)) if hard != resource.RLIM_INFINITY else max(soft, count + 200)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return min(count, wanted - 200)


def resident_bytes(process):
    for line in open(f"/proc/{process.pid}/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the daemon has no memory")


def share_of_processor(process, seconds=1.5):
    """How much of one processor it uses while nobody asks for anything."""
    before, began = process.cpu_s(), time.monotonic()
    time.sleep(seconds)
    return (process.cpu_s() - before) / (time.monotonic() - began)


def begin_connecting(address):
    """A socket that is being connected; one of a unix socket is connected, as soon as there is room for it."""
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    deadline = time.monotonic() + PATIENCE_S
    while True:
        client = socket.socket(family, socket.SOCK_STREAM)
        client.setblocking(False)
        code = client.connect_ex(address)
        if code in (0, errno.EINPROGRESS):
            return client
        client.close()
        if code != errno.EAGAIN or time.monotonic() > deadline:
            raise OSError(code, f"cannot connect to {address}")
        time.sleep(0.001)


class Crowd(DiskTest):
    """A secondary alone, on unix sockets and, with both exports at one address, on TCP."""

    def setUp(self):
        super().setUp()
        self.make_disk("secondary.raw", 4 * MIB, seed=1)

    def enter(self, *arguments):
        self.daemon = self.enter_secondary(arguments=arguments)
        self.replication = str(self.directory / "secondary.nbd")
        self.guest = str(self.directory / "guest.nbd")

    def enter_on_tcp(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.daemon = Daemon("secondary", self.directory, [
            "--disk", self.directory / "secondary.raw", "--listen", f"tcp:127.0.0.1:{port}", "--export", EXPORT,
            "--guest", f"tcp:127.0.0.1:{port}", "--guest-export", GUEST_EXPORT, "--buffer", "memory",
            "--buffer-size", "16M", "--start"])
        self.addCleanup(self.daemon.kill)
        self.daemon.start()
        return port

    def session(self, path, export):
        connection = Wire(path, timeout_s=PATIENCE_S)
        self.addCleanup(connection.close)
        connection.go(export)
        return connection

    def wait_for(self, is_reached):
        deadline = time.monotonic() + PATIENCE_S
        while not is_reached():
            self.assertLess(time.monotonic(), deadline, self.daemon.process.tail())
            time.sleep(0.01)

    def log_lines(self, text):
        return [line for line in self.daemon.process.tail(1 << 20).splitlines() if text in line]

    def newcomer(self, uri):
        """A client that comes now, and again if it must: a unix socket turns it away as long as too many wait to be accepted,
        and one that is slow to answer the greeting makes room for others. Nor does TCP promise that a server has heard of a
        connection when its client believes that it is there: where too many wait to be accepted, the client waits for a
        greeting in vain."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            handle = nbd.NBD()
            try:
                handle.aio_connect_uri(uri)
                given_up = time.monotonic() + PATIENCE_S / 10
                while handle.aio_is_connecting() and time.monotonic() < given_up:
                    handle.poll(1000)
                if handle.aio_is_ready():
                    self.addCleanup(disconnect, handle)
                    return handle
            except nbd.Error:
                if time.monotonic() > deadline:
                    raise
            self.assertLess(time.monotonic(), deadline, "a newcomer waits for a greeting")

    def half_open(self, address, uri):
        """Thousands of connections that say nothing, while a client that was there before goes on and new ones come."""
        count = descriptors(HALF_OPEN)
        self.assertGreaterEqual(count, 1000)
        good = self.connect(uri)
        good.pwrite(b"g" * 4096, 0)
        before = resident_bytes(self.daemon.process)
        clients = []
        self.addCleanup(lambda: [client.close() for client in clients])
        for number in range(count):
            clients.append(begin_connecting(address))
            if number % 100 == 0:
                self.assertEqual(good.pread(4096, 0), b"g" * 4096)
            if number % 2500 == 1:
                self.assertEqual(self.newcomer(uri).pread(4096, 0), b"g" * 4096)
        self.assertEqual(self.newcomer(uri).pread(4096, 0), b"g" * 4096)
        good.pwrite(b"h" * 4096, 0)
        self.assertEqual(self.daemon.volume()["stage"], "running")
        self.assertLess(resident_bytes(self.daemon.process) - before, PLACES * MIB // 4)
        self.assertLess(share_of_processor(self.daemon.process), 0.5)
        self.assertEqual(good.pread(4096, 0), b"h" * 4096)
        told = self.log_lines("make room")
        self.assertTrue(told)
        self.assertLess(len(told), count / 100)

    def test_ten_thousand_half_open_connections_over_a_unix_socket_keep_nobody_out(self):
        self.enter()
        self.half_open(self.guest, self.daemon.guest_uri)

    def test_ten_thousand_half_open_connections_over_tcp_keep_nobody_out(self):
        port = self.enter_on_tcp()
        self.half_open(("127.0.0.1", port), f"nbd://127.0.0.1:{port}/{GUEST_EXPORT}")

    def test_half_open_connections_that_answer_the_greeting_keep_nobody_out_either(self):
        self.enter()
        clients = []
        for _ in range(12 * PLACES):
            clients.append(begin_connecting(self.guest))
            clients[-1].send(struct.pack(">I", 3))
        self.session(self.guest, GUEST_EXPORT)
        for client in clients:
            client.close()

    def test_a_client_that_does_not_finish_its_handshake_is_dropped_in_time(self):
        self.enter("--handshake-timeout", "200ms")
        silent, other = Wire(self.guest, client_flags=None), Wire(self.replication)
        other.send(b"IHAVE")
        self.assertTrue(silent.is_closed_by_server())
        self.assertTrue(other.is_closed_by_server())
        # Past the handshake a client may be silent as long as it likes.
        idle = self.session(self.guest, GUEST_EXPORT)
        self.assertTrue(Wire(self.guest, client_flags=None).is_closed_by_server())
        self.assertEqual(idle.run(wire.READ, 0, 512).error, 0)

    def test_clients_of_the_view_leave_places_to_a_primary_and_the_next_one_waits_its_turn(self):
        self.enter()
        guests = [self.session(self.guest, GUEST_EXPORT) for _ in range(PLACES - LEFT)]
        waiting = socket.socket(socket.AF_UNIX)
        self.addCleanup(waiting.close)
        waiting.connect(self.guest)
        primaries = [self.session(self.replication, EXPORT) for _ in range(LEFT)]
        self.assertEqual(primaries[-1].run(wire.WRITE, 0, data=b"p" * 512).error, 0)
        self.assertEqual(guests[-1].run(wire.READ, 0, 512).error, 0)
        self.wait_for(lambda: self.log_lines("--max-connections"))
        self.assertEqual(len(self.log_lines("--max-connections")), 1)
        self.assertLess(share_of_processor(self.daemon.process, 0.5), 0.5)
        self.assertEqual(select.select([waiting], [], [], 0)[0], [])
        guests[0].close()
        waiting.settimeout(PATIENCE_S)
        self.assertEqual(waiting.recv(8), b"NBDMAGIC")

    def test_without_a_descriptor_left_the_daemon_neither_spins_nor_ends(self):
        self.enter()
        good = self.session(self.guest, GUEST_EXPORT)
        pid = self.daemon.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (8, limits[1]))
        clients = [begin_connecting(path) for path in (self.guest, self.replication, str(self.daemon.control_path))]
        self.assertLess(share_of_processor(self.daemon.process), 0.5)
        self.assertEqual(good.run(wire.READ, 0, 512).error, 0)
        self.assertEqual(self.daemon.volume()["stage"], "running")
        self.assertIn(len(self.log_lines("cannot accept connections")), (1, 2))
        self.assertEqual(len(self.log_lines("cannot accept managers")), 1)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        for client, greeting in zip(clients, (b"NBDMAGIC", b"NBDMAGIC", b'{"QMP": ')):
            client.setblocking(True)
            client.settimeout(PATIENCE_S)
            self.assertEqual(client.recv(8)[:5], greeting[:5])
            client.close()

    def test_a_daemon_that_may_open_too_few_files_says_so_and_serves_with_fewer_places(self):
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
        try:
            self.enter("--max-connections", "16000")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        soft, hard = resource.prlimit(self.daemon.process.pid, resource.RLIMIT_NOFILE)
        self.assertGreater(soft, 100)
        if hard < 16000:
            self.assertEqual(len(self.log_lines("LimitNOFILE")), 1)
        self.session(self.guest, GUEST_EXPORT)

    def test_sixteen_silent_managers_keep_nobody_out(self):
        self.enter()
        path = str(self.daemon.control_path)
        silent = [begin_connecting(path) for _ in range(200)]
        self.assertEqual(self.daemon.connect().call("query-replication")["volumes"][0]["name"], EXPORT)
        for client in silent:
            client.close()

    def test_a_manager_too_many_is_told_why_it_is_turned_away(self):
        self.enter()
        managers = [self.daemon.connect() for _ in range(15)]
        with self.assertRaises(AssertionError) as refused:
            twinblock("status", "--control", f"unix:{self.daemon.control_path}")
        self.assertIn("16 managers are connected already", str(refused.exception))
        managers.pop().close()

        def is_let_in():
            try:
                return "running" in twinblock("status", "--control", f"unix:{self.daemon.control_path}")
            except AssertionError:
                return False

        self.wait_for(is_let_in)


class Slow(PairTest):
    """Clients of a pair that are slow, deaf or gone."""

    SIZE = 64 * MIB

    def session(self, export, structured=False):
        path = {EXPORT: "primary.nbd", GUEST_EXPORT: "guest.nbd", "replica": "secondary.nbd"}[export]
        connection = Wire(self.directory / path, timeout_s=PATIENCE_S)
        self.addCleanup(connection.close)
        connection.go(EXPORT if export == "replica" else export, structured)
        return connection

    def deaf(self, export, length, structured=False):
        """A client that asks for as much as it can without ever reading a reply."""
        connection = self.session(export, structured)
        connection._socket.setblocking(False)
        request = struct.pack(">IHHQQI", wire.REQUEST_MAGIC, 0, wire.READ, 1, 0, length)
        for _ in range(400):
            # Until nothing has been taken for a while.
            if not select.select([], [connection._socket], [], 0.1)[1]:
                break
            try:
                connection._socket.send(request)
            except BlockingIOError:
                break
        return connection

    def test_clients_that_never_read_replies_stop_only_themselves(self):
        for length, structured in ((256 << 10, False), (4096, True)):
            with self.subTest(length=length):
                deaf = [self.deaf(export, length, structured)
                        for export in (EXPORT, GUEST_EXPORT, "replica") for _ in range(6)]
                for export in (EXPORT, GUEST_EXPORT):
                    other = self.session(export)
                    self.assertEqual(len(other.run(wire.READ, 0, 32 * MIB).data), 32 * MIB)
                    self.assertEqual(other.run(wire.WRITE, 0, data=bytes(8 * MIB)).error, 0)
                self.pair.checkpoint()
                self.assertEqual(self.pair.errors(), [])
                for daemon in (self.pair.primary, self.pair.secondary):
                    self.assertLess(share_of_processor(daemon.process, 0.5), 0.5)
                # What they asked for comes as soon as they read.
                deaf[0]._socket.settimeout(PATIENCE_S)
                self.assertEqual(len(deaf[0].reply(length).data), length)
                for connection in deaf:
                    connection.close()
        self.assert_twins(self.pair)

    def test_bytes_that_come_one_by_one_are_understood_and_nobody_waits_for_them(self):
        name = GUEST_EXPORT.encode()
        session = struct.pack(">I", 3) + struct.pack(">QII", wire.OPTION_MAGIC, wire.GO, 6 + len(name)) \
            + struct.pack(">I", len(name)) + name + struct.pack(">H", 0) \
            + struct.pack(">IHHQQI", wire.REQUEST_MAGIC, 0, wire.WRITE, 7, MIB, 64) + b"s" * 64
        ended = threading.Event()
        slow = Wire(self.directory / "guest.nbd", client_flags=None)
        self.addCleanup(slow.close)

        def dribble():
            for place in range(len(session)):
                slow.send(session[place:place + 1])
                time.sleep(0.005)
            ended.set()

        threading.Thread(target=dribble, daemon=True).start()
        other = self.session(GUEST_EXPORT)
        while not ended.is_set():
            self.assertEqual(other.run(wire.WRITE, 0, data=b"o" * 4096).error, 0)
            self.pair.checkpoint()
        # The option's two replies, and the write's.
        while struct.unpack(">QIII", (head := slow.receive(20)))[2] != wire.ACK:
            slow.receive(struct.unpack(">QIII", head)[3])
        self.assertEqual(slow.reply().cookie, 7)

    def test_half_a_write_that_never_comes_to_its_end_keeps_no_other_guest_and_no_checkpoint_waiting(self):
        stuck = self.session(EXPORT)
        header = struct.pack(">IHHQQI", wire.REQUEST_MAGIC, 0, wire.WRITE, 9, 0, 4 * MIB)
        stuck.send(header + b"h" * (MIB + 1000))
        other = self.session(EXPORT)
        for number in range(3):
            self.assertEqual(other.run(wire.WRITE, 8 * MIB, data=bytes([number + 1]) * 4096).error, 0)
            self.pair.checkpoint()
            self.assertEqual(self.session(GUEST_EXPORT).run(wire.READ, 8 * MIB, 4096).data, bytes([number + 1]) * 4096)
        stuck.send(b"h" * (3 * MIB - 1000))
        self.assertEqual(stuck.reply().error, 0)
        self.assert_twins(self.pair)

    def everything(self, export):
        """A valid session: handshake, a write, a read, a flush, goodbye."""
        name = export.encode()

        def request(command, offset=0, length=0, data=b""):
            return struct.pack(">IHHQQI", wire.REQUEST_MAGIC, 0, command, 1, offset, length or len(data)) + data

        return struct.pack(">I", 3) + struct.pack(">QII", wire.OPTION_MAGIC, wire.STRUCTURED_REPLY, 0) \
            + struct.pack(">QII", wire.OPTION_MAGIC, wire.GO, 6 + len(name)) + struct.pack(">I", len(name)) + name \
            + struct.pack(">H", 0) + request(wire.WRITE, 4096, data=b"w" * 200) + request(wire.READ, 0, 4096) \
            + request(wire.FLUSH) + request(wire.DISC)

    def test_clients_that_go_away_after_any_byte_leave_nothing_behind(self):
        tried = 0
        for path, export in (("secondary.nbd", EXPORT), ("guest.nbd", GUEST_EXPORT), ("primary.nbd", EXPORT)):
            session = self.everything(export)
            for length in range(len(session) + 1):
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(self.directory / path))
                    client.send(session[:length])
                    # One in three waits until it was greeted, one in three closes with replies unread.
                    if length % 3 == 0:
                        client.settimeout(PATIENCE_S)
                        client.recv(18)
                    tried += 1
        self.assertGreater(tried, 1000)
        for export, count in ((GUEST_EXPORT, PLACES - LEFT), (EXPORT, PLACES - 1)):
            for connection in [self.session(export) for _ in range(count)]:
                self.assertEqual(connection.run(wire.READ, 0, 256 << 10).error, 0)
                connection.close()
        for daemon in (self.pair.primary, self.pair.secondary):
            self.assertLess(share_of_processor(daemon.process, 0.5), 0.5)


class Held(DiskTest):
    """A secondary whose buffer is full: what the primary writes is held for a long time."""

    def setUp(self):
        super().setUp()
        self.make_disk("secondary.raw", 4 * MIB, seed=1)
        self.daemon = self.enter_secondary(buffer_bytes=64 * 4096, arguments=["--stall-max", "10m"])

    def held(self):
        return self.daemon.volume()["buffer"]["held"]

    def test_a_primary_that_goes_away_with_a_held_write_leaves_an_idle_daemon(self):
        for goodbye in (b"", struct.pack(">IHHQQI", wire.REQUEST_MAGIC, 0, wire.DISC, 0, 0, 0)):
            for closes in (True, False):
                with self.subTest(goodbye=bool(goodbye), closes=closes):
                    primary = Wire(self.directory / "secondary.nbd")
                    primary.go(EXPORT)
                    primary.request(wire.WRITE, 0, data=b"h" * MIB, length=MIB)
                    self.daemon.wait_for("holding", lambda volume: volume["buffer"]["held"] > 0, PATIENCE_S)
                    primary.send(goodbye)
                    if closes:
                        primary.close()
                    self.assertLess(share_of_processor(self.daemon.process, 0.5), 0.5)
                    guest = Wire(self.directory / "guest.nbd")
                    guest.go(GUEST_EXPORT)
                    self.assertEqual(guest.run(wire.READ, 0, 4096).error, 0)
                    guest.close()
                    primary.close()
                    # Its writes come to an end, so that another primary can take its place: each checkpoint has room
                    # for one piece of them, and the next piece may still be on its way from the socket.
                    deadline = time.monotonic() + PATIENCE_S
                    free_count = 0
                    while free_count < 4 and time.monotonic() < deadline:
                        free_count = 0 if self.held() else free_count + 1
                        self.daemon.qmp.call("xen-colo-do-checkpoint", force=True)
                    self.assertEqual(self.held(), 0)
