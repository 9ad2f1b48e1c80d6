"""cargo-mutants over core: breaks that a program makes, a small one for each operator and each function.

Nearly all are built into one program, which chooses one (switched.py); the few that cannot be are built one at a time.
Each runs core's unit tests, those of its own module first; one that they miss runs the suites that are slower.
What no test can notice, as it changes nothing that can be seen from outside, is listed with the reason in
equivalent.toml. A record of all outcomes is kept below the target directory; --continue adds to it, and tries again
what was missed, so that the whole can be done in parts.
"""
import collections
import fnmatch
import functools
import json
import subprocess
import tomllib

from switched import CARGO, Switched, first_red
from workshop import ROOT, SUITES, Broken, Clock, Workshop, folder_of, target

HERE = ROOT / "tests" / "mutants"
VERSION = "27.1.0"
# Of all that can be built and be noticed, so much must be.
SHARE_MIN = 0.9
WIDER = [suite for suite in SUITES if suite not in ("core", "io-posix")]
# A simulation takes longer than the unit tests, by this factor.
WIDER_FACTOR = 30
# What is built for one break alone is built quickly, and its tests take longer, by this factor.
ALONE = {"CARGO_PROFILE_DEV_OPT_LEVEL": "0", "RUSTFLAGS": "--cap-lints warn -Awarnings"}
ALONE_FACTOR = 8
# What uses much of a module without being in it is tried with that module's tests too.
NEAR = {"connection": ["primary::", "secondary::"], "order": ["primary::", "secondary::"]}


def succeeds(*command):
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def install():
    if not succeeds("cargo", "mutants", "--version"):
        subprocess.run(["cargo", "install", "--locked", "cargo-mutants", "--version", VERSION], check=True)
    if not succeeds(*CARGO, "--version"):
        subprocess.run(["rustup", "toolchain", "install", "nightly", "--profile", "minimal"], check=True)


def listed(options):
    """The breaks that are asked for, as cargo-mutants lists them."""
    command = ["cargo", "mutants", "--list", "--json", "--package", "twinblock-core",
               "--config", str(HERE / "cargo-mutants.toml")]
    every = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    if options.file:
        every = [one for one in every if any(fnmatch.fnmatch(one["file"], pattern) for pattern in options.file)]
    if options.shard:
        first, step = map(int, options.shard.split("/"))
        every = every[first::step]
    return every


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


def near(name):
    """Names of the tests that are beside a break."""
    parts = name.split(":", 1)[0].removeprefix("core/src/").removesuffix(".rs").removesuffix("/mod").split("/")
    own = "::".join(parts[:2] if parts[0] in ("nbd", "control") else parts[:1])
    return [f"{own}::", *NEAR.get(parts[0], [])]


def try_switched(switched, options, record):
    """Unit tests first; what they miss, the suites that are slower."""
    if switched.test("core", 0, options.timeout):
        raise Broken("the unit tests are red with nothing broken")
    clock = Clock()
    for count, (number, name) in enumerate(switched.placed.items()):
        if record.get(name, {}).get("outcome", "missed") == "missed":
            red = switched.test("core", number, options.timeout, near(name)) or switched.test("core", number, options.timeout)
            record[name] = {"outcome": "missed"} if red is None else {"outcome": "caught", "by": red}
            if red == "hangs":
                record[name]["outcome"] = "hangs"
        if count % 250 == 249:
            print(f"{count + 1} of {len(switched.placed)} after {clock.seconds():.0f} s", flush=True)
            save(record)
    for name in switched.unviable:
        record[name] = {"outcome": "unviable"}
    known = equivalents()
    for number, name in switched.placed.items():
        if record[name]["outcome"] == "missed" and (short(name), line_of(name)) not in known:
            for suite in WIDER:
                red = switched.test(suite, number, options.timeout * WIDER_FACTOR)
                if red:
                    record[name] = {"outcome": "caught", "by": f"{suite}: {red}"}
                    break
            print(f"{short(name)}: {record[name]['outcome']} ({record[name].get('by', 'nothing')})", flush=True)
            save(record)


def broken(text, one):
    """A file with a break in it."""
    lines = text.splitlines(keepends=True)
    places = [sum(map(len, lines[:edge["line"] - 1])) + edge["column"] - 1
              for edge in (one["span"]["start"], one["span"]["end"])]
    return text[:places[0]] + one["replacement"] + text[places[1]:]


def build_alone(breaks, options, record):
    """What cannot be switched is built one at a time; unit tests alone."""
    workshop = Workshop("alone")
    arguments, more = SUITES["core"]
    for one in breaks:
        name, file = one["name"], workshop.tree / one["file"]
        workshop.refresh()
        file.write_text(broken(file.read_text(), one))
        try:
            program = workshop.build(["test", "--no-run", *arguments], {**more, **ALONE}, is_test=True)
        except Broken:
            record[name] = {"outcome": "unviable"}
        else:
            run = functools.partial(first_red, program, workshop.tree / folder_of("core"),
                                    workshop.environment(more), ALONE_FACTOR * options.timeout)
            red = run(near(name)) or run()
            outcome = {None: "missed", "hangs": "hangs"}.get(red, "caught")
            record[name] = {"outcome": outcome, **({"by": red} if red else {})}
        print(f"{short(name)}: {record[name]['outcome']} ({record[name].get('by', 'nothing')})", flush=True)
        save(record)


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


def record_path():
    return target() / "cargo-mutants" / "record.json"


def save(record):
    record_path().parent.mkdir(parents=True, exist_ok=True)
    record_path().write_text(json.dumps(record, indent=1))


def main(options):
    install()
    every = listed(options)
    # Line numbers move with every change of the code: what is not listed any more is forgotten.
    names = {one["name"] for one in every}
    record = json.loads(record_path().read_text()) if options.goes_on and record_path().exists() else {}
    if not (options.file or options.shard):
        record = {name: entry for name, entry in record.items() if name in names}
    switched = Switched(every)
    switched.place()
    print(f"{len(every)} breaks: {len(switched.placed)} in one program, {len(switched.unviable)} do not compile, "
          f"{len(switched.left)} to be built alone", flush=True)
    try:
        try_switched(switched, options, record)
        left = {name for name in switched.left if record.get(name, {}).get("outcome", "missed") == "missed"}
        build_alone([one for one in every if one["name"] in left], options, record)
    finally:
        save(record)
    return 0 if tell(record) >= SHARE_MIN else 1
