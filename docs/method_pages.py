"""A page for each registered method, from its file's head, its chain and what was measured."""

from __future__ import annotations

import html
import json
import re
import sys
from math import prod
from pathlib import Path

from factorize import ConvSpec, methods
from factorize.methods import Method
from factorize.spec import Rank

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def layer(kind: str, kernel: tuple[int, ...], size: tuple[int, ...]) -> ConvSpec:
    """64 channels in and out, padded to keep the size."""
    padding = tuple(k // 2 for k in kernel)
    ones = (1,) * len(kernel)
    return ConvSpec("", kind, 64, 64, kernel, ones, padding, ones, input_sizes=(size,))


EXAMPLES = (
    layer("conv2d", (3, 3), (56, 56)),
    layer("conv3d", (3, 3, 3), (8, 28, 28)),
    layer("conv2d", (1, 1), (56, 56)),
)
"""The first of them that a method takes is drawn."""


def names() -> tuple[str, ...]:
    """Of all methods."""
    return methods.names()


def page(name: str) -> str:
    """The page of one method, in Markdown."""
    method = methods.get(name)
    title, fields = head_of(sys.modules[type(method).__module__].__doc__ or method.summary)
    parts = [f"# {name}", title]
    if equation := fields.pop("Equation", None):
        parts.append("\n".join(f'<p class="formula">{formula(line)}</p>' for line in equation))
    parts.append(drawing(method))
    shown = [(key, " ".join(lines)) for key, lines in fields.items()]
    parts.append("\n".join(["| | |", "|---|---|", *(f"| **{k}** | {cell(v)} |" for k, v in shown)]))
    if measured := [*accuracy(name), *speed(name)]:
        parts += ["## Measured", *measured]
    return "\n\n".join(parts) + "\n"


def linked(markdown: str) -> str:
    """The table of methods with a link to each page, and a row for those that it has not."""
    *_, last = re.findall(r"^\|.+$", markdown, re.MULTILINE)
    rows = [last]
    for name in names():
        link = f"| [`{name}`]({name}.md) |"
        if f"| `{name}` |" not in markdown:
            rows.append(f"{link} {cell(methods.get(name).summary)} | |")
        markdown = markdown.replace(f"| `{name}` |", link)
        rows[0] = rows[0].replace(f"| `{name}` |", link)
    return markdown.replace(rows[0], "\n".join(rows))


def head_of(doc: str) -> tuple[str, dict[str, list[str]]]:
    """The first sentence, and what stands under each name; an indented line continues one."""
    title, _, rest = doc.strip().partition("\n\n")
    fields: dict[str, list[str]] = {}
    for line in rest.splitlines():
        if found := re.match(r"([A-Z][\w-]*(?: [\w-]+)*) {2,}(.+)", line):
            fields[found[1]] = [found[2]]
        elif fields and line.startswith(" "):
            fields[[*fields][-1]].append(line.strip())
    return " ".join(title.split()), fields


def formula(text: str) -> str:
    """``W[o,i] = sum_r B[o,r] A[r,i]`` with indices where a reader looks for them."""
    text = re.sub(r"\bsum_(\w+)", r"∑<sub>\1</sub>", html.escape(text))
    return re.sub(r"\b([A-Z])\[([^\]]*)\]", r"<i>\1</i><sub>\2</sub>", text)


def cell(text: str) -> str:
    """As a table takes it."""
    return re.sub(r" {2,}", " &nbsp; ", text.replace("|", "\\|"))


def drawing(method: Method) -> str:
    """The chain on an example at about half of the MACs: channels as bars, stages as boxes."""
    spec = next(one for one in EXAMPLES if not method.supports(one))
    ranks = method.ladder(spec)
    variant = method.variants[0]

    def macs(rank: Rank) -> int:
        return sum(stage.macs for stage in method.stages(spec, rank, variant))

    rank = min(ranks, key=lambda one: abs(macs(one) - spec.macs / 2))
    stages = method.stages(spec, rank, variant)
    wide = max(spec.in_channels, *(stage.out_channels for stage in stages))
    step, width, middle = 150, 40 + 150 * len(stages), 70
    parts = [
        f'<svg viewBox="0 0 {width} 150" width="{1.4 * width:.0f}" role="img" '
        f'aria-label="The chain of {method.name}">'
    ]
    for index, channels in enumerate([spec.in_channels, *(s.out_channels for s in stages)]):
        x, tall = 20 + index * step, max(100 * channels / wide, 3)
        parts.append(f'<rect class="map" x="{x - 5}" y="{middle - tall / 2:.1f}" width="10" '
                     f'height="{tall:.1f}"/><text x="{x}" y="140">{channels}</text>')  # fmt: skip
    for index, stage in enumerate(stages):
        x = 20 + index * step
        upper, lower = words(stage)
        parts.append(
            f'<line x1="{x + 5}" x2="{x + 25}" y1="{middle}" y2="{middle}"/>'
            f'<line x1="{x + 125}" x2="{x + 145}" y1="{middle}" y2="{middle}"/>'
            f'<rect class="stage" x="{x + 25}" y="{middle - 22}" width="100" height="44" rx="4"/>'
            f'<text x="{x + 75}" y="{middle - (4 if lower else -4)}">{upper}</text>'
            f'<text x="{x + 75}" y="{middle + 13}">{lower}</text>'
        )
    size = " x ".join(map(str, spec.input_sizes[0]))
    kernel = " x ".join(map(str, spec.kernel))
    shown = rank[0] if len(rank) == 1 else rank
    return "".join([
        '<div class="chain">', *parts, "</svg></div>\n\n",
        f"A {kernel} layer of 64 channels at {size} has {spec.macs / 1e6:.1f} million MACs; this "
        f"chain, of rank {shown}, has {macs(rank) / 1e6:.1f} million. The bars are channels.",
    ])  # fmt: skip


def words(stage: ConvSpec) -> tuple[str, str]:
    """Kernel and groups of a stage."""
    if stage.kind == "channel_shuffle":
        return "shuffle", ""
    kernel = " x ".join(map(str, stage.kernel))
    if stage.groups == 1:
        return kernel, ""
    if stage.groups == stage.in_channels and prod(stage.kernel) > 1:
        return kernel, "depthwise"
    return kernel, f"in {stage.groups} groups"


def accuracy(name: str) -> list[str]:
    """Of ResNet-20, by the share of its MACs, where the method was searched by itself."""
    runs = json.loads((EXPERIMENTS / "auto" / "results.json").read_text())
    runs = [run for run in runs if run["net"] == "resnet20" and run["seed"] == 0]
    rows = {
        method: {run["share"]: run["score"] for run in runs if run["method"] == method}
        for method in (name, "auto")
    }
    shares = sorted(rows[name], reverse=True)
    if not shares:
        return []
    table = ["| share of the MACs | " + " | ".join(f"{s:g}" for s in shares) + " |",
             "|---" * (len(shares) + 1) + "|"]  # fmt: skip
    for method, scores in rows.items():
        told = " | ".join(f"{scores[s]:.2f}" if s in scores else "" for s in shares)
        table.append(f"| `{method}` | {told} |")
    dense = runs[0]["dense"]
    return [
        f"Top-1 of ResNet-20 on CIFAR-10 (dense: {dense:.2f} %), nothing trained, seed 0, beside "
        "the mix of methods that a search finds "
        "([experiments/auto](../../experiments/auto/README.md)):",
        "\n".join(table),
    ]


def speed(name: str) -> list[str]:
    """Of single layers in ONNX Runtime."""
    found = json.loads((EXPERIMENTS / "int8" / "speed.json").read_text())
    rows = []
    for net, times in found.items():
        for chain, one in times["chains"].items():
            if chain.split(",")[0] == name and "@" in net:
                channels, side = net.split(" @ ")
                rows.append(
                    f"| {channels} at {side} x {side} | {one['macs']:.2f} | "
                    f"{one['float32'][0]:.2f} | {one['int8'][0]:.2f} |"
                )
    if not rows:
        return []
    return [
        "Times as fast as the dense 3 x 3 layer in float32, in ONNX Runtime on two threads of an "
        "AMD EPYC ([experiments/int8](../../experiments/int8/README.md)):",
        "\n".join(["| channels | MACs left | float32 | int8 |", "|---|---|---|---|", *rows]),
    ]
