"""bench.py, as it runs on a device: by itself, with Python, numpy and onnxruntime."""

from __future__ import annotations

import ast
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kits import PATTERN, bench, by_program, file_of, keys, manifest, small_kit, times

from factorize import measure

BENCH = Path(measure.__file__).parent / "kit" / "bench.py"


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return small_kit(tmp_path / "kit")


def test_is_of_python_3_8_and_needs_nothing_but_numpy_and_onnxruntime() -> None:
    tree = ast.parse(BENCH.read_text(encoding="utf-8"), feature_version=(3, 8))
    needed = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            needed |= {one.name.partition(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            needed.add(str(node.module).partition(".")[0])
    assert needed - sys.stdlib_module_names == {"numpy", "onnxruntime"}
    newer = {"removeprefix", "removesuffix", "is_relative_to", "pairwise", "comb", "cache"}
    assert not newer & {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_times_every_chain_and_net_and_what_it_writes_is_read(tmp_path: Path) -> None:
    kit = small_kit(tmp_path / "kit", nets=2)
    ran = bench(kit, "--rounds", 3, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    found = times(tmp_path)
    assert list(found["chains"]) == keys(kit)
    assert list(found["nets"]) == [net["id"] for net in manifest(kit)["nets"]]
    target = measure.load_times(tmp_path / "times.json")
    assert (target.threads, target.batch, target.times.model) == (1, 1, "a net")
    assert "onnxruntime" in target.times.runtime
    assert target.times.units
    assert len(target.times.nets) == 2
    for one in target.times.chains.values():
        assert one.time
        assert one.time.low <= one.time.speedup <= one.time.high
        assert one.time.chain > 0
    assert "nets" not in [line.get("found") for line in journal(tmp_path)]
    assert (kit / "models" / "weights.bin").stat().st_size == 4 * manifest(kit)["weights"]


def journal(cwd: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (cwd / "times.json.journal").read_text().splitlines()]


def test_a_broken_chain_is_skipped_with_its_reason(kit: Path, tmp_path: Path) -> None:
    broken, *others = keys(kit)
    file_of(kit, broken).write_bytes(b"no model")
    ran = bench(kit, "--rounds", 2, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    found = times(tmp_path)["chains"]
    assert "protobuf" in found[broken]["refused"].lower()
    assert all("refused" not in found[key] for key in others)
    assert "skipped 1: " in ran.stdout
    assert measure.load_times(tmp_path / "times.json").times.chains[broken].time is None


def test_goes_on_where_the_minutes_were_over(kit: Path, tmp_path: Path) -> None:
    ran = by_program(kit, "--minutes", 1e-6, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout
    assert "minutes are over: 1 of 3 done" in ran.stdout
    assert not times(tmp_path)["chains"]
    ran = by_program(kit, "--minutes", 5, cwd=tmp_path)
    assert "goes on: 1 of 3" in ran.stdout
    assert list(times(tmp_path)["chains"]) == keys(kit)


def test_a_killed_run_goes_on_and_repeats_nothing(kit: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import sys, time\n"
        "open(sys.argv[2], 'a').write(sys.argv[1] + '\\n')\n"
        "time.sleep(0.05)\nprint('TOOK <7> us')\n"
    )
    log = tmp_path / "log"
    command = [
        sys.executable, str(kit / "bench.py"), "--threads", "1", "--pattern", PATTERN,
        "--command", f"{sys.executable} {slow} {{model}} {log}",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        path = tmp_path / "times.json.journal"
        while not (path.exists() and path.read_text().count('"done"') >= 1):
            time.sleep(0.01)
        process.kill()
    with path.open("a") as file:
        file.write('{"done": "group 0", "sec')  # a crash within a line
    done = {line["done"] for line in journal_of(path) if "done" in line}
    log.write_text("")
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert list(times(tmp_path)["chains"]) == keys(kit)
    assert "net 0" in done
    assert manifest(kit)["nets"][0]["file"] not in log.read_text()
    assert {"group 0", "group 1"} <= {line.get("done") for line in journal(tmp_path)}


def journal_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()[:-1]]


def test_a_chain_that_ends_the_process_is_found_and_given_up(kit: Path, tmp_path: Path) -> None:
    deadly = keys(kit)[1]
    program = tmp_path / "deadly.py"
    program.write_text(
        "import os, signal, sys\n"
        f"if os.path.basename(sys.argv[1]) == {file_of(kit, deadly).name!r}:\n"
        "    os.kill(os.getppid(), signal.SIGKILL)\n"
        "print('TOOK <7> us')\n"
    )
    command = f"{sys.executable} {program} {{model}}"
    codes = []
    for _ in range(5):
        ran = bench(kit, "--command", command, "--pattern", PATTERN, cwd=tmp_path)
        codes.append(ran.returncode)
        if ran.returncode == 0:
            break
    # In its group, twice by itself, and then it is known.
    assert codes == [-signal.SIGKILL] * 3 + [0]
    found = times(tmp_path)["chains"]
    assert set(found) == {*keys(kit)}
    assert [key for key, one in found.items() if "refused" in one] == [deadly]
    assert "the process ended" in found[deadly]["refused"]


def test_ctrl_c_writes_what_there_is(kit: Path, tmp_path: Path) -> None:
    program = tmp_path / "stopping.py"
    second = manifest(kit)["groups"][1]["chains"][0]["file"]
    program.write_text(
        "import os, signal, sys, time\n"
        f"if os.path.basename(sys.argv[1]) == {second!r}:\n"
        "    os.kill(os.getppid(), signal.SIGTERM)\n    time.sleep(9)\n"
        "print('TOOK <7> us')\n"
    )
    command = f"{sys.executable} {program} {{model}}"
    ran = bench(kit, "--command", command, "--pattern", PATTERN, cwd=tmp_path)
    assert ran.returncode == 130
    assert "interrupted: run it again to go on" in ran.stdout
    assert list(times(tmp_path)["chains"]) == keys(kit)[:3]
    ran = bench(kit, "--command", command, "--pattern", PATTERN, cwd=tmp_path)
    assert ran.returncode == 130  # that was nobody's fault: it is tried again


def test_a_program_that_prints_times_in_its_own_format(kit: Path, tmp_path: Path) -> None:
    ran = by_program(kit, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    found, content = times(tmp_path), manifest(kit)
    layer = content["layers"][0]

    def us(name: str) -> int:
        return (kit / "models" / name).stat().st_size

    for chain in content["groups"][0]["chains"]:
        dense, part = (
            max(us(n) - us(layer["ends"]), 0.1 * us(n)) for n in (layer["file"], chain["file"])
        )
        one = found["chains"][chain["key"]]
        assert one["speedup"] == one["low"] == one["high"] == pytest.approx(dense / part)
        assert one["dense"] == pytest.approx(dense / layer["copies"] / us(content["reference"]))
    assert found["unit_ms"] == pytest.approx(us(content["reference"]) / 1e3)
    assert Path(found["machine"]["runtime"]).name == Path(sys.executable).name


@pytest.mark.parametrize(
    "options, code, message",
    [
        (("--pattern", "none"), 2, "--pattern must be a regular expression with a group"),
        (("--pattern", "("), 2, "--pattern must be a regular expression with a group"),
        (("--command", "perf"), 2, "--command must say where the file goes: {model}"),
        (("--minutes", 0), 2, "must be above 0"),
        (("--provider", "Abacus"), 1, "error: --provider must be one of "),
        (("--command", "/no/such {model}"), 1, "error: nothing was timed: "),
        (("--command", "echo {model}"), 1, "--pattern finds no time in what echo printed"),
        (("--command", "false {model}"), 1, "false ended with code 1: nothing was printed"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_line(
    kit: Path, tmp_path: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    ran = bench(kit, *options, cwd=tmp_path)
    assert ran.returncode == code
    assert message in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "times.json").exists()


def test_other_settings_do_not_go_on_with_a_journal(kit: Path, tmp_path: Path) -> None:
    assert by_program(kit, cwd=tmp_path).returncode == 0
    ran = by_program(kit, "--threads", 2, cwd=tmp_path)
    assert ran.returncode == 1
    assert "was begun with another threads" in ran.stderr
    assert by_program(kit, "--threads", 2, "--out", "two.json", cwd=tmp_path).returncode == 0
    assert (tmp_path / "two.json").exists()
