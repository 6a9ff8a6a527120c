import hashlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from loom.errors import UserError
from loom.evaluation.images import (
    Pair,
    PictureDistance,
    evaluate_pairs,
    psnr_db,
    ssim,
    to_uint8,
)
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def picture(seed: int, height: int = 31, width: int = 44) -> np.ndarray:
    rng = np.random.default_rng(seed)
    waves = (
        np.sin(np.linspace(0, 9, width))[None, :, None]
        * np.cos(np.arange(height) / 5)[:, None, None]
    )
    noise = rng.normal(0, 20, (height, width, 3))
    return np.clip(127 + 90 * waves + noise, 0, 255).astype(np.uint8)


def slow_ssim(image: np.ndarray, reference: np.ndarray, *, padded: bool) -> float:
    """Evaluate Wang's equation 13 window by window in float64."""
    offsets = np.arange(-5, 6)
    gaussian = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    gaussian /= gaussian.sum()
    border = ((5, 5), (5, 5), (0, 0)) if padded else ((0, 0), (0, 0), (0, 0))
    x, y = (np.pad(p / 255.0, border) for p in (image, reference))
    total, count = 0.0, 0
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            for channel in range(3):
                a = x[row : row + 11, column : column + 11, channel]
                b = y[row : row + 11, column : column + 11, channel]
                mean_a, mean_b = (gaussian * a).sum(), (gaussian * b).sum()
                var_a = (gaussian * (a - mean_a) ** 2).sum()
                var_b = (gaussian * (b - mean_b) ** 2).sum()
                covariance = (gaussian * (a - mean_a) * (b - mean_b)).sum()
                total += ((2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)) / (
                    (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
                )
                count += 1
    return total / count


def test_psnr_of_a_constant_difference_is_the_closed_form():
    black = np.zeros((4, 5, 3), np.uint8)
    assert psnr_db(black + 51, black) == pytest.approx(20 * math.log10(5), abs=1e-12)
    assert psnr_db(black + 255, black) == pytest.approx(0.0, abs=1e-12)


def test_psnr_of_identical_pictures_is_infinite():
    assert psnr_db(picture(0), picture(0)) == math.inf


def test_psnr_is_symmetric_and_equals_scikit_image():
    a, b = picture(0), picture(1)
    assert psnr_db(a, b) == psnr_db(b, a)
    assert psnr_db(a, b) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=255), abs=1e-10)


def test_foreground_psnr_counts_only_the_mask():
    reference = picture(0)
    image = reference.copy()
    image[:10] = 255 - image[:10]
    mask = np.zeros(image.shape[:2], bool)
    mask[10:] = True
    assert psnr_db(image, reference, mask) == math.inf
    image[10:] = np.where(reference[10:] < 128, reference[10:] + 51, reference[10:] - 51)
    assert psnr_db(image, reference, mask) == pytest.approx(20 * math.log10(5))


@pytest.mark.parametrize("window", ["padded", "valid"])
def test_ssim_equals_the_formula_evaluated_window_by_window(window):
    a, b = picture(2, 17, 14), picture(3, 17, 14)
    assert ssim(a, b, window) == pytest.approx(
        slow_ssim(a, b, padded=window == "padded"), abs=1e-12
    )


def test_valid_ssim_equals_scikit_image():
    a, b = picture(4, 60, 47), picture(5, 60, 47)
    theirs = structural_similarity(
        a / 255,
        b / 255,
        gaussian_weights=True,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=2,
    )
    assert ssim(a, b, "valid") == pytest.approx(theirs, abs=1e-12)


def test_ssim_of_two_constant_pictures_is_its_luminance_term():
    a, b = np.full((20, 20, 3), 51, np.uint8), np.full((20, 20, 3), 204, np.uint8)
    luminance = (2 * 0.2 * 0.8 + 1e-4) / (0.2**2 + 0.8**2 + 1e-4)
    assert ssim(a, b, "valid") == pytest.approx(luminance, abs=1e-9)
    assert ssim(a, b, "padded") != pytest.approx(luminance, abs=1e-3)


def test_the_windows_differ_and_identical_pictures_score_one_in_both():
    a, b = picture(6), picture(7)
    assert abs(ssim(a, b, "padded") - ssim(a, b, "valid")) > 1e-3
    assert ssim(a, a, "padded") == pytest.approx(1.0, abs=1e-12)
    assert ssim(a, a, "valid") == pytest.approx(1.0, abs=1e-12)


def test_an_unknown_window_is_refused():
    with pytest.raises(ValueError, match="reflect"):
        ssim(picture(0), picture(1), "reflect")  # ty: ignore[invalid-argument-type]  # the claim


