"""Whole frames of a student: the native kernel beside its torch twin, and the viewer.

    uv run python benchmarks/featdistill_frame.py RUN [--width 800] [--frames 9] [--threads 2]

Wall time of one frame, median over places of an orbit; the two take turns so that a busy machine
hits both. The viewer's frame is student, teacher and difference together, asked for over HTTP as a
browser does.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from featdistill.models.student import render_image
from featdistill.orbit import circle, orbit_camera
from featdistill.viewer import Viewer
from featdistill.viewer_server import HOST, make_server
from loom.native import cores_for_kernels


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def frames_per_second(viewer: Viewer, width: int, frames: int) -> float:
    """Ask a viewer for frames, one after the other."""
    with make_server(viewer, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        connection = http.client.HTTPConnection(HOST, port)
        taken = []
        for place in circle(viewer.start, frames + 1):
            query = f"azimuth={place.azimuth}&elevation={place.elevation}&distance={place.distance}"
            connection.request("GET", f"/frame?{query}&width={width}")
            taken.append(seconds(lambda: connection.getresponse().read()))
        connection.close()
        server.shutdown()
    return 1 / statistics.median(taken[1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--width", type=int, default=800)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    viewer = Viewer(arguments.run)
    student, width = viewer.student, arguments.width
    taken: dict[str, list[float]] = {"cpu": [], "torch": []}
    for place in circle(viewer.start, arguments.frames):
        camera = orbit_camera(place, viewer.target, viewer.cameras, width)
        for impl, column in taken.items():
            if impl == "cpu" or len(column) < 3:  # the twin takes a minute for a few
                with cores_for_kernels() if impl == "cpu" else nullcontext():
                    took = seconds(lambda c=camera, i=impl: render_image(student, c, impl=i))
                column.append(took)
    kernel, twin = (statistics.median(column) for column in taken.values())
    print(f"{len(student.weights)} networks, {width}x{width}, {arguments.threads} threads")
    print("| frame | seconds | frames/s | ratio |\n|---|---|---|---|")
    print(f"| kernel | {kernel:.3f} | {1 / kernel:.2f} | {twin / kernel:.1f} |")
    print(f"| torch twin | {twin:.2f} | {1 / twin:.3f} | 1 |")
    rate = frames_per_second(viewer, 200, 60)
    print(f"| viewer, 200x200: student, teacher, difference | {1 / rate:.3f} | {rate:.1f} | |")


if __name__ == "__main__":
    main()
