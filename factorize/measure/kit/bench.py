"""Times the chains of this kit on the machine that it runs on.

    python bench.py --threads 4 --minutes 20

It needs Python 3.8 or later, numpy and onnxruntime, and writes times.json for
``factorize MODEL --times times.json``. After Ctrl-C, a crash or a reboot run it again: it goes on.
The files of the kit have made-up weights: of the model they were written for they have only shapes.
"""

import argparse
import json
import math
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np

FORMAT, VERSION = "factorize-times", 1
WARMUP, FEWEST, MOST, SECONDS = 2, 9, 21, 1.5  # rounds, and seconds of a group's rounds
HOPELESS = 1.5  # times as slow as the dense layer in the warm-up: no more rounds
NET_SECONDS = 5.0  # of pairs of runs of a whole net and the dense one
PROGRAM_ROUNDS = 3  # a program repeats its runs by itself
PROGRAM_SECONDS = 900  # that it may take
BLOCK = 1 << 20  # weights that are drawn at once
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class BrokenError(Exception):
    """What a file could not be run for."""


class OnnxRuntime:
    """Runs files in this process."""

    warmup = WARMUP

    def __init__(self, provider, threads):
        import onnxruntime

        self.runtime, self.threads = onnxruntime, threads
        known = onnxruntime.get_available_providers()
        name = provider if provider.endswith("Provider") else provider + "ExecutionProvider"
        found = [one for one in known if one.lower() == name.lower()]
        if not found:
            short = ", ".join(one.replace("ExecutionProvider", "") for one in known)
            sys.exit(f"error: --provider must be one of {short}, got {provider}.")
        self.provider = found[0]
        self.name = f"onnxruntime {onnxruntime.__version__}, {self.provider}"

    def load(self, path, inputs):
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 4
        # Sessions alive in one process would take each other's cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = self.runtime.InferenceSession(path, options, providers=[self.provider])
        if inputs is None:
            inputs = [{"name": i.name, "shape": i.shape} for i in session.get_inputs()]
        draw = np.random.RandomState(0)
        feeds = {}
        for one in inputs:
            dtype = np.dtype(one.get("dtype", "float32"))
            values = draw.standard_normal(one["shape"]) if dtype.kind == "f" else 0
            feeds[one["name"]] = np.full(one["shape"], values, dtype)

        def run():
            start = time.perf_counter()
            session.run(None, feeds)
            return 1e3 * (time.perf_counter() - start)

        run()
        return run


