"""Write the tables of README.md and the charts of curve.html from results.json.

python experiments/auto/tables.py
"""

from __future__ import annotations

import html
import io
import json
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

HERE = Path(__file__).parent
MARK = "<!-- made by tables.py: do not edit below -->\n"
Row = dict[str, Any]


def main() -> None:
    """Replace all below the mark, and the page of charts."""
    rows: list[Row] = json.loads((HERE / "results.json").read_text())
    parts = [_machine(rows)]
    parts += [_table(net, rows) for net in dict.fromkeys(row["net"] for row in rows)]
    readme = HERE / "README.md"
    head = readme.read_text().partition(MARK)[0]
    readme.write_text(head + MARK + "\n" + "\n".join(parts))
    (HERE / "curve.html").write_text(_page(rows))


def _machine(rows: list[Row]) -> str:
    one = rows[0]["environment"]
    nets: dict[str, set[str]] = {}
    for row in rows:
        nets.setdefault(row["environment"]["cpu"], set()).add(row["net"])
    where = "; ".join(f"{cpu} ({', '.join(sorted(on))})" for cpu, on in nets.items())
    return (
        f"{where}; {one['cores']} cores, {one['os']}, Python {one['python']}, torch "
        f"{one['torch']}; {sorted({row['threads'] for row in rows})} thread(s), other runs "
        f"beside it. {len(rows)} runs.\n"
    )


def _table(net: str, rows: list[Row]) -> str:
    """Methods down, shares across; all seeds: mean, and the range where there are several."""
    rows = [row for row in rows if row["net"] == net]
    shares = sorted({row["share"] for row in rows}, reverse=True)
    lines = [["", *(f"{share:g}" for share in shares)]]
    lines.append(["---"] * len(lines[0]))
    best = {
        share: max(_score(rows, name, share) for name in _names(rows) if name != "auto")
        for share in shares
    }
    for name in _names(rows):
        cells = [name]
        for share in shares:
            scores = [r["score"] for r in rows if r["method"] == name and r["share"] == share]
            text = f"{mean(scores):.2f}" if scores else ""
            if len(scores) > 1:
                text += f" ({min(scores):.2f}..{max(scores):.2f})"
            cells.append(text)
        lines.append(cells)
    known = {row["share"] for row in rows if row["method"] == "auto"}
    gaps = [
        f"{_score(rows, 'auto', share) - best[share]:+.2f}" if share in known else ""
        for share in shares
    ]
    lines.append(["auto less the best other", *gaps])
    seeds = sorted({row["seed"] for row in rows})
    dense, unit = rows[0]["dense"], rows[0]["unit"]
    head = f"## {net}: {unit} at shares of the MACs, dense {dense:.2f}, seeds {seeds}\n\n"
    mixes = [
        f"- seed {row['seed']}, {row['share']:g}: "
        + ", ".join(f"{name} {count}" for name, count in row["methods"].items())
        + f"; taken: {next(one['tried'] for one in row['rounds'] if one['taken'])}; "
        f"{row['seconds']:.0f} s"
        for row in rows
        if row["method"] == "auto"
    ]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{head}{table}\n\nWhat `auto` took (layers by method):\n\n" + "\n".join(mixes) + "\n"


def _names(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def _score(rows: list[Row], name: str, share: float) -> float:
    scores = [r["score"] for r in rows if r["method"] == name and r["share"] == share]
    return mean(scores) if scores else float("-inf")


def _page(rows: list[Row]) -> str:
    charts = []
    for net in dict.fromkeys(row["net"] for row in rows):
        own = [row for row in rows if row["net"] == net]
        figure = Figure((8, 5))
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        shares = sorted({row["share"] for row in own})
        for name in _names(own):
            known = [share for share in shares if _score(own, name, share) > float("-inf")]
            axes.plot(
                known, [_score(own, name, share) for share in known], marker="o", label=name,
                linewidth=3 if name == "auto" else 1.2, zorder=3 if name == "auto" else 2,
                linestyle="--" if "uniform" in name else "-",
            )  # fmt: skip
        axes.axhline(own[0]["dense"], color="black", linewidth=1, label="dense")
        axes.set_xlabel("share of the MACs that is left")
        axes.set_ylabel(own[0]["unit"])
        top = own[0]["dense"]
        auto = [row["score"] for row in own if row["method"] == "auto"]
        axes.set_ylim(min(auto) - 2 * (top - min(auto)), top + 0.3 * (top - min(auto)))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        text = io.StringIO()
        figure.savefig(text, format="svg")
        charts.append(
            f"<h2>{html.escape(net)}</h2>" + text.getvalue().partition("<svg")[2].join(("<svg", ""))
        )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Accuracy at shares of the "
        "MACs</title><meta name='viewport' content='width=device-width'><style>body{font-family:"
        "system-ui;max-width:60rem;margin:1rem auto}svg{max-width:100%;height:auto}</style>"
        "<h1>Accuracy at shares of the MACs, nothing trained</h1>" + "".join(charts) + "</html>\n"
    )


if __name__ == "__main__":
    main()
