"""Runs: fresh disks, a system over them, its jobs one after the other, and what became of it."""
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from .jobs import JOBS, Failover, Fio, settle
from .systems import MIB, require

# So much is written while system calls are counted: a tracer slows everything down a lot.
COUNTED_MIB = 16


def resident_kib(process):
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"^VmRSS:\s+(\d+)", status, re.MULTILINE).group(1))


def in_turns(cases, rounds):
    """Each case in each round, with the round's number. Each round another one begins, so that none always follows the
    same."""
    for number in range(rounds):
        turn = number % len(cases)
        for case in cases[turn:] + cases[:turn]:
            yield number, case


def fill(path, size):
    """A file of that many MiB of random bytes; holes would make the old content too cheap to keep."""
    with open(path, "wb") as file:
        for _ in range(size):
            file.write(os.urandom(MIB))


class Bench:
    """All runs of one call of the program."""

    def __init__(self, options, systems, directory):
        self.options, self.systems, self.directory = options, systems, pathlib.Path(directory)
        self.template = self.directory / "template.raw"
        # By system, then job: figures of each round.
        self.results = {system.name: {} for system in systems}
        self.calls = {system.name: {} for system in systems}

    def run(self):
        for number, system in in_turns(self.systems, self.options.rounds):
            self.run_one(system, seed=number + 1)
        if not self.options.no_calls:
            for system in self.systems:
                self.count_calls(system)

    def jobs_of(self, system):
        wanted = [job for job in JOBS if job.name in self.options.jobs]
        return [job for job in wanted if system.is_pair or not job.needs_pair]

    def record(self, system, name, figures):
        self.results[system.name].setdefault(name, []).append(figures)

    def running(self, system):
        place = tempfile.TemporaryDirectory(prefix=f"{system.kind}-", dir=self.directory)
        for disk in ("primary.raw", "secondary.raw"):
            shutil.copyfile(self.template, pathlib.Path(place.name) / disk)
        return place, system.open(pathlib.Path(place.name), self.options.size * MIB)

    def run_one(self, system, seed):
        """All jobs of a system, each on the disks as the one before has left them."""
        began = time.monotonic()
        place, system_here = self.running(system)
        with place, system_here as running:
            if system.is_pair:
                running.wait_until_connected()
            memory = Memory(running)
            for job in self.jobs_of(system):
                figures = job.run(running, self.options, seed)
                if system.is_pair and not isinstance(job, Failover):
                    memory.look()
                    took_ms = settle(running, self.template)
                    if job.name == "write":
                        self.record(system, "checkpoint", {"checkpoint_ms": took_ms})
                elif not system.is_pair:
                    memory.look()
                self.record(system, job.name, figures)
            self.record(system, "memory", memory.most)
        equal = "disks equal" if system.is_pair else "done"
        print(f"round {seed}, {system.name}: {equal} after {time.monotonic() - began:.0f} s", file=sys.stderr)

    def count_calls(self, system):
        """System calls of each request, in runs of their own."""
        for name in ("write", "write-1", "read"):
            job = next(job for job in JOBS if job.name == name)
            if name not in self.options.jobs:
                continue
            place, system_here = self.running(system)
            with place, system_here as running:
                if system.is_pair:
                    running.wait_until_connected()
                tracers = {side: Tracer(process, pathlib.Path(place.name) / f"{side}.calls")
                           for side, process in running.daemons().items()}
                share = COUNTED_MIB / self.options.write * (job.depth / 32)
                part = Fio(job.name, job.title, job.figure, job.rw, depth=job.depth, share=share)
                requests = part.work(running, self.options, seed=1)["requests"]
                counted = {side: tracer.end() / requests for side, tracer in tracers.items()}
                if system.is_pair and name != "read":
                    settle(running, self.template)
            self.calls[system.name][name] = counted


class Memory:
    """The most that the processes occupied, without what lies in a buffer in memory."""

    def __init__(self, running):
        self._running = running
        self.most = {f"{side}_kib": 0 for side in running.daemons()}

    def look(self):
        for side, process in self._running.daemons().items():
            own = resident_kib(process)
            if side == "secondary":
                own -= self._running.buffered_bytes() >> 10
            self.most[f"{side}_kib"] = max(self.most[f"{side}_kib"], own)


class Tracer:
    """Counts the system calls of a process, all threads."""

    def __init__(self, process, path):
        self._path = path
        self._child = subprocess.Popen(["strace", "-f", "-c", "-o", path, "-p", str(process.pid)],
                                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        # It says so on its standard error once it is attached.
        line = self._child.stderr.readline()
        require(b"attached" in line, f"strace: {line.decode(errors='replace')}")

    def end(self):
        """How many there were."""
        self._child.send_signal(signal.SIGINT)
        self._child.communicate(timeout=30)
        lines = self._path.read_text().splitlines()
        if not lines:
            return 0
        total = lines[-1].split()
        require(total[-1:] == ["total"], f"strace: {total}")
        return int(total[3])
