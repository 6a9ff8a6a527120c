"""`python -m pinpad`, the form in which a sweep starts its jobs."""

from pinpad.cli import main

main()
