"""NBD on the level of its messages, for what no well-behaved client would send.

Source: the NBD protocol (doc/proto.md of the NetworkBlockDevice project), "Protocol phases" and "Values".
"""
import socket
import struct
from dataclasses import dataclass

SERVER_MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
CHUNK_MAGIC = 0x668E33EF

FIXED_NEWSTYLE, NO_ZEROES = 1, 2

EXPORT_NAME, ABORT, LIST, INFO, GO, STRUCTURED_REPLY, LIST_META, SET_META = 1, 2, 3, 6, 7, 8, 9, 10
ACK, SERVER, INFORMATION, META_CONTEXT = 1, 2, 3, 4
ERROR = 1 << 31
ERR_UNSUP, ERR_INVALID, ERR_UNKNOWN, ERR_TOO_BIG = ERROR + 1, ERROR + 3, ERROR + 6, ERROR + 9
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16

EPERM, EIO, EINVAL, ENOSPC, ENOTSUP, ESHUTDOWN = 1, 5, 22, 28, 95, 108


@dataclass
class Reply:
    cookie: int
    error: int
    data: bytes


class Closed(Exception):
    """The server closed the connection."""


class Wire:
    """One connection, past the server's greeting."""

    def __init__(self, path, client_flags=FIXED_NEWSTYLE | NO_ZEROES, timeout_s=20.0):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        self._socket.connect(str(path))
        magic, option_magic, self.server_flags = struct.unpack(">QQH", self.receive(18))
        if (magic, option_magic) != (SERVER_MAGIC, OPTION_MAGIC):
            raise ValueError("not a newstyle NBD server")
        self.structured = False
        if client_flags is not None:
            self.send(struct.pack(">I", client_flags))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._socket.close()

    def send(self, data):
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error

    def receive(self, length):
        data = bytearray()
        while len(data) < length:
            try:
                got = self._socket.recv(length - len(data))
            except ConnectionResetError as error:
                raise Closed from error
            if not got:
                raise Closed
            data += got
        return bytes(data)

    def is_closed_by_server(self):
        """Whether the next thing from the server is the end of the connection."""
        try:
            self.receive(1)
        except Closed:
            return True
        return False

    # Option haggling

    def option(self, number, data=b""):
        """All replies to one option, as (type, data), up to ACK or an error."""
        self.send(struct.pack(">QII", OPTION_MAGIC, number, len(data)) + data)
        replies = []
        while True:
            magic, option, kind, length = struct.unpack(">QIII", self.receive(20))
            if magic != OPTION_REPLY_MAGIC or option != number:
                raise ValueError(f"reply to option {option} with magic {magic:#x}")
            replies.append((kind, self.receive(length)))
            if kind == ACK or kind >= ERROR:
                return replies

    def exports(self):
        names = []
        for kind, data in self.option(LIST):
            if kind == SERVER:
                length, = struct.unpack_from(">I", data)
                names.append(data[4:4 + length].decode())
        return names

    def ask(self, option, export, infos=(INFO_BLOCK_SIZE,)):
        """INFO or GO; the replies."""
        name = export.encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(f">H{len(infos)}H", len(infos), *infos)
        return self.option(option, data)

    def go(self, export, structured=False):
        """Enters the transmission phase; {info type: data}."""
        if structured:
            self.option(STRUCTURED_REPLY)
            self.structured = True
        replies = self.ask(GO, export)
        if replies[-1][0] != ACK:
            raise ConnectionError(f"GO was answered {replies[-1][0]:#x}: {replies[-1][1]!r}")
        return {struct.unpack_from(">H", data)[0]: data[2:] for kind, data in replies if kind == INFORMATION}

    def set_meta_contexts(self, export, queries, option=SET_META):
        """[(id, name)] that the server selected or knows."""
        name = export.encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
        for query in queries:
            data += struct.pack(">I", len(query)) + query.encode()
        return [(struct.unpack_from(">I", data)[0], data[4:].decode())
                for kind, data in self.option(option, data) if kind == META_CONTEXT]

    # Transmission

    def request(self, command, offset=0, length=0, data=b"", flags=0, cookie=1):
        self.send(struct.pack(">IHHQQI", REQUEST_MAGIC, flags, command, cookie, offset, length) + data)

    def reply(self, read_bytes=0):
        """The next reply. `read_bytes` is the length of the data that a successful simple reply to a read carries."""
        magic, = struct.unpack(">I", self.receive(4))
        if magic == SIMPLE_REPLY_MAGIC:
            error, cookie = struct.unpack(">IQ", self.receive(12))
            return Reply(cookie, error, b"" if error else self.receive(read_bytes))
        if magic != CHUNK_MAGIC:
            raise ValueError(f"reply with magic {magic:#x}")
        pieces, error = [], 0
        while True:
            flags, kind, cookie, length = struct.unpack(">HHQI", self.receive(16))
            payload = self.receive(length)
            if kind == 1:
                pieces.append((struct.unpack_from(">Q", payload)[0], payload[8:]))
            elif kind == 2:
                offset, hole = struct.unpack(">QI", payload)
                pieces.append((offset, bytes(hole)))
            elif kind >= 1 << 15:
                error, = struct.unpack_from(">I", payload)
            if flags & 1:
                return Reply(cookie, error, b"".join(data for _, data in sorted(pieces)))
            magic, = struct.unpack(">I", self.receive(4))

    def run(self, command, offset=0, length=0, data=b"", flags=0):
        """One request and its reply."""
        self.request(command, offset, length or len(data), data, flags)
        return self.reply(length if command == READ else 0)
