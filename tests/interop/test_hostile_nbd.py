"""Bytes that no NBD client sends: garbage, valid sessions cut short or changed, and requests that lie. After each the daemon
serves others as before, and answers a well-behaved client on the same connection where the protocol lets it."""
import random
import socket
import struct

from fixture import MIB, PairTest
from harness import wire
from harness.twinblock import EXPORT, GUEST_EXPORT, is_connected
from harness.wire import Closed, Wire

SEED = 20_260_101
SIZE = 8 * MIB
PATIENCE_S = 60.0
ANSWERS = (wire.ACK, wire.ERR_UNSUP, wire.ERR_INVALID, wire.ERR_UNKNOWN, wire.ERR_TOO_BIG)


def option(number, data=b"", length=None):
    return struct.pack(">QII", wire.OPTION_MAGIC, number, len(data) if length is None else length) + data


def request(command, offset=0, length=0, data=b"", flags=0, magic=wire.REQUEST_MAGIC):
    return struct.pack(">IHHQQI", magic, flags, command, 1, offset, length or len(data)) + data


def text(data):
    return struct.pack(">I", len(data)) + data


def valid_session(export):
    """A well-behaved client from its first byte to its goodbye."""
    name = text(export.encode())
    contexts = name + struct.pack(">I", 1) + text(b"base:allocation")
    return struct.pack(">I", 3) + option(wire.STRUCTURED_REPLY) + option(wire.LIST) + option(wire.SET_META, contexts) \
        + option(wire.INFO, name + struct.pack(">HH", 1, 3)) + option(wire.GO, name + struct.pack(">HH", 1, 3)) \
        + request(wire.WRITE, 4096, data=b"v" * 128) + request(wire.READ, 0, 4096) + request(wire.BLOCK_STATUS, 0, 65536) \
        + request(wire.WRITE_ZEROES, 8192, 4096) + request(wire.TRIM, 16384, 4096) + request(wire.CACHE, 0, 4096) \
        + request(wire.FLUSH) + request(wire.DISC)


