"""`python -m letterbook` is the command `letterbook`."""

from .cli import main

main(prog_name="letterbook")
