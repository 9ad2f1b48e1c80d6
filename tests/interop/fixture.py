"""What the tests have in common: a directory of their own, disks in it, and daemons over them."""
import filecmp
import functools
import json
import pathlib
import random
import shutil
import tempfile
import unittest

import nbd

from harness.process import Process, output_of
from harness.twinblock import Daemon, EXPORT, GUEST_EXPORT, TwinblockPair, binary

MIB = 1 << 20
# Where the disks lie; memory if it has room, so that the tests do not wait for this machine's disk.
ROOM_BYTES = 4 << 30


def directory_for_disks():
    shm = pathlib.Path("/dev/shm")
    if shm.is_dir() and shutil.disk_usage(shm).free > ROOM_BYTES:
        return shm
    return pathlib.Path(tempfile.gettempdir())


class DiskTest(unittest.TestCase):
    """A directory of its own, gone after the test."""

    def __init_subclass__(cls, **options):
        """A test that has a method `fail` of its own, say, has assertions that cannot fail."""
        super().__init_subclass__(**options)
        hidden = {name for name in vars(cls) if hasattr(unittest.TestCase, name) and not name.startswith("__")}
        hidden -= {"setUp", "tearDown", "setUpClass", "tearDownClass"}
        if hidden:
            raise TypeError(f"{cls.__name__} hides what unittest needs: {', '.join(sorted(hidden))}")

    def setUp(self):
        self.use_directory(directory_for_disks())

    def use_directory(self, parent):
        place = tempfile.TemporaryDirectory(prefix="twinblock-interop-", dir=parent)
        self.addCleanup(place.cleanup)
        self.directory = pathlib.Path(place.name)

    def make_disk(self, name, size_bytes, seed=None):
        """An image; a hole from end to end, or random bytes that depend on the seed alone."""
        path = self.directory / name
        with open(path, "wb") as file:
            if seed is not None:
                file.write(random.Random(seed).randbytes(size_bytes))
            file.truncate(size_bytes)
        return path

    def make_disks(self, size_bytes, seed=None):
        """The two disks of a pair, alike."""
        return [self.make_disk(name, size_bytes, seed) for name in ("primary.raw", "secondary.raw")]

    def enter_pair(self, **options):
        pair = TwinblockPair(self.directory, **options)
        self.addCleanup(pair.__exit__)
        pair.__enter__()
        pair.wait_until_connected()
        return pair

    def enter_secondary(self, started=True, buffer_bytes=16 * MIB, arguments=()):
        """A secondary alone over `secondary.raw`; the test plays its primary."""
        daemon = Daemon("secondary", self.directory, [
            "--disk", self.directory / "secondary.raw", "--listen", f"unix:{self.directory}/secondary.nbd",
            "--export", EXPORT, "--guest", f"unix:{self.directory}/guest.nbd", "--guest-export", GUEST_EXPORT,
            "--buffer", "memory", "--buffer-size", buffer_bytes, *arguments, *(["--start"] if started else [])])
        self.addCleanup(daemon.kill)
        daemon.start()
        daemon.replica_uri = f"nbd+unix:///{EXPORT}?socket={self.directory}/secondary.nbd"
        daemon.guest_uri = f"nbd+unix:///{GUEST_EXPORT}?socket={self.directory}/guest.nbd"
        return daemon

    def enter_configured(self, name, volumes, place=None, **keys):
        """A daemon that a file describes. `volumes`: pairs of a role and its keys; `keys` are those of the whole daemon.
        Its control address is NAME.qmp."""
        place = place or self.directory
        config = place / f"{name}.toml"
        keys = {"control": f"unix:{place}/{name}.qmp", **keys}
        lines = [f"{key.replace('_', '-')} = {as_toml(value)}" for key, value in keys.items()]
        for role, described in volumes:
            lines += [f"[[{role}]]", *(f"{key} = {as_toml(value)}" for key, value in described.items())]
        config.write_text("\n".join(lines) + "\n")
        daemon = Daemon("daemon", place, ["--config", config])
        daemon._command = daemon._command[:daemon._command.index("--control")]
        daemon.control_path = place / f"{name}.qmp"
        self.addCleanup(daemon.kill)
        daemon.start()
        return daemon

    def run_in_background(self, command, log="background.log"):
        process = Process(command, self.directory / log)
        self.addCleanup(process.kill)
        return process

    def connect(self, uri, contexts=(), strict=True):
        """A libnbd handle. Not strict: it also sends what it knows to be wrong."""
        handle = nbd.NBD()
        for context in contexts:
            handle.add_meta_context(context)
        if not strict:
            handle.set_strict_mode(0)
        handle.connect_uri(uri)
        self.addCleanup(disconnect, handle)
        return handle

    def assert_refused(self, errors, call, *arguments, **options):
        """The call fails with one of the errno names."""
        with self.assertRaises(nbd.Error) as caught:
            call(*arguments, **options)
        self.assertIn(caught.exception.errno, [errors] if isinstance(errors, str) else errors,
                      caught.exception.string)

    def assert_same_file(self, one, other):
        self.assertTrue(filecmp.cmp(one, other, shallow=False), f"{one} and {other} differ")

    def assert_twins(self, pair):
        """After a flush of the primary's export nothing failed and both disks are the same."""
        handle = self.connect(pair.primary_uri)
        handle.flush()
        self.assertEqual(pair.errors(), [])
        self.assertFalse(pair.primary.volume()["replicas"][0]["behind"])
        self.assert_same_file(pair.primary_disk, pair.secondary_disk)

    def assert_disk_holds(self, path, offset, content):
        with open(path, "rb") as file:
            file.seek(offset)
            self.assertEqual(file.read(len(content)), content, f"{path} at {offset}")


class PairTest(DiskTest):
    """A running pair over random disks of `SIZE` bytes. `OPTIONS` go to the pair."""

    SIZE = 64 * MIB
    SEED = 1
    OPTIONS = {}

    def setUp(self):
        super().setUp()
        self.make_disks(self.SIZE, self.SEED)
        self.pair = self.enter_pair(**self.OPTIONS)

    def exports(self):
        """The three exports of a pair: name and URI. The replication export comes first: once the primary has
        written, it holds the claim there and nobody else may modify."""
        return [("replica", self.pair.replica_uri), ("primary", self.pair.primary_uri), ("guest", self.pair.guest_uri)]


def on_every_export(test):
    """The test runs once for each of the three exports, with a connection to it."""
    @functools.wraps(test)
    def run(self):
        for name, uri in self.exports():
            with self.subTest(export=name):
                handle = self.connect(uri, contexts=[nbd.CONTEXT_BASE_ALLOCATION], strict=False)
                try:
                    test(self, handle)
                finally:
                    disconnect(handle)
    return run


def as_toml(value):
    """A value of a configuration file, tables in one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {as_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value if isinstance(value, (bool, int)) else str(value))


def disconnect(handle):
    """Ends a connection whatever state it is in."""
    try:
        handle.shutdown()
    except nbd.Error:
        pass


def twinblock(*arguments, timeout_s=30.0):
    """What a command of the daemon's binary prints."""
    return output_of([binary(), *arguments], timeout_s=timeout_s)


