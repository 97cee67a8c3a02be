"""`python -m xmerge` is the command `xmerge`."""

from xmerge.cli import main

main()
