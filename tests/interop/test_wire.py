"""What well-behaved clients never send, and what old ones do."""
import functools
import os
import struct

from fixture import MIB, PairTest
from harness import wire
from harness.twinblock import EXPORT, GUEST_EXPORT
from harness.wire import Closed, Wire


class WireTest(PairTest):
    SIZE = MIB

    def setUp(self):
        super().setUp()
        self.sockets = {EXPORT: self.directory / "primary.nbd", GUEST_EXPORT: self.directory / "guest.nbd"}

    def tearDown(self):
        """Whatever was sent, both daemons are still there and still serve."""
        for export, path in self.sockets.items():
            with Wire(path) as connection:
                connection.go(export)
                self.assertEqual(connection.run(wire.READ, 0, 512).error, 0)
        super().tearDown()


def on_both_daemons(test):
    """The test runs against the primary's export and the guest's view, each time on a connection that has just been
    greeted."""
    @functools.wraps(test)
    def run(self):
        for export, path in self.sockets.items():
            with self.subTest(export=export), Wire(path) as connection:
                test(self, export, connection)
    return run


def with_both_kinds_of_reply(test):
    """The same past the handshake, with simple and with structured replies."""
    @functools.wraps(test)
    def run(self):
        for structured in (False, True):
            for export, path in self.sockets.items():
                with self.subTest(export=export, structured=structured), Wire(path) as connection:
                    connection.go(export, structured)
                    test(self, export, connection)
    return run


class Handshake(WireTest):
    @on_both_daemons
    def test_the_greeting_is_fixed_newstyle(self, _, connection):
        self.assertEqual(connection.server_flags & 3, wire.FIXED_NEWSTYLE | wire.NO_ZEROES)

    def test_unknown_client_flags_end_the_connection(self):
        for path in self.sockets.values():
            connection = Wire(path, client_flags=1 << 20 | 3)
            self.assertTrue(connection.is_closed_by_server())

    @on_both_daemons
    def test_the_list_has_the_export(self, export, connection):
        self.assertIn(export, connection.exports())
        # A list with data is an error, and haggling goes on after it.
        self.assertEqual(connection.option(wire.LIST, b"x")[-1][0], wire.ERR_INVALID)
        self.assertIn(export, connection.exports())

    @on_both_daemons
    def test_an_unknown_option_is_answered_unsupported_and_haggling_goes_on(self, export, connection):
        for data in (b"", b"z" * 3000):
            self.assertEqual(connection.option(4711, data)[-1][0], wire.ERR_UNSUP)
        connection.go(export)

    @on_both_daemons
    def test_an_unknown_export_is_told_and_haggling_goes_on(self, export, connection):
        self.assertEqual(connection.ask(wire.INFO, "no such export")[-1][0], wire.ERR_UNKNOWN)
        self.assertEqual(connection.ask(wire.GO, "no such export")[-1][0], wire.ERR_UNKNOWN)
        connection.go(export)

    @on_both_daemons
    def test_info_changes_nothing_and_go_enters_the_transmission(self, export, connection):
        told = connection.ask(wire.INFO, export)
        self.assertEqual(told[-1][0], wire.ACK)
        infos = connection.go(export)
        size, _ = struct.unpack(">QH", infos[wire.INFO_EXPORT])
        self.assertEqual(size, self.SIZE)
        minimum, preferred, maximum = struct.unpack(">III", infos[wire.INFO_BLOCK_SIZE])
        self.assertLessEqual(minimum, preferred)
        self.assertGreaterEqual(maximum, MIB)

    @on_both_daemons
    def test_malformed_options_are_answered_invalid(self, export, connection):
        for data in (b"", b"\xff\xff\xff\xff", struct.pack(">I", 100) + b"short"):
            self.assertIn(connection.option(wire.GO, data)[-1][0], (wire.ERR_INVALID, wire.ERR_TOO_BIG))
        self.assertEqual(connection.option(wire.STRUCTURED_REPLY, b"x")[-1][0], wire.ERR_INVALID)
        connection.go(export)

    def test_the_old_way_to_choose_an_export_works(self):
        for flags, padding in ((wire.FIXED_NEWSTYLE | wire.NO_ZEROES, 0), (wire.FIXED_NEWSTYLE, 124)):
            for export, path in self.sockets.items():
                with self.subTest(export=export, padding=padding), Wire(path, client_flags=flags) as connection:
                    name = export.encode()
                    connection.send(struct.pack(">QII", wire.OPTION_MAGIC, wire.EXPORT_NAME, len(name)) + name)
                    size, _ = struct.unpack(">QH", connection.receive(10))
                    self.assertEqual(size, self.SIZE)
                    self.assertEqual(connection.receive(padding), bytes(padding))
                    self.assertEqual(connection.run(wire.READ, 0, 512).error, 0)

    @on_both_daemons
    def test_the_old_way_to_an_unknown_export_ends_the_connection(self, _, connection):
        connection.send(struct.pack(">QII", wire.OPTION_MAGIC, wire.EXPORT_NAME, 4) + b"none")
        self.assertTrue(connection.is_closed_by_server())

    @on_both_daemons
    def test_abort_is_acknowledged(self, _, connection):
        self.assertEqual(connection.option(wire.ABORT), [(wire.ACK, b"")])
        self.assertTrue(connection.is_closed_by_server())

    @on_both_daemons
    def test_contexts_are_listed_and_set(self, export, connection):
        connection.option(wire.STRUCTURED_REPLY)
        for queries in ([], ["base:"], ["base:allocation"]):
            names = [name for _, name in
                     connection.set_meta_contexts(export, queries, option=wire.LIST_META)]
            self.assertIn("base:allocation", names)
        self.assertEqual(connection.set_meta_contexts(export, ["nobody:knows"]), [])
        chosen = connection.set_meta_contexts(export, ["nobody:knows", "base:allocation"])
        self.assertEqual([name for _, name in chosen], ["base:allocation"])

    @on_both_daemons
    def test_an_option_of_absurd_length_does_not_hurt(self, _, connection):
        connection.send(struct.pack(">QII", wire.OPTION_MAGIC, wire.GO, 0xFFFFFFFF))
        try:
            connection.send(bytes(1 << 16))
            kind = struct.unpack(">QIII", connection.receive(20))[2]
            self.assertGreater(kind, wire.ERROR)
        except Closed:
            pass

    @on_both_daemons
    def test_a_wrong_option_magic_ends_the_connection(self, _, connection):
        connection.send(struct.pack(">QII", 0x1234, wire.LIST, 0))
        self.assertTrue(connection.is_closed_by_server())

    def test_random_bytes_do_not_hurt(self):
        for path in self.sockets.values():
            for _ in range(20):
                with Wire(path, client_flags=None) as connection:
                    try:
                        connection.send(os.urandom(2000))
                    except Closed:
                        pass


