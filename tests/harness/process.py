"""A process that a test starts, watches and ends."""
import os
import pathlib
import signal
import subprocess


_running = set()


def kill_all():
    """Ends every process that a test has started, so that nothing that waits for one waits for ever."""
    for process in list(_running):
        process.kill()


class Process:
    """Standard output and error go to `log`. Ends with the test at the latest."""

    def __init__(self, command, log):
        self.command = [str(word) for word in command]
        self.log = pathlib.Path(log)
        with open(self.log, "ab") as output:
            self._child = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        _running.add(self)

    @property
    def pid(self):
        return self._child.pid

    def is_alive(self):
        return self._child.poll() is None

    def freeze(self):
        self._child.send_signal(signal.SIGSTOP)

    def thaw(self):
        self._child.send_signal(signal.SIGCONT)

    def kill(self):
        """SIGKILL, as a power cut has it."""
        if self.is_alive():
            self._child.kill()
        _running.discard(self)
        return self._child.wait()

    def terminate(self, timeout_s=10.0):
        """SIGTERM; the exit code, or an error if it does not end."""
        if self.is_alive():
            self._child.send_signal(signal.SIGCONT)
            self._child.terminate()
        return self.wait(timeout_s)

    def wait(self, timeout_s=10.0):
        try:
            return self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.command[0]} is still there after {timeout_s} s\n{self.tail()}") from None

    def tail(self, length=3000):
        """The end of what it printed."""
        return self.log.read_bytes()[-length:].decode(errors="replace")

    def cpu_s(self):
        """Processor time so far, all threads."""
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def output_of(command, timeout_s=120.0, input=None):
    """What a command prints; its error text if it fails."""
    command = [str(word) for word in command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, input=input)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
