"""The NBD clients that people have, against every export of a running pair."""
import json
import threading

from fixture import MIB, PairTest
from harness.process import output_of


def qemu_io(uri, *commands):
    """What qemu-io prints; commands that fail or verify wrong bytes are an error."""
    arguments = [word for command in commands for word in ("-c", command)]
    out = output_of(["qemu-io", "-f", "raw", *arguments, uri])
    if "failed" in out.lower() or "error" in out.lower():
        raise AssertionError(out)
    return out


class Nbdinfo(PairTest):
    def describe(self, uri):
        return json.loads(output_of(["nbdinfo", "--json", uri]))["exports"][0]

    def test_size_block_sizes_and_flags_are_announced(self):
        for name, uri in self.exports():
            with self.subTest(export=name):
                export = self.describe(uri)
                self.assertEqual(export["export-size"], self.SIZE)
                self.assertEqual(export["block_size_minimum"], 1)
                self.assertGreaterEqual(export["block_size_preferred"], 512)
                self.assertEqual(export["block_size_maximum"], 32 * MIB)
                flags = {flag: export[f"can_{flag}"] for flag in ("flush", "fua", "trim", "zero", "cache", "df")}
                self.assertEqual(set(flags.values()), {True}, flags)
                self.assertFalse(export["is_read_only"])
                self.assertFalse(export["is_rotational"])
                self.assertIn("base:allocation", export["contexts"])

    def test_several_connections_are_promised_only_where_all_of_them_may_write(self):
        self.assertFalse(self.describe(self.pair.replica_uri)["can_multi_conn"])
        self.assertTrue(self.describe(self.pair.primary_uri)["can_multi_conn"])
        self.assertTrue(self.describe(self.pair.guest_uri)["can_multi_conn"])

    def test_the_list_names_the_export(self):
        for name, uri in self.exports():
            with self.subTest(export=name):
                names = [export["export-name"]
                         for export in json.loads(output_of(["nbdinfo", "--list", "--json", uri]))["exports"]]
                self.assertIn("view" if name == "guest" else "disk", names)

    def test_holes_are_mapped(self):
        self.connect(self.pair.primary_uri).zero(16 * MIB, 16 * MIB)
        for name, uri in self.exports()[:2]:
            with self.subTest(export=name):
                # To call everything data is always allowed, but what is called a hole must be one.
                for extent in json.loads(output_of(["nbdinfo", "--map", "--json", uri])):
                    if extent["type"] & 2:
                        self.assertGreaterEqual(extent["offset"], 16 * MIB)
                        self.assertLessEqual(extent["offset"] + extent["length"], 32 * MIB)


class Copies(PairTest):
    def source(self):
        """An image of another content than the disks', with holes."""
        path = self.make_disk("source.raw", self.SIZE, seed=77)
        with open(path, "r+b") as file:
            for start in range(0, self.SIZE, 8 * MIB):
                file.seek(start + 3 * MIB)
                file.write(bytes(2 * MIB))
        output_of(["fallocate", "--dig-holes", path])
        return path

    def test_nbdcopy_in_reaches_both_disks_and_out_brings_it_back(self):
        source = self.source()
        output_of(["nbdcopy", "--flush", source, self.pair.primary_uri])
        self.assert_twins(self.pair)
        self.assert_same_file(self.pair.secondary_disk, source)
        for name, uri in self.exports()[:2]:
            out = self.directory / f"{name}.out"
            output_of(["nbdcopy", uri, out])
            self.assert_same_file(out, source)

    def test_nbdcopy_of_the_guests_view_brings_the_last_checkpoint(self):
        before = self.make_disk("before.raw", self.SIZE, self.SEED)
        source = self.source()
        output_of(["nbdcopy", "--flush", source, self.pair.primary_uri])
        output_of(["nbdcopy", self.pair.guest_uri, self.directory / "old.out"])
        self.assert_same_file(self.directory / "old.out", before)
        self.pair.checkpoint()
        output_of(["nbdcopy", self.pair.guest_uri, self.directory / "new.out"])
        self.assert_same_file(self.directory / "new.out", source)

    def test_nbdcopy_into_the_guests_view_leaves_the_disks_alone(self):
        before = self.make_disk("before.raw", self.SIZE, self.SEED)
        source = self.source()
        output_of(["nbdcopy", "--flush", source, self.pair.guest_uri])
        output_of(["nbdcopy", self.pair.guest_uri, self.directory / "view.out"])
        self.assert_same_file(self.directory / "view.out", source)
        self.assert_same_file(self.pair.secondary_disk, before)
        self.assert_twins(self.pair)

    def test_qemu_img_converts_in_and_out(self):
        source = self.source()
        output_of(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, self.pair.primary_uri])
        self.assert_twins(self.pair)
        image = self.directory / "out.qcow2"
        output_of(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", self.pair.primary_uri, image])
        output_of(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, image])
        output_of(["qemu-img", "compare", "-f", "raw", "-F", "raw", source, self.pair.replica_uri])