class Transmission(WireTest):
    @with_both_kinds_of_reply
    def test_an_unknown_command_is_refused_and_the_connection_goes_on(self, _, connection):
        self.assertEqual(connection.run(77, 0, 512).error, wire.EINVAL)
        self.assertEqual(connection.run(wire.READ, 0, 512).error, 0)

    @with_both_kinds_of_reply
    def test_unknown_flags_are_refused_and_the_connection_goes_on(self, _, connection):
        self.assertEqual(connection.run(wire.READ, 0, 512, flags=1 << 14).error, wire.EINVAL)
        self.assertEqual(connection.run(wire.WRITE, 0, data=b"f" * 512, flags=1 << 14).error, wire.EINVAL)
        self.assertEqual(connection.run(wire.READ, 0, 512).error, 0)

    @with_both_kinds_of_reply
    def test_forced_unit_access_is_accepted_on_any_command(self, _, connection):
        for command, length in ((wire.READ, 512), (wire.FLUSH, 0), (wire.CACHE, 512), (wire.TRIM, 512)):
            self.assertEqual(connection.run(command, 0, length, flags=wire.FUA).error, 0)

    @with_both_kinds_of_reply
    def test_the_payload_of_a_refused_write_is_not_taken_for_a_request(self, _, connection):
        refused = connection.run(wire.WRITE, self.SIZE - 100, data=b"\x25\x60\x95\x13" * 5000)
        self.assertEqual(refused.error, wire.ENOSPC)
        self.assertEqual(connection.run(wire.READ, 0, 512).error, 0)

    @with_both_kinds_of_reply
    def test_an_offset_that_wraps_is_refused(self, _, connection):
        self.assertEqual(connection.run(wire.READ, (1 << 64) - 256, 512).error, wire.EINVAL)
        self.assertIn(connection.run(wire.WRITE, (1 << 64) - 256, data=b"o" * 512).error, (wire.EINVAL, wire.ENOSPC))
        self.assertEqual(connection.run(wire.READ, 0, 512).error, 0)

    @with_both_kinds_of_reply
    def test_a_wrong_magic_ends_the_connection(self, _, connection):
        connection.send(bytes(28))
        self.assertTrue(connection.is_closed_by_server())

    @with_both_kinds_of_reply
    def test_cookies_come_back_as_they_were_even_when_they_repeat(self, _, connection):
        for _ in range(8):
            connection.request(wire.READ, 0, 512, cookie=0xFEDCBA9876543210)
        for _ in range(8):
            reply = connection.reply(512)
            self.assertEqual((reply.cookie, reply.error), (0xFEDCBA9876543210, 0))

    @with_both_kinds_of_reply
    def test_a_disconnect_answers_what_is_in_flight_first(self, _, connection):
        connection.request(wire.WRITE, 4096, 512, b"d" * 512, cookie=5)
        connection.request(wire.DISC)
        self.assertEqual(connection.reply().cookie, 5)
        self.assertTrue(connection.is_closed_by_server())

    @with_both_kinds_of_reply
    def test_a_client_that_goes_away_in_mid_write_does_not_hurt(self, _, connection):
        connection.send(struct.pack(">IHHQQI", wire.REQUEST_MAGIC, 0, wire.WRITE, 1, 0, 65536) + bytes(1000))
        connection.close()

    @with_both_kinds_of_reply
    def test_a_client_that_never_reads_replies_stops_only_itself(self, export, connection):
        try:
            for _ in range(2000):
                connection._socket.settimeout(0.2)
                connection.request(wire.READ, 0, 65536)
        except TimeoutError:
            pass
        with Wire(self.sockets[export]) as other:
            other.go(export)
            self.assertEqual(other.run(wire.READ, 0, 512).error, 0)
