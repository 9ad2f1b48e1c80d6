"""A database with its data and its log on two disks of one node: whenever the primary dies, the standby's is whole.

SQLite sees the exports as files (`nbdfuse`): the database on one volume, its rollback journal on the other. The journal
must reach its disk before the pages that it saves: a view with the data of one moment and the journal of another is a
broken database.
"""
import os
import random
import shutil
import sqlite3
import subprocess
import threading
import time

from fixture import MIB, DiskTest
from harness.process import Process
from harness.twinblock import is_connected

DATA_BYTES = 4 * MIB
JOURNAL_BYTES = 4 * MIB
PAGE = 4096
ACCOUNTS = 200
MONEY = 1_000_000
# Checkpoints while the database works; and takeovers: with a checkpoint of one volume after the other about half fail.
CHECKPOINTS = 12
TAKEOVERS = 6


def make_database(path):
    """A database that fills its disk: SQLite cuts a file that is longer than it should be, and a disk cannot be cut."""
    with sqlite3.connect(path) as database:
        database.execute(f"pragma page_size = {PAGE}")
        database.execute("create table account (id integer primary key, money integer, note blob)")
        database.execute("create table journal (number integer)")
        database.execute("insert into journal values (0)")
        for account in range(ACCOUNTS):
            database.execute("insert into account values (?, ?, zeroblob(3000))", (account, MONEY // ACCOUNTS))
        database.execute("create table filling (bytes blob)")
        while database.execute("pragma page_count").fetchone()[0] < DATA_BYTES // PAGE:
            database.execute("insert into filling values (zeroblob(3000))")
        database.execute("delete from filling")
    database.close()
    assert path.stat().st_size == DATA_BYTES, path.stat().st_size


class Files:
    """Both exports as files of one directory, named as SQLite wants them."""

    def __init__(self, directory, uris):
        directory.mkdir()
        self.database = directory / "db"
        self._paths = [self.database, directory / "db-journal"]
        self._processes = []
        for path, uri in zip(self._paths, uris):
            path.touch()
            self._processes.append(Process(["nbdfuse", path, uri], directory / "nbdfuse.log"))
        deadline = time.monotonic() + 10
        while any(path.stat().st_size == 0 for path in self._paths):
            if time.monotonic() > deadline:
                raise AssertionError(self._processes[0].tail())
            time.sleep(0.02)

    def close(self):
        for path, process in zip(self._paths, self._processes):
            subprocess.run(["fusermount3", "-u", "-z", path], stderr=subprocess.DEVNULL)
            process.kill()


def open_database(path):
    database = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)
    # The journal stays, only its head is zeroed: a disk cannot be removed either.
    database.execute("pragma journal_mode = persist")
    database.execute("pragma synchronous = full")
    # Locks of files mean nothing to others here.
    database.execute("pragma locking_mode = exclusive")
    return database


class Work(threading.Thread):
    """Moves money between accounts, several pages in each transaction, until it is told to end or the disk is gone."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self._path = path
        self.done = 0
        self.begun = 0
        self.is_over = False
        self.trouble = None

    def run(self):
        rng = random.Random(5)
        try:
            database = open_database(self._path)
            while not self.is_over:
                self.begun += 1
                database.execute("begin immediate")
                for _ in range(8):
                    (giver, taker), sum_ = rng.sample(range(ACCOUNTS), 2), rng.randrange(100)
                    database.execute("update account set money = money - ?, note = ? where id = ?",
                                     (sum_, rng.randbytes(3000), giver))
                    database.execute("update account set money = money + ? where id = ?", (sum_, taker))
                database.execute("update journal set number = ?", (self.begun,))
                database.execute("commit")
                self.done = self.begun
        except (sqlite3.Error, OSError) as error:
            self.trouble = error


def is_there(tool):
    return shutil.which(tool) is not None


class Database(DiskTest):
    def setUp(self):
        super().setUp()
        if not (os.access("/dev/fuse", os.R_OK | os.W_OK) and is_there("nbdfuse") and is_there("fusermount3")):
            self.skipTest("no disk can be shown as a file here: needs /dev/fuse, nbdfuse and fusermount3")

    def enter_node(self, place):
        """A primary and a secondary of two volumes each, in a directory of their own."""
        place.mkdir()
        make_database(place / "p0.raw")
        with open(place / "p1.raw", "wb") as journal:
            journal.truncate(JOURNAL_BYTES)
        for index in (0, 1):
            shutil.copyfile(place / f"p{index}.raw", place / f"s{index}.raw")
        secondary = self.enter_configured("secondary", [("secondary", {
            "export": f"disk{index}", "disk": place / f"s{index}.raw", "listen": f"unix:{place}/r.nbd",
            "guest": f"unix:{place}/g.nbd", "buffer": "memory", "buffer-size": "16M",
        }) for index in (0, 1)], place, start=True)
        primary = self.enter_configured("primary", [("primary", {
            "export": f"disk{index}", "disk": place / f"p{index}.raw", "listen": f"unix:{place}/p.nbd",
            "replica": [{"uri": f"nbd+unix:///disk{index}?socket={place}/r.nbd",
                         "control": f"unix:{place}/secondary.qmp"}],
        }) for index in (0, 1)], place, start=True)
        return secondary, primary

    def files(self, directory, place, socket):
        files = Files(directory, [f"nbd+unix:///disk{index}?socket={place}/{socket}.nbd" for index in (0, 1)])
        self.addCleanup(files.close)
        return files

    def open_copy(self, place):
        """The database of the secondary's guest. Of a copy, since SQLite ends the roll back of a transaction with removing
        or cutting the journal, which a disk does not let it."""
        copy = place / "copy"
        for index, path in ((0, copy), (1, place / "copy-journal")):
            guest = self.connect(f"nbd+unix:///disk{index}?socket={place}/g.nbd")
            path.write_bytes(guest.pread(guest.get_size(), 0))
        return open_database(copy)

    def take_over(self, number):
        place = self.directory / f"node{number}"
        secondary, primary = self.enter_node(place)
        primary.wait_for("connected", lambda _: all(
            is_connected(each) for each in primary.qmp.call("query-replication")["volumes"]))
        work = Work(self.files(place / "primary", place, "p").database)
        work.start()
        known = 0
        for _ in range(CHECKPOINTS):
            # However busy the machine is, there is something new for each checkpoint to keep.
            while work.done == known and work.is_alive():
                time.sleep(0.02)
            known = work.done
            primary.qmp.call("xen-colo-do-checkpoint")
        self.assertIsNone(work.trouble)
        time.sleep(0.1)
        primary.kill()
        work.is_over = True
        work.join(20)
        secondary.qmp.call("xen-set-replication", enable=False, primary=False, failover=True)
        database = self.open_copy(place)
        self.assertEqual(database.execute("pragma integrity_check").fetchall(), [("ok",)])
        self.assertEqual(database.execute("select sum(money) from account").fetchone(), (MONEY,))
        kept = database.execute("select number from journal").fetchone()[0]
        self.assertGreater(known, 0)
        self.assertGreaterEqual(kept, known)
        self.assertLessEqual(kept, work.begun)
        database.close()

    def test_the_standbys_database_is_whole_whenever_the_primary_dies(self):
        for number in range(TAKEOVERS):
            with self.subTest(takeover=number):
                self.take_over(number)
