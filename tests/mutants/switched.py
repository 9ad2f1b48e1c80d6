"""All breaks of cargo-mutants in one program, in which a variable of the environment chooses one.

Building anew for each of some thousand breaks takes many hours; this builds once. What stands where in the sources is
found by the program in tests/mutants/switch. Some breaks do not compile, as they would not alone; some cannot be
placed, and have to be built one at a time.
"""
import json
import os
import re
import resource
import signal
import subprocess
import threading

from workshop import BUILD_MAX_S, MEMORY_MAX_BYTES, ROOT, SUITES, Broken, Workshop, folder_of, run, target

HERE = ROOT / "tests" / "mutants"
# The breaks of functions that constants are made with can be switched with this compiler alone.
CARGO = ["cargo", "+nightly"]
# What a break makes unused or unreachable is no matter.
FLAGS = {"RUSTFLAGS": "--cap-lints warn -Awarnings", "CARGO_INCREMENTAL": "0"}
VARIABLE = "TWINBLOCK_BREAK"
# What the simulator has beside the usual features.
WHOLE = ["--features", "inspect"]
# Rounds of the compiler: it tells of errors in types first, then of those in lifetimes.
ROUNDS_MAX = 30


def switcher():
    """The program that changes the sources."""
    built = target() / "switcher"
    command = ["cargo", "build", "--quiet", "--locked", "--manifest-path", HERE / "switch" / "Cargo.toml"]
    subprocess.run(command, check=True, env=dict(os.environ, CARGO_TARGET_DIR=str(built)))
    return built / "debug" / "twinblock-mutants-switch"


def regions(text):
    """What stands between the comments of a changed file: start, end and numbers; 0 begins those of a match's arms."""
    found, open_ones = [], []
    for comment in re.finditer(r"/\*(<)?([\d,]+)(>)?\*/", text):
        if comment[1]:
            open_ones.append(comment.end())
        elif comment[3]:
            found.append((open_ones.pop(), comment.start(), [int(number) for number in comment[2].split(",")]))
    return found


def first_red(program, package, env, seconds, names=()):
    """Runs tests: the name of the first that was red, "hangs", or None. `seconds` of processor time, so that others may
    work."""
    def limit():
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX_BYTES, MEMORY_MAX_BYTES))

    # The random cases are as many as fit a run of some thousand breaks.
    env = {**env, "PROPTEST_CASES": "48", "PROPTEST_DISABLE_FAILURE_PERSISTENCE": "1"}
    child = subprocess.Popen([program, "--test-threads", "1", *names], cwd=package, env=env, stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace",
                             preexec_fn=limit)
    # One that waits for ever takes no time of the processor.
    clock = threading.Timer(30 * seconds, child.kill)
    clock.start()
    red = None
    for line in child.stdout:
        if line.startswith("test ") and line.rstrip().endswith("FAILED"):
            red = line.split()[1].rsplit("::", 1)[-1]
            child.kill()
            break
    child.stdout.close()
    code = child.wait()
    clock.cancel()
    if red or code == 0:
        return red
    return "hangs" if code in (-signal.SIGXCPU, -signal.SIGKILL) else f"exit code {code}"


class Switched:
    """A copy of the checkout with the breaks in it."""

    def __init__(self, breaks):
        """`breaks`: as cargo-mutants lists them."""
        self.workshop = Workshop("switched")
        self.breaks = {number: one for number, one in enumerate(breaks, 1)}
        # Names by what became of them: placed by number; what does not compile; what is left to be built alone.
        self.placed, self.unviable, self.left = {}, [], []
        self._programs = {}

    def place(self):
        """Puts in all that compile."""
        tool, dropped = switcher(), {}
        for _ in range(ROUNDS_MAX):
            placed = self._write(tool, dropped)
            errors = self._errors()
            if not errors:
                break
            before = len(dropped)
            for error in errors:
                dropped.update((number, is_own) for number, is_own in self._owners(error) if number not in dropped)
            if len(dropped) == before:
                raise Broken(f"the switched core does not compile: {errors[0]['rendered'] or errors[0]['message']}")
        else:
            raise Broken(f"the switched core does not compile after {ROUNDS_MAX} rounds")
        for number, one in self.breaks.items():
            if number in placed:
                self.placed[number] = one["name"]
            else:
                (self.unviable if dropped.get(number) else self.left).append(one["name"])

    def _write(self, tool, dropped):
        self.workshop.refresh()
        listed, placed = target() / "breaks.json", target() / "placed.json"
        live = [{"id": number, **one} for number, one in self.breaks.items() if number not in dropped]
        listed.write_text(json.dumps(live))
        subprocess.run([tool, self.workshop.tree, listed, placed], check=True)
        return set(json.loads(placed.read_text()))

    def _errors(self):
        # As the unit tests use it, and as the slower suites do.
        return self._errors_of("--profile", "test", *SUITES["core"][0]) or self._errors_of(*SUITES["core"][0], *WHOLE)

    def _errors_of(self, *arguments):
        command = [*CARGO, "check", "--locked", *arguments, "--message-format=json"]
        code, out, err = run(command, self.workshop.tree, self.workshop.environment(FLAGS), BUILD_MAX_S, has_limit=False)
        messages = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        errors = [message["message"] for message in messages
                  if message.get("reason") == "compiler-message" and message["message"]["level"] == "error"]
        if code != 0 and not errors:
            raise Broken(err[-2000:])
        return errors

    def _owners(self, error):
        """The breaks that an error of the compiler is about, and whether it is about this one alone."""
        is_arms = (error.get("code") or {}).get("code") == "E0004"
        for span in sorted(error["spans"], key=lambda span: not span["is_primary"]):
            path = self.workshop.tree / span["file_name"]
            if not path.is_file():
                continue
            text = path.read_bytes().decode("latin1")
            around = [(end - start, start, numbers) for start, end, numbers in regions(text)
                      if start <= span["byte_start"] and span["byte_end"] <= end and (numbers[0] == 0) == is_arms]
            if around:
                _, start, numbers = min(around)
                is_own = len(numbers) == 1 and text[start] == "{"
                return [(number, is_own or is_arms) for number in numbers if number]
        return []

    def program(self, suite):
        if suite not in self._programs:
            arguments = [*CARGO[1:], "test", "--no-run", *SUITES[suite][0]]
            self._programs[suite] = self.workshop.build(arguments, FLAGS, is_test=True)
        return self._programs[suite]

    def test(self, suite, number, seconds, names=()):
        """What was red: the name of a test, "hangs", or None."""
        env = self.workshop.environment({**SUITES[suite][1], VARIABLE: str(number)})
        return first_red(self.program(suite), self.workshop.tree / folder_of(suite), env, seconds, names)
