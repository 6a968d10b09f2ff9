"""What others named must not reach the terminal as an order."""

import io
from collections.abc import Callable

from conftest import Ran
from rich.table import Table
from rich.text import Text

from factorize.report import Console


def test_escape_codes_are_shown_and_not_obeyed() -> None:
    file = io.StringIO()
    console = Console(file=file, width=60, force_terminal=False)
    table = Table("layer\x1b[2J")
    table.add_row(Text("conv\x1b]0;owned\x07\u202e\udcff"))
    console.print(table)
    console.print("plain, ü and \x9b31m", soft_wrap=True, style="bold")
    assert all(line.isprintable() for line in file.getvalue().splitlines())
    assert "layer?[2J" in file.getvalue()
    assert "conv?]0;owned" in file.getvalue()
    assert "plain, ü and ?31m" in file.getvalue()


def test_styles_are_still_shown() -> None:
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system="standard").print("a\x1bb", style="red")
    assert file.getvalue() == "\x1b[31ma?b\x1b[0m\n"


def test_a_message_of_any_length_is_one_to_read(command: Callable[..., Ran]) -> None:
    ran = command("torchvision:resnet18", "--rank", "9" * 5000 + "x")
    assert ran.code == 2
    assert len(ran.err) < 1000
    assert ran.err.startswith("error: --rank must be")