class Program:
    """Another program runs the files, and prints how long that took."""

    warmup = 0

    def __init__(self, command, pattern, threads):
        self.parts, self.pattern, self.threads = shlex.split(command), re.compile(pattern), threads
        self.name = self.parts[0]

    def load(self, path, inputs):
        def run():
            words = [
                part.replace("{model}", path).replace("{threads}", str(self.threads))
                for part in self.parts
            ]
            try:
                done = subprocess.run(
                    words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PROGRAM_SECONDS
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise BrokenError(str(error))
            said = done.stdout.decode("utf-8", "replace")
            if done.returncode:
                last = (said.strip() or "nothing was printed").splitlines()[-1]
                raise BrokenError(f"{self.name} ended with code {done.returncode}: {last}")
            found = list(self.pattern.finditer(said))
            if not found:
                raise BrokenError(f"--pattern finds no time in what {self.name} printed")
            named = found[-1].groupdict()
            unit = next((one for one in UNITS if named.get(one)), "ms")
            return float(named.get(unit) or found[-1].group(1)) * UNITS[unit]

        return run


class Kit:
    """The files and what is to be timed."""

    def __init__(self, folder, runner, rounds):
        self.folder, self.runner, self.rounds = folder, runner, rounds
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
            self.manifest = json.load(file)
        self.units = []  # milliseconds of the reference, of each group
        self.jobs = [f"net {index}" for index in range(len(self.manifest["nets"]))]
        self.jobs += [f"group {index}" for index in range(len(self.manifest["groups"]))]
        self.draw_weights()

    def draw_weights(self):
        """Write the file of random numbers that all files of the kit take their weights from."""
        path = os.path.join(self.folder, "models", "weights.bin")
        count = self.manifest["weights"]
        if os.path.exists(path) and os.path.getsize(path) == 4 * count:
            return
        draw = np.random.RandomState(0)
        with open(path + ".partial", "wb") as file:
            for start in range(0, count, BLOCK):
                numbers = draw.standard_normal(min(BLOCK, count - start)) / 24
                file.write(numbers.astype(np.float32).tobytes())
        os.replace(path + ".partial", path)

    def check(self):
        """End where not even a plain layer can be timed here."""
        run, reason = self.load(self.manifest["reference"])
        try:
            if run is not None:
                run()
        except Exception as error:
            reason = one_line(error)
        if reason:
            sys.exit(f"error: nothing was timed: a plain layer cannot be run: {reason}")

    def load(self, file, inputs=None):
        """The run of a file and None, or None and the reason why it cannot be run."""
        try:
            return self.runner.load(os.path.join(self.folder, "models", file), inputs), None
        except Exception as error:  # whatever it is, the file cannot be run here
            return None, one_line(error)

    def time(self, job, only=None):
        """What is found of a job: entries by key, as times.json has them.

        `only` is the one chain of a group to time.
        """
        kind, index = job.split()
        if kind == "net":
            return {"nets": dict([self.net(self.manifest["nets"][int(index)])])}
        group = self.manifest["groups"][int(index)]
        chains = group["chains"] if only is None else [group["chains"][only]]
        return {"chains": self.group(self.manifest["layers"][group["layer"]], chains)}

    def group(self, layer, chains):
        fixed = [self.manifest["reference"], layer["ends"], layer["file"]]
        loaded = [(None, None) if f is None else self.load(f) for f in fixed]
        for (_, reason), what in zip(loaded, ("reference", "ends of the layer", "layer")):
            if reason:
                return {c["key"]: refused(c, f"the {what}: {reason}") for c in chains}
        loaded += [self.load(chain["file"]) for chain in chains]
        times, broken = self.rounds_of([run for run, _ in loaded])
        if reasons := [broken[index] for index in (0, 1, 2) if index in broken]:
            return {c["key"]: refused(c, f"the layer: {reasons[0]}") for c in chains}
        found = {}
        self.units.append(median(column(times, 0)))
        ends = median(column(times, 1)) if layer["ends"] else 0.0
        for place, chain in enumerate(chains, 3):
            reason = loaded[place][1] or broken.get(place)
            if reason:
                found[chain["key"]] = refused(chain, reason)
                continue
            rows = np.array(times)[:, [0, 2, place]]
            rows = rows[rows[:, 2] > 0]
            whole, part = (
                np.maximum(rows[:, at] - ends, 0.1 * rows[:, at]) / layer["copies"] for at in (1, 2)
            )
            ratios = np.sort(whole / part)
            low, high = median_bounds(len(ratios))
            found[chain["key"]] = {
                "kind": chain["kind"],
                "macs": chain["macs"],
                "dense": median(whole / rows[:, 0]),
                "chain": median(part / rows[:, 0]),
                "speedup": median(ratios),
                "low": float(ratios[low]),
                "high": float(ratios[high]),
            }
        return found

    def rounds_of(self, runs):
        """Milliseconds by round and run, 0 where one was left out; and why some broke."""
        rows, broken, order = [], {}, np.random.RandomState(0)
        active = [index for index, run in enumerate(runs) if run is not None]

        def turn(indices):
            row = [0.0] * len(runs)
            for index in order.permutation(indices):
                try:
                    row[index] = runs[index]()
                except Exception as error:
                    broken[int(index)] = one_line(error)
            rows.append(row)

        for _ in range(self.runner.warmup):
            turn([index for index in active if index not in broken])
        wanted = self.rounds or PROGRAM_ROUNDS
        if self.runner.warmup:
            best = np.array(rows).min(0)
            spent = best.sum() / 1e3
            wanted = self.rounds or int(min(max(SECONDS / max(spent, 1e-9), FEWEST), MOST))
            # What is far slower keeps the times of its warm-up: it is not wanted anyhow.
            active = [i for i in active if i < 3 or best[i] <= HOPELESS * best[2]]
        for _ in range(wanted):
            turn([index for index in active if index not in broken])
        return rows, broken

    def net(self, net):
        dense = self.manifest["nets"][0]
        run, reason = self.load(net["file"], dense["inputs"])
        beside = self.manifest["reference"] if net is dense else dense["file"]
        other, reason_beside = self.load(beside, None if net is dense else dense["inputs"])
        if run is None or other is None:
            return net["id"], {"refused": reason or reason_beside}
        pairs, start = [], time.perf_counter()
        fewest = self.rounds or (FEWEST if self.runner.warmup else PROGRAM_ROUNDS)
        try:
            for _ in range(self.runner.warmup):
                other()
                run()
            seconds = NET_SECONDS if self.runner.warmup and not self.rounds else 0.0
            while len(pairs) < fewest or time.perf_counter() - start < seconds:
                pairs.append((other(), run()))
        except Exception as error:
            return net["id"], {"refused": one_line(error)}
        first, second = np.array(pairs).T
        if net is dense:
            self.units.append(median(first))
            return net["id"], {"units": median(second / first), "runs": len(pairs)}
        low, middle, high = (float(one) for one in np.percentile(first / second, (10, 50, 90)))
        return net["id"], {
            "predicted": net["predicted"],
            "speedup": middle,
            "p10": low,
            "p90": high,
            "runs": len(pairs),
            "original_ms": median(first),
            "compressed_ms": median(second),
        }


class Journal:
    """What was found so far, a line for each job, on the disk at once."""

    def __init__(self, path, head):
        self.path = path
        self.done, self.found, self.tries, self.spent = set(), {"chains": {}, "nets": {}}, {}, 0.0
        self.units = []
        lines = self.lines()
        if lines and lines[0] != head:
            differ = [key for key in head if lines[0].get(key) != head[key]]
            sys.exit(
                f"error: {path} was begun with another {', '.join(differ)}. Delete it to begin "
                "anew, or give another --out."
            )
        for line in lines[1:]:
            self.take(line)
        self.file = open(path, "ab")
        self.file.truncate(self.whole)  # a line that a crash cut short
        if not lines:
            self.write(head)

    def lines(self):
        self.whole, lines = 0, []
        if os.path.exists(self.path):
            with open(self.path, "rb") as file:
                for text in file:
                    try:
                        if not text.endswith(b"\n"):
                            break
                        lines.append(json.loads(text.decode("utf-8")))
                    except ValueError:
                        break
                    self.whole += len(text)
        return lines

    def take(self, line):
        if "begin" in line:
            self.tries[line["begin"]] = self.tries.get(line["begin"], 0) + 1
        elif "left" in line:
            self.tries[line["left"]] -= 1
        else:
            self.done.add(line["done"])
            self.spent += line["seconds"]
            self.units += line["units"]
            for key, found in line["found"].items():
                self.found[key].update(found)

    def add(self, line):
        self.write(line)
        self.take(line)

    def write(self, line):
        self.file.write((json.dumps(line) + "\n").encode("utf-8"))
        self.file.flush()
        os.fsync(self.file.fileno())


def attempt(kit, journal, job, only=None):
    """Time a job, or one chain of it, noted before and after: a crash is known by that."""
    name = job if only is None else f"{job}, chain {only}"
    if name in journal.done:
        return
    start, kit.units = time.perf_counter(), []
    if journal.tries.get(name, 0) and job.startswith("group") and only is None:
        # The process ended in it. Which chain was it? Each is tried by itself.
        for index in range(len(kit.manifest["groups"][int(job.split()[1])]["chains"])):
            attempt(kit, journal, job, index)
        found = {}
    elif journal.tries.get(name, 0) > 1:
        found = given_up(kit, job, only)
    else:
        journal.add({"begin": name})
        try:
            found = kit.time(job, only)
        except BaseException:
            journal.add({"left": name})
            raise
    seconds = time.perf_counter() - start
    journal.add({"done": name, "seconds": seconds, "units": kit.units, "found": found})
    kit.units = []


def given_up(kit, job, only):
    reason = "the process ended each time that it was run"
    index = int(job.split()[1])
    if job.startswith("net"):
        return {"nets": {kit.manifest["nets"][index]["id"]: {"refused": reason}}}
    chain = kit.manifest["groups"][index]["chains"][only]
    return {"chains": {chain["key"]: refused(chain, reason)}}


def refused(chain, reason):
    return {"kind": chain["kind"], "macs": chain["macs"], "refused": reason}


def one_line(error):
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 300 else text[:300] + "..."


def column(rows, index):
    return [row[index] for row in rows]


def median(values):
    return float(np.median(values))


def median_bounds(count):
    """Which order statistics bound the median with 95 % confidence; with few, the extremes."""
    below, rank = 0.0, 0
    while rank < (count - 1) // 2:
        ways = math.factorial(count) // (math.factorial(rank) * math.factorial(count - rank))
        below += ways / 2.0**count
        if 2 * below > 0.05:
            break
        rank += 1
    rank = max(rank - 1, 0)
    return rank, count - 1 - rank


def cpu_name():
    """The board's name, or the processor's."""
    try:
        with open("/proc/device-tree/model", encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0\n ")
    except OSError:
        pass
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line[:10] == "model name"]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_times(path, kit, journal, machine):
    content = {
        "format": FORMAT,
        "version": VERSION,
        "machine": machine,
        "unit_ms": median(journal.units),
        **{key: kit.manifest[key] for key in ("kit", "net", "model", "batch")},
        **journal.found,
    }
    with open(path + ".partial", "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.write("\n")
    os.replace(path + ".partial", path)


def summary(journal, path):
    found = list(journal.found["chains"].values()) + list(journal.found["nets"].values())
    broken = [one["refused"] for one in found if "refused" in one]
    print(f"{len(found) - len(broken)} timed, {len(broken)} skipped: written to {path}")
    for reason in sorted(set(broken))[:5]:
        print(f"skipped {broken.count(reason)}: {reason}")


def options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=20.0,
        help="stop after so many in all, the important ones come first (20)",
    )
    parser.add_argument("--threads", type=int, default=usable_cores(), help="all cores")
    parser.add_argument("--provider", default="CPU", help="of ONNX Runtime, such as CPU, XNNPACK")
    parser.add_argument(
        "--command",
        help="another program that runs a file: 'trtexec --onnx={model}'; {threads} is known too",
    )
    parser.add_argument(
        "--pattern",
        default=r"(?i)(?:mean|median|avg)\D*?([0-9.]+)\s*ms",
        help="a regular expression whose group is the time in what it prints, in "
        "ms; a group named us or s is in that: '(?P<us>[0-9.]+) us per run'",
    )
    parser.add_argument("--rounds", type=int, default=0, help="9 to 21; with --command 3")
    parser.add_argument("--out", default="times.json", help="times.json")
    args = parser.parse_args()
    if args.threads < 1 or not args.minutes > 0 or args.rounds < 0:
        parser.error("--threads, --minutes and --rounds must be above 0")
    try:
        if re.compile(args.pattern).groups < 1:
            raise re.error("it has no group")
    except re.error as error:
        parser.error(f"--pattern must be a regular expression with a group: {error}")
    if args.command is not None and "{model}" not in args.command:
        parser.error("--command must say where the file goes: {model}")
    return args


def main():
    args = options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    runner = (
        Program(args.command, args.pattern, args.threads)
        if args.command
        else OnnxRuntime(args.provider, args.threads)
    )
    kit = Kit(os.path.dirname(os.path.abspath(__file__)), runner, args.rounds)
    machine = {
        "device": cpu_name(),
        "cores": usable_cores(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "runtime": runner.name,
        "threads": args.threads,
        "command": args.command,
    }
    head = {"kit": kit.manifest["kit"], "pattern": args.command and args.pattern, **machine}
    journal = Journal(args.out + ".journal", head)
    kit.check()
    if journal.done:
        print(f"goes on: {len(journal.done & set(kit.jobs))} of {len(kit.jobs)} were done")
    code, before, told = 0, journal.spent, time.perf_counter()
    start = told
    try:
        for number, job in enumerate(kit.jobs):
            spent = before + time.perf_counter() - start
            if spent > 60 * args.minutes:
                print(
                    f"\n{args.minutes:g} minutes are over: {number} of {len(kit.jobs)} done; give "
                    "more --minutes to go on"
                )
                break
            attempt(kit, journal, job)
            if sys.stdout.isatty() or time.perf_counter() - told > 10 or job == kit.jobs[-1]:
                told = time.perf_counter()
                minutes = (before + told - start) / 60
                print(
                    f"{number + 1} of {len(kit.jobs)}, {minutes:.1f} of up to {args.minutes:g} "
                    "minutes   ",
                    end="\r" if sys.stdout.isatty() else "\n",
                    flush=True,
                )
    except KeyboardInterrupt:
        print("\ninterrupted: run it again to go on")
        code = 130
    if not journal.units:
        sys.exit(code or "error: nothing was timed")
    write_times(args.out, kit, journal, machine)
    print()
    summary(journal, args.out)
    sys.exit(code)


if __name__ == "__main__":
    main()
