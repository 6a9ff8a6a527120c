"""`python -m end2race`: the command, as `torchrun` starts it."""

from end2race.cli import main

if __name__ == "__main__":
    main()
