"""`python -m coopcyl`, which torchrun needs."""

from coopcyl.cli import main

if __name__ == "__main__":
    main()
