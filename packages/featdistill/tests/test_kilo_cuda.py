"""Claims about the CUDA renderer: what its rays compute, that it compiles, and when it is trusted.

The function of one ray is compiled for the CPU here and held to the float64 twin; a test marked
`gpu` holds the kernel itself to the twin.
"""

import ctypes
from dataclasses import replace

import pytest
import torch
from featdistill.cameras import Cameras, orbit_poses
from featdistill.doctor import cuda_renderer
from featdistill.models import kilo_cuda, kilo_torch
from featdistill.models.kilo_layout import NetworkShape
from featdistill.models.student import picture_kernel, render_image
from loom import native
from loom.errors import UserError
from loom.native.cuda import find_cuda
from loom.native.toolchain import cpu_levels

RAY = kilo_cuda.library()
pytestmark = pytest.mark.skipif(isinstance(RAY, native.Unavailable), reason="no compiler")

SHAPE = NetworkShape(32, 4, 2)
CPU = torch.device("cpu")


@pytest.fixture(params=cpu_levels())
def isa(request, monkeypatch):
    """Run the test once for every instruction set of this machine."""
    monkeypatch.setenv("LOOM_ISA", request.param)


def trace(student, origins, directions, stop=0.0):
    """What the function of one ray says of any rays: rgba [r, 4] and depth [r]."""
    found = kilo_cuda.library()
    kernel = kilo_cuda.PictureKernel(found, student.weights, student.shape, student.volume)
    request = kernel.request
    rgba, depth = torch.empty(len(origins), 4), torch.empty(len(origins))
    request.rgba, request.depth = rgba.data_ptr(), depth.data_ptr()
    request.stop_transmittance = stop
    arguments = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
    run = found.function("kilo_ray_trace", arguments, ctypes.c_int)
    pointers = [native.pointer(rays, torch.float32) for rays in (origins, directions)]
    assert run(ctypes.byref(request), len(origins), *pointers) == 0
    return rgba, depth


def twin(student, origins, directions):
    """The same from the twin, in float64."""
    weights, head = student.weights.detach().double(), student.head.detach().double()
    middle = torch.full((len(origins),), 0.5)
    out = kilo_torch.render(
        weights, head, student.shape, student.volume, origins, directions, middle, 0
    )
    return torch.cat([out.rgb, 1 - out.transmittance[:, None]], dim=1), out.depth


@pytest.mark.parametrize("filled", [0.02, 0.3, 1.0])
@pytest.mark.parametrize(
    ("hidden", "frequencies"), [(32, (4, 2)), (48, (5, 1)), (32, (10, 4)), (48, (0, 0))]
)
def test_a_ray_sees_what_the_float64_twin_sees(
    isa, hidden, frequencies, filled, make_student, random_rays
):
    """Rays that miss, of length zero, along faces of cells, and through empty cells among them."""
    student = make_student(hidden, frequencies, filled)
    origins, directions, _ = random_rays(500)
    rgba, depth = trace(student, origins, directions)
    expected, expected_depth = twin(student, origins, directions)
    assert (expected[:, 3] == 0).sum() > 10
    assert rgba[3:5].eq(0).all()
    assert depth[3:5].eq(0).all()
    assert (rgba - expected).abs().max() <= 1e-5
    assert (depth - expected_depth).abs().max() <= 1e-4


def test_rays_on_the_faces_of_cells_and_voxels_see_what_the_twin_sees(make_student):
    student = make_student(filled=1.0)
    low, high = student.box
    cells = torch.tensor(student.config.grid_shape)
    origins, directions = [], []
    for axis in range(3):
        for face in range(int(cells[axis]) + 1):
            start = low + (high - low) * torch.tensor([0.31, 0.52, 0.43])
            start[axis] = low[axis] + (high - low)[axis] * face / cells[axis]
            along = torch.zeros(3)
            along[(axis + 1) % 3] = 1.0
            origins.append(start - 3.0 * along)
            directions.append(along)
    rays = torch.stack(origins), torch.stack(directions)
    rgba, _ = trace(student, *rays)
    expected, _ = twin(student, *rays)
    assert (expected[:, 3] > 0.9).sum() == 11  # the first two lie in the empty part
    assert (rgba - expected).abs().max() <= 1e-5


