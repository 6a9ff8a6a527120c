"""A training that torchrun may have started: `FOLDER [--stop STEP] [--resume] KEY=VALUE...`."""

import argparse
from pathlib import Path

import torch
from coopcyl import train as module
from coopcyl.training_run import run_training


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stop", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("settings", nargs="*")
    given = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    fit = module.fit

    def stop(step: int) -> str | None:
        return "asked for" if step == given.stop else None

    module.fit = lambda *a, **k: fit(*a, stop=stop, **k)
    run_training(None, given.settings, directory=given.folder, resume=given.resume)


if __name__ == "__main__":
    main()
