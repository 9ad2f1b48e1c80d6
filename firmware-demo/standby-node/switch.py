"""A network switch between the emulated board and this machine, which can be a bad one.

QEMU's user network, which forwards TCP connections of this machine to its guest, is run in an emulator of its own that has
no processor. Its frames and those of the board come here as UDP datagrams, one each, and are passed on, lost, or passed
on after a later one.
"""
import random
import select
import socket
import threading

from harness.process import Process

# How long a frame that is held back waits for one to overtake it.
HELD_S = 0.02
FRAME_BYTES_MAX = 65536


class Switch:
    """Passes frames both ways from now on. `loss` and `disorder` are the shares of frames that are lost and held back; both
    are 0 at first, and may be changed at any time. The choices follow from the seed, frame by frame."""

    def __init__(self, folder, forwards, seed):
        self.loss = self.disorder = 0.0
        self.passed = self.lost = self.overtaken = 0
        self._random = random.Random(seed)
        self._board, self._gateway = Port(), Port()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._emulator = Process([
            "qemu-system-arm", "-machine", "none", "-display", "none", "-monitor", "none", "-serial", "none",
            "-netdev", f"user,id=user,restrict=on,{forwards}", "-netdev", "hubport,id=inner,hubid=0,netdev=user",
            "-netdev", f"{self._gateway.netdev},id=wire", "-netdev", "hubport,id=outer,hubid=0,netdev=wire"],
            folder / "switch.log")

    @property
    def netdev(self):
        """What the board's emulator is told of its network."""
        return self._board.netdev

    def close(self):
        self._emulator.kill()
        self._stop.set()
        self._thread.join()
        self._board.socket.close()
        self._gateway.socket.close()

    def _run(self):
        others = {self._board: self._gateway, self._gateway: self._board}
        # What is held back, for each port that it goes to.
        held = {}
        while not self._stop.is_set():
            ready, _, _ = select.select([port.socket for port in others], [], [], HELD_S)
            for port, other in others.items():
                if port.socket in ready:
                    self._pass(port.receive(), other, held)
            if not ready:
                for port, frame in held.items():
                    port.send(frame)
                held.clear()

    def _pass(self, frame, to, held):
        fate = self._random.random()
        if fate < self.loss:
            self.lost += 1
        elif fate < self.loss + self.disorder and to not in held:
            held[to] = frame
        else:
            self.passed += 1
            to.send(frame)
            if to in held:
                self.overtaken += 1
                to.send(held.pop(to))


class Port:
    """A socket here, and an address for the emulator on the other end."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            self._peer = probe.getsockname()
        self.netdev = f"socket,udp=127.0.0.1:{self.socket.getsockname()[1]},localaddr=127.0.0.1:{self._peer[1]}"

    def receive(self):
        return self.socket.recv(FRAME_BYTES_MAX)

    def send(self, frame):
        try:
            self.socket.sendto(frame, self._peer)
        except ConnectionRefusedError:
            # The emulator on that end is not there, or no more.
            pass
