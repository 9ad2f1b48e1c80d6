"""Requests of every kind over several NBD connections at once, from a seed."""
import random
import select

import nbd

KIB = 1 << 10
# Below a block, a block, a piece, more than a buffer of a small request, several windows.
LENGTHS = [512, 4 * KIB, 4 * KIB, 12 * KIB, 64 * KIB, 640 * KIB]
KINDS = ["read", "write", "fua", "zero", "trim", "flush", "status"]


class Load:
    """Asks over `handles` in turns, at most `depth` requests at a time on each; a request that fails raises. `area` is the
    part of the disk that is used, its offset and length: all of it, unless said otherwise."""

    def __init__(self, handles, seed=1, depth=16, lengths=LENGTHS, area=None):
        self._handles = handles
        self._random = random.Random(seed)
        self._depth = depth
        self._lengths = lengths
        self._first, self._size = area or (0, handles[0].get_size())
        content = self._random.randbytes(max(lengths))
        self._payloads = [nbd.Buffer.from_bytearray(bytearray(content[:length])) for length in lengths]
        self._room = [nbd.Buffer(length) for length in lengths]
        self._failed = []

    def run(self, kind, count):
        """`count` requests of a kind, until the last of them is answered."""
        for number in range(count):
            handle = self._handles[number % len(self._handles)]
            self._wait(handle, self._depth)
            self._ask(handle, kind)
        for handle in self._handles:
            self._wait(handle, 1)
        if self._failed:
            raise AssertionError(f"{len(self._failed)} of {count} requests ({kind}) have failed: {self._failed[0]}")

    def _wait(self, handle, count):
        """All connections go on meanwhile: one that stops in the middle of a request keeps a checkpoint from being taken."""
        while handle.aio_in_flight() >= count:
            poll = select.poll()
            busy = {each.aio_get_fd(): each for each in self._handles if each.aio_in_flight()}
            for number, each in busy.items():
                direction = each.aio_get_direction()
                poll.register(number, (select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0)
                              | (select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0))
            for number, events in poll.poll():
                if events & select.POLLOUT:
                    busy[number].aio_notify_write()
                elif events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    busy[number].aio_notify_read()

    def _ask(self, handle, kind):
        place = self._random.randrange(len(self._lengths))
        length = self._lengths[place]
        unit = 512 if length < 4096 else 4096
        offset = self._first + self._random.randrange((self._size - length) // unit) * unit

        def done(error):
            if error.value:
                self._failed.append(f"error {error.value}")
            # The handle may forget the request.
            return 1

        if kind == "read":
            handle.aio_pread(self._room[place], offset, completion=done)
        elif kind in ("write", "fua"):
            flags = nbd.CMD_FLAG_FUA if kind == "fua" else 0
            handle.aio_pwrite(self._payloads[place], offset, completion=done, flags=flags)
        elif kind == "zero":
            handle.aio_zero(length, offset, completion=done, flags=self._random.choice([0, nbd.CMD_FLAG_NO_HOLE]))
        elif kind == "trim":
            handle.aio_trim(length, offset, completion=done)
        elif kind == "flush":
            handle.aio_flush(completion=done)
        elif kind == "status":
            handle.aio_block_status(length, offset, lambda *_: 0, completion=done)
        else:
            raise ValueError(kind)
