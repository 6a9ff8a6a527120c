"""The commands of the core, on runs of a few records."""

from pathlib import Path

from printed.runner import Chain, step


def two_runs(folder: Path) -> None:
    """Two finished runs and one more, as a training leaves them."""
    from loom.config import Config, Resolved
    from loom.run import Run

    class Settings(Config):
        name: str = "RUN"
        lr: float = 1e-3

    for name, lr in (("A", 1e-3), ("B", 2e-3), ("RUN", 1e-3)):
        resolved = Resolved(Settings(name=name, lr=lr), {}, "", ())
        with Run.open(
            "core", Settings, resolved, directory=folder / "runs" / name, quiet=True
        ) as run:
            for number in range(1, 4):
                run.record(number, {"metric/error": lr / number})
    for name in ("A", "B", "RUN"):
        (folder / name).symlink_to(folder / "runs" / name)


CORE = Chain(
    "core",
    (
        step("loom ext info"),
        step("loom runs", "loom runs [FOLDER]"),
        step(run="loom runs runs"),
        step("loom watch RUN", "loom watch"),
        step("loom compare A B", "loom compare"),
        step("loom report RUN"),
        step("loom report --all FOLDER", "loom report --all", run="loom report --all runs"),
        step("loom snapshot RUN TAG", "loom snapshot"),
    ),
    begin=two_runs,
    quick=True,
)
BUILD = Chain("kernels and doctor", (step("loom ext build"), step("loom doctor")))
