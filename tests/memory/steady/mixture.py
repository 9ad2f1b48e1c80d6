"""The load: clients that stay, clients and managers that come and go, and what each of them does.

The disk has areas: one for writes that are verified, which nobody else writes, one for the writes of a client whose requests
are timed, and one for everybody else. The secondary's guest reads and writes everywhere in its view.
"""
import json
import random
import socket
import threading
import time

import nbd

from harness.load import KIB, KINDS, Load
from harness.process import Process
from harness.qmp import Qmp, QmpError

from .latency import Latency, read_log

MIB, GIB = 1 << 20, 1 << 30
DISK_BYTES = GIB
# Offset and length in bytes.
VERIFIED_SMALL = (0, 128 * MIB)
VERIFIED_LARGE = (128 * MIB, 128 * MIB)
TIMED = (256 * MIB, 64 * MIB)
SHARED = (512 * MIB, 512 * MIB)
WHOLE = (0, DISK_BYTES)
# The daemons have places for 32 clients. One at the secondary is the primary's, and a few are not for guests.
PLACES = 32
GUESTS_MAX = 28
MANAGERS = 6
NONSENSE_BYTES_MAX = 100_000
SAMPLE_S = 1.0
# How long fio may take beyond its time, on a machine that does much else.
PATIENCE_S = 60


class Fio:
    """One run of fio over an area of an export."""

    def __init__(self, uri, name, directory, seconds, area, *options):
        self.name = name
        self._out = directory / f"{name}.json"
        offset, length = area
        self._process = Process(
            ["fio", f"--name={name}", "--ioengine=nbd", f"--uri={uri}", f"--offset={offset}",
             f"--size={length}", "--time_based", f"--runtime={seconds:.0f}", "--output-format=json",
             f"--output={self._out}", *options], directory / f"{name}.log")

    def end(self):
        """What it tells of itself."""
        if self._process.wait(PATIENCE_S):
            raise AssertionError(f"fio ({self.name}) has failed\n{self._process.tail()}")
        text = self._out.read_text()
        return json.loads(text[text.index("{"):])["jobs"][0]


def start_fio(pair, directory, seconds):
    """Clients that stay as long as the load lasts, by name."""
    sizes = ["--bssplit=4k/60:16k/20:64k/15:512k/5", "--norandommap"]
    # Each place is read again, and must hold what was written last, after so many more writes at the latest.
    verify = ["--rw=randwrite", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]
    runs = [
        (pair.primary_uri, "verified-4k", VERIFIED_SMALL, "--bs=4k", "--iodepth=16", "--rate_iops=1500",
         "--verify_backlog=512", *verify),
        (pair.primary_uri, "verified-64k", VERIFIED_LARGE, "--bs=64k", "--iodepth=4", "--rate_iops=150",
         "--verify_backlog=64", *verify),
        (pair.primary_uri, "timed", TIMED, "--rw=randwrite", "--bs=4k", "--iodepth=1", "--thinktime=10ms",
         f"--write_lat_log={directory / 'timed'}"),
        (pair.primary_uri, "mixed", SHARED, "--rw=randrw", "--rwmixread=40", "--iodepth=32", "--rate_iops=1500",
         "--fsync=200", *sizes),
        (pair.primary_uri, "trim", SHARED, "--rw=randtrim", "--iodepth=4", "--rate_iops=200", *sizes),
        (pair.guest_uri, "guest", WHOLE, "--rw=randrw", "--iodepth=16", "--rate_iops=400", "--fsync=100", *sizes),
    ]
    return [Fio(uri, name, directory, seconds, area, *options) for uri, name, area, *options in runs]


class Background:
    """Calls `act(random)` again and again, until told to stop."""

    def __init__(self, seed, act):
        self.count = 0
        self.error = None
        self._stop = threading.Event()
        self._random = random.Random(seed)
        self._act = act
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            while not self._stop.is_set():
                self._act(self._random)
                self.count += 1
                time.sleep(0.01)
        except BaseException as error:  # noqa: BLE001: reported by whoever stops it
            self.error = error

    def stop(self):
        self._stop.set()
        self._thread.join()
        if self.error:
            raise self.error