def test_an_early_end_leaves_out_no_more_than_the_light_that_would_have_passed(
    make_student, random_rays
):
    student = make_student(filled=1.0)
    with torch.no_grad():
        student.shape.blocks(student.weights).output_bias[:, 3] += 2.0
    origins, directions, _ = random_rays(300)
    whole, _ = trace(student, origins, directions)
    ended, _ = trace(student, origins, directions, stop=0.05)
    left = (whole - ended).abs().max()
    assert 1e-3 < left < 0.05
    assert (ended[:, 3] <= whole[:, 3]).all()


def test_huge_raw_values_stay_finite(make_student, random_rays):
    student = make_student(filled=1.0)
    bias = student.shape.blocks(student.weights.detach()).output_bias
    origins, directions, _ = random_rays(50)
    for value in (1e6, -1e6, 1e30):
        bias[::2], bias[1::2] = value, -value
        rgba, depth = trace(student, origins, directions)
        assert rgba.isfinite().all()
        assert depth.isfinite().all()
        assert (rgba - twin(student, origins, directions)[0]).abs().max() <= 1e-5


def test_rays_and_weights_that_are_no_numbers_read_nothing_outside(make_student, random_rays):
    """On a device a wild address ends the process for everybody."""
    student = make_student(filled=1.0)
    origins, directions, _ = random_rays(64)
    for axis in range(3):
        origins[10 + axis, axis] = float("nan")
        directions[20 + axis, axis] = float("nan")
        origins[30 + axis, axis] = float("inf")
    directions[40], directions[41] = float("nan"), float("inf")
    rgba, _ = trace(student, origins, directions)
    good = torch.ones(64, dtype=torch.bool)
    good[10:13] = good[20:23] = good[30:33] = good[40:42] = False
    expected, _ = twin(student, origins[good], directions[good])
    assert (rgba[good] - expected).abs().max() <= 1e-5
    with torch.no_grad():
        student.weights.fill_(float("nan"))
    assert len(trace(student, origins, directions)[0]) == 64


@pytest.mark.parametrize("width", [40, 41])
def test_a_pixel_looks_along_the_ray_of_its_camera(width, make_student):
    """An odd width and another height: no axis may be taken for the other, none be flipped."""
    student = make_student(filled=0.5)
    camera = Cameras(orbit_poses(1, 2.5, torch.Generator()).double(), width, 23, 30.0, ("a",))
    kernel = kilo_cuda.PictureKernel(RAY, student.weights, student.shape, student.volume)
    rgba, depth = kernel.draw(camera, 0.0)
    rays = (part.float() for part in camera.image_rays(0))
    expected, expected_depth = twin(student, *rays)
    assert rgba[..., 3].max() > 0.5
    assert (rgba.flatten(0, 1) - expected).abs().max() <= 1e-5
    assert (depth.flatten() - expected_depth).abs().max() <= 1e-4
    single = replace(camera, poses_world_from_camera=camera.poses_world_from_camera.float())
    usual = {"stop_transmittance": 0.0, "impl": "cpu", "precision": "float32"}
    ours, _ = render_image(student, single, **usual)  # whose rays are rounded in between
    assert (rgba - ours).abs().mean() < 1e-4


# --- trust ---------------------------------------------------------------------------------------


class WrongLibrary:
    """The function of one ray with a fault: `spoil` is called with the picture's address."""

    path = "wrong.so"

    def __init__(self, spoil):
        self.spoil = spoil

    def function(self, name, argtypes, restype=None):
        right = RAY.function(name, argtypes, restype)

        def wrong(reference, stream):
            error = right(reference, stream)
            request = reference._obj
            size = 4 * request.width * request.height
            return self.spoil((ctypes.c_float * size).from_address(request.rgba)) or error

        return wrong if name == "kilo_ray_picture" else right


