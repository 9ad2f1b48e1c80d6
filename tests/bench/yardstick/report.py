"""What came of it: a table of medians and of ratios to QEMU, and the same as JSON and Markdown."""
import os
import platform
import statistics
import subprocess

from .jobs import JOBS

# Of each job, what is told: key, unit, format, whether more is better.
FIGURES = {
    "iops": ("IOPS", "{:,.0f}", True),
    "mib_s": ("MiB/s", "{:,.0f}", True),
    "p50_us": ("µs", "{:,.0f}", False),
    "checkpoint_ms": ("ms", "{:.2f}", False),
    "failover_ms": ("ms", "{:.2f}", False),
    "primary_kib": ("KiB", "{:,.0f}", False),
    "secondary_kib": ("KiB", "{:,.0f}", False),
}
# Lines beside those of the jobs: job, title, figure.
MORE = [("checkpoint", "checkpoint after the first of these", "checkpoint_ms"),
        ("memory", "resident memory, primary", "primary_kib"),
        ("memory", "resident memory, secondary without its buffer", "secondary_kib")]


def lines(results):
    """What there is to tell, in order: job, title, figure."""
    told = [(job.name, job.title, job.figure) for job in JOBS] + MORE
    return [line for line in told if any(line[0] in runs for runs in results.values())]


def median_of(runs, figure):
    return statistics.median(run[figure] for run in runs)


def medians_of(runs):
    """The median of each figure that all runs have."""
    return {figure: median_of(runs, figure) for figure in runs[0]}


def ratios(ours, theirs, figure):
    """How many times better, round by round: runs of one round stand beside each other in time."""
    _, _, more_is_better = FIGURES.get(figure, ("", "", False))
    found = []
    for mine, other in zip(ours, theirs):
        quotient = mine[figure] / other[figure] if other[figure] else float("inf")
        found.append(quotient if more_is_better else (1 / quotient if quotient else float("inf")))
    return sorted(found)


def base_of(name, results):
    """QEMU's pair that is reached the same way."""
    base = "qemu tcp" if name.endswith("tcp") else "qemu"
    return results.get(base, {})


def summarise(results):
    """By job and figure, then system: the median, and the ratio to QEMU with its spread."""
    summary = []
    for job, title, figure in lines(results):
        row = {"job": job, "title": title, "figure": figure, "systems": {}}
        for name, runs in results.items():
            if job not in runs or figure not in runs[job][0]:
                continue
            cell = {"median": median_of(runs[job], figure),
                    "min": min(run[figure] for run in runs[job]), "max": max(run[figure] for run in runs[job])}
            if "cpu_us" in runs[job][0]:
                cell["cpu_us"] = median_of(runs[job], "cpu_us")
            theirs = base_of(name, results).get(job)
            if theirs and not name.startswith("qemu"):
                for key, of in (("ratio", figure), ("cpu_ratio", "cpu_us")):
                    if of in theirs[0] and of in runs[job][0]:
                        found = ratios(runs[job], theirs, of)
                        cell[key] = {"median": statistics.median(found), "min": found[0], "max": found[-1]}
            row["systems"][name] = cell
        summary.append(row)
    return summary


def text_of(cell, figure):
    unit, form, _ = FIGURES[figure]
    return f"{form.format(cell['median'])} {unit}"


def ratio_text(ratio):
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def rows_of(summary, names):
    """The table as rows of text."""
    rows = [["work", "system", "median", "times QEMU (spread)", "CPU µs/request", "times less CPU (spread)"]]
    for line in summary:
        for name in (name for name in names if name in line["systems"]):
            cell = line["systems"][name]
            rows.append([
                line["title"], name, text_of(cell, line["figure"]),
                ratio_text(cell["ratio"]) if "ratio" in cell else "",
                f"{cell['cpu_us']:.1f}" if "cpu_us" in cell else "",
                ratio_text(cell["cpu_ratio"]) if "cpu_ratio" in cell else ""])
    return rows


def call_rows(calls):
    rows = [["system calls per request", "system", "primary", "secondary"]]
    titles = {job.name: job.title for job in JOBS}
    for job in ("write", "write-1", "read"):
        for name, counted in calls.items():
            if job in counted:
                each = counted[job]
                rows.append([titles[job], name, f"{each['primary']:.2f}",
                             f"{each['secondary']:.2f}" if "secondary" in each else ""])
    return rows if len(rows) > 1 else []


def print_table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = None
    for row in rows:
        shown = ["" if row[0] == last else row[0], *row[1:]]
        last = row[0]
        print("  ".join(cell.ljust(width) if column < 2 else cell.rjust(width)
                        for column, (cell, width) in enumerate(zip(shown, widths))).rstrip())


def markdown(rows):
    last, out = None, []
    for number, row in enumerate(rows):
        shown = ["" if number and row[0] == last else row[0], *row[1:]]
        last = row[0]
        out.append("| " + " | ".join(shown) + " |")
        if number == 0:
            out.append("|" + "|".join("---" if column < 2 else "---:" for column in range(len(row))) + "|")
    return "\n".join(out)


def machine():
    """What it was measured on, and what was measured."""
    def first_line(*command):
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
        except (OSError, subprocess.CalledProcessError, IndexError):
            return "unknown"

    model = "unknown"
    with open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    with open("/proc/cpuinfo") as info:
        processors = sum(line.startswith("processor") for line in info)
    return {"processors": processors, "load": os.getloadavg()[1], "model": model, "kernel": platform.release(),
            "commit": first_line("git", "rev-parse", "--short=12", "HEAD"),
            "qemu": first_line("qemu-system-x86_64", "--version"), "nbdkit": first_line("nbdkit", "--version"),
            "fio": first_line("fio", "--version")}
