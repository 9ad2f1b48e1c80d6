"""QEMU's own block nodes and tools on a primary's export: what a virtual machine's disk is made of."""
import random

import nbd

from fixture import MIB, PairTest
from harness.process import Process, output_of
from harness.qemu import QemuProcess
from harness.qmp import Qmp
from harness.twinblock import EXPORT


class QemuNodes(PairTest):
    SIZE = 16 * MIB

    def setUp(self):
        super().setUp()
        self.server = {"type": "unix", "path": str(self.directory / "primary.nbd")}
        self.before = self.pair.primary_disk.read_bytes()

    def play(self, handle):
        """Everything that a guest's disk asks for; then a checkpoint, and what it leaves is compared on all sides."""
        chance, content = random.Random(40), bytearray(self.before)
        for length in (512, 4096, 65536, 3 * 65536 + 512, MIB) * 4:
            offset = chance.randrange((self.SIZE - length) // 512 + 1) * 512
            kind = chance.choice(["write", "write", "fua", "zero", "flush"])
            if kind == "zero":
                handle.zero(length, offset)
                content[offset:offset + length] = bytes(length)
            elif kind == "flush":
                handle.flush()
            else:
                data = chance.randbytes(length)
                handle.pwrite(data, offset, nbd.CMD_FLAG_FUA if kind == "fua" else 0)
                content[offset:offset + length] = data
        handle.flush()
        self.assertEqual(handle.pread(self.SIZE, 0), content)
        view = self.connect(self.pair.guest_uri)
        self.assertEqual(view.pread(self.SIZE, 0), self.before)
        self.pair.checkpoint()
        self.assertEqual(view.pread(self.SIZE, 0), content)
        # What comes after the checkpoint is rolled back by a failover, a trim too.
        handle.pwrite(b"lost" * 16384, MIB)
        handle.trim(MIB, 4 * MIB)
        handle.flush()
        self.assert_twins(self.pair)
        self.pair.failover()
        self.pair.secondary.wait_for("done", lambda volume: volume["stage"] == "done")
        self.assertEqual(view.pread(self.SIZE, 0), content)
        self.assertEqual(self.pair.secondary_disk.read_bytes(), content)
        # The guest of the primary goes on.
        handle.pwrite(b"alone" * 1000, 0)
        self.assertEqual(handle.pread(5000, 0), b"alone" * 1000)

    def test_a_disk_of_a_qemu_process(self):
        qemu = QemuProcess(self.directory, "qemu")
        self.addCleanup(qemu.kill)
        qemu.add("disk", "nbd", server=self.server, export=EXPORT, discard="unmap")
        qemu.export("disk", "again")
        self.play(self.connect(qemu.uri("again")))

    def test_a_qcow2_image_on_the_export_of_a_qemu_process(self):
        """The image's own structures are what is replicated; after a failover it opens and checks clean."""
        uri = self.pair.primary_uri
        output_of(["qemu-img", "create", "-q", "-f", "qcow2", uri, "12M"])
        qemu = QemuProcess(self.directory, "qemu")
        self.addCleanup(qemu.kill)
        qemu.add("disk", "qcow2", discard="unmap",
                 file={"driver": "nbd", "server": self.server, "export": EXPORT})
        qemu.export("disk", "again")
        handle = self.connect(qemu.uri("again"))
        handle.pwrite(b"kept" * 50_000, 100_000)
        handle.flush()
        self.pair.checkpoint()
        handle.pwrite(b"lost" * 50_000, 50_000)
        handle.zero(MIB, 4 * MIB)
        handle.flush()
        self.assert_twins(self.pair)
        qemu.kill()
        self.pair.failover()
        self.pair.secondary.wait_for("done", lambda volume: volume["stage"] == "done")
        output_of(["qemu-img", "check", "-f", "qcow2", self.pair.guest_uri])
        out = output_of(["qemu-io", "-f", "qcow2", "-r", "-c", "read -P 0 0 97k", "-c", "read -v 100000 8",
                         self.pair.guest_uri])
        self.assertNotIn("failed", out)
        self.assertIn("keptkept", out)

    def test_a_disk_of_the_storage_daemon(self):
        socket, control = self.directory / "storage.nbd", self.directory / "storage.qmp"
        daemon = Process(["qemu-storage-daemon",
                          "--blockdev", f"nbd,node-name=disk,discard=unmap,export={EXPORT},server.type=unix,"
                                        f"server.path={self.server['path']}",
                          "--nbd-server", f"addr.type=unix,addr.path={socket}",
                          "--export", "nbd,id=again,node-name=disk,name=again,writable=on",
                          "--chardev", f"socket,id=control,path={control},server=on,wait=off",
                          "--monitor", "chardev=control"], self.directory / "storage.log")
        self.addCleanup(daemon.kill)
        Qmp(control, is_alive=daemon.is_alive).close()
        self.play(self.connect(f"nbd+unix:///again?socket={socket}"))

    def test_a_mirror_job_of_qemu_makes_the_first_copy(self):
        """A running QEMU moves its disk onto the pair, as it does to move a guest, while the guest writes on."""
        source = self.make_disk("source.raw", self.SIZE, seed=41)
        qemu = QemuProcess(self.directory, "qemu")
        self.addCleanup(qemu.kill)
        qemu.add_raw("source", source)
        qemu.add("target", "nbd", server=self.server, export=EXPORT)
        qemu.export("source", "again")
        guest = self.connect(qemu.uri("again"))
        qemu.qmp.call("blockdev-mirror", job_id="move", device="source", target="target", sync="full")
        for number in range(32):
            guest.pwrite(bytes([number]) * 4096, number * 123 * 4096 % self.SIZE)
        qemu.qmp.event("BLOCK_JOB_READY", 30)
        guest.flush()
        qemu.qmp.call("block-job-complete", device="move")
        qemu.qmp.event("BLOCK_JOB_COMPLETED", 30)
        # The guest's writes go to the pair now.
        guest.pwrite(b"moved" * 1000, 5 * MIB)
        guest.flush()
        self.pair.checkpoint()
        self.assert_twins(self.pair)
        expected = bytearray(source.read_bytes())
        expected[5 * MIB:5 * MIB + 5000] = b"moved" * 1000
        self.assertEqual(self.connect(self.pair.guest_uri).pread(self.SIZE, 0), expected)

    def test_the_node_finds_a_primary_again_that_was_started_anew(self):
        qemu = QemuProcess(self.directory, "qemu")
        self.addCleanup(qemu.kill)
        qemu.add("disk", "nbd", server=self.server, export=EXPORT, reconnect_delay=60)
        qemu.export("disk", "again")
        handle = self.connect(qemu.uri("again"))
        handle.pwrite(b"first" * 1000, 0)
        handle.flush()
        self.assertEqual(self.pair.primary.process.terminate(), 0)
        self.pair.primary.start()
        # It waits until the primary is back; nothing of it fails.
        handle.pwrite(b"again" * 1000, MIB)
        handle.flush()
        self.assertEqual(handle.pread(5000, 0), b"first" * 1000)
        self.assert_disk_holds(self.pair.primary_disk, MIB, b"again" * 1000)

    def test_img_tools_copy_to_and_from_the_export(self):
        image = self.make_disk("image.raw", self.SIZE, seed=42)
        output_of(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, self.pair.primary_uri])
        output_of(["qemu-img", "compare", "-f", "raw", "-F", "raw", image, self.pair.primary_uri])
        self.pair.checkpoint()
        copy = self.directory / "copy.qcow2"
        output_of(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", self.pair.guest_uri, copy])
        output_of(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", image, copy])
        output_of(["qemu-io", "-f", "raw", "-c", "write -P 9 1M 1M", "-c", "write -z -u 3M 64k", "-c", "discard 4M 64k",
                   "-c", "aio_write -P 8 6M 64k", "-c", "aio_flush", "-c", "read -P 9 1M 1M", "-c", "read -P 0 3M 64k",
                   "-c", "flush", self.pair.primary_uri])
        self.assert_twins(self.pair)
        self.assert_disk_holds(self.pair.secondary_disk, 6 * MIB, b"\x08" * 65536)
