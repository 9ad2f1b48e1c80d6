"""A copy of the checkout in which the code may be broken, and what is built and run there."""
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A test program that takes longer hangs, and is taken for red.
HANGS_AFTER_S = 300
BUILD_MAX_S = 900
# A broken program may ask for memory without end.
MEMORY_MAX_BYTES = 8 << 30

# What is run for a patch, from the quickest to the slowest: the name that headers use, what cargo builds, and the
# environment. The simulator runs a fixed number of seeds.
SUITES = {
    "core": (["-p", "twinblock-core", "--lib"], {}),
    "io-posix": (["-p", "twinblock-io-posix", "--lib"], {}),
    "facts": (["-p", "twinblock-tests", "--test", "facts"], {}),
    "simulator": (["-p", "twinblock-tests", "--test", "simulator"],
                  {"TWINBLOCK_FIRST": "0", "TWINBLOCK_SEEDS": "400"}),
    "cut": (["-p", "twinblock-tests", "--test", "cut"], {}),
    "cli": (["-p", "twinblock", "--lib"], {}),
}
DEMO = ["demo", "--json", "--seconds", "2", "--size", "64M", "--seed", "9"]


def folder_of(suite):
    """The folder of the package that a suite tests, in which its programs are run."""
    return "cli" if suite == "cli" else SUITES[suite][0][1].removeprefix("twinblock-")


class Broken(Exception):
    """A patch that does not apply or compile."""


def target():
    """Where everything is built; the checkout itself is only read."""
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "mutants"


def limit_memory():
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX_BYTES, MEMORY_MAX_BYTES))


def run(command, cwd, env, limit_s, has_limit=True):
    """Exit code, or None if it hung, and the output. Ends the whole process group of one that hangs."""
    child = subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
                             preexec_fn=limit_memory if has_limit else None)
    try:
        out, err = child.communicate(timeout=limit_s)
        return child.returncode, out, err
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        out, err = child.communicate()
        return None, out, err


def tracked_files():
    """Files of the checkout as they are now, the ones not yet added included."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


class Workshop:
    """One copy with its own build; several can work side by side."""

    def __init__(self, name):
        self.tree = target() / name / "tree"
        self.built = target() / name / "target"
        self.tree.mkdir(parents=True, exist_ok=True)
        self.refresh()

    def refresh(self):
        """Makes the copy equal to the checkout; files that are equal keep their time, so that little is built anew."""
        wanted = tracked_files()
        for directory, _, names in os.walk(self.tree):
            for name in names:
                path = pathlib.Path(directory) / name
                if str(path.relative_to(self.tree)) not in wanted:
                    path.unlink()
        for name in wanted:
            source, copy = ROOT / name, self.tree / name
            if not copy.is_file() or copy.read_bytes() != source.read_bytes():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
                shutil.copymode(source, copy)

    def environment(self, more=None):
        env = dict(os.environ, CARGO_TARGET_DIR=str(self.built), CARGO_INCREMENTAL="1", CARGO_PROFILE_DEV_DEBUG="0",
                   RUST_BACKTRACE="0", PROPTEST_MAX_SHRINK_ITERS="0", GIT_CEILING_DIRECTORIES=str(self.tree.parent))
        env.update(more or {})
        return env

    def apply(self, patch, is_check=False):
        """Breaks the code, or only asks whether it would go."""
        command = ["git", "apply", *(["--check"] if is_check else []), str(patch)]
        code, _, err = run(command, self.tree, self.environment(), 60)
        if code != 0:
            raise Broken("does not apply: " + "; ".join(err.split("\n")[:2]))

    def build(self, arguments, more=None, is_test=False):
        """Builds with cargo; the path of the program."""
        command = ["cargo", *arguments, "--locked", "--message-format=json"]
        code, out, err = run(command, self.tree, self.environment(more), BUILD_MAX_S, has_limit=False)
        if code != 0:
            lines = [message["message"]["message"] for message in map(json.loads, out.splitlines())
                     if message.get("reason") == "compiler-message" and message["message"]["level"] == "error"]
            raise Broken("does not compile: " + "; ".join(lines[:2] or err.strip().splitlines()[-2:]))
        messages = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        programs = [message["executable"] for message in messages
                    if message.get("executable") and message["profile"]["test"] == is_test]
        if len(programs) != 1:
            raise Broken(f"builds {len(programs)} programs, not 1: cargo {' '.join(arguments)}")
        return programs[0]

    def test(self, suite, name=None):
        """What was red: the name of a test, "hangs", or None if all were green."""
        arguments, more = SUITES[suite]
        program = self.build(["test", "--no-run", *arguments], is_test=True)
        code, out, _ = run([program, *([name] if name else [])], self.tree / folder_of(suite), self.environment(more),
                           HANGS_AFTER_S)
        if code is None:
            return f"hangs (more than {HANGS_AFTER_S} s)"
        if code == 0:
            if name and "running 0 tests" in out:
                raise Broken(f"names a test that there is not: {suite} {name}")
            return None
        failed = [line.split()[1] for line in out.splitlines() if line.startswith("test ") and line.endswith("FAILED")]
        return (failed[0].rsplit("::", 1)[-1] if failed else f"exit code {code}")

    def demo(self):
        """Exit code of the demo and its verdict. Built without assertions, as it is delivered."""
        program = self.build(["build", "-p", "twinblock"], {"CARGO_PROFILE_DEV_DEBUG_ASSERTIONS": "false"})
        scratch = self.built / "demo"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        code, out, err = run([program, *DEMO], self.tree, self.environment({"TMPDIR": str(scratch)}), HANGS_AFTER_S)
        shutil.rmtree(scratch, ignore_errors=True)
        if code is None:
            return None, f"hangs (more than {HANGS_AFTER_S} s)"
        told = json.loads(out.strip().splitlines()[-1]) if out.strip() else {}
        return code, told.get("verdict", err.strip().splitlines()[-1] if err.strip() else "nothing")


class Clock:
    """Seconds since it was made."""

    def __init__(self):
        self._began = time.monotonic()

    def seconds(self):
        return time.monotonic() - self._began
