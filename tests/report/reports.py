"""What the tests of reports share: a made-up report, as a terminal and a page show it."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rich.console import Console

from factorize.report import CurvePoint, LayerReport, Report, SearchReport, show, write_html
from factorize.types import Latency, Speedup

VOID = {"meta", "link", "br"}  # elements of HTML that have no end


def speed(ratio: float = 2.134, p10: float = 2.05, p90: float = 2.2, **other: Any) -> Speedup:
    values: dict[str, Any] = {
        "runtime": "onnxruntime", "device": "cpu", "dtype": "float32", "batch": 1, "threads": 2,
        "runs": 64, "original": Latency(11.31, 10.9, 12.02), "compressed": Latency(5.299, 5.1, 5.6),
    }  # fmt: skip
    return Speedup(**(values | other), speedup=ratio, speedup_p10=p10, speedup_p90=p90)


def layer(name: str, method: str | None = "spatial_svd", **other: Any) -> LayerReport:
    values: dict[str, Any] = {
        "kind": "conv2d", "weight_shape": (64, 64, 3, 3), "rank": (48,) if method else (),
        "variant": "", "macs_original": 115_605_504, "macs": 57_802_752 if method else 115_605_504,
        "params_original": 36_864, "params": 18_432 if method else 36_864,
        "error": 0.0831 if method else None, "held_out_error": 0.0917 if method else None,
        "skip_reason": None if method else "no chain is faster: cp 16 takes 1.21 ms",
        "notes": (), "ms_original": 1.103, "ms": 0.517 if method else 1.214,
        "speedup_low": 2.01, "speedup_high": 2.24,
    }  # fmt: skip
    return LayerReport(name, method=method, **(values | other))


def point(label: str, kind: str, ratio: float, top1: float, **other: Any) -> CurvePoint:
    values: dict[str, Any] = {
        "wanted": ratio - 0.04 if kind == "search" else None, "predicted_speedup": ratio + 0.06,
        "macs": 1 / ratio, "params": 0.9 / ratio, "picked": False,
    }  # fmt: skip
    values |= {"speedup_p10": ratio - 0.07, "speedup_p90": ratio + 0.09}
    return CurvePoint(label, kind, speedup=ratio, quality={"top1": top1}, **(values | other))


def report(**other: Any) -> Report:
    rows = [layer("conv1", None, skip_reason="first layer (3 channels in)", ms=None)]
    rows += [
        layer(f"layer{1 + i // 4}.{i // 2 % 2}.conv{1 + i % 2}", ms_original=1.103 + 0.1 * i,
              method=("spatial_svd", "tucker2", "cp", None)[i % 4])
        for i in range(16)
    ]  # fmt: skip
    curve = (
        point("dense", "dense", 1.0, 91.73, predicted_speedup=None),
        *(point(f"search {r:g}x", "search", r + 0.04, q, picked=r == 2)
          for r, q in ((1.5, 91.52), (2, 91.02), (3, 89.4), (4, 86.1))),
        *(point(f"spatial_svd {s:g}", "uniform", r, q)
          for s, r, q in ((0.5, 1.42, 90.6), (0.3, 1.93, 87.9), (0.2, 2.51, 83.2))),
    )  # fmt: skip
    search = SearchReport(
        {"speedup": 2.0}, {"runtime": "onnxruntime", "threads": 2, "batch": 1, "dtype": "float32",
                           "compiled": False, "device": "Xeon"},
        {"original": 11.02, "compressed": 5.488}, speed(), 17, 811, 12,
        ({"tried": "relative error", "predicted": {"loss": 0.0421, "ms": 5.61},
          "measured": {"loss": 0.0518, "ms": 5.72}},
         {"tried": "corrected", "predicted": {"loss": 0.0467, "ms": 5.488},
          "measured": {"loss": 0.0472, "ms": 5.299}}),
        True,
    )  # fmt: skip
    values: dict[str, Any] = {
        "model": "resnet18",
        "settings": {"method": "auto", "fit": {"images": 1000, "memory": 2e9}, "seed": 0},
        "environment": {"torch": "2.15.0+cpu", "cpu": "Xeon", "cores": 2, "cuda_device": None},
        "layers": tuple(rows), "params": {"original": 11_689_512, "compressed": 6_102_345},
        "macs": {"original": 1_814_073_344, "compressed": 853_217_280},
        "bytes": {"onnx": {"original": 46_830_571, "compressed": 24_519_002}},
        "quality": {"original": {"top1": 91.73, "agreement": 100.0, "kl": 0.0},
                    "rewritten": {"top1": 89.44, "agreement": 95.1, "kl": 0.0716},
                    "finetuned": {"top1": 91.02, "agreement": 97.3, "kl": 0.0213}},
        "quality_of": "10000 test images", "speed": (speed(),), "recalibration": None,
        "finetuning": None, "onnx": {"opset": 18, "nodes": 61}, "seconds": {"plan": 41.7},
        "failures": (), "notes": ("batch-norm recalibration: it helped",),
        "search": search, "curve": curve,
    }  # fmt: skip
    return Report(**(values | other))


def shown(one: Report, width: int = 160) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    show(one, console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


class Page(HTMLParser):
    """What a test wants of a page; fails where elements are not nested as they should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.cells: list[str] = []  # text in table cells and in lines, outside <data>
        self.values: list[tuple[float, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag == "data":
            self.values.append((float(dict(attrs)["value"] or ""), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] == "data":
            self.values[-1] = (self.values[-1][0], data)
        elif "script" not in self.open and {"td", "th", "p", "dd", "small"} & set(self.open):
            self.cells.append(data)


def page(one: Report, tmp_path: Path, command: str | None = None) -> tuple[str, Page]:
    write_html(one, tmp_path / "report.html", command)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    return text, Page(text)
