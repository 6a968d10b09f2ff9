"""The border of the Python API: what is wrong there is said in Python's words.

Messages name the options of the command line, which calls the same functions. Whoever called from
Python reads ``rank=`` in place of ``--rank``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

from factorize.errors import FactorizeError

P = ParamSpec("P")
T = TypeVar("T")

_OPTION = re.compile(r"(?<![\w-])--([a-z]+\d*(?:-[a-z]+\d*)*)(?: (\d+(?:\.\d+)?))?")
_WORDS = {
    **{name: f"Budget({name.replace('-', '_')}=)" for name in ("speedup", "macs", "params")},
    "max-drop": "Budget(max_drop=)",
    **{name: f"SearchConfig({name}=)" for name in ("sweep", "pick", "sensitivity")},
    **{name: f"Target({name}=)" for name in ("batch", "dtype")},
    "target": "target=", "compile": "Target(compiled=True)",
    "provider-option": "Target(options=)",
    "fit": "FitConfig(how=)", "calibration-images": "FitConfig(images=)",
    "calibration-memory": "FitConfig(memory=)", "calibration": "FitConfig(calibration=)",
    "save-calibration": "FitConfig(save_calibration=)",
    "reconstruct": "FitConfig(reconstruct=True)", "lr": "FinetuneConfig(lr=)",
    "recipe": "FinetuneConfig", "resume": "FinetuneConfig(resume=True)",
    "tensorboard": "FinetuneConfig(tensorboard=)", "finetune": "finetune=",
    "tracker": "FinetuneConfig(tracker=)", "input-shape": "example_input=",
    "plugin": "import",
    "lossless": 'rank="lossless"', "dry-run": "make_plan", "force": "force=True",
    "refresh": "refresh=True", "allow-costlier": "allow_costlier=True", "plan": "plan=",
    "opset": "OnnxConfig(opset=)", "input-names": "OnnxConfig(input_names=)",
    "output-names": "OnnxConfig(output_names=)", "onnx-float16": "OnnxConfig(half=True)",
    "int8": "int8=True", "times": "target=load_times()",
}  # fmt: skip


def in_python(function: Callable[P, T]) -> Callable[P, T]:
    """A public function whose errors speak Python, and which knows its keywords.

    Raises
    ------
    TypeError
        A keyword is none of the function's; the message has the nearest one.
    """
    known = list(signature(function).parameters)

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs:
            if name not in known:
                near = get_close_matches(name, known, 1)
                mean = f" Did you mean {near[0]}=?" if near else f" It takes {', '.join(known)}."
                raise TypeError(f"{function.__name__}: there is no keyword {name}=.{mean}")
        try:
            return function(*args, **kwargs)
        except FactorizeError as error:
            error.args = tuple(in_words(str(one)) for one in error.args)
            raise

    return called


def in_words(message: str) -> str:
    """A message with the keywords and classes of Python in place of options."""

    def word(found: re.Match[str]) -> str:
        keyword = _WORDS.get(found[1], f"{found[1].replace('-', '_')}=")
        if not found[2]:
            return keyword
        return keyword.replace("=", f"={found[2]}") if "=" in keyword else f"{keyword} {found[2]}"

    return _OPTION.sub(word, message)