def visit(pair, choice):
    """A client comes, asks for some of everything, and goes: in order, or without a word while requests are under way."""
    handle = nbd.NBD()
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.connect_uri(choice.choice([pair.primary_uri, pair.guest_uri]))
    load = Load([handle], seed=choice.random(), depth=4, lengths=[4 * KIB, 64 * KIB], area=SHARED)
    for kind in KINDS:
        load.run(kind, 4)
    if choice.random() < 0.5:
        handle.shutdown()
        return
    room = nbd.Buffer(64 * KIB)
    for number in range(8):
        handle.aio_pread(room, number * 64 * KIB)
    # Closed as it is collected.
    del handle, load


def manage(pair, choice):
    """A manager comes, asks, errs, and goes, in order or in the middle of a message; how many checkpoints that it asked for
    were not taken."""
    late = 0
    daemon = choice.choice([pair.primary, pair.secondary])
    manager = Qmp(daemon.control_path)
    for command in ("query-replication", "query-xen-replication-status", "query-commands"):
        manager.call(command)
    if choice.random() < 0.3:
        pair_manager = Qmp(pair.primary.control_path)
        try:
            pair_manager.call("xen-colo-do-checkpoint")
        except QmpError:
            # A busy machine may take too long for one; the pair is none the worse for it.
            late = 1
        pair_manager.close()
    for nonsense in (b'{"execute": "no-such-command"}\n', b"[1, 2\n" + b"x" * choice.randrange(NONSENSE_BYTES_MAX) + b"]\n"):
        try:
            manager.send(nonsense)
        except QmpError:
            pass
    if choice.random() < 0.5:
        manager._socket.sendall(b'{"execute": "query-')
    manager.close()
    return late


def half_open(pair, choice):
    """Somebody who connects and says nothing sensible."""
    path = choice.choice(["primary.nbd", "guest.nbd", "secondary.nbd"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.settimeout(5)
        stream.connect(str(pair.directory / path))
        stream.recv(18)
        stream.sendall(choice.randbytes(choice.randrange(64)))
    time.sleep(0.05)


def crowd(pair):
    """As many clients at once as there are places, and more managers than the load ever has: a place is made when it is
    needed and kept."""
    handles = []
    counts = {pair.primary_uri: PLACES, pair.guest_uri: GUESTS_MAX, pair.replica_uri: PLACES - GUESTS_MAX - 1}
    for uri, count in counts.items():
        for _ in range(count):
            handles.append(nbd.NBD())
            handles[-1].connect_uri(uri)
    for handle in handles:
        handle.shutdown()
    for daemon in (pair.primary, pair.secondary):
        managers = [Qmp(daemon.control_path) for _ in range(MANAGERS)]
        for manager in managers:
            try:
                manager.send(b"x" * NONSENSE_BYTES_MAX + b"\n")
            except QmpError:
                pass
        for manager in managers:
            manager.close()


def sample(pair):
    """What both daemons have allocated and occupy."""
    return {name: {**daemon.memory(), "at": time.monotonic()}
            for name, daemon in (("primary", pair.primary), ("secondary", pair.secondary))}


class Mixture:
    """All of it for so long, and what came of it."""

    def __init__(self, pair, directory, seconds, seed):
        self.samples = []
        self.late_count = 0
        directory.mkdir()
        clients = start_fio(pair, directory, seconds)
        others = [Background(seed + index, act) for index, act in enumerate([
            lambda choice: visit(pair, choice), lambda choice: visit(pair, choice),
            lambda choice: self._manage(pair, choice), lambda choice: half_open(pair, choice)])]
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.samples.append(sample(pair))
            time.sleep(SAMPLE_S)
        for other in others:
            other.stop()
        first_visits, second_visits, self.manager_count, self.nonsense_count = (other.count for other in others)
        self.visit_count = first_visits + second_visits
        told = {client.name: client.end() for client in clients}
        verified = (told["verified-4k"], told["verified-64k"])
        self.written_bytes = sum(job["write"]["io_bytes"] for job in verified)
        self.verified_bytes = sum(job["read"]["io_bytes"] for job in verified)
        self.latency = Latency(read_log(directory / "timed_lat.1.log"), seconds)

    def _manage(self, pair, choice):
        self.late_count += manage(pair, choice)
