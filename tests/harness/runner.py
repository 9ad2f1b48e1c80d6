"""Runs the tests of a folder, one line each."""
import faulthandler
import os
import pathlib
import sys
import threading
import time
import unittest

from .process import kill_all
from .twinblock import binary

# A test that takes longer has failed, and loses its processes, for which it may be waiting.
TEST_MAX_S = 120
# One that goes on without them waits for something that never comes: the whole run ends.
GRACE_S = 60


def flatten(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flatten(item)
        else:
            yield item


class Result(unittest.TestResult):
    """One line for each test, as soon as it ended."""

    def __init__(self):
        super().__init__()
        self.passed = 0
        self._began = 0.0

    def startTest(self, test):
        super().startTest(test)
        self._began = time.monotonic()
        self._is_late = False
        self._watches = [
            threading.Timer(TEST_MAX_S, self._interrupt), threading.Timer(TEST_MAX_S + GRACE_S, self._give_up)]
        for watch in self._watches:
            watch.daemon = True
            watch.start()
        print(f"test {test.id()} ...", end=" ", flush=True)

    def stopTest(self, test):
        for watch in self._watches:
            watch.cancel()
        super().stopTest(test)

    def _interrupt(self):
        print(f"more than {TEST_MAX_S} s, killing its processes ...", end=" ", flush=True)
        self._is_late = True
        kill_all()

    def _give_up(self):
        print("nor does it end without them; where it is:", flush=True)
        faulthandler.dump_traceback(file=sys.stdout)
        for test, text in self.failures + self.errors:
            print(f"\n---- {test.id()}\n{text}")
        print("\nthe run is given up; the tests that follow were not tried", flush=True)
        os._exit(1)

    def _end(self, word):
        print(f"{word} ({time.monotonic() - self._began:.1f} s)", flush=True)

    def addSuccess(self, test):
        if self._is_late:
            self.addFailure(test, (TimeoutError, TimeoutError(f"it took more than {TEST_MAX_S} s"), None))
            return
        super().addSuccess(test)
        self.passed += 1
        self._end("ok")

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._end("FAILED")

    def addError(self, test, err):
        super().addError(test, err)
        self._end("FAILED")

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._end(f"FAILED {dict(subtest.params)}")


def main(folder, usage):
    """Runs the tests in `folder` that the command line chooses; the exit code. `usage` is said where it is not right."""
    folder = pathlib.Path(folder)
    options = {word for word in sys.argv[1:] if word.startswith("-")}
    names = [word for word in sys.argv[1:] if not word.startswith("-")]
    if options - {"-l", "-x"}:
        sys.exit(usage)
    found = flatten(unittest.defaultTestLoader.discover(str(folder), top_level_dir=str(folder)))
    tests = [test for test in found if not names or any(name in test.id() for name in names)]
    if "-l" in options:
        print(*(test.id() for test in tests), sep="\n")
        return 0
    if not binary().exists():
        sys.exit(f"{binary()} is missing: cargo build --release, or name another in TWINBLOCK")
    result = Result()
    result.failfast = "-x" in options
    unittest.TestSuite(tests).run(result)
    for test, text in result.failures + result.errors:
        print(f"\n---- {test.id()}\n{text}")
    failed = len({test.id() for test, _ in result.failures + result.errors})
    print(f"\n{folder.name}: {result.passed} passed, {failed} failed, {len(result.skipped)} skipped")
    return 1 if failed or not result.passed else 0
