"""The viewer shows what the renderers give, from where the mouse has put the camera."""

from __future__ import annotations

import http.client
import math
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from featdistill.cameras import Cameras
from featdistill.models.raster import render
from featdistill.models.student import render_image
from featdistill.orbit import Orbit, circle, orbit_camera, orbit_of
from featdistill.viewer import Viewer
from featdistill.viewer_server import Request, make_server
from loom.errors import UserError
from loom.testing import NO_BROWSER, Browser, find_browser

LIKE = Cameras(torch.eye(4)[None], 80, 40, 100.0, ("any",))
TARGET = torch.tensor([0.5, -1.0, 2.0])


@pytest.mark.parametrize("orbit", [Orbit(0, 0, 1), Orbit(170, 60, 3), Orbit(-35, -20, 0.2)])
def test_an_orbit_camera_is_where_it_says_and_sees_its_target_in_the_middle(orbit):
    camera = orbit_camera(orbit, TARGET, LIKE, 40)
    assert (camera.width, camera.height) == (40, 20)
    assert orbit_of(camera.centres[0], TARGET) == pytest.approx(orbit, abs=1e-4)
    pixel, depth = camera.project(torch.tensor([0]), TARGET[None])
    assert pixel[0].tolist() == pytest.approx([19.5, 9.5], abs=1e-4)
    assert depth.item() == pytest.approx(orbit.distance, rel=1e-5)
    above, _ = camera.project(torch.tensor([0]), (TARGET + torch.tensor([0, 0, 0.01]))[None])
    assert above[0, 1] < pixel[0, 1]  # z points up in the picture
    half = math.atan(0.5 * camera.width / camera.focal_px)
    assert half == pytest.approx(math.atan(0.5 * LIKE.width / LIKE.focal_px))


def test_the_pole_is_not_passed():
    assert orbit_of(
        orbit_camera(Orbit(10, 120, 1), TARGET, LIKE, 40).centres[0], TARGET
    ) == pytest.approx((10, 89, 1), abs=1e-2)


def test_a_circle_is_one_turn_without_its_first_place_twice():
    turn = circle(Orbit(30, 10, 2), 4)
    assert [place.azimuth for place in turn] == [30, 120, 210, 300]


@pytest.fixture(scope="module")
def viewer(trained) -> Viewer:
    return Viewer(trained.run)


def over_white(rgb: torch.Tensor, transmittance: torch.Tensor) -> np.ndarray:
    return np.rint((rgb + transmittance[..., None]).clamp(0, 1).numpy() * 255)


def test_a_frame_is_student_teacher_and_difference(viewer):
    frame = viewer.frame(viewer.start, 48)
    student, teacher, difference = np.split(frame.pixels.astype(int), 3, axis=1)
    camera = orbit_camera(viewer.start, viewer.target, viewer.cameras, 48)
    rgba, _ = render_image(viewer.student, camera)
    shown = render(viewer.teacher.gaussians, camera)
    assert np.abs(student - over_white(rgba[..., :3], 1 - rgba[..., 3])).max() <= 1
    assert np.abs(teacher - over_white(shown.rgb, shown.transmittance)).max() <= 1
    assert (difference == np.minimum(4 * np.abs(student - teacher), 255)).all()
    error = np.mean((student - teacher) ** 2)
    assert frame.psnr_db == pytest.approx(10 * math.log10(255**2 / error), abs=1e-6)
    assert frame.psnr_db > 15  # it shows the student that has learnt


def test_the_first_view_is_that_of_the_first_evaluation_camera(viewer):
    centre = orbit_camera(viewer.start, viewer.target, viewer.cameras, 48).centres[0]
    assert centre.tolist() == pytest.approx(viewer.cameras.centres[0].tolist(), abs=1e-4)


def test_the_background_is_what_was_asked_for(viewer):
    far = viewer.start._replace(distance=100 * viewer.start.distance)
    assert viewer.frame(far, 32).pixels[0, 0].tolist() == [255, 255, 255]
    assert viewer.frame(far, 32, "black").pixels[0, 0].tolist() == [0, 0, 0]


GOOD = "azimuth=370&elevation=5&distance=2&width=64"


