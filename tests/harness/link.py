"""A link between two unix sockets that a test can slow down, freeze and cut."""
import socket
import threading
import time


class Link:
    """Listens at `path` and passes every connection on to `target`."""

    CHUNK = 65536

    def __init__(self, path, target):
        self._target = str(target)
        self._connections = []
        self._lock = threading.Lock()
        self.delay_s = 0.0
        self._open = threading.Event()
        self._open.set()
        self._holds = threading.Event()
        self._is_up = True
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()
        self.cut()
        self._open.set()

    def freeze(self):
        """Nothing gets through any more, and nobody is told."""
        self._holds.clear()
        self._open.clear()

    def is_holding(self):
        """Whether something has come since it was frozen."""
        return self._holds.is_set()

    def thaw(self):
        self._open.set()

    def cut(self):
        """All connections end and new ones are turned away."""
        with self._lock:
            self._is_up = False
            self._drop()

    def mend(self):
        with self._lock:
            self._is_up = True

    def _drop(self):
        for end in self._connections:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._connections.clear()

    def _accept(self):
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if not self._is_up:
                    here.close()
                    continue
                there = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    there.connect(self._target)
                except OSError:
                    here.close()
                    there.close()
                    continue
                self._connections += [here, there]
            for source, sink in ((here, there), (there, here)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source, sink):
        try:
            while data := source.recv(self.CHUNK):
                time.sleep(self.delay_s)
                if not self._open.is_set():
                    self._holds.set()
                self._open.wait()
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
