"""Scripts: what a primary's guest, a secondary's guest and a manager do to a pair, one step after the other."""
import dataclasses
import json
import random

KIB = 1 << 10
SECTOR = 512
# The cluster of QEMU's buffers: what two ports of a secondary do at one time keeps this far apart (see differences.py).
CLUSTER = 64 * KIB
SIZES = [1024 * KIB, 1024 * KIB + 3 * SECTOR, 2048 * KIB - 4 * KIB, 4096 * KIB]
LENGTHS = [SECTOR, 3 * SECTOR, 4 * KIB, 4 * KIB, 12 * KIB, 64 * KIB, 130 * KIB, 300 * KIB]
# Ports of NBD: the primary's guest, the secondary's guest, and the secondary disk itself.
PRIMARY, VIEW, DISK = "primary", "view", "disk"
# Ports of QMP; PRIMARY is the other one.
SECONDARY = "secondary"


@dataclasses.dataclass(frozen=True)
class Step:
    """One call. `kind` is read, write, zero, trim or flush on a port of NBD; start, start-other (the other role's),
    start-failover (which contradicts itself), stop, failover, checkpoint or status on one of QMP; settle (until a
    failover is complete); or together: `steps` are in flight at once."""

    kind: str
    port: str = ""
    offset: int = 0
    length: int = 0
    # What is written depends on it.
    seed: int = 0
    flags: tuple = ()
    steps: tuple = ()

    @property
    def end(self):
        return self.offset + self.length

    def content(self):
        return random.Random(self.seed).randbytes(self.length)

    def is_modification(self):
        return self.kind in ("write", "zero", "trim")

    def to_json(self):
        short = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
                 if getattr(self, field.name) != field.default}
        if self.steps:
            short["steps"] = [step.to_json() for step in self.steps]
        return short

    @staticmethod
    def from_json(value):
        value = dict(value, flags=tuple(value.get("flags", ())),
                     steps=tuple(Step.from_json(step) for step in value.get("steps", ())))
        return Step(**value)


@dataclasses.dataclass(frozen=True)
class Script:
    number: int
    size: int
    # Of Twinblock's buffer.
    granule: int
    buffer: str
    steps: tuple

    def disk(self):
        """What both disks hold at the beginning: random sectors, and holes."""
        chance = random.Random(f"disk {self.number}")
        return b"".join(chance.choice([bytes, chance.randbytes])(min(CLUSTER, self.size - at))
                        for at in range(0, self.size, CLUSTER))

    def with_steps(self, steps):
        return dataclasses.replace(self, steps=tuple(steps))

    def text(self):
        """One line of JSON for the settings and one for each step, as --play reads them."""
        head = {"number": self.number, "size": self.size, "granule": self.granule, "buffer": self.buffer}
        return "\n".join(json.dumps(line) for line in [head, *(step.to_json() for step in self.steps)])

    @staticmethod
    def parse(text):
        head, *steps = [json.loads(line) for line in text.splitlines() if line.strip()]
        return Script(**head, steps=tuple(Step.from_json(step) for step in steps))


def generate(number):
    """The script of a number; always the same."""
    return Author(number).script()