class QemuIo(PairTest):
    PATTERNS = [
        "write -P 0x5a 0 64k", "write -P 0x33 12345 6789", "write -f -P 0x44 1M 3M", "write -z 2M 64k",
        "write -z -u 5M 1M", "discard 8M 1M", "write -P 0x55 32767 2",
        "read -P 0x5a 0 12345", "read -P 0x33 12345 6789", "read -P 0x5a 19134 13633", "read -P 0x55 32767 2",
        "read -P 0x44 1M 1M", "read -P 0 2M 64k", "read -P 0x44 2162688 2031616", "read -P 0 5M 1M", "flush",
    ]

    def test_patterns_through_the_primary_reach_both_disks(self):
        qemu_io(self.pair.primary_uri, *self.PATTERNS)
        self.assert_twins(self.pair)

    def test_patterns_through_the_guests_view_stay_in_the_buffer(self):
        before = self.make_disk("before.raw", self.SIZE, self.SEED)
        qemu_io(self.pair.guest_uri, *self.PATTERNS)
        self.assert_same_file(self.pair.secondary_disk, before)

    def test_a_trim_leaves_the_twins_equal(self):
        qemu_io(self.pair.primary_uri, "discard 1M 4M", "discard 20000001 999999", "flush")
        self.assert_twins(self.pair)

    def test_asynchronous_requests_that_overlap_leave_the_twins_equal(self):
        writes = [f"aio_write -P {value} {value * 1111} 300k" for value in range(1, 60)]
        qemu_io(self.pair.primary_uri, *writes, "aio_flush", "flush")
        self.assert_twins(self.pair)


class Fio(PairTest):
    OPTIONS = {"buffer_bytes": 96 * MIB}
    JOBS = 4

    def fio(self, uri, **options):
        """Four jobs at depth 32, each on its own quarter of the disk, which reads back and verifies what it wrote."""
        quarter = self.SIZE // self.JOBS
        settings = {"name": "verify", "ioengine": "nbd", "uri": uri, "rw": "randwrite", "bsrange": "512-64k",
                    "blockalign": 512, "iodepth": 32, "numjobs": self.JOBS, "size": quarter,
                    "offset_increment": quarter, "verify": "crc32c", "verify_fatal": 1, "do_verify": 1,
                    "verify_state_save": 0,
                    "group_reporting": 1, "output-format": "json", **options}
        out = output_of(["fio", *(f"--{key}={value}" for key, value in settings.items())], timeout_s=300)
        job = json.loads(out[out.index("{"):])["jobs"][0]
        self.assertEqual(job["error"], 0)
        self.assertGreater(job["read"]["total_ios"], 0, "nothing was verified")

    def test_four_jobs_verify_what_they_wrote_through_the_primary(self):
        self.fio(self.pair.primary_uri)
        self.assert_twins(self.pair)

    def test_four_jobs_verify_while_checkpoints_are_taken(self):
        taken, trouble = [], []
        is_over = threading.Event()

        def take_checkpoints():
            try:
                while not is_over.wait(0.02):
                    taken.append(self.pair.checkpoint())
            except Exception as error:
                trouble.append(error)

        thread = threading.Thread(target=take_checkpoints)
        thread.start()
        try:
            self.fio(self.pair.primary_uri)
        finally:
            is_over.set()
            thread.join()
        self.assertEqual(trouble, [])
        self.assertGreater(len(taken), 3)
        self.assert_twins(self.pair)

    def test_primary_and_guest_verify_the_same_places_at_the_same_time(self):
        trouble = []

        def run_guest():
            try:
                self.fio(self.pair.guest_uri, name="guest", randseed=9)
            except AssertionError as error:
                trouble.append(error)

        thread = threading.Thread(target=run_guest)
        thread.start()
        self.fio(self.pair.primary_uri)
        thread.join()
        self.assertEqual(trouble, [])
        self.assert_twins(self.pair)
