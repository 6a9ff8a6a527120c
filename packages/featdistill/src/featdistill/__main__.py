"""`python -m featdistill`, the form that torchrun takes."""

from featdistill.cli import main

main()
