"""What `doctor` says of this thread's needs."""

import os
import subprocess
import sys

import numpy as np
import pytest
from maniflow_overlay import doctor
from maniflow_overlay.sim import graphics


@pytest.fixture
def fresh(monkeypatch):
    """Ask again, and forget the answer afterwards."""
    before = os.environ.pop("MUJOCO_GL", None)
    graphics.missing.cache_clear()
    yield monkeypatch
    graphics.missing.cache_clear()
    os.environ.pop("MUJOCO_GL", None)
    if before is not None:
        os.environ["MUJOCO_GL"] = before


def test_a_machine_without_gl_is_told_the_debian_packages(fresh):
    fresh.setattr(graphics, "find_library", lambda name: None)
    finding = doctor.check_scene()
    assert finding.level == "warn"
    assert "planar scene is used: neither EGL nor OSMesa" in finding.detail
    assert finding.fix == "apt install libegl1 libegl-mesa0"


def test_an_installation_without_mujoco_is_told_how_to_get_it(fresh):
    def absent():
        raise ImportError("No module named 'mujoco'")

    fresh.setattr(graphics, "find_library", lambda name: "libEGL.so.1")
    fresh.setattr(graphics, "mujoco", absent)
    finding = doctor.check_scene()
    assert finding.level == "warn"
    assert finding.fix == "uv pip install mujoco"


def test_a_library_that_does_not_load_is_reported_with_its_error(fresh):
    class Broken:
        FatalError = type("FatalError", (Exception,), {})

        class MjModel:
            from_xml_string = staticmethod(lambda text: None)

        @staticmethod
        def Renderer(*size):
            raise Broken.FatalError("an OpenGL platform library has not been loaded")

    fresh.setattr(graphics, "find_library", lambda name: "libEGL.so.1")
    fresh.setattr(graphics, "mujoco", lambda: Broken)
    assert "egl does not work: an OpenGL platform" in doctor.check_scene().detail


def test_osmesa_is_taken_where_there_is_no_egl(fresh):
    fresh.setattr(graphics, "find_library", lambda name: "x" if name == "OSMesa" else None)
    fresh.setattr(graphics, "mujoco", lambda: (_ for _ in ()).throw(ImportError("absent")))
    graphics.missing()
    assert graphics.chosen() == "osmesa"


def test_an_opencv_that_draws_one_pixel_differently_is_noticed(monkeypatch):
    assert doctor.check_drawing().level == "ok"
    image = doctor._drawing()
    image[3, 3] += 1
    monkeypatch.setattr(doctor, "_drawing", lambda: np.ascontiguousarray(image))
    finding = doctor.check_drawing()
    assert finding.level == "warn"
    assert "another picture" in finding.detail


def test_asking_for_the_checks_does_not_change_what_is_loaded():
    """OpenCV changes LD_LIBRARY_PATH when it is imported, about which `doctor` would then warn."""
    code = (
        "import os; before = dict(os.environ); "
        "from maniflow_overlay.doctor import checks; checks(); "
        "assert dict(os.environ) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
