import pytest
import torch
from loom.device import choose_device
from loom.errors import UserError


@pytest.mark.parametrize(
    ("name", "found", "kind"),
    [("auto", False, "cpu"), ("auto", True, "cuda"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_auto_takes_an_accelerator_where_there_is_one(monkeypatch, name, found, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    assert choose_device(name).type == kind


def test_what_is_not_there_is_not_replaced_silently(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        choose_device("cuda")
    with pytest.raises(UserError, match="device 'gpu'"):
        choose_device("gpu")
