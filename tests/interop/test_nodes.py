"""Data and log of one guest on two volumes: all volumes of a standby's node take a checkpoint together or not at all."""
import json
import time

from fixture import MIB, DiskTest
from harness.qmp import QmpError
from harness.twinblock import is_connected

SIZE = 1 * MIB
VOLUMES = ("data", "log")
CLAIM = "0123456789abcdef0123456789abcdef"


class NodesTest(DiskTest):
    """A primary node with both volumes, and standbys of which each has a replica of either."""

    STANDBYS = ("a", "b")
    # Settings of the primary.
    SETTINGS = {}

    def setUp(self):
        super().setUp()
        self.guests = {}
        self.standbys = {name: self.enter_standby(name) for name in self.STANDBYS}
        self.primary = self.enter_configured("primary", [("primary", {
            "export": volume, "disk": self.make_disk(f"primary-{volume}.raw", SIZE, seed=3),
            "listen": f"unix:{self.directory}/primary.nbd",
            "replica": [{"name": f"{name}-{volume}", "uri": self.replica_uri(name, volume),
                         "control": f"unix:{self.directory}/{name}.qmp"} for name in self.STANDBYS],
        }) for volume in VOLUMES], start=True, **self.SETTINGS)
        self.primary.wait_for("connected", lambda _: all(
            is_connected(volume) for volume in self.primary.qmp.call("query-replication")["volumes"]))

    def enter_standby(self, name):
        return self.enter_configured(name, [("secondary", {
            "export": volume, "disk": self.make_disk(f"{name}-{volume}.raw", SIZE, seed=3),
            "listen": f"unix:{self.directory}/{name}.nbd", "guest": f"unix:{self.directory}/{name}-guest.nbd",
            "buffer": "memory", "buffer-size": "1M",
        }) for volume in VOLUMES], start=True)

    def replica_uri(self, name, volume):
        return f"nbd+unix:///{volume}?socket={self.directory}/{name}.nbd"

    def write(self, content, volumes=VOLUMES):
        for volume in volumes:
            handle = self.connect(f"nbd+unix:///{volume}?socket={self.directory}/primary.nbd")
            handle.pwrite(content * 512, 0)
            handle.shutdown()

    def views(self, name):
        """The first byte of either volume, as the guest on a standby sees it."""
        if name not in self.guests:
            uris = [f"nbd+unix:///{volume}?socket={self.directory}/{name}-guest.nbd" for volume in VOLUMES]
            self.guests[name] = [self.connect(uri) for uri in uris]
        return b"".join(guest.pread(1, 0) for guest in self.guests[name])

    def leave_behind(self, name, volume):
        """A replica misses something and is connected again."""
        qmp = self.primary.qmp
        qmp.call("detach", volume=volume, name=f"{name}-{volume}")
        self.write(b"-", [volume])
        qmp.call("attach", volume=volume, uri=self.replica_uri(name, volume), name=f"{name}-{volume}",
                 control=f"unix:{self.directory}/{name}.qmp")
        self.primary.wait_for("behind", lambda _: any(
            replica["name"] == f"{name}-{volume}" and replica["behind"] and is_connected(each)
            for each in qmp.call("query-replication")["volumes"] for replica in each["replicas"]))

    def checkpoint(self):
        return self.primary.qmp.call("xen-colo-do-checkpoint")

    def refused_checkpoint(self):
        with self.assertRaises(QmpError) as caught:
            self.checkpoint()
        return caught.exception.desc


class TwoNodes(NodesTest):
    def test_a_node_of_which_one_volume_is_behind_is_left_out_whole_and_named(self):
        self.write(b"1")
        self.assertEqual(self.checkpoint(), {})
        self.leave_behind("a", "log")
        self.write(b"2")
        self.assertEqual(self.checkpoint(), {"left-out": ["a-data", "a-log"]})
        self.assertEqual((self.views("a"), self.views("b")), (b"11", b"22"))

    def test_if_no_node_is_whole_there_is_no_checkpoint_and_who_is_behind_is_named(self):
        self.write(b"1")
        self.checkpoint()
        self.leave_behind("a", "log")
        self.leave_behind("b", "data")
        self.write(b"2")
        desc = self.refused_checkpoint()
        for text in ("replica 'a-log' of volume 'log'", "replica 'b-data' of volume 'data'"):
            self.assertIn(text, desc)
        self.assertNotIn("\n", desc)
        self.assertEqual((self.views("a"), self.views("b")), (b"11", b"11"))
        # One volume alone is the manager's wish.
        self.assertEqual(self.primary.qmp.call("xen-colo-do-checkpoint", volume="data"), {"left-out": ["b-data"]})
        self.assertEqual((self.views("a"), self.views("b")), (b"21", b"11"))

    def test_a_node_that_is_healthy_again_takes_part_again(self):
        self.leave_behind("a", "log")
        self.primary.qmp.call("detach", volume="log", name="a-log")
        self.primary.qmp.call("detach", volume="data", name="a-data")
        self.write(b"3")
        self.assertEqual(self.checkpoint(), {})
        self.assertEqual(self.views("b"), b"33")


