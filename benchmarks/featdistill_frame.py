"""Whole frames of a student: the native kernel beside its torch twin, marching alone, the viewer.

    uv run python benchmarks/featdistill_frame.py RUN [--width 800] [--frames 9] [--threads 2]

Wall and CPU time of one frame, medians over places of an orbit; all take turns so that a busy
machine hits all, and CPU time says what a quiet one would do. "kernel" multiplies in bfloat16
where the processor can. Marching places all samples of every fortieth ray, without the networks
and without an early end. The viewer's frame is student, teacher and difference together, asked for
over HTTP as a browser does. Where torch sees a CUDA device, there are two rows more: 200 frames of
the kernel, timed one by one by the device's own events, and three of the torch twin there.
"""

from __future__ import annotations

import argparse
import copy
import http.client
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from featdistill.cameras import Cameras
from featdistill.models import kilo, kilo_cuda, kilo_torch
from featdistill.models.student import Student, picture_kernel, render_image
from featdistill.orbit import circle, orbit_camera
from featdistill.viewer import Viewer
from featdistill.viewer_server import HOST, make_server
from loom.native import cores_for_kernels

FRAMES: dict[str, dict] = {
    "kernel": {"impl": "cpu"},
    "kernel, float32": {"impl": "cpu", "precision": "float32"},
    "torch twin": {"impl": "torch"},
}
MARCHES = {"kernel, marching": kilo.march, "torch twin, marching": kilo_torch.march}


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


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
            taken.append(seconds(lambda: connection.getresponse().read())[0])
        connection.close()
        server.shutdown()
    return 1 / statistics.median(taken[1:])


def device_milliseconds(draw: Callable[[Cameras], object], cameras: Sequence[Cameras]) -> float:
    """Median time of a frame between two events of the device, after one that warms it up."""
    draw(cameras[0])
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(cameras) + 1)]
    events[0].record()
    for camera, event in zip(cameras, events[1:], strict=True):
        draw(camera)
        event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in pairwise(events))


def print_device_rows(student: Student, cameras: Sequence[Cameras]) -> None:
    """Print the rows of a CUDA device; an untrusted kernel is an error that says why."""
    device = torch.device("cuda")
    student = copy.deepcopy(student).to(device)
    kilo_cuda.choose("cuda", student.shape, device)
    kernel = picture_kernel(student)
    twin = device_milliseconds(lambda c: render_image(student, c, impl="torch"), cameras[:3])
    ours = device_milliseconds(lambda c: kernel.draw(c, 0.01), cameras)
    name = torch.cuda.get_device_name(device)
    for row, taken in (("kernel", ours), ("torch twin", twin)):
        rate = 1000 / taken
        print(f"| {row}, {name} | {taken / 1000:.5f} | {rate:.1f} | {twin / taken:.1f} | | |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--width", type=int, default=800)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    viewer = Viewer(arguments.run, "cpu")
    student, width = viewer.student, arguments.width
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in (*FRAMES, *MARCHES)}
    for place in circle(viewer.start, arguments.frames):
        camera = orbit_camera(place, viewer.target, viewer.cameras, width)
        rays = [part[::40].contiguous() for part in camera.image_rays(0)]
        jitter = torch.full((len(rays[0]),), 0.5)
        for name, options in FRAMES.items():
            if name != "torch twin" or len(taken[name]) < 3:  # which takes a minute for a few
                with cores_for_kernels() if name != "torch twin" else nullcontext():
                    work = partial(render_image, student, camera, **options)
                    taken[name].append(seconds(work))
        for name, march in MARCHES.items():
            with cores_for_kernels() if name == "kernel, marching" else nullcontext():
                taken[name].append(seconds(partial(march, student.volume, *rays, jitter)))
    median = {
        name: [statistics.median(times) for times in zip(*pairs, strict=True)]
        for name, pairs in taken.items()
    }
    print(f"{len(student.weights)} networks, {width}x{width}, {arguments.threads} threads")
    print("| | seconds | per second | ratio | CPU-seconds | ratio |\n|---|---|---|---|---|---|")
    for names, twin in ((FRAMES, "torch twin"), (MARCHES, "torch twin, marching")):
        for name in names:
            (wall, cpu), (twin_wall, twin_cpu) = median[name], median[twin]
            print(
                f"| {name} | {wall:.4f} | {1 / wall:.2f} | {twin_wall / wall:.1f} "
                f"| {cpu:.4f} | {twin_cpu / cpu:.1f} |"
            )
    if torch.cuda.is_available():
        places = circle(viewer.start, 200)
        views = [orbit_camera(place, viewer.target, viewer.cameras, width) for place in places]
        print_device_rows(student, views)
    rate = frames_per_second(viewer, 200, 60)
    print(f"| viewer, 200x200: student, teacher, difference | {1 / rate:.3f} | {rate:.1f} | | | |")


if __name__ == "__main__":
    main()
