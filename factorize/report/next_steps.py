"""What to do next: by what the run lacked, each with the command that does it."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from factorize.report import words
from factorize.report.next_step import NextStep
from factorize.report.record import LayerReport, Report

REAL = "real images"  # what `run` calls them in the settings
WIDE = 1.5  # held-out error over fitted error from which on more images would help
FAR = 1.5  # error of a layer over the median from which on it is one of those that cost most
NAMED = 3  # layers
_RULES = ("--rank", "--energy", "--lossless", "--plan", "--allow-costlier")
_BUDGETS = ("--speedup", "--macs", "--params", "--max-drop", "--sweep", "--pick", "--sensitivity")
_OF_TARGET = (
    "--also", "--times", "--dtype", "--compile", "--provider-option", "--openvino-xml", "--int8",
)  # fmt: skip


def next_steps(report: Report) -> tuple[NextStep, ...]:
    """What promises most, first; empty where nothing was lacking."""
    return tuple(_unfinished(report) or _steps(report))


def _unfinished(report: Report) -> list[NextStep]:
    """What ends a run that was interrupted."""
    if not words.was_interrupted(report):
        return []
    if report.finetuning:
        epochs = (report.settings.get("finetune") or {}).get("epochs", 1)
        return [NextStep(
            "Go on with it",
            "The run was interrupted. What it has done of the fine-tuning is in its folder.",
            (("--resume", ""),), f"finetune=factorize.FinetuneConfig({epochs}, resume=True)",
        )]  # fmt: skip
    return [NextStep(
        "Do it to the end", "The run was interrupted. Times and fits that it has are not made "
        "again.", (("--force", ""),), "force=True",
    )]  # fmt: skip


def _steps(report: Report) -> Iterator[NextStep]:
    settings = report.settings
    lossless = settings.get("rank") == "lossless"
    real = _has_real_images(report)
    if not real and not lossless:
        yield NextStep(
            "Give it real images",
            "The chains were fitted without a real image, so nothing is known of the accuracy. A "
            "few hundred images of the kind that the net is for, without labels, keep more of it.",
            (("--data", "photos/"),), 'data="photos/"', "real-images",
        )  # fmt: skip
    yield from _faster(report)
    if real and not lossless:
        yield from _more_accurate(report)
    worse = words.slower_layers(report)[:NAMED]
    if worse:
        yield _without(
            worse, "Leave alone the layers that became slower",
            "Their chains take longer than the convolutions did, on the machine that measured.",
        )  # fmt: skip
    else:
        yield from _costly(report)
    if others := _other_targets(report):
        yield NextStep(
            "Choose for the runtime that will run it",
            "A chain that is fast on one runtime may be slow on another. Where it is to run on "
            f"{' or '.join(others)}, let that one choose.",
            (("--target", others[0]),), f'target="{others[0]}"', others[0], unless=_OF_TARGET,
        )  # fmt: skip
    if real and not lossless and _may_be_int8(report):
        yield NextStep(
            "Compute in integers",
            "On a processor with fast arithmetic for short integers this adds to the speed; the "
            "report then has int8 without factorization beside it, to compare.",
            (("--int8", ""),), "int8=True", "int8", unless=("--onnx-float16", "--opset"),
        )  # fmt: skip


def _faster(report: Report) -> Iterator[NextStep]:
    judged, search = words.verdict(report), report.search
    wish = words.ASK.split()
    speed = report.measured
    if speed and speed.taken_from and not speed.runs and search and "speedup" in search.budget:
        wanted = search.budget["speedup"]
        yield NextStep(
            "Let the device time the best nets",
            "The speedup is added up from layers, and a net is not the sum of its layers. Time "
            "this kit there too, and give both files by --times.",
            (), f'out="kit2", speedup={wanted:g}, times=factorize.load_times("times.json")',
            "kit2", kit=True,
        )  # fmt: skip
    if judged and judged[0].startswith("NOT MEASURABLE"):
        yield NextStep(
            "Measure again", "The machine was too busy to tell. Run the same once it is quiet; "
            "times of layers are measured anew.", (("--refresh", ""),), "refresh=True", "again",
        )  # fmt: skip
    elif judged and not judged[1] and not (search and "speedup" in search.budget):
        yield NextStep(
            "Ask for measured speed",
            "The net has fewer MACs and is no faster. With a budget of time only chains are taken "
            "that are measured faster than their layer.",
            ((wish[0], wish[1]),), f"budget=factorize.Budget(speedup={wish[1]})", "faster",
            (*_RULES, *_BUDGETS),
        )  # fmt: skip
    elif not report.curve and search is not None:
        title, why = (
            ("Choose among several speedups",
             "One budget gives one net. A sweep gives the curve of accuracy against time.")
            if search.reached else
            ("See what can be had",
             "The budget was not reached. A sweep shows which speedups this net allows here, and "
             "what each costs.")
        )  # fmt: skip
        yield NextStep(
            title, why, (("--sweep", "auto"),), 'search=factorize.SearchConfig(sweep="auto")',
            "sweep", (*_RULES, *_BUDGETS, "--stages"),
        )  # fmt: skip


def _more_accurate(report: Report) -> Iterator[NextStep]:
    tuned = report.finetuning
    if tuned is None and words.has_lost(report):
        yield NextStep(
            "Fine-tune it",
            "Distillation from the original wins back most of what the chains lost; labels are "
            "used where there are any.",
            (("--finetune", "2"),), "finetune=2", "finetuned",
        )  # fmt: skip
    elif tuned and words.has_lost(report) and _was_learning(report):
        epochs = str(max(2, round(2 * tuned["epochs_done"])))
        yield NextStep(
            "Fine-tune it for longer",
            "Tuning won back some of what was lost, and its last epoch was the best one.",
            (("--finetune", epochs),), f"finetune={epochs}", "finetuned",
        )  # fmt: skip
    pairs = [(one.error, one.held_out_error) for one in report.layers if one.method]
    ratios = [held / fit for fit, held in pairs if fit and held is not None]
    if ratios and median(ratios) > WIDE:
        images = 4 * int(report.settings.get("fit", {}).get("images", 1000))
        yield NextStep(
            "Fit to more images",
            "Errors are far higher on images that were not fitted to: there were too few.",
            (("--calibration-images", str(images)),),
            f"fit=factorize.FitConfig(images={images})", "more-images", unless=("--calibration",),
        )  # fmt: skip


def _was_learning(report: Report) -> bool:
    """Whether the last epoch was the best, and what is shown of it better than before."""
    tuned = report.finetuning or {}
    if not tuned.get("best_epoch", 0) >= tuned.get("epochs_done", 0) > 0:
        return False
    steps = list(report.quality)
    after = next((one for one in reversed(steps) if one.startswith("finetuned")), steps[0])
    before = steps[max(steps.index(after) - 1, 0)]
    return words.is_worse(report, report.quality[before], report.quality[after])


def _other_targets(report: Report) -> list[str]:
    """Runtimes that are here and were not asked, where time decided what was chosen."""
    timed = report.search is not None and "speedup" in report.search.budget
    return report.settings.get("other_targets") or [] if timed else []


def _may_be_int8(report: Report) -> bool:
    """Whether all targets compute in integers too, and do not yet."""
    speed = report.measured
    in_float = speed is not None and speed.dtype == "float32" and not report.int8
    return in_float and bool(report.settings.get("int8_possible"))


def _costly(report: Report) -> Iterator[NextStep]:
    """The layers whose output differs most, where some stand out."""
    errors = {one.name: one.held_out_error or one.error or 0.0 for one in report.layers
              if one.method and one.name}  # fmt: skip
    if len(errors) < 2 * NAMED:
        return
    usual = median(errors.values())
    worst = sorted((one for one in report.layers if errors.get(one.name, 0.0) > FAR * usual),
                   key=lambda one: -errors[one.name])[:NAMED]  # fmt: skip
    if worst:
        yield _without(worst, "Leave alone the layers that cost most",
                       "Their outputs differ most from the original's.")  # fmt: skip


def _without(layers: tuple[LayerReport, ...] | list[LayerReport], title: str, why: str) -> NextStep:
    names = [one.name for one in layers]
    return NextStep(title, why, tuple(("--exclude", _as_glob(name)) for name in names),
                    f"exclude={[_as_glob(name) for name in names]!r}", "without",
                    unless=("--plan",))  # fmt: skip


def _as_glob(name: str) -> str:
    """A pattern that matches this name alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _has_real_images(report: Report) -> bool:
    """Whether any were there; reports of older versions say it in words alone."""
    if "data" in report.settings:
        return report.settings["data"] == REAL
    return not any(words_ in report.quality_of for words_ in ("random input", "made-up images"))