def brighten(rgba):
    rgba[4 * 700 + 1] += 0.02  # one pixel, one colour


def lose(rgba):
    rgba[0] = float("nan")


def refuse(rgba):
    return -1


@pytest.mark.parametrize("shape", [SHAPE, NetworkShape(48, 10, 4), NetworkShape(32, 0, 0)])
def test_a_kernel_that_draws_the_twins_picture_is_trusted(shape):
    assert kilo_cuda.examine(RAY, shape, CPU) == ""
    assert kilo_cuda.disagreement(RAY, shape, CPU) < 1e-4


@pytest.mark.parametrize(
    ("spoil", "named"), [(brighten, "5.1/255"), (lose, "inf/255"), (refuse, "did not run: netw")]
)
def test_a_kernel_with_one_wrong_colour_or_none_is_not_trusted(spoil, named):
    assert named in kilo_cuda.examine(WrongLibrary(spoil), SHAPE, CPU)


def test_the_test_picture_shows_what_a_fault_would_change():
    """It has rays that miss, light and dark colours, transparent and opaque pixels."""
    weights, volume = kilo_cuda._random_student(SHAPE, CPU)
    camera = Cameras(orbit_poses(1, 3.0, torch.Generator().manual_seed(0)), 44, 36, 60.0, ("a",))
    rgba, _ = kilo_cuda.PictureKernel(RAY, weights, SHAPE, volume).draw(camera, 0.0)
    opacity = rgba[..., 3]
    assert opacity.eq(0).float().mean() > 0.1
    assert (opacity > 0.9).float().mean() > 0.1
    assert ((opacity > 0.1) & (opacity < 0.9)).float().mean() > 0.1
    assert (rgba[..., :3].amax(dim=(0, 1)) - rgba[..., :3].amin(dim=(0, 1)) > 0.5).all()
    assert len(weights) < volume.cell_index.numel()


@pytest.mark.parametrize(("spoil", "chosen"), [(None, "cuda"), (brighten, "torch")])
def test_a_wrong_kernel_gives_way_to_the_twin_with_a_notice(spoil, chosen, monkeypatch):
    found = RAY if spoil is None else WrongLibrary(spoil)
    heard: list[str] = []
    monkeypatch.setattr(native, "_said", set())
    monkeypatch.setattr(native, "_listener", heard.append)
    monkeypatch.setattr(native, "choose", lambda impl, library, device: "cuda")
    monkeypatch.setattr(kilo_cuda, "kernel", lambda: found)
    assert [kilo_cuda.choose("auto", SHAPE, CPU) for _ in range(2)] == [chosen] * 2
    if spoil is None:
        assert heard == []
        assert kilo_cuda.choose("cuda", SHAPE, CPU) == "cuda"
    else:
        assert len(heard) == 1
        assert "the torch twin draws on cpu" in heard[0]
        assert "differs from the twin's by 5.1/255" in heard[0]
        with pytest.raises(UserError, match="5.1/255"):
            kilo_cuda.choose("cuda", SHAPE, CPU)


def test_without_a_toolkit_the_twin_draws_on_a_cuda_device(monkeypatch):
    refusal = native.Unavailable("no complete CUDA toolkit: no nvcc on the PATH")
    monkeypatch.setattr(native, "_open_cuda", lambda *part: refusal)
    assert kilo_cuda.choose("auto", SHAPE, torch.device("cuda")) == "torch"
    with pytest.raises(UserError, match="no nvcc on the PATH"):
        kilo_cuda.choose("cuda", SHAPE, torch.device("cuda"))


# --- the compiled kernel -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The kernel for Ampere and Hopper."""
    toolkit = find_cuda()
    if isinstance(toolkit, native.Unavailable):
        pytest.skip(toolkit.reason)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOM_CUDA_ARCH", "80;90")
        found = kilo_cuda.kernel()
    assert isinstance(found, native.Library), found
    return found


