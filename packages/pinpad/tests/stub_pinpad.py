"""Stands in for `pinpad train`, `boundaries eval` and `report` in the tests of sweeps.

It trains nothing: a training of 20 "updates" leaves one line for each in `trace`, a checkpoint on
request to end, and what a sweep reads. Names say what becomes of it: segfault, nan,
hang, leak, stuck (at step 4, until it is told to end).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

UPDATES = 20


def train(run):
    print(f"training {run.name}", flush=True)
    if "segfault" in run.name:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
    if "nan" in run.name:
        print("error: the loss is not finite at step 3\nhint: lower the learning rate")
        sys.exit(2)
    if "hang" in run.name:
        time.sleep(600)
    if "leak" in run.name:
        hoard = bytearray(200 << 20)
        time.sleep(600)
        del hoard
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    pointer = run / "checkpoints" / "latest.json"
    pointer.parent.mkdir(exist_ok=True)
    begin = json.loads(pointer.read_text())["step"] if pointer.exists() else 0
    for step in range(begin + 1, UPDATES + 1):
        with (run / "trace").open("a") as trace:
            trace.write(f"{step}\n")
        state = {"state": "running", "step": step, "total": UPDATES, "rate": 5.0}
        state |= {"heartbeat": time.time(), "pid": os.getpid(), "host": "here", "interval_s": 2.0}
        (run / "status.tmp").write_text(json.dumps(state))
        (run / "status.tmp").rename(run / "status.json")
        if stopped or step == UPDATES:
            pointer.write_text(json.dumps({"step": step}))
        if stopped:
            sys.exit(143)
        time.sleep(0.1 if "slow" in run.name else 0)
        while "stuck" in run.name and step == 4 and not stopped:
            time.sleep(0.05)


def main(command, *rest):
    if command == "train":
        train(Path(rest[rest.index("--run-dir") + 1]))
    elif command == "boundaries":
        Path(rest[1], "evaluation").mkdir(exist_ok=True)
        Path(rest[1], "evaluation", "boundary_eval.json").write_text(json.dumps({"judgements": []}))
    elif command == "report":
        for name in ("grid", "internal", "fired"):
            Path(rest[0], "evaluation", f"boundary_{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n")


main(*sys.argv[1:])
