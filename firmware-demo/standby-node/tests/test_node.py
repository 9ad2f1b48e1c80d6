"""One node, one card, and clients of every kind."""
import json
import os
import pathlib
import random
import socket
import tempfile
import time
import unittest

import nbd

from board import (BLOCK, DISK_AT, DISK_BYTES, EXPORT, GUEST_EXPORT, MIB, Daemon, Node, Qmp, QmpError, connect, is_connected,
                   make_card, twinblock, wait_until)

# What both partitions hold at first.
CONTENT = random.Random(3).randbytes(64 << 10) * (DISK_BYTES // (64 << 10))


class NodeTest(unittest.TestCase):
    # Of the switch, if its network is one.
    switch_seed = None

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="standby-node-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.node = Node(self.folder, os.environ["IMAGE"], self.switch_seed)
        if self.node.switch:
            self.addCleanup(self.node.switch.close)
        make_card(self.node.card, CONTENT)
        self.node.start()
        self.addCleanup(lambda: self.node.process.kill())
        self.qmp = self.manager()

    def manager(self):
        """A manager of the node."""
        qmp = Qmp(("127.0.0.1", self.node.control_port))
        self.addCleanup(qmp.close)
        return qmp

    def client(self, export):
        """An NBD client that asks for as much at once as it is told to."""
        handle = connect(self.node.uri(export))
        handle.set_strict_mode(0)
        return handle

    def start(self):
        self.qmp.call("xen-set-replication", enable=True, primary=False)

    def fail_over(self):
        self.qmp.call("xen-set-replication", enable=False, primary=False, failover=True)
        self.wait_for_stage("done")

    def primary(self):
        """A daemon that replicates to the node, connected."""
        daemon = Daemon("primary", self.folder, [
            "--disk", self.folder / "primary.raw", "--replica", self.node.uri(EXPORT), "--replica-control",
            self.node.control,
            # An emulator on a busy machine is slow, and so is TCP where frames are lost.
            "--replica-timeout", "60s", "--checkpoint-timeout", "60s",
            "--listen", f"unix:{self.folder / 'primary.nbd'}", "--export", EXPORT, "--start"])
        daemon.start()
        self.addCleanup(daemon.kill)
        daemon.wait_for("connected", is_connected)
        return daemon

    def volume(self):
        return self.qmp.call("query-replication")["volumes"][0]

    def wait_for_stage(self, stage, timeout_s=20.0):
        deadline = time.monotonic() + timeout_s
        while self.volume()["stage"] != stage:
            self.assertLess(time.monotonic(), deadline, self.volume())
            time.sleep(0.02)

    def on_card(self, offset, length):
        """What the partition of the disk holds."""
        with open(self.node.card, "rb") as card:
            card.seek(DISK_AT + offset)
            return card.read(length)

    def assert_refused(self, text, command, **arguments):
        with self.assertRaises(QmpError) as caught:
            self.qmp.call(command, **arguments)
        self.assertIn(text, caught.exception.desc)
        return caught.exception


class Control(NodeTest):
    def test_commands_that_only_a_daemon_has_are_refused_by_name(self):
        listed = [entry["name"] for entry in self.qmp.call("query-commands")]
        self.assertIn("checkpoint-prepare", listed)
        for name, arguments in [("attach", {"uri": "nbd://x/y"}), ("detach", {"name": "x"}), ("quit", {}),
                                ("x-query-memory", {})]:
            self.assertNotIn(name, listed)
            error = self.assert_refused(f"this node has no command '{name}'", name, **arguments)
            self.assertEqual(error.name, "CommandNotFound")
        self.assert_refused("there is no command 'eject'", "eject")
        self.assert_refused("there is no volume or replica 'other'", "xen-colo-do-checkpoint", volume="other")

    def test_a_message_of_1_kib_is_understood_and_a_longer_one_is_refused_and_passed_over(self):
        def message(length):
            text = b'{"execute": "query-replication", "id": "x"'
            return text + b" " * (length - len(text) - 1) + b"}\n"

        self.assertEqual(self.qmp.send(message(1024))["volumes"][0]["name"], EXPORT)
        for length in (1025, 5000, 100_000):
            with self.assertRaises(QmpError) as caught:
                self.qmp.send(message(length))
            self.assertEqual(caught.exception.desc, "the message is too long")
            self.assertEqual(self.volume()["stage"], "none")

    def test_two_managers_are_served_at_a_time_and_another_one_when_one_has_gone(self):
        other = self.manager()
        self.assertEqual(other.call("query-replication")["volumes"][0]["epoch"], 0)
        with socket.create_connection(("127.0.0.1", self.node.control_port), timeout=10) as third:
            # It is turned away; whoever forwards the connection may be the one to say so.
            try:
                self.assertEqual(third.recv(1), b"")
            except ConnectionResetError:
                pass
        other.close()
        self.start()
        deadline = time.monotonic() + 10
        while self.node.status_or_none() is None:
            self.assertLess(time.monotonic(), deadline, "no place was freed")

    def test_events_reach_a_manager_that_did_not_ask(self):
        other = self.manager()
        self.start()
        self.assertEqual(other.event("REPLICATION_STAGE")["data"], {"volume": EXPORT, "stage": "running"})

    def test_many_messages_at_once_are_answered_one_after_the_other(self):
        line = b'{"execute": "query-replication", "id": 1}\n'
        for _ in range(3):
            self.qmp._socket.sendall(line * 40)
            for _ in range(40):
                self.assertIn("return", self.qmp._message())


class Clients(NodeTest):
    def test_requests_of_any_legal_length_and_alignment_are_served_in_windows(self):
        self.start()
        handle = self.client(EXPORT)
        expected = bytearray(CONTENT)
        rng = random.Random(11)
        for offset, length in [(1, 1), (511, 2), (4095, 4098), (MIB + 3, 70_001), (DISK_BYTES - 5, 5)]:
            content = rng.randbytes(length)
            handle.pwrite(content, offset)
            expected[offset:offset + length] = content
        handle.zero(MIB, 5 * MIB)
        expected[5 * MIB:6 * MIB] = bytes(MIB)
        # 1 MiB in one request: 256 times what the node can hold of it.
        handle.pwrite(bytes(range(256)) * 4096, 3 * MIB)
        expected[3 * MIB:4 * MIB] = bytes(range(256)) * 4096
        self.assertEqual(handle.pread(MIB + 1, 3 * MIB), bytes(expected[3 * MIB:4 * MIB + 1]))
        self.assertEqual(handle.pread(BLOCK * 2, MIB - 1), bytes(expected[MIB - 1:MIB + 2 * BLOCK - 1]))
        handle.flush()
        self.assertEqual(self.on_card(0, DISK_BYTES), bytes(expected))
        # And all of it can be taken back.
        self.fail_over()
        self.assertEqual(self.on_card(0, DISK_BYTES), CONTENT)

    def test_a_write_that_is_longer_than_the_disk_leaves_the_connection_usable(self):
        self.start()
        handle = self.client(EXPORT)
        with self.assertRaises(nbd.Error) as caught:
            handle.pwrite(bytes(DISK_BYTES + BLOCK), 0)
        self.assertEqual(caught.exception.errno, "ENOSPC")
        self.assertEqual(handle.pread(512, 0), CONTENT[:512])

    def test_a_guest_and_a_primary_are_served_together_and_a_third_client_waits_for_a_place(self):
        self.start()
        primary, guest = self.client(EXPORT), self.client(GUEST_EXPORT)
        primary.pwrite(b"p" * BLOCK, 0)
        guest.pwrite(b"g" * 100, 10 * BLOCK)
        self.assertEqual(guest.pread(BLOCK, 0), CONTENT[:BLOCK])
        self.assertEqual(guest.pread(100, 10 * BLOCK), b"g" * 100)
        self.assertEqual(self.on_card(0, BLOCK), b"p" * BLOCK)
        with self.assertRaises(nbd.Error):
            self.client(GUEST_EXPORT)
        guest.shutdown()
        deadline = time.monotonic() + 10
        while True:
            try:
                self.assertEqual(self.client(GUEST_EXPORT).pread(100, 10 * BLOCK), b"g" * 100)
                break
            except nbd.Error:
                self.assertLess(time.monotonic(), deadline, "no place was freed")

    def test_a_client_that_never_finishes_its_handshake_loses_its_place(self):
        silent = [socket.create_connection(("127.0.0.1", self.node.nbd_port), timeout=20) for _ in range(2)]
        for connection in silent:
            self.addCleanup(connection.close)
            self.assertEqual(connection.recv(8), b"NBDMAGIC")
        deadline = time.monotonic() + 20
        while True:
            try:
                self.client(EXPORT)
                break
            except nbd.Error:
                self.assertLess(time.monotonic(), deadline, "no place was freed")
                time.sleep(0.1)

    def test_a_stuck_reader_does_not_keep_the_primary_waiting(self):
        self.start()
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", self.node.nbd_port))
        stuck = nbd.NBD()
        stuck.set_export_name(GUEST_EXPORT)
        stuck.connect_socket(connection.detach())
        # What it asks for is more than the sockets on the way hold, and it reads nothing of it.
        stuck.aio_pread(nbd.Buffer(DISK_BYTES), 0)
        time.sleep(2)
        primary = self.client(EXPORT)
        deadline = time.monotonic() + 20
        for block in range(8):
            content = nbd.Buffer.from_bytearray(bytearray([block]) * BLOCK)
            cookie = primary.aio_pwrite(content, block * BLOCK)
            while not primary.aio_command_completed(cookie):
                primary.poll(100)
                self.assertLess(time.monotonic(), deadline, "the primary waits")
        self.assertEqual(self.on_card(7 * BLOCK, BLOCK), bytes([7]) * BLOCK)


class Failures(NodeTest):
    def held_write(self, handle):
        """Writes to every other granule, so that each takes an entry of the index, which is full before the buffer is, until
        one is held: the write, and its granule. It may have been refused meanwhile."""
        for granule in range(0, 2 * 500, 2):
            cookie = handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"x" * 512)), granule * BLOCK)
            while self.volume()["buffer"]["held"] == 0:
                handle.poll(1)
                try:
                    if handle.aio_command_completed(cookie):
                        break
                except nbd.Error:
                    return cookie, granule
            else:
                return cookie, granule
        self.fail(f"no write is held: {self.volume()}")

    def test_a_full_buffer_holds_a_write_until_the_checkpoint_makes_room(self):
        self.start()
        handle = self.client(EXPORT)
        deadline = time.monotonic() + 120
        while True:
            cookie, granule = self.held_write(handle)
            try:
                self.qmp.call("xen-colo-do-checkpoint")
                break
            except QmpError:
                # The node holds a write for two seconds, and this machine was too busy to see it and come to here.
                self.assertLess(time.monotonic(), deadline, self.volume())
                self.qmp.call("xen-colo-do-checkpoint", force=True)
        while not handle.aio_command_completed(cookie):
            handle.poll(100)
        self.assertEqual(self.volume()["buffer"]["view"], "whole")
        self.assertFalse(self.volume()["behind"])
        self.assertEqual(self.on_card(granule * BLOCK, 512), b"x" * 512)

    def test_a_node_that_was_reset_in_mid_write_claims_no_view_and_keeps_the_card_readable(self):
        self.start()
        handle = self.client(EXPORT)
        handle.pwrite(b"w" * BLOCK * 8, 0)
        handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"v" * MIB)), MIB)
        while self.on_card(MIB, 512) != b"v" * 512:
            handle.poll(1)
        self.node.process.kill()
        self.node.start()
        self.assert_no_view_and_a_readable_card(MIB)

    def test_the_watchdog_resets_a_node_that_hangs_in_mid_write_and_it_claims_no_view(self):
        self.start()
        handle = self.client(EXPORT)
        handle.pwrite(b"w" * BLOCK * 8, 0)
        write = handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"v" * 3 * MIB)), MIB)
        while self.on_card(MIB, 512) != b"v" * 512:
            handle.poll(1)
        self.assertFalse(handle.aio_command_completed(write))
        emulator = self.node.process
        self.node.derail()
        # It counts to zero twice, 10 s each, by the board's clock.
        wait_until("the watchdog has reset the board", self.is_not_started, timeout_s=120)
        self.assertTrue(self.node.process is emulator and emulator.is_alive(), "by itself")
        self.assertNotEqual(self.on_card(MIB, 3 * MIB), b"v" * 3 * MIB, "in mid-write")
        self.assert_no_view_and_a_readable_card(3 * MIB)

    def is_not_started(self):
        """Whether the node answers, and says that it does not replicate."""
        status = self.node.status_or_none()
        return status is not None and json.loads(status)["volumes"][0]["stage"] == "none"

    def assert_no_view_and_a_readable_card(self, length):
        """After a reset in the middle of a write of so many bytes "v" to MIB, with 8 blocks of "w" written before."""
        self.qmp = self.manager()
        volume = self.volume()
        self.assertEqual((volume["stage"], volume["epoch"]), ("none", 0))
        self.assert_refused("replication of volume 'disk' is not running", "xen-set-replication", enable=False,
                            primary=False, failover=True)
        self.assertTrue(self.qmp.call("query-xen-replication-status")["error"])
        with self.assertRaises(nbd.Error):
            self.client(GUEST_EXPORT).pread(512, 0)
        content = self.client(EXPORT).pread(MIB + length, 0)
        self.assertEqual(content[:BLOCK * 8], b"w" * BLOCK * 8)
        for at in range(MIB, MIB + length, 512):
            self.assertIn(content[at:at + 512], (b"v" * 512, CONTENT[at:at + 512]), f"torn at {at}")
        # It can be started anew, and then has a view again.
        self.start()
        self.assertEqual(self.client(GUEST_EXPORT).pread(BLOCK * 8, 0), b"w" * BLOCK * 8)

    def test_a_primary_that_comes_back_takes_its_old_place(self):
        (self.folder / "primary.raw").write_bytes(CONTENT)
        self.start()
        first = self.primary()
        guest = connect(f"nbd+unix:///{EXPORT}?socket={self.folder / 'primary.nbd'}")
        guest.pwrite(b"1" * BLOCK, 0)
        twinblock("checkpoint", "--control", first.control)
        first.kill()
        second = self.primary()
        guest = connect(f"nbd+unix:///{EXPORT}?socket={self.folder / 'primary.nbd'}")
        guest.pwrite(b"2" * BLOCK, BLOCK)
        self.assertEqual(self.on_card(0, 2 * BLOCK), b"1" * BLOCK + b"2" * BLOCK)
        # The first one's claim ended without a goodbye: only by force is it forgotten that something may be missing.
        self.qmp.call("xen-colo-do-checkpoint", force=True)
        twinblock("checkpoint", "--control", second.control)
        self.assertEqual(self.volume()["epoch"], 4)

    def test_a_card_without_partitions_is_told_in_the_log_and_nothing_is_served(self):
        self.node.process.kill()
        with open(self.node.card, "r+b") as card:
            card.write(bytes(512))
        self.node.launch()
        wait_until("the log tells why there is no node",
                   lambda: any("no node: Partitions" in line for line in self.node.log(os.environ["DECODER"])))
        self.assertIsNone(self.node.status_or_none())
        self.assertTrue(self.node.process.is_alive())


