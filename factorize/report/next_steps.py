"""What to do next: by what the run lacked, each with the command that does it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from factorize.report import words
from factorize.report.record import LayerReport, Report

REAL = "real images"  # what `run` calls them in the settings
WIDE = 1.5  # held-out error over fitted error from which on more images would help
FAR = 1.5  # error of a layer over the median from which on it is one of those that cost most
NAMED = 3  # layers
_RULES = ("--rank", "--energy", "--lossless", "--plan", "--allow-costlier")
_BUDGETS = ("--speedup", "--macs", "--params", "--max-drop", "--sweep", "--pick", "--sensitivity")
_FLAGS = ("--lossless", "--allow-costlier", "--resume", "--force", "--dry-run", "--int8",
          "--reconstruct")  # fmt: skip


@dataclass(frozen=True)
class NextStep:
    """One thing to try.

    Attributes
    ----------
    options
        To add to the command, or to set in it.
    without
        Options that these replace.
    python
        The same as keywords of `factorize.compress`.
    """

    title: str
    why: str
    options: tuple[tuple[str, str], ...]
    python: str
    without: tuple[str, ...] = ()

    def command(self, command: str) -> str:
        """The command line of a run with this step taken; its files go to a folder of their own."""
        words_ = shlex.split(command)
        repeatable = {"--exclude", "--include"}
        taken = {name for name, _ in self.options} - repeatable
        out = _value(words_, "--out") or "factorized"
        kept = _left_out(words_, {*taken, *self.without, "--out", "--force", "--resume"})
        added = [one for name, value in self.options for one in (name, value) if one]
        return shlex.join([*kept, *added, "--out", f"{out.rstrip('/')}-next"])


def next_steps(report: Report) -> tuple[NextStep, ...]:
    """What promises most, first; empty where nothing was lacking."""
    return tuple(_steps(report))


def _steps(report: Report) -> Iterator[NextStep]:
    settings = report.settings
    lossless = settings.get("rank") == "lossless"
    real = _has_real_images(report)
    if not real and not lossless:
        yield NextStep(
            "Give it real images",
            "The chains were fitted without a real image, so nothing is known of the accuracy. A "
            "few hundred images of the kind that the net is for, without labels, keep more of it.",
            (("--data", "photos/"),), 'data="photos/"',
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
    speed = report.measured  # torch has no integers
    if real and not (report.int8 or lossless) and speed and not speed.runtime.startswith("torch"):
        yield NextStep(
            "Compute in integers",
            "On a processor with fast arithmetic for short integers this adds to the speed; the "
            "report then has int8 without factorization beside it, to compare.",
            (("--int8", ""),), "int8=True",
        )  # fmt: skip


def _faster(report: Report) -> Iterator[NextStep]:
    judged, search = words.verdict(report), report.search
    wish = words.ASK.split()
    if judged and judged[0].startswith("NOT MEASURABLE"):
        yield NextStep("Measure again", "The machine was too busy to tell. Run the same once it is "
                       "quiet; times of layers are measured anew.", (("--refresh", ""),),
                       "refresh=True")  # fmt: skip
    elif judged and not judged[1] and not (search and "speedup" in search.budget):
        yield NextStep(
            "Ask for measured speed",
            "The net has fewer MACs and is no faster. With a budget of time only chains are taken "
            "that are measured faster than their layer.",
            ((wish[0], wish[1]),), f"budget=factorize.Budget(speedup={wish[1]})",
            (*_RULES, *_BUDGETS),
        )  # fmt: skip
    elif not report.curve and search is not None and not search.reached:
        yield NextStep(
            "See what can be had",
            "The budget was not reached. A sweep shows which speedups this net allows here, and "
            "what each costs.",
            (("--sweep", "auto"),), 'search=factorize.SearchConfig(sweep="auto")',
            (*_RULES, *_BUDGETS),
        )  # fmt: skip
    elif not report.curve and search is not None:
        yield NextStep(
            "Choose among several targets",
            "One budget gives one net. A sweep gives the curve of accuracy against time.",
            (("--sweep", "auto"),), 'search=factorize.SearchConfig(sweep="auto")',
            (*_RULES, *_BUDGETS),
        )  # fmt: skip


def _more_accurate(report: Report) -> Iterator[NextStep]:
    tuned = report.finetuning
    if tuned is None:
        yield NextStep(
            "Fine-tune it",
            "Distillation from the original wins back most of what the chains lost; labels are "
            "used where there are any.",
            (("--finetune", "2"),), "finetune=2",
        )  # fmt: skip
    elif tuned.get("best_epoch", 0) >= (done := tuned.get("epochs_done", 0)) > 0:
        epochs = str(max(2, round(2 * done)))
        yield NextStep(
            "Fine-tune it for longer",
            "The last epoch was the best one: it was still learning.",
            (("--finetune", epochs),), f"finetune={epochs}",
        )  # fmt: skip
    pairs = [(one.error, one.held_out_error) for one in report.layers if one.method]
    ratios = [held / fit for fit, held in pairs if fit and held is not None]
    if ratios and median(ratios) > WIDE:
        images = 4 * int(report.settings.get("fit", {}).get("images", 1000))
        yield NextStep(
            "Fit to more images",
            "Errors are far higher on images that were not fitted to: there were too few.",
            (("--calibration-images", str(images)),),
            f"fit=factorize.FitConfig(images={images})",
        )  # fmt: skip


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
                    f"exclude={[_as_glob(name) for name in names]!r}")  # fmt: skip


def _as_glob(name: str) -> str:
    """A pattern that matches this name alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _has_real_images(report: Report) -> bool:
    """Whether any were there; reports of older versions say it in words alone."""
    if "data" in report.settings:
        return report.settings["data"] == REAL
    return not any(words_ in report.quality_of for words_ in ("random input", "made-up images"))


def _value(words_: list[str], option: str) -> str | None:
    for index, word in enumerate(words_):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and index + 1 < len(words_):
            return words_[index + 1]
    return None


def _left_out(words_: list[str], options: set[str]) -> list[str]:
    """The command without some options and their values."""
    kept, skip = [], False
    for word in words_:
        name, joined, _ = word.partition("=")
        if skip:
            skip = False
        elif name in options:
            skip = not joined and name not in _FLAGS
        else:
            kept.append(word)
    return kept