def test_quantising_rounds_to_nearest_clips_and_refuses_values_that_are_not_finite():
    values = np.array([[[-0.5, 0.5 / 255, 0.49 / 255], [254.4 / 255, 254.6 / 255, 2.0]]])
    assert to_uint8(values).tolist() == [[[0, 1, 0], [254, 255, 255]]]
    with pytest.raises(UserError, match="1 of 6 values"):
        to_uint8(np.where(values > 1, np.nan, values))


def test_the_mean_is_over_frames_not_over_pixels():
    black = np.zeros((12, 12, 3), np.uint8)
    scores = evaluate_pairs([Pair("near", black + 1, black), Pair("far", black + 255, black)])
    assert scores.means["psnr_db"] == pytest.approx(20 * math.log10(255) / 2)
    assert [frame.psnr_db for frame in scores.frames] == pytest.approx([20 * math.log10(255), 0.0])


def test_one_identical_frame_does_not_lift_the_mean():
    black = np.zeros((12, 12, 3), np.uint8)
    scores = evaluate_pairs([Pair("empty", black, black), Pair("bad", black + 255, black)])
    assert scores.means["psnr_db"] == pytest.approx(0.0)
    assert scores.counts["psnr_db"] == 1
    assert scores.counts["identical"] == 1


def test_a_picture_against_itself_scores_inf_one_and_survives_strict_json():
    scores = evaluate_pairs([Pair(str(i), picture(i), picture(i)) for i in range(2)])
    text = json.dumps(scores.to_json(), allow_nan=False)
    means = json.loads(text)["means"]
    assert means["psnr_db"] == "inf"
    assert float(means["psnr_db"]) == math.inf
    assert means["ssim"] == pytest.approx(1.0)


def test_lpips_is_none_without_weights_and_the_measured_value_with_them():
    pair = Pair("r_0", picture(0), picture(1))
    without = evaluate_pairs([pair])
    assert without.means["lpips"] is None
    assert without.lpips_weights is None
    assert without.counts["lpips"] == 0
    distance = PictureDistance(lambda image, reference: 0.25, {"vgg.pth": "ab"})
    scored = evaluate_pairs([pair], lpips=distance)
    assert scored.means["lpips"] == 0.25
    assert scored.to_json()["lpips_weights"] == {"vgg.pth": "ab"}


def test_foreground_is_averaged_over_the_frames_that_have_one():
    image, reference = picture(0), picture(1)
    everywhere, nowhere = np.ones(image.shape[:2], bool), np.zeros(image.shape[:2], bool)
    scores = evaluate_pairs(
        [Pair("a", image, reference, everywhere), Pair("b", image, reference, nowhere)]
    )
    assert scores.means["foreground_psnr_db"] == pytest.approx(psnr_db(image, reference))
    assert scores.frames[1].foreground_psnr_db is None
    assert scores.counts["foreground_psnr_db"] == 1


def test_the_inputs_are_fingerprinted_by_content_name_and_order():
    pairs = [Pair("a", picture(0), picture(1)), Pair("b", picture(2), picture(3))]
    scores = evaluate_pairs(pairs)
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(f"{pair.name} {pair.image.shape}".encode() + pair.image.tobytes())
    assert scores.images_sha256 == digest.hexdigest()
    assert evaluate_pairs(pairs[::-1]).images_sha256 != scores.images_sha256
    changed = [pairs[0]._replace(image=pairs[0].image ^ 1), pairs[1]]
    assert evaluate_pairs(changed).images_sha256 != scores.images_sha256
    assert evaluate_pairs(changed).references_sha256 == scores.references_sha256


@pytest.mark.parametrize(
    ("image", "reference", "message"),
    [
        (picture(0, 20, 30), picture(0, 30, 20), "frame r_7: picture is 30x20, reference is 20x30"),
        (picture(0)[..., :2], picture(0), "frame r_7: picture is uint8 of shape"),
        (picture(0), picture(0) / 255, "frame r_7: reference is float64"),
        (picture(0, 9, 9), picture(1, 9, 9), "frame r_7: picture is 9x9, SSIM in the valid window"),
        (picture(0, 0, 9), picture(1, 0, 9), "frame r_7: picture has no pixels"),
    ],
)
def test_a_pair_that_does_not_fit_is_refused_by_name(image, reference, message):
    with pytest.raises(UserError, match=message) as caught:
        evaluate_pairs([Pair("r_7", image, reference)])
    assert caught.value.hint


def test_zero_frames_are_an_error_not_a_score():
    with pytest.raises(UserError, match="no frames"):
        evaluate_pairs([])


def test_importing_the_scores_and_the_report_does_not_import_torch():
    code = (
        "import loom.evaluation.images, loom.evaluation.statistics, loom.report, sys;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
