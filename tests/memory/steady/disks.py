"""Whether both disks, and the one that was taken over, hold the same bytes."""
import random

import nbd

MIB = 1 << 20
BLOCK = 4096
# What the secondary's guest writes while nobody is its primary: the failover has to commit it.
OWN_WRITES = 2000


def read_file(path):
    """Reads of a disk's file."""
    def read(offset, length):
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(length)
    return read


def read_export(uri):
    """Reads of an export."""
    handle = nbd.NBD()
    handle.connect_uri(uri)
    return lambda offset, length: handle.pread(length, offset)


def difference(one, other, size):
    """The first byte that differs, or `None`."""
    for offset in range(0, size, MIB):
        length = min(MIB, size - offset)
        left, right = one(offset, length), other(offset, length)
        if left != right:
            return offset + next(place for place in range(length) if left[place] != right[place])
    return None


def is_well(volume):
    """Nothing has failed, and nobody misses anything."""
    return not (any(volume["errors"].values()) or volume["behind"]
                or any(replica["behind"] for replica in volume.get("replicas", [])))


def settle(pair, size):
    """Flushes, takes a last checkpoint, and compares both disks; what is wrong, line by line."""
    handle = nbd.NBD()
    handle.connect_uri(pair.primary_uri)
    handle.flush()
    handle.shutdown()
    pair.checkpoint()
    for role, daemon in (("primary", pair.primary), ("secondary", pair.secondary)):
        if not is_well(volume := daemon.volume()):
            yield f"the {role} is not well: {volume}\n{daemon.process.tail()}"
    for error in pair.errors():
        yield error
    place = difference(read_file(pair.primary_disk), read_file(pair.secondary_disk), size)
    if place is not None:
        yield f"the disks differ after the last checkpoint, first at byte {place}"


def take_over(pair, size, seed):
    """Kills the primary, lets the secondary's guest write, and takes over: the disk that the guest then has is that of the
    last checkpoint and its own writes; what is wrong, line by line."""
    # Dead, its disk is what the last checkpoint was.
    pair.primary.kill()
    guest = nbd.NBD()
    guest.connect_uri(pair.guest_uri)
    choice = random.Random(seed)
    with open(pair.primary_disk, "r+b") as expected:
        for block in choice.sample(range(size // BLOCK), OWN_WRITES):
            payload = choice.randbytes(BLOCK)
            guest.pwrite(payload, block * BLOCK)
            expected.seek(block * BLOCK)
            expected.write(payload)
    pair.failover()
    pair.secondary.wait_for("taken over", lambda volume: volume["stage"] == "done", timeout_s=60)
    place = difference(read_file(pair.primary_disk), read_export(pair.guest_uri), size)
    if place is not None:
        yield f"the disk that was taken over differs, first at byte {place}"
    guest.flush()
    guest.shutdown()
    place = difference(read_file(pair.primary_disk), read_file(pair.secondary_disk), size)
    if place is not None:
        yield f"the file of the disk that was taken over differs, first at byte {place}"
