"""cargo-mutants over core: breaks that a program makes, a small one for each operator and each function.

Each runs core's unit tests; one that they miss runs the suites that are slower. What no test can notice, as it changes
nothing that can be seen from outside, is listed with the reason in equivalent.toml. A record of all outcomes is kept
below the target directory; --continue adds to it, so that the whole can be done in parts.
"""
import collections
import json
import pathlib
import shutil
import subprocess
import tomllib

from workshop import ROOT, SUITES, Broken, Workshop, target

HERE = pathlib.Path(__file__).resolve().parent
VERSION = "27.1.0"
# Of all that can be built and be noticed, so much must be.
SHARE_MIN = 0.9
WIDER = [suite for suite in SUITES if suite not in ("core", "io-posix")]
# The unit tests' random cases are as many as fit a run of some thousand breaks.
ENVIRONMENT = {"PROPTEST_CASES": "48"}
WORDS = {"CaughtMutant": "caught", "MissedMutant": "missed", "Timeout": "hangs", "Unviable": "unviable"}


def install():
    if shutil.which("cargo-mutants"):
        return
    subprocess.run(["cargo", "install", "--locked", "cargo-mutants", "--version", VERSION], check=True)


def short(name):
    """A break's name without line and column, which move with every change above."""
    file, _, _, what = name.split(":", 3)
    return f"{file}: {what.strip()}"


def equivalents():
    """Reasons by short name and line of code."""
    entries = tomllib.loads((HERE / "equivalent.toml").read_text())["mutant"]
    return {(entry["name"], entry["code"]): entry["why"] for entry in entries}


def line_of(name):
    file, line, _ = name.split(":", 2)
    lines = (ROOT / file).read_text().splitlines()
    return lines[int(line) - 1].strip() if int(line) <= len(lines) else ""


def mutate(workshop, options, record):
    """Runs cargo-mutants; adds its outcomes to the record."""
    out = target() / "cargo-mutants" / "report"
    command = ["cargo", "mutants", "--in-place", "--no-shuffle", "--package", "twinblock-core", "--cargo-arg=--lib",
               "--config", str(HERE / "cargo-mutants.toml"), "--output", str(out), "--timeout", str(options.timeout)]
    command += ["--shard", options.shard, "--sharding", "round-robin"] if options.shard else []
    for pattern in options.file or []:
        command += ["--file", pattern]
    # Its exit code tells of breaks that were missed; those are looked at below.
    subprocess.run(command, cwd=workshop.tree, env=workshop.environment(ENVIRONMENT))
    report = out / "mutants.out"
    for outcome in json.loads((report / "outcomes.json").read_text())["outcomes"]:
        if isinstance(outcome["scenario"], dict):
            name = outcome["scenario"]["Mutant"]["name"]
            record[name] = {"outcome": WORDS[outcome["summary"]]}
            if outcome["summary"] == "MissedMutant":
                record[name]["diff"] = (report / outcome["diff_path"]).read_text()


def widen(workshop, name, entry):
    """Runs the slower suites for a break that the unit tests have missed."""
    workshop.refresh()
    try:
        patch = target() / "cargo-mutants" / "missed.patch"
        patch.write_text(entry["diff"])
        workshop.apply(patch)
        for suite in WIDER:
            red = workshop.test(suite)
            if red:
                entry.update(outcome="caught", by=f"{suite}: {red}")
                break
        else:
            entry["by"] = "nothing"
    except Broken as broken:
        entry["by"] = str(broken)
    workshop.refresh()
    print(f"{short(name)}: {entry['outcome']} ({entry['by']})", flush=True)


def module_of(name):
    parts = name.split(":", 1)[0].removeprefix("core/src/").removesuffix(".rs").split("/")
    return "/".join(parts[:2]) if parts[0] in ("nbd", "control") and len(parts) > 2 else parts[0]


def tell(record):
    """The table by modules; the share of all."""
    known = equivalents()
    tables = collections.defaultdict(collections.Counter)
    left = []
    for name, entry in sorted(record.items()):
        outcome = entry["outcome"]
        if outcome == "missed" and (short(name), line_of(name)) in known:
            outcome = "equivalent"
        if outcome == "missed":
            left.append(f"{name}    | {line_of(name)}")
        for module in (module_of(name), "all"):
            tables[module][outcome] += 1
    print(f"\n{'module':16} {'made':>6} {'caught':>7} {'hangs':>6} {'missed':>7} {'equivalent':>11} "
          f"{'does not build':>15} {'share':>7}")
    for module in [*sorted(set(tables) - {"all"}), "all"]:
        table = tables[module]
        noticed = table["caught"] + table["hangs"]
        share = noticed / max(noticed + table["missed"], 1)
        print(f"{module:16} {sum(table.values()):6} {table['caught']:7} {table['hangs']:6} {table['missed']:7} "
              f"{table['equivalent']:11} {table['unviable']:15} {share:7.1%}")
    print("\nmissed:" if left else "\nnone missed", *left, sep="\n  ")
    return share


def main(options):
    install()
    workshop = Workshop("cargo-mutants")
    kept = target() / "cargo-mutants" / "record.json"
    record = json.loads(kept.read_text()) if options.goes_on and kept.exists() else {}
    kept.parent.mkdir(parents=True, exist_ok=True)
    try:
        mutate(workshop, options, record)
        for name, entry in record.items():
            if entry["outcome"] == "missed" and "by" not in entry:
                widen(workshop, name, entry)
                kept.write_text(json.dumps(record, indent=1))
    finally:
        workshop.refresh()
        kept.write_text(json.dumps(record, indent=1))
    share = tell(record)
    return 0 if share >= SHARE_MIN else 1
