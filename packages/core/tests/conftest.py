from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads of a busy machine wait for each other longer than small tensors take."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """Return the directory of a run that has ended, with records of steps 0, 50 and 100."""
    from packages.core.tests.small_run import opened

    directory = tmp_path / "runs" / "lego"
    with opened(directory) as run:
        for step in (0, 50, 100):
            run.record(step, {"loss/total": 1.0 - step / 200})
    return directory