class OneNode(NodesTest):
    STANDBYS = ("a",)

    def test_while_one_volume_is_behind_the_other_takes_no_checkpoint_either(self):
        self.write(b"1")
        self.checkpoint()
        self.leave_behind("a", "log")
        self.write(b"2")
        self.assertIn("'log'", self.refused_checkpoint())
        self.assertEqual(self.views("a"), b"11")


class ByItself(NodesTest):
    """The primary takes checkpoints by itself."""

    STANDBYS = ("a",)
    SETTINGS = {"checkpoint_every": "20ms"}

    def test_while_one_volume_is_behind_the_other_takes_no_checkpoint_either(self):
        self.write(b"1")
        self.primary.wait_for("a checkpoint", lambda _: self.views("a") == b"11")
        self.leave_behind("a", "log")
        self.primary.wait_for("a complaint", lambda _: "no checkpoint was taken" in self.log())
        before = self.views("a")
        self.write(b"2")
        # A checkpoint of the data alone would be taken many times meanwhile.
        for _ in range(20):
            time.sleep(0.02)
            self.assertEqual(self.views("a"), before)

    def log(self):
        return "".join(path.read_text(errors="replace") for path in self.directory.glob("*.log"))


class Together(DiskTest):
    """A standby's node alone; the test plays its primary."""

    def setUp(self):
        super().setUp()
        self.guests = {}
        node = NodesTest.enter_standby(self, "a")
        self.control = node.connect()
        self.node = node
        self.epochs = self.outcomes()
        for volume in VOLUMES:
            uri = f"nbd+unix:///{volume}?socket={self.directory}/a.nbd"
            self.connect(uri, contexts=[f"twinblock:primary={CLAIM}"]).pwrite(b"1" * 512, 0)

    views = NodesTest.views

    def outcomes(self):
        return [self.control.call("checkpoint-outcome", volume=volume)["epoch"] for volume in VOLUMES]

    def prepare(self, *volumes):
        for volume in volumes:
            epoch = self.epochs[VOLUMES.index(volume)]
            self.control.call("checkpoint-prepare", volume=volume, claim=CLAIM, epoch=epoch, modifications=1)

    def tell(self, volume, together, qmp=None):
        """Tells a volume to commit and does not wait for the answer."""
        arguments = {"volume": volume, "claim": CLAIM, "epoch": self.epochs[VOLUMES.index(volume)],
                     "together": together}
        message = {"execute": "checkpoint-commit", "arguments": arguments, "id": volume}
        (qmp or self.control)._socket.sendall(json.dumps(message).encode() + b"\n")

    def answers(self, count):
        """Of the commits, by volume: the error's text, or None."""
        answers = {}
        while len(answers) < count:
            message = self.control._message()
            if "id" in message:
                answers[message["id"]] = message.get("error", {}).get("desc")
        return answers

    def test_commits_that_belong_together_wait_for_each_other(self):
        self.prepare(*VOLUMES)
        before = self.views("a")
        self.tell("data", 2)
        self.assertEqual((self.outcomes(), self.views("a")), (self.epochs, before))
        self.tell("log", 2)
        self.assertEqual(self.answers(2), {"data": None, "log": None})
        self.assertEqual((self.outcomes(), self.views("a")), ([epoch + 1 for epoch in self.epochs], b"11"))

    def test_if_one_of_them_has_not_prepared_none_commits(self):
        for order in (VOLUMES, VOLUMES[::-1]):
            self.prepare("data")
            for volume in order:
                self.tell(volume, 2)
            answers = self.answers(2)
            self.assertIn("volume 'log'", answers["log"])
            self.assertIn("'log', which refuses", answers["data"])
            self.assertEqual(self.outcomes(), self.epochs)

    def test_what_was_told_over_a_link_that_is_lost_is_not_carried_out(self):
        self.prepare(*VOLUMES)
        other = self.node.connect()
        self.tell("data", 2, qmp=other)
        other.call("checkpoint-outcome", volume="data")
        other._socket.close()
        self.tell("log", 1)
        self.assertEqual(self.answers(1), {"log": None})
        self.assertEqual(self.outcomes(), [self.epochs[0], self.epochs[1] + 1])

    def test_a_prepare_that_begins_anew_ends_commits_that_wait(self):
        self.prepare(*VOLUMES)
        self.tell("data", 2)
        message = {"execute": "checkpoint-prepare", "id": "prepare", "arguments": {
            "volume": "data", "claim": CLAIM, "epoch": self.epochs[0], "modifications": 1}}
        self.control._socket.sendall(json.dumps(message).encode() + b"\n")
        answers = self.answers(2)
        self.assertIn("begin anew", answers["data"])
        self.assertIsNone(answers["prepare"])
        self.assertEqual(self.outcomes(), self.epochs)

    def test_many_managers_that_leave_with_commits_waiting_keep_nobody_out(self):
        for _ in range(50):
            manager = self.node.connect()
            self.tell("data", 1000, qmp=manager)
            self.tell("data", 1000, qmp=manager)
            manager._socket.close()
        self.assertEqual(self.outcomes(), self.epochs)
