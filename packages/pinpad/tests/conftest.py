import os
import sys
from collections import deque
from pathlib import Path

import numpy as np
import pytest

MAPS = {
    "three": ["1111......3333"] * 4 + ["." * 14] * 4 + [".....2222....."] * 4,
    "four": ["1111......4444"] * 4 + ["." * 14] * 4 + ["3333......2222"] * 4,
    "five": [
        "..........4444",
        "111.......4444",
        "111.......4444",
        "111...........",
        "111........555",
        "...........555",
        "...........555",
        "333........555",
        "333...........",
        "333.......2222",
        "333.......2222",
        "..........2222",
    ],
    "six": ["111........555"] * 3
    + ["." * 14]
    + ["33..........66"] * 4
    + ["." * 14]
    + ["444........222"] * 3,
    "seven": ["111........444"] * 2
    + ["11..........44", "." * 14]
    + ["33..........55"] * 4
    + ["." * 14, "66..........22"]
    + ["666..7777..222"] * 2,
    "eight": ["111..8888..444"] * 2
    + ["11..........44", "." * 14]
    + ["33..........55"] * 4
    + ["." * 14, "66..........22"]
    + ["666..7777..222"] * 2,
}
COLORS = {
    "1": (255, 0, 0),
    "2": (0, 255, 0),
    "3": (0, 0, 255),
    "4": (255, 255, 0),
    "5": (255, 0, 255),
    "6": (0, 255, 255),
    "7": (128, 0, 128),
    "8": (0, 128, 128),
}


EVENTS = (
    "pad_enter",
    "pad_leave",
    "sequence_append",
    "progress",
    "wrong_pad",
    "reward",
    "respawn",
    "wall_bump",
)


class SlowPinPad:
    """PinPad written down from its rules, with a character map, a deque and a loop over cells."""

    def __init__(self, layout, length):
        self.map = ["#" * 16, *("#" + row + "#" for row in MAPS[layout]), "#" * 16]
        self.spawns = [(x, y) for x in range(16) for y in range(14) if self.tile(x, y) != "#"]
        self.target = sorted({tile for row in self.map for tile in row} - {"#", "."})
        self.length = length
        self.history = deque(maxlen=len(self.target))

    def tile(self, x, y):
        return self.map[y][x]

    def reset(self, spawn):
        self.player = self.spawns[spawn]
        self.history.clear()
        self.steps = self.countdown = 0

    def matched(self):
        """The longest beginning of the target that the history ends with, by trying all."""
        history = list(self.history)
        return max(
            k for k in range(len(history) + 1) if history[len(history) - k :] == self.target[:k]
        )

    def step(self, action, draw):
        events = dict.fromkeys(EVENTS, False)
        if self.countdown > 0:
            self.countdown -= 1
            if self.countdown == 0:
                self.player = self.spawns[draw()]
                self.history.clear()
                events["respawn"] = True
        dx, dy = {0: (0, 0), 1: (0, 1), 2: (0, -1), 3: (1, 0), 4: (-1, 0)}[action]
        x, y = self.player[0] + dx, self.player[1] + dy
        was, before = self.tile(*self.player), self.matched()
        if self.tile(x, y) == "#":
            events["wall_bump"] = True
        else:
            self.player = (x, y)
        now = self.tile(*self.player)
        if self.tile(x, y) in self.target and (
            not self.history or self.history[-1] != self.tile(x, y)
        ):
            self.history.append(self.tile(x, y))
            events["sequence_append"] = True
            events["wrong_pad"] = self.matched() <= before and self.countdown == 0
        events["progress"] = self.matched() > before
        events["pad_enter"] = now in self.target and now != was
        events["pad_leave"] = was in self.target and now != was
        if list(self.history) == self.target and self.countdown == 0:
            events["reward"] = True
            self.countdown = 10
        self.steps += 1
        return events

    def image(self, size=64):
        cells = np.zeros((16, 16, 3))
        here = self.tile(*self.player)
        for y in range(16):
            for x in range(16):
                tile = self.tile(x, y) if y < 14 else "#"
                color = (223, 255, 223) if self.countdown else (255, 255, 255)
                if tile == "#":
                    color = (192, 192, 192)
                elif tile in self.target:
                    faint = [int(0.1 * c + 0.9 * 255 + 1e-6) for c in COLORS[tile]]
                    color = COLORS[tile] if tile == here else faint
                cells[y, x] = color
        cells[self.player[1], self.player[0]] = 0
        for i, pad in enumerate(self.history):
            cells[14, 2 * i + 1] = COLORS[pad]
        return np.kron(cells, np.ones((size // 16, size // 16, 1))).astype(np.uint8)


@pytest.fixture
def slow_pinpad():
    return SlowPinPad


@pytest.fixture
def pinpad_traces():
    data = os.environ.get("LOOM_DATA")
    if not data:
        pytest.skip("LOOM_DATA names no folder with real data (pinpad/*.npz traces)")
    folder = Path(data) / "pinpad"
    if not folder.is_dir():
        pytest.skip(f"{folder}: no traces of the original environment")
    return folder


@pytest.fixture
def one_thread():
    """Threads of a busy machine wait for each other longer than small tensors take."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, and a stand-in for what a sweep starts."""
    from loom.doctor import Finding
    from pinpad.sweep import execute, plan

    def stand_in(*words):
        return [sys.executable, "-S", str(Path(__file__).with_name("stub_pinpad.py")), *words]

    for name in (
        *("LOGROOT", "TASK", "SEEDS", "SKIP_RSSM", "VTA_EVAL_EVERY", "RUN_LOG", "STATUS_FILE"),
        "PRETRAIN",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "_pinpad", stand_in)
    monkeypatch.setattr(execute, "check_oracle", lambda: Finding("ok", ""))
    return tmp_path
