"""Tables of `benchmark_methods.py`: ``python scripts/benchmark_tables.py RESULTS.json``.

They replace all that follows the mark in the README.md beside the results.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MARK = "<!-- made by scripts/benchmark_tables.py: do not edit below -->"

Row = dict[str, Any]


def summaries(kernels: list[Row], processes: dict[str, dict[str, Row]]) -> list[Row]:
    """Per net and method: the kernels' medians times their counts, and the net's own process."""
    found = []
    for net, by_method in processes.items():
        for method, process in by_method.items():
            mine = [k for k in kernels if k["method"] == method and net in k["counts"]]
            peers = [k for k in mine if "peer" in k]
            entry: Row = {
                "net": net,
                "method": method,
                "kernels": sum(k["counts"][net] for k in mine),
                "seconds": sum(k["counts"][net] * k["seconds"] for k in mine),
                "process": process,
            }
            if peers:
                entry["peer"] = peers[0]["peer"]["name"]
                entry["peer_seconds"] = sum(k["counts"][net] * k["peer"]["seconds"] for k in peers)
                entry["ratio"] = entry["peer_seconds"] / entry["seconds"]
                entry["on_target"] = sum(k["counts"][net] for k in peers if k["target_met"])
            found.append(entry)
    return found


def tables(results: Row) -> list[tuple[str, list[str], list[list[str]]]]:
    """The results as (title, header, rows): one table of nets, one of kernels."""
    nets = []
    for s in results["nets"]:
        process, peer = s["process"], "ratio" in s
        nets.append([
            s["net"], s["method"], f"{s['seconds']:.2f}",
            f"{s['peer_seconds']:.2f}" if peer else "", f"{s['ratio']:.2f}" if peer else "",
            f"{s['on_target']}/{s['kernels']}" if peer else "", f"{process['seconds']:.2f}",
            f"{process['peak_bytes'] / 1e9:.2f}",
            f"{(process['peak_bytes'] - process['baseline_bytes']) / 1e9:.2f}",
        ])  # fmt: skip
    kernels = []
    for k in results["kernels"]:
        peer = k.get("peer", {})
        error, equal = peer.get("error"), peer.get("seconds_to_equal_error")
        kernels.append([
            k["method"], "x".join(map(str, k["shape"])), ",".join(map(str, k["rank"])),
            f"{k['macs_share']:.3f}", f"{k['seconds']:.4f}", f"{k['min']:.4f}-{k['max']:.4f}",
            f"{k['error']:.5f}", f"{peer['seconds']:.4f}" if peer else "",
            f"{k['ratio']:.2f}" if peer else "", f"{error:.5f}" if error is not None else "",
            str(peer.get("iterations", "")), f"{equal:.2f}" if equal else "",
            {True: "yes", False: "NO", None: ""}[k.get("target_met")],
        ])  # fmt: skip
    return [
        ("Nets", ["net", "method", "s", "peer s", "peer / ours", "kernels on target",
                  "s, own process", "peak GB", "above baseline GB"], nets),
        ("Kernels", ["method", "kernel", "rank", "MACs share", "s", "min-max", "error", "peer s",
                     "peer / ours", "peer error", "iterations", "peer s to our error",
                     "on target"], kernels),
    ]  # fmt: skip


def write_readme(results: Row, path: Path) -> None:
    """Put the tables after the mark of a README; what stands before it stays."""
    head = path.read_text(encoding="utf-8").partition(MARK)[0] if path.exists() else ""
    run = results["run"]
    lines = [
        MARK,
        "",
        f"{run['started']}, {run['environment']['cpu']}, {run['threads']} thread(s), torch "
        f"{run['environment']['torch']}, tensorly {run['tensorly']}, numpy {run['numpy']}, seed "
        f"{run['seed']}, niceness {run['niceness']}; load average {run['load_start'][0]:.1f} at "
        f"the start, {run['load_end'][0]:.1f} at the end; {run['minutes']:.1f} minutes.",
    ]
    for title, header, rows in tables(results):
        lines += ["", f"## {title}", "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    path.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    source = Path(sys.argv[1])
    write_readme(json.loads(source.read_text(encoding="utf-8")), source.with_name("README.md"))
