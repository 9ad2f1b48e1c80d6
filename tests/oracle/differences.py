"""Where QEMU and Twinblock are known to differ, and how the comparison is adapted. Nothing else is excused.

Each row of `TABLE` has a condition on a step and on the situation that is promised before it, and one rule:

- `ignore`: the step's outcomes are not compared;
- `any_error`: one error is as good as another;
- `instead`: QEMU plays other steps in its place, and the outcome of the last one counts;
- `apart`: from then on the bytes that the step touches are not compared on the secondary's side.

A situation follows from the steps alone, never from an answer.

Of requests in flight together those of different ports do not touch one cluster of QEMU's buffers (script.collides):
its copies before a write and what its secondary's guest does there may meet.
"""
import dataclasses
import typing

from script import DISK, PRIMARY, SECONDARY, SECTOR, VIEW, Step

NONE, RUNNING, FAILOVER, DONE = "none", "running", "failover", "done"


class Situation:
    """What is promised before a step: the stages of both sides, and how they got there."""

    def __init__(self, size):
        self.size = size
        self.stages = {PRIMARY: NONE, SECONDARY: NONE}
        # The secondary was stopped without a failover.
        self.is_stopped = False
        # The primary was started again after a stop.
        self.is_restarted = False
        # The primary's guest has written what was not forwarded, or has learned by a flush that the secondary took over.
        self.is_behind = False

    def is_forwarding(self):
        return self.stages[PRIMARY] == RUNNING and self.stages[SECONDARY] in (NONE, RUNNING)

    def after(self, step):
        """Takes a step that was played."""
        for part in step.steps:
            self.after(part)
        if step.kind == "settle" and self.stages[SECONDARY] == FAILOVER:
            self.stages[SECONDARY] = DONE
        elif step.is_modification() and step.port == PRIMARY and not self.is_forwarding():
            self.is_behind = True
        elif is_on(step, PRIMARY, "flush") and self.stages[PRIMARY] == RUNNING and not self.is_forwarding():
            self.is_behind = True
        elif step.kind == "start":
            if self.stages[step.port] == NONE:
                self.stages[step.port] = RUNNING
            elif step.port == PRIMARY and self.stages[PRIMARY] == DONE:
                self.stages[PRIMARY] = RUNNING
                self.is_restarted = True
        elif step.kind in ("stop", "failover") and self.stages[step.port] == RUNNING:
            self.is_stopped |= step.port == SECONDARY and step.kind == "stop"
            self.stages[step.port] = FAILOVER if (step.port, step.kind) == (SECONDARY, "failover") else DONE


@dataclasses.dataclass(frozen=True)
class Difference:
    name: str
    # What either does.
    qemu: str
    twinblock: str
    applies: typing.Callable
    ignore: bool = False
    any_error: bool = False
    instead: typing.Callable | None = None
    apart: bool = False


def in_sectors(step):
    """A modification of the primary as one of whole sectors, for which the client reads what lies beside its bytes."""
    if step.port == PRIMARY and (step.offset % SECTOR or step.length % SECTOR):
        return dataclasses.replace(step, flags=(*step.flags, "sectors"))
    return step


def is_on(step, port, *kinds):
    return step.port == port and step.kind in kinds


