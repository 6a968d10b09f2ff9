"""What a row of the ONNX files says, and the table of all rows."""

from __future__ import annotations

from typing import Any

TOLERANCE = {False: 1e-4, True: 2e-2}  # of the largest output; in half precision


def verdict(row: dict[str, Any]) -> str:
    """``ok``, ``not exported``, or at which stage it failed."""
    if row.get("stage") == "export":
        return "not exported"
    if "error" in row:
        return f"failed: {row['stage']}"
    tolerance = TOLERANCE[row["kind"] == "float16"]
    worst = max(row["full_rank"], row["half_twin"], *row.get("other_sizes", {"": 0}).values())
    return "ok" if worst <= tolerance else "differs"


def table(stored: dict[str, Any]) -> str:
    """What README.md has below the mark."""
    rows, where = stored["rows"], stored["environment"]
    packages = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "onnx2pytorch")
    lines = [
        f"{where['cpu']}, one thread, Python {where['python']}, "
        + ", ".join(f"{one} {where[one]}" for one in packages) + ".", "",
        "| exporter:opset, kind of file | files | come back | differ or fail "
        "| half the MACs reached | full rank, at most | half: file and twin, at most "
        "| seconds in all |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        label = row["how"] + ("" if row["kind"] == "plain" else f", {row['kind']}")
        groups.setdefault(label, []).append(row)
    for label, some in groups.items():
        made = [row for row in some if verdict(row) != "not exported"]
        good = [row for row in made if verdict(row) == "ok"]
        reached = sum(row["kept"] <= 0.5 for row in good)
        lines.append(
            f"| {label} | {len(made)}"
            + (f" ({len(some) - len(made)} more not exported)" if len(some) > len(made) else "")
            + f" | {len(good)} | {len(made) - len(good)} | {reached} "
            f"| {max((row['full_rank'] for row in good), default=0):.0e} "
            f"| {max((row['half_twin'] for row in good), default=0):.0e} "
            f"| {sum(row.get('seconds', 0) + row.get('exported_s', 0) for row in some):.0f} |"
        )
    lines += ["", "Exceptions:", ""]
    causes: dict[str, list[str]] = {}
    for row in rows:
        if verdict(row) != "ok":
            text = row.get("error", "").replace("|", "/").partition(". Please feel")[0]
            causes.setdefault(f"{verdict(row)}: {text}", []).append(f"{row['net']} {row['how']}")
        elif row["kept"] > 0.5:
            text = "half the MACs not reached by ranks of one share, fitted to the weights"
            causes.setdefault(text, []).append(f"{row['net']} {row['how']} ({row['kept']:.2f})")
    lines += [f"- {cause}: {', '.join(where)}." for cause, where in causes.items()] or ["- none."]
    lines += [
        "", "| net | came back | convolutions replaced | full rank, at most | MACs kept, layers "
        "| half: file and twin, at most | seconds, at most |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name in dict.fromkeys(row["net"] for row in rows):
        good = [row for row in rows if row["net"] == name and verdict(row) == "ok"]
        plain = [row for row in good if row["kind"] != "float16"]
        if not plain:
            continue
        labels = ", ".join(
            row["how"] + ("" if row["kind"] == "plain" else f" {row['kind']}") for row in good
        )
        one = plain[0]
        linear = ", linear ones too" if one["replaced"] == "all layers" else ""
        lines.append(
            f"| {name} | {labels} | {one['layers']} of {one['convs']} "
            f"| {max(row['full_rank'] for row in plain):.1e} "
            f"| {one['kept']:.3f}, {one['half_layers']}{linear} "
            f"| {max(row['half_twin'] for row in plain):.0e} "
            f"| {max(row['seconds'] + row['exported_s'] for row in plain):.0f} |"
        )
    return "\n".join(lines) + "\n"
