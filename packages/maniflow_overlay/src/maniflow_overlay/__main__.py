"""`python -m maniflow_overlay`, the form that torchrun takes."""

from maniflow_overlay.cli import main

main()
