"""The work that is measured. Every job gives a dictionary of figures; what they mean is in `report.FIGURES`."""
import filecmp
import json
import time
from concurrent.futures import ThreadPoolExecutor, wait

import nbd

from harness.process import output_of

from .systems import MIB, require

READ, WRITE = "read", "write"


def fio(uri, rw, block, depth, seed, bytes_max=None, seconds=None, size=None, offset=0, jobs=1):
    """Requests per second, latencies and the like of one run of fio with its NBD engine: so many `jobs`, each over a
    connection of its own, which share what is to be done: each has a part of the `size` bytes, which must be given then."""
    limit = [f"--io_size={bytes_max // jobs}"] if bytes_max else ["--time_based", f"--runtime={seconds}"]
    limit += [f"--size={size // jobs}", f"--offset_increment={size // jobs}"] if size else []
    limit += [f"--offset={offset}"] if offset else []
    limit += [f"--numjobs={jobs}", "--group_reporting"] if jobs > 1 else []
    out = output_of(["fio", "--name=job", "--ioengine=nbd", f"--uri={uri}", f"--rw={rw}", f"--bs={block}",
                     f"--iodepth={depth}", f"--randseed={seed}", *limit, "--output-format=json"], timeout_s=600)
    job = json.loads(out[out.index("{"):])["jobs"][0]
    require(job["error"] == 0, f"fio: error {job['error']}")
    side = job[READ if rw.endswith(READ) else WRITE]
    percentile = side["clat_ns"]["percentile"]
    return {"iops": side["iops"], "mib_s": side["bw_bytes"] / MIB, "requests": side["total_ios"],
            "p50_us": percentile["50.000000"] / 1e3, "p99_us": percentile["99.000000"] / 1e3,
            "client_cpu": job["usr_cpu"] + job["sys_cpu"], "seconds": side["runtime"] / 1e3}


class Job:
    """Some work of a client. `side` is the export that it works on; a server without replication has one alone."""

    def __init__(self, name, title, figure, side="primary", needs_pair=False):
        self.name, self.title, self.figure, self.side, self.needs_pair = name, title, figure, side, needs_pair

    def uri(self, running):
        is_guest = self.side == "guest" and hasattr(running, "guest_uri")
        return running.guest_uri if is_guest else running.primary_uri

    def run(self, running, options, seed):
        """The figures of one run."""
        before = running.cpu_s()
        figures = self.work(running, options, seed)
        figures["cpu_us"] = (running.cpu_s() - before) * 1e6 / figures["requests"]
        return figures


class Fio(Job):
    """One run of fio."""

    def __init__(self, name, title, figure, rw, block="4k", depth=32, share=1.0, **more):
        super().__init__(name, title, figure, **more)
        self.rw, self.block, self.depth, self.share = rw, block, depth, share

    def work(self, running, options, seed):
        amount = max(int(options.write * MIB * self.share) // MIB, 1) * MIB
        return fio(self.uri(running), self.rw, self.block, self.depth, seed, bytes_max=amount)


class Checkpointed(Job):
    """Random writes for some seconds, with a checkpoint of the pair each second while they are in flight."""

    SECONDS = 3

    def work(self, running, options, seed):
        with ThreadPoolExecutor(max_workers=1) as executor:
            writes = executor.submit(fio, self.uri(running), "randwrite", "4k", 32, seed, seconds=self.SECONDS)
            count = 0
            while not wait([writes], timeout=1).done:
                running.checkpoint()
                count += 1
            require(count >= self.SECONDS - 1, f"{count} checkpoints in {self.SECONDS} seconds")
            return writes.result()


class Epochs(Job):
    """Random writes of a second each with a checkpoint after each. No write is in flight during a checkpoint: QEMU would
    abort. What the checkpoint takes counts."""

    SECONDS = 3

    def work(self, running, options, seed):
        parts, checkpoints_s = [], 0.0
        for number in range(self.SECONDS):
            parts.append(fio(self.uri(running), "randwrite", "4k", 32, seed * 100 + number, seconds=1))
            checkpoints_s += running.checkpoint()
        requests = sum(part["requests"] for part in parts)
        took_s = sum(part["seconds"] for part in parts) + checkpoints_s
        return {"iops": requests / took_s, "requests": requests,
                "p99_us": max(part["p99_us"] for part in parts)}


class Failover(Job):
    """From the command to take over until the first write of the secondary's guest is answered. Ends the pair."""

    def work(self, running, options, seed):
        fio(running.primary_uri, "randwrite", "4k", 32, seed, bytes_max=max(options.write // 4, 1) * MIB)
        guest = nbd.NBD()
        guest.connect_uri(running.guest_uri)
        payload = bytes([seed & 0xff or 1]) * 4096
        began = time.perf_counter()
        running.failover()
        guest.pwrite(payload, 0)
        took_s = time.perf_counter() - began
        require(guest.pread(4096, 0) == payload, "the first write after the failover is not there")
        running.wait_until_done()
        require(guest.pread(4096, 0) == payload, "the first write after the failover is gone")
        guest.shutdown()
        return {"failover_ms": took_s * 1e3, "requests": 1}

    def run(self, running, options, seed):
        return self.work(running, options, seed)


# The order matters: the first finds nothing in the buffer, the last ends the pair.
JOBS = [
    Fio("write", "random 4 KiB writes, depth 32", "iops", "randwrite"),
    Epochs("epochs", "the same, a checkpoint each second", "iops", needs_pair=True),
    Fio("write-1", "random 4 KiB writes, depth 1", "p50_us", "randwrite", depth=1, share=0.125),
    Fio("sequential", "1 MiB sequential writes, depth 8", "mib_s", "write", block="1m", depth=8, share=2.0),
    Fio("read", "random 4 KiB reads of the primary, depth 32", "iops", "randread"),
    Fio("guest-write", "random 4 KiB writes of the secondary's guest, depth 32", "iops", "randwrite", side="guest"),
    Fio("guest-read", "random 4 KiB reads of the secondary's guest, depth 32", "iops", "randread", side="guest"),
    Failover("failover", "failover: from the command to the guest's first write", "failover_ms", needs_pair=True),
]


def settle(running, template):
    """Flushes and takes a checkpoint; milliseconds that it took. Nothing may have failed, and both disks must be equal."""
    output_of(["qemu-io", "-f", "raw", "-c", "flush", running.primary_uri])
    running.require_whole()
    took_ms = running.checkpoint() * 1e3
    running.require_whole()
    require(filecmp.cmp(running.primary_disk, running.secondary_disk, shallow=False), "the disks differ")
    require(not filecmp.cmp(running.primary_disk, template, shallow=False), "nothing was written")
    return took_ms
