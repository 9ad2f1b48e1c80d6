"""A client of the control socket; it speaks to Twinblock and to QEMU alike."""
import json
import socket
import time


class QmpError(Exception):
    """The server answered a command with an error; `desc` is its text."""

    def __init__(self, command, error):
        super().__init__(f"{command}: {error.get('desc')}")
        self.name = error.get("class")
        self.desc = error.get("desc", "")


class Qmp:
    """One connection. `path` is a unix socket, or a host and a port; it is waited for, since a daemon binds it last."""

    def __init__(self, path, wait_s=10.0, timeout_s=30.0, is_alive=lambda: True):
        deadline = time.monotonic() + wait_s
        while True:
            is_tcp = isinstance(path, tuple)
            self._socket = socket.socket(socket.AF_INET if is_tcp else socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(timeout_s)
            try:
                self._socket.connect(path if is_tcp else str(path))
                # The socket of a daemon that was killed may take connections for a moment more, but lets none last.
                if not self._socket.recv(1, socket.MSG_PEEK):
                    raise ConnectionResetError("closed before the greeting")
                break
            except OSError as error:
                self._socket.close()
                if not is_alive():
                    raise ConnectionError(f"the server of {path} has ended") from error
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{path}: nobody answers after {wait_s} s") from error
                time.sleep(0.01)
        self._unread = b""
        self._events = []
        # QEMU may send an event before its greeting.
        while "QMP" not in (message := self._message()):
            self._events.append(message)
        self.greeting = message["QMP"]
        self.call("qmp_capabilities")

    def call(self, command, **arguments):
        """What the command returns; underscores in names of arguments become hyphens."""
        request = {"execute": command}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self.send(json.dumps(request).encode() + b"\n", command)

    def send(self, line, command="(raw)"):
        """The answer to any line of bytes."""
        self._socket.sendall(line)
        while True:
            message = self._message()
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                raise QmpError(command, message["error"])
            else:
                return message["return"]

    def event(self, name, timeout_s=10.0):
        """The oldest event of that name that was not asked for yet; waits for one."""
        deadline = time.monotonic() + timeout_s
        while True:
            for index, event in enumerate(self._events):
                if event["event"] == name:
                    return self._events.pop(index)
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no event {name} in {timeout_s} s, but {[e['event'] for e in self._events]}")
            usual = self._socket.gettimeout()
            self._socket.settimeout(left)
            try:
                self._events.append(self._message())
            except TimeoutError:
                continue
            finally:
                self._socket.settimeout(usual)

    def close(self):
        self._socket.close()

    def _message(self):
        while b"\n" not in self._unread:
            got = self._socket.recv(65536)
            if not got:
                raise ConnectionError("the control connection was closed")
            self._unread += got
        line, self._unread = self._unread.split(b"\n", 1)
        return json.loads(line)


class Replicating:
    """One end of a pair, of either kind, as a manager drives it over `self.qmp`."""

    def replicate(self, enable, primary, failover=None):
        more = {} if failover is None else {"failover": failover}
        return self.qmp.call("xen-set-replication", enable=enable, primary=primary, **more)

    def checkpoint(self):
        self.qmp.call("xen-colo-do-checkpoint")

    def error(self):
        return self.qmp.call("query-xen-replication-status")