class Author:
    def __init__(self, number):
        self._number = number
        self._random = random.Random(f"script {number}")
        self._size = self._random.choice(SIZES)
        # Every fourth knows no alignment, every third has requests in flight together.
        self._unit = 1 if self._random.random() < 0.25 else SECTOR
        self._is_together = self._random.random() < 0.34
        # Most requests hit a few places again and again.
        self._places = [self._random.randrange(self._size) for _ in range(4)]

    def script(self):
        chance = self._random
        steps = [*self._before(), *self._running(), *self._ending()]
        return Script(self._number, self._size, chance.choice([4, 4, 16, 64]) * KIB,
                      chance.choice(["memory", "memory", "file"]), tuple(steps))

    def _before(self):
        chance = self._random
        steps = []
        if chance.random() < 0.3:
            for _ in range(chance.randrange(1, 5)):
                steps.append(chance.choice([self._nbd, self._refused_before, self._copy])(VIEW))
        if chance.random() < 0.05:
            steps.append(self._modify(PRIMARY))
        starts = [Step("start", SECONDARY), Step("start", PRIMARY)]
        if chance.random() < 0.1:
            starts.reverse()
        for start in starts:
            if chance.random() < 0.1:
                steps.append(Step(chance.choice(["start-other", "start-failover"]), start.port))
            steps.append(start)
            if chance.random() < 0.1:
                steps.append(Step(chance.choice(["start", "start-other", "start-failover"]), start.port))
        return steps

    def _refused_before(self, port):
        return Step(self._random.choice(["checkpoint", "stop", "failover", "status"]),
                    self._random.choice([PRIMARY, SECONDARY]))

    def _copy(self, port):
        """What is written before the start goes straight to the secondary disk. Not where requests are not aligned:
        what a sector holds beside them must be the same on both disks then (see differences.py)."""
        return self._modify(DISK if self._unit == SECTOR else port)

    def _running(self):
        steps = []
        for _ in range(self._random.randrange(6, 40)):
            kind = self._random.random()
            if kind < 0.10:
                steps += [Step("checkpoint", SECONDARY), Step("checkpoint", PRIMARY)]
            elif kind < 0.13:
                steps.append(Step("status", self._random.choice([PRIMARY, SECONDARY])))
            elif kind < 0.16:
                steps.append(self._read(VIEW, whole=True))
            elif kind < 0.40 and self._is_together:
                steps.append(self._together())
            else:
                steps.append(self._nbd(self._random.choice([PRIMARY, PRIMARY, VIEW])))
        return steps

    def _ending(self):
        chance = self._random
        end = chance.random()
        steps = [Step("stop", PRIMARY)] if chance.random() < 0.4 else []
        if end < 0.6:
            steps.append(Step("failover", SECONDARY))
            steps += [self._nbd(VIEW) for _ in range(chance.randrange(4))]
            if chance.random() < 0.2:
                steps.append(Step("status", SECONDARY))
            steps.append(Step("settle"))
        elif end < 0.8:
            steps.append(Step("stop", SECONDARY))
        for _ in range(chance.randrange(8)):
            kind = chance.random()
            if kind < 0.4:
                again = chance.choice(["start", "checkpoint", "stop", "failover", "status", "start-other"])
                steps.append(Step(again, chance.choice([PRIMARY, SECONDARY])))
                steps.append(Step("settle"))
            else:
                steps.append(self._nbd(chance.choice([PRIMARY, VIEW, VIEW])))
        return steps

    def _nbd(self, port):
        kind = self._random.random()
        if kind < 0.55:
            return self._modify(port)
        if kind < 0.65:
            return Step("flush", port)
        if kind < 0.68:
            return self._outside(port)
        return self._read(port)

    def _modify(self, port):
        chance = self._random
        offset, length = self._extent()
        kind = chance.choices(["write", "zero", "trim"], [6, 2, 1])[0]
        flags = ["fua"] if chance.random() < 0.15 else []
        if kind == "zero" and chance.random() < 0.3:
            flags.append("no-hole")
        return Step(kind, port, offset, length, chance.getrandbits(32) if kind == "write" else 0, tuple(flags))

    def _read(self, port, whole=False):
        if whole:
            return Step("read", port, 0, self._size)
        if port == PRIMARY and self._random.random() < 0.3:
            port = DISK
        offset, length = self._extent()
        return Step("read", port, offset, length)

    def _outside(self, port):
        """Reaches or lies beyond the end."""
        kind = self._random.choice(["read", "write", "zero", "trim"])
        offset = self._random.choice([self._size - SECTOR, self._size, self._size + CLUSTER]) // SECTOR * SECTOR
        return Step(kind, port, offset, 4 * KIB, 1 if kind == "write" else 0)

    def _extent(self):
        chance, unit = self._random, self._unit
        length = min(chance.choice(LENGTHS), self._size)
        if unit == 1:
            length = max(1, length + chance.randrange(-SECTOR, SECTOR))
        if chance.random() < 0.7:
            offset = chance.choice(self._places) + chance.randrange(-2 * length, 2 * length)
        elif chance.random() < 0.2:
            offset = self._size - length
        else:
            offset = chance.randrange(self._size)
        offset = min(max(offset, 0), self._size - length) // unit * unit
        return offset, length // unit * unit

    def _together(self):
        """Requests of both guests that do not overlap; those of different ports not even in a cluster of QEMU's."""
        taken, steps = [], []
        for _ in range(self._random.randrange(2, 9)):
            step = self._nbd(self._random.choice([PRIMARY, PRIMARY, VIEW]))
            if step.port == DISK or step.end > self._size:
                continue
            if step.kind != "flush":
                if any(collides(step, other) for other in taken):
                    continue
                taken.append(step)
            steps.append(step)
        return Step("together", steps=tuple(steps))


def collides(one, other):
    unit = SECTOR if one.port == other.port else CLUSTER
    return one.offset // unit * unit < -(-other.end // unit) * unit and \
        other.offset // unit * unit < -(-one.end // unit) * unit