class Hostile(PairTest):
    """A pair, and the three places where NBD clients connect."""

    SIZE = SIZE
    OPTIONS = {"primary_arguments": ["--replica-timeout", "60s"]}

    def setUp(self):
        super().setUp()
        self.places = (("primary.nbd", EXPORT), ("secondary.nbd", EXPORT), ("guest.nbd", GUEST_EXPORT))
        self.tried = 0

    def tearDown(self):
        """Whatever was sent: both daemons are there, the pair replicates, and nobody has lost a place or a buffer."""
        handle = self.connect(self.pair.primary_uri)
        handle.pwrite(b"after all" * 1000, 12345)
        self.pair.primary.wait_for("connected", is_connected, PATIENCE_S)
        for path, export in self.places:
            connections = [Wire(self.directory / path, timeout_s=PATIENCE_S) for _ in range(8)]
            for connection in connections:
                connection.go(export)
                self.assertEqual(len(connection.run(wire.READ, 0, SIZE // 2).data), SIZE // 2)
            for connection in connections:
                connection.close()
        print(f"[{self.tried} tried]", end=" ", flush=True)
        super().tearDown()

    def throw(self, path, data):
        """Sends bytes and closes, taking what comes."""
        self.tried += 1
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE_S)
            client.connect(str(self.directory / path))
            try:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 16):
                    pass
            except (BrokenPipeError, ConnectionResetError):
                pass

    def greeted(self, path):
        self.tried += 1
        return Wire(self.directory / path, timeout_s=PATIENCE_S)


class Garbage(Hostile):
    def test_random_bytes_do_not_hurt(self):
        chance = random.Random(SEED)
        for path, _ in self.places:
            for _ in range(100):
                self.throw(path, chance.randbytes(chance.choice((1, 3, 4, 19, 100, 5000, 70_000))))
                # The same behind a greeting that is as it should be.
                self.throw(path, struct.pack(">I", 3) + chance.randbytes(chance.choice((16, 100, 5000))))

    def test_every_beginning_of_a_valid_session_ends_well(self):
        for path, export in self.places:
            session = valid_session(export)
            for length in range(len(session)):
                self.throw(path, session[:length])

    def test_valid_sessions_with_changed_bytes_do_not_hurt(self):
        chance = random.Random(SEED + 1)
        for path, export in self.places:
            session = valid_session(export)
            for _ in range(300):
                changed = bytearray(session)
                for _ in range(chance.randrange(1, 5)):
                    place = chance.randrange(len(changed))
                    match chance.randrange(4):
                        case 0:
                            changed[place] = chance.randrange(256)
                        case 1:
                            changed[place] ^= 1 << chance.randrange(8)
                        case 2:
                            del changed[place:place + chance.randrange(1, 30)]
                        case 3:
                            changed[place:place] = chance.randbytes(chance.randrange(1, 30))
                self.throw(path, bytes(changed))

    def test_pieces_of_valid_sessions_in_any_order_do_not_hurt(self):
        chance = random.Random(SEED + 2)
        for path, export in self.places:
            name = text(export.encode())
            pieces = [option(wire.GO, name + struct.pack(">H", 0)), option(wire.LIST), option(wire.ABORT),
                      option(wire.STRUCTURED_REPLY), request(wire.READ, 0, 4096), request(wire.WRITE, 0, data=b"p" * 512),
                      request(wire.FLUSH), request(wire.DISC), struct.pack(">I", 3),
                      option(wire.EXPORT_NAME, export.encode()), request(wire.BLOCK_STATUS, 0, 4096)]
            for _ in range(100):
                chosen = chance.choices(pieces, k=chance.randrange(1, 12))
                self.throw(path, struct.pack(">I", 3) + b"".join(chosen))


class Options(Hostile):
    """Lies during the handshake."""

    def answered(self, connection, number, data):
        """The type of the last reply; all of them are of types that there are."""
        replies = connection.option(number, data)
        for kind, _ in replies[:-1]:
            self.assertIn(kind, (wire.SERVER, wire.INFORMATION, wire.META_CONTEXT))
        self.assertIn(replies[-1][0], ANSWERS)
        return replies[-1][0]

    def test_option_bodies_that_lie_are_refused_and_haggling_goes_on(self):
        for path, export in self.places:
            name = export.encode()
            good = text(name)
            bodies = [b"", b"\0", b"\0\0\0", struct.pack(">I", 0xFFFFFFFF), struct.pack(">I", len(name)),
                      struct.pack(">I", len(name) + 1) + name, good, good + b"\0", good + struct.pack(">H", 1),
                      good + struct.pack(">H", 0xFFFF), good + struct.pack(">HH", 2, 3), good + struct.pack(">HHH", 1, 3, 3),
                      struct.pack(">I", 1 << 31) + name, good + struct.pack(">I", 1), good + struct.pack(">I", 0xFFFFFFFF),
                      good + struct.pack(">II", 1, 0xFFFFFFFF), good + struct.pack(">II", 1, 16) + b"base:allocation",
                      good + struct.pack(">II", 2, 4) + b"base"]
            for number in (wire.INFO, wire.GO, wire.LIST_META, wire.SET_META):
                connection = self.greeted(path)
                connection.option(wire.STRUCTURED_REPLY)
                for body in bodies:
                    self.tried += 1
                    answer = self.answered(connection, number, body)
                    if number in (wire.INFO, wire.GO):
                        self.assertEqual(answer, wire.ERR_INVALID, body)
                connection.go(export)
                self.assertEqual(connection.run(wire.READ, 0, 512).error, 0)
                connection.close()

    def test_names_of_any_length_are_answered(self):
        for path, export in self.places:
            connection = self.greeted(path)
            for length in (0, 1, 255, 256, 257, 4095, 4096, 4097, 8000, 9000, 100_000, 1_000_000):
                self.tried += 1
                name = b"n" * length
                for number, data in ((wire.INFO, text(name) + b"\0\0"), (wire.GO, text(name) + b"\0\0"),
                                     (wire.LIST_META, text(name) + bytes(4))):
                    if number == wire.GO and not length:
                        continue
                    expected = (wire.ERR_UNKNOWN, wire.ERR_TOO_BIG) if length else (wire.ACK,)
                    self.assertIn(self.answered(connection, number, data), expected, (length, number))
            # Neither UTF-8, nor without zero bytes.
            for name in (b"\xff\xfe", b"disk\0", b"\0", export.encode() + b"\n", b"../" + export.encode()):
                self.assertEqual(self.answered(connection, wire.INFO, text(name) + b"\0\0"), wire.ERR_UNKNOWN)
            connection.go(export)
            connection.close()

    def test_the_old_way_with_a_name_that_is_wrong_ends_the_connection(self):
        for path, _ in self.places:
            for name in (b"x", b"n" * 4097, b"n" * 100_000, b"\xff" * 10):
                connection = self.greeted(path)
                try:
                    connection.send(option(wire.EXPORT_NAME, name))
                except Closed:
                    continue
                self.assertTrue(connection.is_closed_by_server())

    def test_huge_lists_of_metadata_contexts_are_answered(self):
        for path, export in self.places:
            name = text(export.encode())
            connection = self.greeted(path)
            connection.option(wire.STRUCTURED_REPLY)
            for count, query in ((300, b"base:allocation"), (50_000, b""), (3000, b"q" * 300), (7, b"x" * 5000)):
                self.tried += 1
                body = name + struct.pack(">I", count) + text(query) * count
                if len(body) > 1 << 20:
                    continue
                for number in (wire.LIST_META, wire.SET_META):
                    self.answered(connection, number, body)
            connection.go(export)
            connection.close()

    def test_lengths_of_gigabytes_in_options_do_not_hurt(self):
        for path, _ in self.places:
            for number in (wire.EXPORT_NAME, wire.ABORT, wire.LIST, wire.INFO, wire.GO, wire.SET_META, 5, 4711, 0xFFFFFFFF):
                for length in (0xFFFFFFFF, 1 << 31, (1 << 20) + 1):
                    self.throw(path, struct.pack(">I", 3) + option(number, bytes(5000), length))

    def test_every_option_number_is_answered_and_haggling_goes_on(self):
        for path, export in self.places:
            connection = self.greeted(path)
            for number in [*range(11, 40), 0, 5, 255, 256, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]:
                self.tried += 1
                self.assertEqual(self.answered(connection, number, b"body"), wire.ERR_UNSUP, number)
            connection.go(export)
            connection.close()

    def test_tens_of_thousands_of_options_are_answered_and_nobody_waits_for_them(self):
        for path, export in self.places:
            connection = self.greeted(path)
            for _ in range(50):
                connection.send(option(4711) * 100 + option(wire.LIST) * 100)
                with self.greeted(path) as other:
                    other.go(export)
                for _ in range(100):
                    self.assertEqual(struct.unpack(">QIII", connection.receive(20))[1], 4711) or connection.receive(14)
                for _ in range(100):
                    replies = 0
                    while True:
                        _, _, kind, length = struct.unpack(">QIII", connection.receive(20))
                        connection.receive(length)
                        replies += 1
                        if kind == wire.ACK:
                            break
                    self.assertGreaterEqual(replies, 2)
                self.tried += 200
            connection.close()


class Transmission(Hostile):
    """Requests that lie. Where the length of the payload is known, the connection goes on."""

    def opened(self, path, export, structured=False):
        connection = self.greeted(path)
        connection.go(export, structured)
        return connection

    def test_offsets_and_lengths_beyond_the_end_are_refused(self):
        places = (SIZE - 1, SIZE, SIZE + 1, 1 << 32, 1 << 63, (1 << 63) - 1, (1 << 64) - 1, (1 << 64) - 512, (1 << 64) - SIZE)
        lengths = (2, 512, 4096, SIZE + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
        for path, export in self.places:
            for structured in (False, True):
                connection = self.opened(path, export, structured)
                for offset in (0, *places):
                    for length in lengths:
                        if offset == 0 and length <= SIZE:
                            continue
                        for command in (wire.READ, wire.TRIM, wire.WRITE_ZEROES, wire.BLOCK_STATUS):
                            self.tried += 1
                            reply = connection.run(command, offset, length)
                            self.assertIn(reply.error, (wire.EINVAL, wire.ENOSPC), (command, offset, length))
                    if offset:
                        self.tried += 1
                        self.assertIn(connection.run(wire.WRITE, offset, data=b"w" * 2).error, (wire.EINVAL, wire.ENOSPC))
                self.assertEqual(connection.run(wire.READ, 0, 512).error, 0)
                connection.close()

    def test_every_command_and_every_flag_is_answered(self):
        for path, export in self.places:
            connection = self.opened(path, export, structured=True)
            for command in [*range(8, 40), 255, 256, 0x7FFF, 0x8000, 0xFFFF]:
                self.tried += 1
                self.assertEqual(connection.run(command, 0, 512).error, wire.EINVAL, command)
            for command in (wire.READ, wire.FLUSH, wire.TRIM, wire.CACHE, wire.WRITE_ZEROES, wire.BLOCK_STATUS):
                for bit in range(16):
                    self.tried += 1
                    length = 0 if command == wire.FLUSH else 512
                    error = connection.run(command, 0, length, flags=1 << bit).error
                    self.assertIn(error, (0, wire.EINVAL, wire.EPERM, wire.ENOTSUP))
                    if bit > 4:
                        self.assertEqual(error, wire.EINVAL, (command, bit))
            connection.close()

    def test_a_payload_of_gigabytes_is_dropped_without_keeping_it_or_anybody_else(self):
        for path, export in self.places:
            connection = self.opened(path, export)
            other = self.opened(path, export)
            connection.send(request(wire.WRITE, 0, 0xFFFFFFFF))
            for _ in range(64):
                connection.send(bytes(MIB))
            self.assertEqual(other.run(wire.READ, 0, 512).error, 0)
            connection.close()
            # Without its payload at all.
            self.throw(path, struct.pack(">I", 3) + option(wire.EXPORT_NAME, export.encode())
                       + request(wire.WRITE, 0, 0xFFFFFFFF))
            other.close()

    def test_lengths_of_nothing_are_answered(self):
        for path, export in self.places:
            for structured in (False, True):
                connection = self.opened(path, export, structured)
                for command in (wire.READ, wire.WRITE, wire.TRIM, wire.CACHE, wire.WRITE_ZEROES):
                    for offset in (0, SIZE, SIZE + 1, (1 << 64) - 1):
                        self.tried += 1
                        connection.request(command, offset, 0)
                        self.assertIn(connection.reply(0).error, (0, wire.EINVAL, wire.ENOSPC))
                connection.close()

    def test_a_wrong_magic_after_good_requests_ends_the_connection_after_their_replies(self):
        for path, export in self.places:
            for magic in (0, 0x25609512, 0x67446698, 0x21E41C71, 0xFFFFFFFF):
                connection = self.opened(path, export)
                connection.request(wire.READ, 0, 512)
                self.assertEqual(connection.reply(512).error, 0)
                connection.send(request(wire.READ, 0, 512, magic=magic))
                self.assertTrue(connection.is_closed_by_server())
                connection.close()

    def test_thousands_of_refused_requests_in_a_row_are_all_answered(self):
        for path, export in self.places:
            connection = self.opened(path, export)
            for _ in range(20):
                connection.send(request(77, 0, 512) * 200)
                for _ in range(200):
                    self.assertEqual(connection.reply().error, wire.EINVAL)
                self.tried += 200
            connection.close()

    def test_what_comes_after_the_goodbye_is_ignored(self):
        chance = random.Random(SEED + 3)
        for path, export in self.places:
            for length in (0, 1, 28, 70_000):
                connection = self.opened(path, export)
                try:
                    connection.send(request(wire.READ, 0, 256 << 10) + request(wire.DISC) + chance.randbytes(length))
                    self.assertEqual(connection.reply(256 << 10).error, 0)
                    self.assertTrue(connection.is_closed_by_server())
                except Closed:
                    self.assertTrue(length, "closed before the reply")
                connection.close()