class BadNetwork(NodeTest):
    switch_seed = 20

    def guest_or_none(self):
        try:
            return self.client(GUEST_EXPORT)
        except nbd.Error:
            return None

    def test_frames_that_are_lost_and_overtaken_are_no_matter_to_replication_checkpoint_and_failover(self):
        (self.folder / "primary.raw").write_bytes(CONTENT)
        self.start()
        primary = self.primary()
        guest = connect(f"nbd+unix:///{EXPORT}?socket={self.folder / 'primary.nbd'}")
        epoch = self.volume()["epoch"]
        expected, rng, switch = bytearray(CONTENT), random.Random(21), self.node.switch

        def write():
            offset, content = rng.randrange(DISK_BYTES - 3 * BLOCK), rng.randbytes(rng.randrange(1, 3 * BLOCK))
            guest.pwrite(content, offset)
            return offset, content

        switch.loss, switch.disorder = 0.02, 0.15
        while switch.lost < 4 or switch.overtaken < 20:
            offset, content = write()
            expected[offset:offset + len(content)] = content
        twinblock("checkpoint", "--control", primary.control, "--timeout", "60s")
        while switch.lost < 6:
            write()
        replica = primary.volume()["replicas"][0]
        self.assertTrue(replica["connected"] and not replica["behind"], replica)
        primary.kill()
        self.fail_over()
        volume = self.volume()
        self.assertEqual((volume["epoch"], volume["behind"]), (epoch + 1, False))
        self.assertEqual(self.on_card(0, DISK_BYTES), bytes(expected))
        # Also when nothing is lost any more, the dead primary's place is free only after a while.
        switch.loss = switch.disorder = 0.0
        view = wait_until("a guest is served", self.guest_or_none, timeout_s=60)
        self.assertEqual(view.pread(16 * BLOCK, 0), bytes(expected[:16 * BLOCK]))
        print(f"{switch.lost} frames lost, {switch.overtaken} overtaken, {switch.passed} passed ...", end=" ")
