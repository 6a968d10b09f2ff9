"""Files run where they will be: in a process that has their runtime and nothing of this library.

To import torch takes seconds. So one process for each runtime imports it and waits, and each file
runs in a fork of it, which has seen no other file. Where there is no fork the files share it.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

# What is slow to import is imported before: by one export and load of nothing at all. What is run
# reads `inputs`, a list of what each call is given, and writes `outputs`, the same of what it gave.
RUNS = {
    "torch": (
        """
import io, torch
from torch.utils._pytree import tree_leaves
whole = io.BytesIO()
torch.export.save(torch.export.export(torch.nn.Identity(), (torch.zeros(1),)), whole)
whole.seek(0)
torch.export.load(whole)
""",
        """
def run(file, calls):
    model = torch.export.load(file).module()
    given = torch.load("inputs", weights_only=True)
    with torch.no_grad():
        made = [tree_leaves(model(*args, **named)) for args, named in given]
    torch.save([[v for v in one if isinstance(v, torch.Tensor)] for one in made], "outputs")
""",
    ),
    # Not onnxruntime before, which starts threads, as a fork does not take along; it is quickly
    # imported.
    "onnxruntime": (
        "import numpy",
        """
def run(file, calls):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
    given, made = numpy.load("inputs"), {}
    for call in range(calls):
        feeds = {one.name: given[f"{call}.{i}"] for i, one in enumerate(session.get_inputs())}
        for i, value in enumerate(session.run(None, feeds)):
            made[f"{call}.{i}"] = value
    with open("outputs", "wb") as out:
        numpy.savez(out, **made)
""",
    ),
}
_WAIT = """
import json, os, select, sys
sys.path += json.loads(sys.argv[1])
{before}
{run}
def attempt(folder, file, calls):
    os.chdir(folder)
    log = os.open("log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 2)
    try:
        run(file, calls)
    except BaseException as error:
        while error.__cause__ is not None:
            error = error.__cause__
        with open("error", "w", encoding="utf-8") as out:
            out.write(str(error) or type(error).__name__)

answer = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
def asked():
    if hasattr(os, "fork") and not select.select([sys.stdin], [], [], float(sys.argv[2]))[0]:
        return ""
    return sys.stdin.readline()

for line in iter(asked, ""):
    status = 0
    child = os.fork() if hasattr(os, "fork") else 0
    if child == 0:
        attempt(*json.loads(line))
        if hasattr(os, "fork"):
            os._exit(0)
    else:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, file=answer, flush=True)
"""

PATIENCE = 60.0  # seconds that a process waits for the next file: torch alone takes 300 MB

_waiting: dict[tuple[int, str], subprocess.Popen[str]] = {}  # by this process and the runtime


def run_alone(runtime: str, folder: Path, file: Path, calls: int) -> int:
    """Run a file on the ``inputs`` in a folder; there are ``outputs`` then, or ``error``.

    ``log`` is what it wrote to the console.

    Parameters
    ----------
    runtime
        ``"torch"`` for ``.pt2``, ``"onnxruntime"``.
    calls
        How many inputs there are.

    Returns
    -------
    int
        The exit code; where a signal ended it, the negative of its number.
    """
    key, task = (os.getpid(), runtime), json.dumps([str(folder), str(file.absolute()), calls])
    code = _answer(key, task)
    return (_answer(key, task) or 0) if code is None else code


def expect(*runtimes: str) -> None:
    """Have the processes of runtimes started, which takes a while, before they are asked."""
    for runtime in runtimes:
        _process((os.getpid(), runtime))


def _process(key: tuple[int, str]) -> subprocess.Popen[str]:
    if key in _waiting and _waiting[key].poll() is not None:
        _end(_waiting.pop(key))
    if key not in _waiting:
        _waiting[key] = _started(key[1])
    return _waiting[key]


def _answer(key: tuple[int, str], task: str) -> int | None:
    """The exit code of one task; None where the process was no longer waiting for it."""
    process: Any = _process(key)
    try:
        process.stdin.write(f"{task}\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    except BaseException:  # Ctrl-C: its answer must not be taken for that of the next file
        _end(_waiting.pop(key))
        raise
    if answer:
        return int(answer)
    code = process.wait()
    _end(_waiting.pop(key))
    return code or None


def _started(runtime: str) -> subprocess.Popen[str]:
    module = importlib.util.find_spec(runtime)
    # Python's -I takes some folders away; those of the library come last, where they matter.
    folders = [str(Path(module.origin).parents[1])] if module and module.origin else []
    before, run = RUNS[runtime]
    script = _WAIT.format(before=before, run=run)
    return subprocess.Popen(
        [sys.executable, "-I", "-W", "ignore", "-c", script, json.dumps(folders), str(PATIENCE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=os.sep,
        start_new_session=True,  # Ctrl-C is for the process that waits for it
    )


@atexit.register
def _end_all() -> None:
    """What this process started; a fork of it has the same entries, which are not its own."""
    for (owner, _), process in _waiting.items():
        if owner == os.getpid():
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    if hasattr(os, "killpg"):  # the fork that runs a file too
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # a task that nobody took
                pipe.close()