def test_a_request_is_read_with_its_angle_in_one_turn():
    asked = Request(GOOD + "&background=black")
    assert (asked.orbit, asked.width, asked.background) == (Orbit(10, 5, 2), 64, "black")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "missing: azimuth, distance, elevation, width"),
        (GOOD.replace("370", "nan"), "not finite"),
        (GOOD.replace("370", "1e999"), "not finite"),
        (GOOD.replace("370", "x"), "could not convert"),
        (GOOD.replace("=64", "=1e9"), "width 1e[+]09 is not in"),
        (GOOD.replace("=64", "=31"), "width 31 is not in"),
        (GOOD.replace("=2", "=0"), "distance 0 is not in"),
        (GOOD + "&background=../x", "background"),
    ],
)
def test_a_wrong_request_is_named(query, message):
    with pytest.raises(ValueError, match=message):
        Request(query)


@dataclass
class Served:
    """A running server."""

    port: int

    def get(self, path: str, host: str | None = None) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{self.port}"})
        answer = connection.getresponse()
        found = answer.status, answer.read(), dict(answer.headers)
        connection.close()
        return found


@pytest.fixture
def served(viewer) -> Iterator[Served]:
    with make_server(viewer, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Served(server.server_address[1])
        server.shutdown()
        thread.join()


def test_the_server_answers_page_and_frames_and_names_what_is_wrong(served, viewer):
    status, body, _ = served.get("/")
    assert status == 200
    assert b'"distance": ' in body
    status, body, headers = served.get("/frame?" + GOOD)
    pixels = np.frombuffer(body, np.uint8).reshape(64, 192, 4)
    assert (status, headers["X-Size"]) == (200, "192 64")
    assert (pixels[..., :3] == viewer.frame(Orbit(10, 5, 2), 64).pixels).all()
    assert (pixels[..., 3] == 255).all()
    assert served.get("/frame?width=1")[0] == 400
    assert served.get("/etc/passwd")[0] == 404


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("out of memory\nat frame 3"), b"no picture: out of memory\n"),
        (MemoryError(), b"no picture: MemoryError\n"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_an_answer_with_the_reason(
    error, said, served, viewer, monkeypatch
):
    def fail(*asked):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(viewer, "frame", fail)
        status, body, _ = served.get("/frame?" + GOOD)
    assert (status, body) == (500, said)
    assert served.get("/frame?" + GOOD)[0] == 200


def test_a_page_elsewhere_cannot_use_the_server(served):
    assert served.get("/frame?" + GOOD, host="evil.example")[0] == 403


def test_a_browser_that_leaves_is_no_error(served, capfd):
    with socket.create_connection(("127.0.0.1", served.port)) as visitor:
        host = f"127.0.0.1:{served.port}"
        visitor.sendall(f"GET /frame?{GOOD}&width=800 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        reset = struct.pack("ii", 1, 0)  # closing drops the connection at once
        visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    assert served.get("/")[0] == 200
    while any("process_request" in thread.name for thread in threading.enumerate()):
        time.sleep(0.01)
    assert capfd.readouterr().err == ""


def test_a_port_that_is_taken_is_named(served, viewer):
    with pytest.raises(UserError, match=f"port {served.port}"):
        make_server(viewer, served.port)


PICTURE = (
    "Array.from(document.getElementById('frame').getContext('2d')"
    ".getImageData(0, 0, 99, 99).data).reduce((sum, v, i) => (31 * sum + v) % 1000003, 7)"
)


@pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)
def test_dragging_in_a_browser_turns_the_camera(served, viewer):
    with Browser() as browser:
        browser.open(f"http://127.0.0.1:{served.port}/")
        browser.wait_for("shown === 1 && !busy")
        assert browser.evaluate("$('width').value") == "32"  # the narrowest; taught at 28
        assert browser.evaluate("$('taught').textContent") == str(viewer.cameras.width)
        before = browser.evaluate(PICTURE)
        centre = "(r => [r.left + r.width / 2, r.top + r.height / 2])"
        x, y = browser.evaluate(
            f"{centre}(document.getElementById('frame').getBoundingClientRect())"
        )
        browser.drag((x, y), (x + 60, y + 20))
        browser.wait_for("shown > 1 && !busy")
        assert browser.evaluate("camera.azimuth") == pytest.approx(viewer.start.azimuth - 30)
        assert browser.evaluate("camera.elevation") == pytest.approx(viewer.start.elevation + 10)
        assert browser.evaluate(PICTURE) != before
        browser.evaluate("canvas.dispatchEvent(new Event('dblclick'))")
        browser.wait_for("shown === wanted && !busy")
        assert browser.evaluate(PICTURE) == before
        assert browser.messages == []
        # What fetch does where nobody listens any more.
        browser.evaluate(
            "fetch = () => Promise.reject(new TypeError('Failed to fetch')), changed()"
        )
        browser.wait_for("!busy")
        assert "has featdistill view ended?" in browser.evaluate("$('trouble').textContent")
