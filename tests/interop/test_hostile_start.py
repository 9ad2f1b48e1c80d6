"""What a daemon refuses at its start: disks, buffers, addresses, URIs, files and flags that cannot be used. Each refusal is
one line that names the thing."""
import os
import pathlib
import socket
import struct
import subprocess
import threading

from fixture import MIB, DiskTest
from harness import wire
from harness.twinblock import EXPORT, GUEST_EXPORT, binary

LONG_PATH = "p" * 120


class StartTest(DiskTest):
    def setUp(self):
        super().setUp()
        self.tried = 0
        self.disk = self.make_disk("disk.raw", MIB)

    def tearDown(self):
        print(f"[{self.tried} tried]", end=" ", flush=True)
        super().tearDown()

    def arguments(self, role="primary", **changes):
        """What starts a daemon, but for what is changed; `None` leaves a flag out, `True` gives it no value."""
        here = self.directory
        flags = {"disk": self.disk, "listen": f"unix:{here}/listen", "export": EXPORT, "control": f"unix:{here}/control"}
        if role == "secondary":
            flags |= {"guest": f"unix:{here}/guest", "guest-export": GUEST_EXPORT, "buffer": "memory", "buffer-size": "1M"}
        flags |= {name.replace("_", "-"): value for name, value in changes.items()}
        return [role, *(word for name, value in flags.items() if value is not None
                        for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)]))]

    def run_refused(self, arguments, *named, code=None):
        """Runs it; it ends by itself with one line that has all of `named`."""
        self.tried += 1
        command = [str(binary()), *(word if isinstance(word, bytes) else str(word) for word in arguments)]
        done = subprocess.run(command, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
        said = done.stderr.decode(errors="replace")
        context = f"{command}\nexit code {done.returncode}\n{said}"
        self.assertIn(done.returncode, (1, 2, 3) if code is None else (code,), context)
        self.assertEqual(done.stdout, b"", context)
        self.assertEqual(said.count("\n"), 1, context)
        self.assertTrue(said.startswith("twinblock: "), context)
        self.assertTrue(said.rstrip("\n").isprintable(), context)
        self.assertLess(len(said), 600, context)
        for name in named:
            self.assertIn(str(name), said, context)
        return said

    def refused(self, *named, role="primary", code=None, **changes):
        said = self.run_refused(self.arguments(role, **changes), *named, code=code)
        # What was made on the way to the refusal is gone again.
        for socket_file in ("listen", "guest", "control"):
            self.assertFalse((self.directory / socket_file).exists(), socket_file)
        return said


class Disks(StartTest):
    def test_disks_that_are_none(self):
        here = self.directory
        os.mkfifo(here / "fifo")
        (here / "empty").touch()
        (here / "folder").mkdir()
        (here / "loop").symlink_to(here / "loop")
        (here / "dangling").symlink_to(here / "nowhere")
        self.socket = socket.socket(socket.AF_UNIX)
        self.addCleanup(self.socket.close)
        self.socket.bind(str(here / "socket"))
        for role in ("primary", "secondary"):
            for name, hint in (("missing", "No such file"), ("folder", "irectory"), ("fifo", "neither a file nor"),
                               ("empty", "empty"), ("loop", "symbolic links"), ("dangling", "No such file"),
                               ("socket", "No such device"), ("missing/disk", "No such file"),
                               ("disk.raw/inside", "Not a directory")):
                self.refused(name, hint, role=role, disk=here / name, code=1)
            self.refused("/dev/null", "neither a file nor", role=role, disk="/dev/null", code=1)
            self.refused("disk", role=role, disk="", code=2)
            self.refused("n" * 300, role=role, disk=here / ("n" * 300), code=1)
            self.refused("line\\nbreak", role=role, disk=f"{here}/line\nbreak\x1b[31m", code=1)

    def test_a_disk_that_cannot_be_written(self):
        folder = self.directory / "readonly"
        folder.mkdir()
        mounted = subprocess.run(["mount", "--bind", self.directory, folder], capture_output=True)
        if mounted.returncode != 0:
            self.skipTest(f"no bind mount: {mounted.stderr.decode().strip()}")
        self.addCleanup(subprocess.run, ["umount", "--lazy", folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        for role in ("primary", "secondary"):
            self.refused(folder / "disk.raw", "Read-only", role=role, disk=folder / "disk.raw", code=1)
        self.refused(folder, "Read-only", role="secondary", buffer=folder / "buffer", code=1)
        self.refused(folder, "Read-only", listen=f"unix:{folder}/listen", code=1)

    def test_a_disk_that_a_server_does_not_let_write(self):
        path = self.directory / "nbdkit"
        self.run_in_background(["nbdkit", "--foreground", "--readonly", "--unix", path, "memory", "1M"])
        while not path.exists():
            pass
        for role in ("primary", "secondary"):
            said = self.refused("read-only", role=role, disk=f"nbd+unix:///?socket={path}", code=1)
            self.assertIn("nbdkit", said)

    def test_disks_of_sizes_that_do_not_fit(self):
        odd = self.make_disk("odd.raw", 1000)
        self.refused("odd.raw", "1000", "multiple", disk=odd, direct=True, code=1)
        server = self.directory / "blocks"
        self.run_in_background(["nbdkit", "--foreground", "--unix", server, "--filter=blocksize-policy", "memory", "1M",
                                "blocksize-minimum=8192", "blocksize-preferred=8192", "blocksize-maximum=32M",
                                "blocksize-error-policy=error"])
        while not server.exists():
            pass
        self.refused("granule", role="secondary", disk=f"nbd+unix:///?socket={server}", granule="4K", code=1)

    def test_buffers_that_cannot_be_used(self):
        here = self.directory
        (here / "folder").mkdir()
        os.mkfifo(here / "fifo")
        for name, hint in (("folder", "irectory"), ("fifo", "neither a file nor"), ("no/where", "No such file"),
                           ("n" * 300, "too long")):
            self.refused(name, hint, role="secondary", buffer=here / name, code=1)
        before = self.disk.read_bytes()
        (here / "alias.raw").symlink_to(self.disk)
        os.link(self.disk, here / "hard.raw")
        for name in ("disk.raw", "../" + here.name + "/disk.raw", "alias.raw", "hard.raw"):
            self.refused(name.rpartition("/")[2], role="secondary", buffer=here / name)
        self.assertEqual(self.disk.read_bytes(), before)
        for size in ("0", "4K", "255K", "1", "16383P", "8E", "1.5G", "", "1GB", "99999999999999999999"):
            self.refused("buffer", role="secondary", buffer_size=size)
        self.refused("16000P", role="secondary", buffer_size="16000P")
        self.refused("buffer", role="secondary", buffer=here / "huge", buffer_size="8000P")

    def test_disks_that_somebody_else_has(self):
        holder = self.directory / "holder"
        self.run_in_background(["qemu-nbd", "--persistent", "--format=raw", "--socket", holder, self.disk])
        while not holder.exists():
            pass
        # It binds its socket first and then takes the disk; it answers when it has.
        self.connect(f"nbd+unix:///?socket={holder}")
        for role in ("primary", "secondary"):
            self.refused("disk.raw", "qemu-nbd", "lock", role=role, code=1)
        other = self.make_disk("other.raw", MIB)
        self.refused("disk.raw", "qemu-nbd", role="secondary", disk=other, buffer=self.disk, code=1)


class Addresses(StartTest):
    def listening(self):
        """A unix socket and a TCP port that somebody else listens on."""
        path = self.directory / "taken"
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(str(path))
        unix.listen()
        tcp = socket.socket()
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        for each in (unix, tcp):
            self.addCleanup(each.close)
        return f"unix:{path}", f"tcp:127.0.0.1:{tcp.getsockname()[1]}"

    def test_addresses_that_are_taken(self):
        unix, tcp = self.listening()
        for address in (unix, tcp):
            for role, flags in (("primary", ("listen", "control")), ("secondary", ("listen", "guest", "control"))):
                for flag in flags:
                    self.refused(address.partition(":")[2], "another", role=role, code=1, **{flag: address})
        self.assertTrue((self.directory / "taken").exists())

    def test_places_where_no_socket_can_be(self):
        here = self.directory
        (here / "file").write_text("precious")
        (here / "folder").mkdir()
        for path, hint in ((here / "file", "not a socket"), (here / "folder", "not a socket"),
                           (here / "no" / "where", "No such file"), (here / LONG_PATH, "107 bytes"),
                           (here / "file" / "socket", "Not a directory")):
            for flag in ("listen", "control"):
                self.refused(path.name, hint, code=1, **{flag: f"unix:{path}"})
        self.assertEqual((here / "file").read_text(), "precious")

    def test_addresses_that_are_none(self):
        for text in ("", "x", "unix:", "tcp:", "tcp:host", "tcp:host:", "tcp:host:x", "tcp:host:65536", "tcp:host:-1",
                     "tcp::1", "tcp:::1:5", "tcp:[::1:5", "http://x", "/path", "UNIX:x", "tcp:a b:5x"):
            for flag in ("listen", "control", "replica-control"):
                more = {"replica": "nbd://x/y"} if flag == "replica-control" else {}
                self.refused("address" if text else "", code=2, **more, **{flag: text})
        for address, hint in (("tcp:192.0.2.77:0", "192.0.2.77"), ("tcp:no-such-host.invalid:1", "no-such-host.invalid")):
            self.refused(hint, listen=address, code=1)
        for address in ("tcp:0.0.0.0:0", "tcp:192.0.2.1:5", "tcp:[::]:0"):
            self.refused("--allow-remote-control", control=address, code=2)

    def test_a_socket_file_that_nobody_listens_on_is_replaced(self):
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(self.directory / "stale"))
        stale.close()
        self.refused("control", listen=f"unix:{self.directory}/stale", control=f"unix:{self.directory}/{LONG_PATH}/control")
        self.assertFalse((self.directory / "stale").exists(), "replaced, then removed with the daemon")


class Uris(StartTest):
    def test_uris_that_cannot_be_used(self):
        for uri in ("nbd:", "nbd://", "nbd:///x", "nbd://:10809/x", "nbd://host:port/x", "nbd://host:65536/x", "nbd://host:-1/x",
                    "nbd://ho st/x", "nbd://[::1/x", "nbd://user@host/x", "nbd://user:word@host/x", "nbd://host/x#y",
                    "nbd://host/%ff", "nbd://host/x%00y", "nbd://host/x?socket=/y", "nbd://host/x?other=y", "nbds://host/x",
                    "nbds+unix:///x?socket=/y", "nbd+vsock://1/x", "nbdx://host/x", "nbd+unix:///x", "nbd+unix:///x?socket=",
                    "nbd+unix:///x?socket=/a&socket=/b", "nbd+unix://host/x?socket=/y", "nbd+unix:///x?socket=/y%00",
                    "nbd+unix:///x?socket=%ff", "nbd+unix:///x?sock=/y"):
            scheme = uri.partition(":")[0]
            if "://" in uri:
                self.refused(scheme, "URI", disk=uri, code=2)
            self.refused(scheme, "URI", replica=uri, code=2)
        self.refused("URI", replica="/path", code=2)

    def test_servers_that_are_not_there(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        cases = [("unix", f"nbd+unix:///x?socket={self.directory}/nobody", "nobody"),
                 ("tcp", f"nbd://127.0.0.1:{port}/x", str(port)), ("name", "nbd://no-such-host.invalid/x", "no-such-host"),
                 ("long", f"nbd+unix:///x?socket={self.directory}/{LONG_PATH}", LONG_PATH)]
        threads = []
        for name, uri, named in cases:
            here = self.directory / name
            here.mkdir()
            arguments = self.arguments(disk=uri, listen=f"unix:{here}/listen", control=f"unix:{here}/control")
            threads.append(Caught(lambda arguments=arguments, named=named: self.run_refused(arguments, named, code=1)))
        for thread in threads:
            thread.end()


class Caught(threading.Thread):
    """Something done beside the test, whose error is the test's."""

    def __init__(self, act):
        super().__init__(daemon=True)
        self._act, self._error = act, None
        self.start()

    def run(self):
        try:
            self._act()
        except BaseException as error:
            self._error = error

    def end(self):
        self.join()
        if self._error:
            raise self._error


class LyingServers(StartTest):
    """NBD servers that lie to a daemon that shall use them as its disk."""

    def serve(self, name, greeting, reply=b"", closes=True):
        """Greets and, once the client has said anything, replies, whatever was asked for."""
        path = self.directory / name
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        self.addCleanup(listener.close)

        def run():
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    try:
                        client.sendall(greeting)
                        if client.recv(1 << 16) and reply:
                            client.sendall(reply)
                        while not closes and client.recv(1 << 16):
                            pass
                    except OSError:
                        pass

        threading.Thread(target=run, daemon=True).start()
        return f"nbd+unix:///x?socket={path}"

    def option_reply(self, kind, data, option=wire.GO, magic=wire.OPTION_REPLY_MAGIC):
        return struct.pack(">QIII", magic, option, kind, len(data)) + data

    def test_a_server_that_lies_is_refused(self):
        hello = struct.pack(">QQH", wire.SERVER_MAGIC, wire.OPTION_MAGIC, 3)
        structured = self.option_reply(wire.ACK, b"", option=wire.STRUCTURED_REPLY)
        contexts = self.option_reply(wire.ERR_UNSUP, b"", option=wire.SET_META)

        def export(size, flags=1, block=None):
            told = self.option_reply(wire.INFORMATION, struct.pack(">HQH", 0, size, flags))
            if block:
                told += self.option_reply(wire.INFORMATION, struct.pack(">HIII", 3, *block))
            return structured + contexts + told + self.option_reply(wire.ACK, b"")

        servers = {
            "silent-and-gone": (b"", b""), "garbage": (b"\xff" * 100, b""), "half": (hello[:10], b""),
            "oldstyle": (struct.pack(">QQQI", wire.SERVER_MAGIC, 0x420281861253, MIB, 1) + bytes(124), b""),
            "not-fixed": (struct.pack(">QQH", wire.SERVER_MAGIC, wire.OPTION_MAGIC, 0), b""),
            "qmp": (b'{"QMP": {"version": {}}}\n', b""), "wrong-magic": (hello, self.option_reply(wire.ACK, b"", magic=7)),
            "wrong-option": (hello, self.option_reply(wire.ACK, b"", option=77)),
            "huge-reply": (hello, struct.pack(">QIII", wire.OPTION_REPLY_MAGIC, wire.STRUCTURED_REPLY, 1, 0xFFFFFFFF)),
            "unknown": (hello, structured + contexts + self.option_reply(wire.ERR_UNKNOWN, b"no\n\x1b[31mway " * 50)),
            "no-info": (hello, structured + contexts + self.option_reply(wire.ACK, b"")),
            "empty-disk": (hello, export(0)), "read-only": (hello, export(MIB, flags=3)),
            "largest": (hello, export((1 << 64) - 1)), "exabytes": (hello, export(1 << 60)),
            "blocks-of-nothing": (hello, export(MIB, block=(0, 0, 0))),
            "blocks-of-gigabytes": (hello, export(MIB, block=(1 << 31, 1 << 31, 1 << 31))),
            "odd-blocks": (hello, export(MIB, block=(3, 5, 7))),
        }
        threads = []
        for name, (greeting, reply) in servers.items():
            here = self.directory / f"{name}.dir"
            here.mkdir()
            # A secondary needs no memory for each piece of its disk: one of exabytes is large, and no lie.
            for role in ("primary",) if name == "exabytes" else ("primary", "secondary"):
                guest = {"guest": f"unix:{here}/guest"} if role == "secondary" else {}
                arguments = self.arguments(role, disk=self.serve(f"{name}-{role}", greeting, reply, closes="disk" not in name),
                                           listen=f"unix:{here}/{role}", control=f"unix:{here}/{role}.control", **guest)
                threads.append(Caught(lambda arguments=arguments, name=name: self.run_refused(arguments, name, code=1)))
        for thread in threads:
            thread.end()


class Configuration(StartTest):
    def refused_file(self, content, *named):
        path = self.directory / "file.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return self.run_refused(["daemon", "--config", path], "file.toml", *named, code=2)

    def good(self, **changes):
        values = {"control": f'"unix:{self.directory}/control"', **changes}
        return "".join(f"{key.replace('_', '-')} = {value}\n" for key, value in values.items() if value is not None)

    def primary(self, **changes):
        values = {"export": '"x"', "disk": f'"{self.disk}"', "listen": f'"unix:{self.directory}/listen"', **changes}
        return "[[primary]]\n" + "".join(f"{key.replace('_', '-')} = {value}\n" for key, value in values.items()
                                         if value is not None)

    def test_files_that_are_none(self):
        here = self.directory
        (here / "folder").mkdir()
        for path, hint in ((here / "missing.toml", "No such file"), (here / "folder", "irectory"),
                           (here / "disk.raw" / "x", "Not a directory")):
            self.run_refused(["daemon", "--config", path], path.name, hint, code=2)
        with open(here / "huge.toml", "wb") as huge:
            huge.truncate(100 * MIB)
        self.run_refused(["daemon", "--config", here / "huge.toml"], "huge.toml", "1 MiB", code=2)
        self.run_refused(["daemon", "--config", "/dev/zero"], "/dev/zero", "1 MiB", code=2)
        self.run_refused(["daemon", "--config", "/dev/null"], "/dev/null", code=2)
        self.run_refused(["daemon"], "--config", code=2)

    def test_content_that_is_no_configuration(self):
        for content in (b"\x7fELF\x02\x01\x01\0\0", b"\xff\xfe\0", b"", b"\0" * 1000, b"[" * 100_000, b"a." * 50_000 + b"a = 1",
                        b"x = " + b"[" * 100_000, b"x = " + b"{a = " * 50_000, b"control", b"= 5", b'{"control": 1}',
                        b"control = \"unix:x\"\ncontrol = \"unix:y\"", b"[primary]\n[primary]", b"a = 1979-13-45", b"a = '''"):
            self.refused_file(content)

    def test_values_of_wrong_types_and_keys_that_are_not_known(self):
        wrong = {"control": ("5", "true", "[]", '""', '"x"', "{}"), "max_connections": ('"x"', "-1", "65536", "1.5", "true", "0"),
                 "peer_timeout": ("5", '"x"', '"-1s"', '""', '"0s"'), "handshake_timeout": ("5", '"x"', '"0s"'),
                 "start": ("1", '"yes"'), "backend": ('"x"', "1"), "checkpoint_every": ('"x"', '"0s"', "100"),
                 "allow_remote_control": ('"true"',), "unknown_key": ("1",), "primary": ("5", '"x"', "[1]"),
                 "Control": ('"unix:x"',)}
        for key, values in wrong.items():
            for value in values:
                self.refused_file(self.good(**{key: value}) + ("" if key == "primary" else self.primary()))
        for key, values in {"export": ("5", '""', f'"{"n" * 65}"', '"a\\nb"', "[]"), "disk": ("5", '""', '"nbd://"'),
                            "listen": ("5", '"x"'), "direct": ("1",), "dirty_granule": ('"x"', "-1", "3", "0", "1.5"),
                            "other": ("1",), "replica": ("5", '["x"]', "[{}]", '[{uri = "x"}]', '[{uri = 5}]')}.items():
            for value in values:
                self.refused_file(self.good() + self.primary(**{key: value}))
        for key in ("export", "disk", "listen"):
            self.refused_file(self.good() + self.primary(**{key: None}), key)
        self.refused_file(self.good(control=None) + self.primary(), "control")

    def test_volumes_that_get_in_each_others_way(self):
        other = self.make_disk("other.raw", MIB)
        listen = f'"unix:{self.directory}/second"'
        self.refused_file(self.good() + self.primary() + self.primary(disk=f'"{other}"', listen=listen), "'x'")
        self.refused_file(self.good() + self.primary() + self.primary(export='"y"', listen=listen), "disk.raw")
        self.refused_file(self.good() + self.primary() + self.primary(disk=f'"{other}"'), "'x'")
        self.refused_file(self.good() + self.primary(listen=f'"unix:{self.directory}/control"'), "control")
        many = "".join(self.primary(export=f'"v{number}"', disk=f'"{self.directory}/d{number}"') for number in range(3000))
        self.run_refused(["daemon", "--config", self.written(self.good() + many)], "d0")

    def written(self, content):
        path = self.directory / "many.toml"
        path.write_text(content)
        return path


class Flags(StartTest):
    def test_flags_that_cannot_be_used(self):
        for words in ((), ("nonsense",), ("primary",), ("secondary", "--disk"), ("--disk", "x"), ("primary", "--nonsense", "x"),
                      ("status",), ("status", "--control"), ("attach",), ("detach",), ("stop", "--failover", "--force",
                                                                                      "--control", "unix:x"),
                      ("primary", b"--disk=\xff\xfe"), (b"\xff",), ("primary\n",), ("start", "--control", "unix:" + "x" * 200)):
            self.run_refused(words)

    def test_values_that_cannot_be_used(self):
        for flag in ("disk", "listen", "export", "control"):
            self.refused(f"--{flag}", code=2, **{flag: None})
        for flag in ("guest", "buffer", "buffer-size"):
            self.refused(f"--{flag}", role="secondary", code=2, **{flag: None})
        for flag, values in {"max-connections": ("0", "-1", "65536", "20000", "x", ""), "peer-timeout": ("0", "0s", "x", "-1s", ""),
                             "handshake-timeout": ("0s", "x"), "dirty-granule": ("0", "3", "x", "1K1", "8E", "16384P"),
                             "export": ("", "n" * 65, "a\nb", "\x1b[31m", "a\tb"), "backend": ("x", "io_uring", ""),
                             "checkpoint-every": ("0s", "x"), "checkpoint-timeout": ("0s",), "replica-timeout": ("0s",),
                             "replica-control": ("unix:x",), "log": ("x=y=z",)}.items():
            for value in values:
                self.refused(code=2, **{flag: value})
        for flag, values in {"granule": ("0", "3", "511", "256", "512K", "x"), "when-full": ("x", ""), "stall-max": ("x",),
                             "guest-export": ("", "n" * 65)}.items():
            for value in values:
                self.refused(role="secondary", code=2, **{flag: value})
        self.refused("guest", role="secondary", guest=f"unix:{self.directory}/listen", guest_export=None, code=2)
        self.run_refused([*self.arguments(), *["--replica", "nbd://x/y"] * 9], "9 replicas", code=2)

    def test_commands_to_daemons_that_are_not_there(self):
        (self.directory / "file").touch()
        silent = socket.socket(socket.AF_UNIX)
        silent.bind(str(self.directory / "silent"))
        self.addCleanup(silent.close)
        for command in ("start", "checkpoint", "stop", "status"):
            for name in ("missing", "file", "silent"):
                self.run_refused([command, "--control", f"unix:{self.directory}/{name}"], name, code=3)
            self.run_refused([command, "--control", "tcp:127.0.0.1:1"], "127.0.0.1:1", code=3)
            self.run_refused([command, "--control", "tcp:no-such-host.invalid:1"], "no-such-host", code=3)
