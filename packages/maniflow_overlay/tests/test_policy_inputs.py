"""Normaliser, augmentation and encoder weights."""

from __future__ import annotations

import colorsys
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from loom.errors import UserError
from maniflow_overlay.arms import Arm, as_channels
from maniflow_overlay.config import NO_CHANGE, AugmentConfig
from maniflow_overlay.overlay.drawing import draw_path_rgb, path_image_rgb
from maniflow_overlay.policy.augmentation import (
    AugmentTensors,
    change_colours,
    crop_and_rotate,
    draw_augmentation,
)
from maniflow_overlay.policy.normaliser import LimitsNormaliser, idle_warnings
from maniflow_overlay.policy.pictures import as_input, plain, varied
from maniflow_overlay.policy.pretrained import load_r3m
from maniflow_overlay.policy.resnet import ResNet18

sys.path.insert(0, str(Path(__file__).parent))
from made_up_store import some_paths

# Normaliser ---------------------------------------------------------------------------------------


def test_the_normaliser_is_its_closed_form_and_only_moves_what_hardly_varies():
    values = np.array([[0.0, -5.0, 3.0, 1.0], [4.0, 5.0, 3.00005, 1.00011], [1.0, 0.0, 3.0, 1.0]])
    normaliser = LimitsNormaliser(4)
    normaliser.fit(values)
    out = normaliser(torch.from_numpy(values).float()).numpy()
    np.testing.assert_allclose(out[:, 0], [-1, 1, -0.5], atol=1e-6)
    np.testing.assert_allclose(out[:, 1], [-1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(out[:, 2], [0, 0.00005, 0], atol=1e-6)  # below 1e-4: moved only
    np.testing.assert_allclose(out[:, 3], [-1, 1, -1], atol=5e-3)  # above: the full range
    back = normaliser.inverse(torch.from_numpy(out)).numpy()
    np.testing.assert_allclose(back, values, atol=1e-5)


def test_each_idle_dimension_that_would_be_blown_up_is_named():
    rng = np.random.default_rng(0)
    values = np.zeros((100, 5))
    values[:, 0] = rng.uniform(-1, 1, 100)
    values[:, 1] = rng.uniform(0, 0.002, 100)  # an arm that trembles
    values[:, 2] = 0.7  # one that stands still: not scaled, nothing to say
    values[:, 3] = rng.uniform(0, 0.9, 100)
    values[:, 4] = rng.uniform(0, 0.0005, 100)
    said = idle_warnings(values, "action")
    assert [line.split(" spans")[0] for line in said] == [
        "action dimension 1",
        "action dimension 4",
    ]
    assert "range_eps above" in said[0]
    assert idle_warnings(values, "action", range_eps=0.01) == []


def test_values_that_are_not_finite_are_refused():
    values = np.zeros((3, 2))
    values[1, 1] = np.nan
    with pytest.raises(UserError, match="row 1, dimension 1"):
        LimitsNormaliser(2).fit(values)


# Augmentation -------------------------------------------------------------------------------------

AMOUNTS = AugmentConfig()


def tensors(count: int, config: AugmentConfig = AMOUNTS, seed: int = 0) -> AugmentTensors:
    drawn = draw_augmentation(count, config, np.random.default_rng(seed))
    return AugmentTensors(*map(torch.from_numpy, drawn))


def bytes_of(*shape: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(60, 190, shape, dtype=np.uint8))


def test_colours_change_as_one_step_after_the_other():
    """Brightness, contrast, saturation, hue in turn, in float64; YIQ from the standard library."""
    draws = tensors(3)
    planes = bytes_of(3, 3, 2, 5, 4)
    ours = change_colours(planes, draws).numpy()
    grey = np.array([0.299, 0.587, 0.114])
    for sample in range(3):
        for number in range(2):
            x = planes[sample, :, number].numpy().astype(np.float64) / 255
            x = draws.brightness[sample].item() * x
            mean = np.einsum("c,chw->hw", grey, x).mean()
            contrast = draws.contrast[sample].item()
            x = contrast * x + (1 - contrast) * mean
            saturation = draws.saturation[sample].item()
            x = saturation * x + (1 - saturation) * np.einsum("c,chw->hw", grey, x)
            angle = draws.hue_rad[sample].item()
            for row in range(5):
                for column in range(4):
                    # colorsys rounds its coefficients to two digits.
                    y, i, q = colorsys.rgb_to_yiq(*x[:, row, column])
                    turned = (
                        y,
                        i * math.cos(angle) - q * math.sin(angle),
                        i * math.sin(angle) + q * math.cos(angle),
                    )
                    expected = colorsys.yiq_to_rgb(*turned)
                    np.testing.assert_allclose(
                        ours[sample, :, number, row, column], expected, atol=0.02
                    )


def test_augmentation_stays_within_its_amounts():
    drawn = draw_augmentation(5_000, AMOUNTS, np.random.default_rng(1))
    limits = {
        "brightness": (0.7, 1.3), "contrast": (0.6, 1.4), "saturation": (0.5, 1.5),
        "hue_rad": (-0.16 * math.pi, 0.16 * math.pi),
        "angle_rad": (-math.radians(5), math.radians(5)), "shift": (-0.05, 0.05),
    }  # fmt: skip
    for name, (low, high) in limits.items():
        values = getattr(drawn, name)
        assert low <= values.min() < low + 0.02 * (high - low), name
        assert high - 0.02 * (high - low) < values.max() <= high, name


def test_crop_and_rotation_are_opencv_s_warp():
    draws = tensors(4, seed=3)
    height, width = 40, 60
    pictures = cv2.GaussianBlur(bytes_of(4, height, width).numpy().transpose(1, 2, 0), (9, 9), 3)
    pictures = torch.from_numpy(pictures.transpose(2, 0, 1).copy()).float()[:, None]
    ours = crop_and_rotate(pictures, draws)
    for k in range(4):
        # Output pixel -> input pixel about the centre: rotate, shrink to the crop, move.
        angle, scale = draws.angle_rad[k].item(), draws.scale[k].item()
        rotation = scale * np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        moved = draws.shift[k].numpy() * np.array([width, height]) / 2
        matrix = np.column_stack([rotation, centre + moved - rotation @ centre])
        theirs = cv2.warpAffine(
            pictures[k, 0].numpy(), matrix, (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        assert np.abs(ours[k, 0].numpy() - theirs).max() < 0.5  # OpenCV's grid is 1/32 pixel


def scene_with_path() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray]:
    """Frames, their paths on black, both as (1, 2, 2, 32, 40, 3), and the drawn frames."""
    frames = bytes_of(2, 32, 40, 3).numpy()
    path = some_paths()[3]
    black = path_image_rgb(path, 40, 32)
    apart = np.stack([np.stack([frame, black]) for frame in frames])[None]
    drawn = np.stack([draw_path_rgb(frame.copy(), path) for frame in frames])
    return torch.from_numpy(apart), torch.from_numpy(black), torch.from_numpy(frames), drawn


def test_a_draw_that_changes_nothing_gives_what_prediction_sees():
    apart, black, frames, drawn = scene_with_path()
    initial = apart[:, 0]
    still = tensors(1, NO_CHANGE)
    current, first = varied(apart, initial, Arm("initial_current"), still)
    seen = as_input(torch.from_numpy(drawn))[None]
    torch.testing.assert_close(current, seen, rtol=0, atol=1e-5)
    torch.testing.assert_close(first, seen[:, 0], rtol=0, atol=1e-5)
    six, _ = varied(apart, None, Arm("current", "concat6"), still)
    both = torch.cat([as_input(frames), as_input(black).expand(2, -1, -1, -1)], dim=1)
    torch.testing.assert_close(six[0], both, rtol=0, atol=1e-5)
    merged, _ = plain(apart, None, Arm("current", "concat6"))
    torch.testing.assert_close(merged[0], both, rtol=0, atol=0)
    numpy_way = as_channels(apart.numpy(), 6)
    assert np.array_equal(numpy_way[0, :, :, :, 3:], np.stack([black.numpy()] * 2))


def test_the_path_keeps_its_colours_while_the_picture_changes():
    apart, black, frames, _ = scene_with_path()
    colours = AugmentConfig(crop=1, rotation_deg=0)
    current, _ = varied(apart, None, Arm("current"), tensors(1, colours, seed=5))
    on_path = (black.amax(-1) > 0).expand(2, -1, -1)
    path_colours = as_input(black).expand(2, -1, -1, -1)
    moved = current[0].movedim(1, -1)
    torch.testing.assert_close(
        moved[on_path], path_colours.movedim(1, -1)[on_path], rtol=0, atol=1e-5
    )
    raw = as_input(frames).movedim(1, -1)
    assert (moved[~on_path] - raw[~on_path]).abs().mean() > 0.02


def test_all_pictures_of_a_sample_are_cropped_and_turned_alike():
    """The same frame everywhere, as current steps and as the first one: it stays the same."""
    frame = bytes_of(3, 1, 1, 2, 32, 40, 3)
    frame[:, :, :, 1] = 0
    draws = tensors(3, seed=2)
    current, first = varied(
        frame.expand(-1, 2, -1, -1, -1, -1, -1)[:, :, 0],
        frame[:, 0, 0],
        Arm("initial_current"),
        draws,
    )
    assert torch.equal(current[:, 0], current[:, 1])
    assert torch.equal(current[:, 0], first)
    assert not torch.equal(current[0, 0], current[1, 0])


def test_a_view_without_a_path_has_a_black_one_in_six_channels():
    arm = Arm("initial", "concat6")
    current, initial = bytes_of(2, 2, 1, 16, 20, 3), bytes_of(2, 2, 16, 20, 3)
    for made in (plain(current, initial, arm), varied(current, initial, arm, tensors(2))):
        assert made[0].shape == (2, 2, 6, 16, 20)
        assert made[0][:, :, 3:].abs().max() == 0
        assert made[1] is not None
        assert made[1][:, 3:].abs().max() > 0.2
    assert as_channels(current.numpy(), 6)[..., 3:].max() == 0


# Encoder weights ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trunk() -> dict[str, torch.Tensor]:
    model = ResNet18(norm="batch")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.1, 0.1)
    return {key: value.clone() for key, value in model.state_dict().items()}


def r3m_file(path: Path, trunk: dict[str, torch.Tensor]) -> Path:
    named = {f"module.convnet.{key}": value for key, value in trunk.items()}
    named["module.lang_enc.model.embeddings.weight"] = torch.zeros(3, 2)
    named["module.lang_rew.pred.0.weight"] = torch.zeros(2)
    torch.save({"r3m": named, "global_step": 1, "alpha": 0.2}, path)
    return path


def test_r3m_s_trunk_is_taken_from_among_its_other_parts(trunk, tmp_path):
    model = ResNet18(norm="batch")
    load_r3m(model, r3m_file(tmp_path / "model.pt", trunk))
    assert all(torch.equal(value, trunk[key]) for key, value in model.state_dict().items())
    assert len(trunk) == 120


def test_six_channels_begin_blind_for_the_path(trunk, tmp_path):
    three, six = ResNet18(norm="batch"), ResNet18(6, "batch")
    file = r3m_file(tmp_path / "model.pt", trunk)
    load_r3m(three, file)
    load_r3m(six, file)
    pictures, path = torch.rand(2, 2, 3, 32, 32)
    torch.testing.assert_close(six(torch.cat([pictures, path], 1)), three(pictures))


def test_weights_that_do_not_fit_are_refused_by_name(trunk, tmp_path):
    cases = {
        "layer3.0.conv1.weight is missing": {
            k: v for k, v in trunk.items() if k != "layer3.0.conv1.weight"
        },
        "fc.weight does not belong there": trunk | {"fc.weight": torch.zeros(1)},
        "layer1.0.bn1.bias is (3,), expected (64,)": trunk | {"layer1.0.bn1.bias": torch.ones(3)},
        "bn1.weight is not finite": trunk | {"bn1.weight": torch.full((64,), math.nan)},
        "is a int, no tensor": trunk | {"bn1.weight": 3},
    }
    for complaint, weights in cases.items():
        path = r3m_file(tmp_path / "case.pt", weights)
        with pytest.raises(UserError) as caught:
            load_r3m(ResNet18(norm="batch"), path)
        assert complaint in caught.value.message
        assert str(path) in caught.value.message
    many = r3m_file(tmp_path / "case.pt", {"conv1.weight": trunk["conv1.weight"]})
    with pytest.raises(UserError, match="and 116 more"):
        load_r3m(ResNet18(norm="batch"), many)


def test_a_file_that_is_missing_cut_or_holds_code_is_named_and_never_run(trunk, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_r3m(ResNet18(norm="batch"), tmp_path / "absent.pt")
    whole = r3m_file(tmp_path / "model.pt", trunk).read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cut\.pt"):
            load_r3m(ResNet18(norm="batch"), tmp_path / "cut.pt")
    torch.save({"r3m": Path("/nowhere")}, tmp_path / "object.pt")
    with pytest.raises(UserError, match="safe loader"):
        load_r3m(ResNet18(norm="batch"), tmp_path / "object.pt")
    for content in ([1, 2], {}, {"r3m": 3}):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(UserError, match=r"other\.pt"):
            load_r3m(ResNet18(norm="batch"), tmp_path / "other.pt")