TABLE = [
    Difference(
        "trim", "is answered and nothing happens, or what fills no block stays",
        "it is executed as zeroes, so that twins stay equal",
        lambda step, now: step.kind == "trim" and not (step.port == VIEW and now.is_stopped),
        instead=lambda step: [step, in_sectors(dataclasses.replace(step, kind="zero", flags=()))]),
    Difference(
        "a primary write that does not fill its sectors",
        "fills the rest of the sectors on the secondary disk with bytes of its memory, and reports no error",
        "changes the bytes that were written alone",
        lambda step, now: step.port == PRIMARY and step.kind in ("write", "zero") and in_sectors(step) != step,
        instead=lambda step: [in_sectors(step)]),
    Difference(
        "checkpoint of a primary before its start", "succeeds", "is refused: not running",
        lambda step, now: is_on(step, PRIMARY, "checkpoint") and now.stages[PRIMARY] == NONE,
        ignore=True),
    Difference(
        "stop with failover where it is refused", "always succeeds", "is refused: not running",
        lambda step, now: is_on(step, SECONDARY, "failover") and now.stages[SECONDARY] == NONE
        or is_on(step, PRIMARY, "failover") and now.stages[PRIMARY] == NONE,
        ignore=True),
    Difference(
        "flush of a view before its start", "succeeds", "is refused, as reads and writes are",
        lambda step, now: is_on(step, VIEW, "flush") and now.stages[SECONDARY] == NONE,
        ignore=True),
    Difference(
        "start of a stopped primary in the other role", "is ignored", "is refused: the mode differs",
        lambda step, now: is_on(step, PRIMARY, "start-other") and now.stages[PRIMARY] == DONE,
        ignore=True),
    Difference(
        "G: start of a primary that was started again", "is ignored", "is refused: running",
        lambda step, now: is_on(step, PRIMARY, "start", "start-other") and now.is_restarted
        and now.stages[PRIMARY] == RUNNING,
        ignore=True),
    Difference(
        "write or zeroes beyond the end", "EINVAL", "ENOSPC, as NBD's specification says",
        lambda step, now: step.kind in ("write", "zero") and step.end > now.size,
        any_error=True),
    Difference(
        "F: written before the start, G: started again, and written after the secondary took over",
        "the secondary misses it, or its disk takes it although it was promoted, and nothing tells",
        "what is not forwarded is marked; a promoted disk refuses",
        lambda step, now: step.is_modification() and step.port == PRIMARY
        and (not now.is_forwarding() or now.is_behind or now.is_restarted),
        apart=True),
    Difference(
        "F, G: a replica that misses something", "the primary reports no error and takes checkpoints",
        "the primary reports an error and refuses checkpoints",
        lambda step, now: is_on(step, PRIMARY, "status", "checkpoint") and now.is_behind,
        ignore=True),
    Difference(
        "B: stop without failover", "always answers an error",
        "succeeds",
        lambda step, now: is_on(step, SECONDARY, "stop") and now.stages[SECONDARY] == RUNNING,
        ignore=True),
    Difference(
        "B: the view after a stop without failover", "is still that of the last checkpoint",
        "is the secondary disk",
        lambda step, now: step.port == VIEW and now.is_stopped,
        instead=lambda step: [dataclasses.replace(step, port=DISK, kind="zero" if step.kind == "trim" else step.kind)]),
    Difference(
        "B: get error after a stop without failover", "answers an error for ever", "answers none",
        lambda step, now: is_on(step, SECONDARY, "status") and now.is_stopped,
        ignore=True),
    Difference(
        "H: get error while a failover goes on", "answers an error, although nothing failed", "answers none",
        lambda step, now: is_on(step, SECONDARY, "status") and now.stages[SECONDARY] == FAILOVER,
        ignore=True),
]


@dataclasses.dataclass(frozen=True)
class Planned:
    """A step, what QEMU plays for it, whether outcomes are compared, and where they need not agree."""

    step: Step
    qemu: tuple
    is_compared: bool
    is_any_error: bool
    # Extents that the secondary's side need not agree on: pairs of offset and end.
    apart: tuple
    rules: tuple


def plan(steps, size):
    """How each step is played and compared."""
    now, apart, planned = Situation(size), [], []
    for step in steps:
        if step.kind == "settle" and now.stages[SECONDARY] != FAILOVER:
            continue
        rules = [row for row in TABLE if row.applies(step, now)]
        instead = [row for row in rules if row.instead]
        qemu = instead[0].instead(step) if instead else [step]
        for part in step.steps or [step]:
            for row in TABLE:
                if row.apart and row.applies(part, now):
                    # QEMU writes whole sectors; what lies beside the bytes comes from the primary then.
                    apart.append((part.offset // SECTOR * SECTOR, -(-part.end // SECTOR) * SECTOR))
                    rules.append(row)
        if step.steps:
            qemu = [dataclasses.replace(step, steps=tuple(
                other for part in step.steps for other in plan_part(part, now)))]
        is_compared, is_any_error = not any(row.ignore for row in rules), any(row.any_error for row in rules)
        names = tuple(dict.fromkeys(row.name for row in rules))
        planned.append(Planned(step, tuple(qemu), is_compared, is_any_error, tuple(apart), names))
        now.after(step)
    return planned


def plan_part(part, now):
    """What QEMU plays for one of several in flight. Nothing may depend on their order, so it is one step."""
    instead = [row for row in TABLE if row.instead and row.applies(part, now)]
    return [instead[0].instead(part)[-1]] if instead else [part]
