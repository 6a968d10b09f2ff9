"""``python -m factorize``."""

from factorize.cli import main

main()
