"""How long the requests of one client take, over a long run."""
import statistics

# The run is looked at in so many windows of equal length.
WINDOWS = 40
# The last quarter of the run may be slower than the first by this factor. Single windows of a machine that does other work
# differ by more; the median of ten of them does not, unless the daemons get slower.
DRIFT_MAX = 3.0
# A median below this is that of a pair that rests: faster than that counts as this.
FLOOR_US = 200.0


def read_log(path):
    """Seconds since its start and microseconds of each request of a latency log of fio (fio(1), "Log File Formats")."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    return [(int(row[0]) / 1e3, int(row[1]) / 1e3) for row in rows]


def percentile(values, share):
    """The value that so many of `values`, which are sorted, do not exceed."""
    return values[min(int(len(values) * share), len(values) - 1)]


def summary(values):
    values = sorted(values)
    return {"count": len(values), "p50_us": percentile(values, 0.5), "p99_us": percentile(values, 0.99),
            "most_us": values[-1]}


def windows(requests, seconds):
    """What requests took in each window in which there were some."""
    found = [[] for _ in range(WINDOWS)]
    for at_s, took_us in requests:
        found[min(int(at_s / seconds * WINDOWS), WINDOWS - 1)].append(took_us)
    starts = (number * seconds / WINDOWS for number in range(WINDOWS))
    return [{"at_s": at_s, **summary(values)} for at_s, values in zip(starts, found) if values]


class Latency:
    """All requests of a client that sends one, and the next some time after the answer: never several at once to make up
    for a pause, which would be fast ones."""

    def __init__(self, requests, seconds):
        self.windows = windows(requests, seconds)
        if len(self.windows) < WINDOWS // 2:
            raise AssertionError(f"the paced client was answered in {len(self.windows)} of {WINDOWS} windows only")
        self.first = summary([took for at_s, took in requests if at_s < seconds / 4])
        self.last = summary([took for at_s, took in requests if at_s >= seconds * 3 / 4])
        self.worst = max(self.windows, key=lambda window: window["p99_us"])
        quarter = len(self.windows) // 4
        self.before_us = statistics.median(each["p50_us"] for each in self.windows[:quarter])
        self.after_us = statistics.median(each["p50_us"] for each in self.windows[-quarter:])

    def drift(self):
        """How many times slower the last quarter was than the first: medians of their windows' medians."""
        return max(self.after_us, FLOOR_US) / max(self.before_us, FLOOR_US)

    def wrong(self):
        """What is wrong, line by line."""
        if self.drift() > DRIFT_MAX:
            yield (f"latency: the median has grown from {self.before_us:.0f} us in the first quarter to "
                   f"{self.after_us:.0f} us in the last, more than {DRIFT_MAX:g} times")

    def print(self):
        print(f"{'4 KiB writes, one at a time':30} {'requests':>9} {'p50 us':>8} {'p99 us':>8} {'longest us':>11}")
        lines = [("first quarter", self.first), ("last quarter", self.last),
                 (f"worst window, from {self.worst['at_s']:.0f} s", self.worst)]
        for name, each in lines:
            print(f"{name:30} {each['count']:9} {each['p50_us']:8.0f} {each['p99_us']:8.0f} {each['most_us']:11.0f}")
        print(f"medians of {WINDOWS // 4} windows each: {self.before_us:.0f} us, then {self.after_us:.0f} us")

    def told(self):
        return {"first_quarter": self.first, "last_quarter": self.last, "worst": self.worst, "windows": self.windows,
                "drift": self.drift()}