def test_the_kernel_compiles_for_ampere_and_hopper(compiled):
    content = compiled.path.read_bytes()
    log = (compiled.path.parent / "build.log").read_text()
    for architecture in ("sm_80", "sm_90"):
        assert f"code={architecture}" in log
        assert architecture.encode() in content
    assert "-fmad=false" in log
    assert compiled.function("kilo_ray_error", [ctypes.c_int], ctypes.c_char_p)(0) == b"no error"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_the_kernel_says_so(compiled, make_student):
    student = make_student()
    kernel = kilo_cuda.PictureKernel(compiled, student.weights, student.shape, student.volume)
    camera = Cameras(orbit_poses(1, 2.5, torch.Generator()), 8, 8, 10.0, ("a",))
    with pytest.raises(RuntimeError, match="the CUDA kernel did not run: .*(CUDA|device|driver)"):
        kernel.draw(camera, 0.0)


@pytest.mark.gpu
@pytest.mark.parametrize("hidden", [32, 48])
def test_pictures_of_the_device_equal_the_float64_twin(hidden, make_student):
    device = torch.device("cuda")
    student = make_student(hidden, (10, 4), 0.4).to(device)
    assert kilo_cuda.choose("cuda", student.shape, device) == "cuda"
    for number in range(5):
        pose = orbit_poses(5, 2.5, torch.Generator().manual_seed(1))[number : number + 1].double()
        camera = Cameras(pose, 61, 47, 60.0, ("a",))
        rgba, depth = render_image(student, camera, stop_transmittance=0.0, impl="cuda")
        rays = (part.float() for part in camera.image_rays(0))
        expected, expected_depth = twin(student.cpu(), *rays)
        student.to(device)
        assert (rgba.cpu().flatten(0, 1) - expected).abs().max() <= 2 / 255
        assert (depth.cpu().flatten() - expected_depth).abs().max() <= 20 / 255


@pytest.mark.gpu
def test_the_time_of_two_hundred_frames_is_printed(make_student, capsys):
    student = make_student(filled=0.3).to("cuda")
    kernel = picture_kernel(student)
    poses = orbit_poses(200, 2.5, torch.Generator().manual_seed(1))
    cameras = Cameras(poses, 800, 800, 1100.0, tuple(map(str, range(200))))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(201)]
    kernel.draw(cameras[0], 0.01)
    events[0].record()
    for number in range(200):
        kernel.draw(cameras[number], 0.01)
        events[number + 1].record()
    torch.cuda.synchronize()
    taken = sorted(a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False))
    with capsys.disabled():
        print(f"\n800x800: {1000 / taken[100]:.0f} frames a second, median of 200")
    assert taken[0] > 0


# --- what people see of it -----------------------------------------------------------------------


def test_doctor_says_which_renderer_draws_and_why_the_other_does_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda_renderer().detail == "not used: torch finds no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A Device")
    monkeypatch.setattr(kilo_cuda, "kernel", lambda: native.Unavailable("no nvcc"))
    refused = cuda_renderer()
    assert refused.level == "warn"
    assert "no nvcc" in refused.detail
    real, asked = kilo_cuda.examine, []
    monkeypatch.setattr(
        kilo_cuda,
        "examine",
        lambda found, shape, device: asked.append(device.type) or real(found, shape, CPU),
    )
    monkeypatch.setattr(kilo_cuda, "kernel", lambda: WrongLibrary(brighten))
    wrong = cuda_renderer()
    assert wrong.level == "warn"
    assert "differs from the twin's by 5.1/255" in wrong.detail
    monkeypatch.setattr(kilo_cuda, "kernel", lambda: RAY)
    assert cuda_renderer().level == "ok"
    assert "A Device" in cuda_renderer().detail
    assert set(asked) == {"cuda"}


@pytest.mark.parametrize("words", [("render", "--checkpoint"), ("view",)])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(
    words, command, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command(*words, tmp_path, "--device", "cuda").holds("torch finds no CUDA device")
    command(*words, tmp_path, "--device", "tpu").holds("device 'tpu'", "auto, cpu, cuda")
