"""Plays a script on both pairs and says where they differ; cuts a script that differs to a short one."""
import contextlib
import dataclasses
import pathlib
import shutil
import tempfile
import threading

from differences import plan
from script import DISK, PRIMARY, VIEW, Step
from sides import QemuSide, TwinblockSide

# A pair that takes longer is killed, and has failed by that.
SCRIPT_MAX_S = 60
# Replays that the cutting of one script may take.
CUTS_MAX = 100


class Stuck(Exception):
    """One of the pairs could not be played; what it says is no difference but a failure of its own."""


@dataclasses.dataclass(frozen=True)
class Difference:
    # None is the end.
    step: Step | None
    text: str


class Judge:
    """Both pairs in a directory of their own, used for one script after the other."""

    def __init__(self, parent):
        self._parent = parent
        # How often each row of the table was applied, and each kind of step compared.
        self.applied = {}
        self.compared = {}

    def __enter__(self):
        self._directory = pathlib.Path(tempfile.mkdtemp(prefix="twinblock-oracle-", dir=self._parent))
        self._sides = []
        for side in (QemuSide, TwinblockSide):
            directory = self._directory / side.name
            directory.mkdir()
            self._sides.append(side(directory))
        return self

    def __exit__(self, *_):
        for side in self._sides:
            side.forget()
        shutil.rmtree(self._directory, ignore_errors=True)

    def differences(self, script):
        """Where the pairs differ; nothing if they agree."""
        planned = plan([*script.steps, *the_end(script)], script.size)
        qemu, twinblock = self._sides
        theirs = self._play(qemu, script, [each.qemu for each in planned])
        ours = self._play(twinblock, script, [(each.step,) for each in planned])
        found = []
        for each, one, other in zip(planned, theirs["outcomes"], ours["outcomes"]):
            for rule in each.rules:
                self.applied[rule] = self.applied.get(rule, 0) + 1
            if each.is_compared:
                self.compared[each.step.kind] = self.compared.get(each.step.kind, 0) + 1
                found += compare(each, one, other)
        apart = planned[-1].apart if planned else ()
        for name in ("primary", "secondary"):
            one, other = theirs["disks"][name], ours["disks"][name]
            place = first_difference(one, other, apart if name == "secondary" else ())
            if place is not None:
                found.append(Difference(None, f"{name} disk at the end: byte {place}: QEMU has {one[place]}, "
                                              f"Twinblock {other[place]}"))
        return found

    def _play(self, side, script, plays):
        is_late = threading.Event()
        watch = threading.Timer(SCRIPT_MAX_S, lambda: (is_late.set(), side.kill()))
        watch.daemon = True
        watch.start()
        try:
            side.prepare(script)
            outcomes = []
            for steps in plays:
                for step in steps:
                    outcome = side.play(step)
                outcomes.append(outcome)
            disks = side.disks()
            side.clear()
            if is_late.is_set():
                raise TimeoutError(f"was killed after {SCRIPT_MAX_S} s")
            return {"outcomes": outcomes, "disks": disks}
        except Exception as error:
            logs = "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1500:]}"
                             for log in sorted(side.directory.glob("*.log")))
            with contextlib.suppress(Exception):
                side.forget()
            raise Stuck(f"{side.name}: {type(error).__name__}: {error}\n{logs}") from error
        finally:
            watch.cancel()

    def is_bad(self, script):
        try:
            return bool(self.differences(script))
        except Stuck:
            return True

    def shorten(self, script):
        """A script with as few steps of this one as can be found that still differs."""
        steps, left = list(script.steps), CUTS_MAX
        length = max(1, len(steps) // 2)
        while length and left:
            at, was_cut = 0, False
            while at < len(steps) and left:
                fewer = steps[:at] + steps[at + length:]
                left -= 1
                if self.is_bad(script.with_steps(fewer)):
                    steps, was_cut = fewer, True
                else:
                    at += length
            if not was_cut or length > 1:
                length //= 2
        return script.with_steps(steps)


def the_end(script):
    """What every script ends with: everything is read once more."""
    return [Step("settle"), Step("flush", PRIMARY), Step("flush", VIEW),
            *(Step("read", port, 0, script.size) for port in (PRIMARY, VIEW, DISK)), Step("flush", DISK)]


def compare(planned, qemu, twinblock):
    """The differences of one step."""
    step = planned.step
    if planned.is_any_error and qemu[0] == twinblock[0] == "error":
        return []
    each = zip(step.steps, qemu, twinblock) if step.steps else [(step, qemu, twinblock)]
    return [Difference(part, text) for part, one, other in each
            for text in compare_outcomes(part, planned.apart, one, other)]


def compare_outcomes(step, apart, qemu, twinblock):
    if step.kind == "read" and qemu[0] == twinblock[0] == "ok":
        here = [] if step.port == PRIMARY else [(at - step.offset, end - step.offset) for at, end in apart]
        place = first_difference(qemu[1], twinblock[1], here)
        if place is None:
            return []
        return [f"byte {step.offset + place}: QEMU reads {qemu[1][place]}, Twinblock {twinblock[1][place]}"]
    return [] if qemu == twinblock else [f"QEMU answers {said(qemu)}, Twinblock {said(twinblock)}"]


def said(outcome):
    word, value = outcome
    return f"{word}, {len(value)} bytes" if isinstance(value, bytes) else f"{word}, {value}"


def first_difference(one, other, apart):
    """The first byte that differs outside of the extents, or None."""
    if one == other:
        return None
    one, other = bytearray(one), bytearray(other)
    for at, end in apart:
        at, end = max(at, 0), min(end, len(one))
        if at < end:
            one[at:end] = other[at:end]
    if one == other:
        return None
    return next(place for place, (left, right) in enumerate(zip(one, other, strict=True)) if left != right)
