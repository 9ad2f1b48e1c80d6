"""The debugger's side of the emulator: enough to throw a running program off its track."""
import socket


class Debugger:
    """Speaks GDB's remote serial protocol over a unix socket. The processor stands still while one is connected."""

    # The number of the program counter among the registers of an Arm processor.
    PROGRAM_COUNTER = 15

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        self._received = b""
        # Single registers can be written only by those who have asked which there are.
        self._ask("qXfer:features:read:target.xml:0,ffb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()

    def _ask(self, text):
        """What is answered to a packet."""
        self._socket.sendall(f"${text}#{sum(text.encode()) % 256:02x}".encode())
        while True:
            answer = self._packet()
            # That the processor has stopped is told unasked, once it has.
            if not answer.startswith("T"):
                return answer

    def _packet(self):
        """The next packet, acknowledged. Acknowledgements of the other side lie before it."""
        while len(parts := self._received.split(b"#", 1)) < 2 or len(parts[1]) < 2:
            more = self._socket.recv(4096)
            if not more:
                raise ConnectionError("the emulator has closed the connection of its debugger")
            self._received += more
        self._received = parts[1][2:]
        self._socket.sendall(b"+")
        return parts[0].split(b"$", 1)[1].decode()

    def jump(self, address):
        """The next instruction is taken from there."""
        answer = self._ask(f"P{self.PROGRAM_COUNTER:x}={address.to_bytes(4, 'little').hex()}")
        assert answer == "OK", answer

    def detach(self):
        """The processor goes on."""
        answer = self._ask("D")
        assert answer == "OK", answer
