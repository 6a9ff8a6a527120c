"""Evaluation: scores by hand on composed frames, the blank row, and summaries that stay tables."""

from __future__ import annotations

import csv
import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from featdistill.data.png import write_png
from featdistill.data.renders import measure_stats, read_rgba, write_frame, write_stats
from featdistill.evaluate import alpha_iou, compare, pipeline
from featdistill.scoring import lpips_metric
from featdistill.summary import append_summary
from loom.errors import UserError
from loom.evaluation.lpips import Lpips
from skimage.metrics import peak_signal_noise_ratio

SIZE = 24


def teacher_frame(number: int) -> np.ndarray:
    """A soft disc that wanders, premultiplied."""
    y, x = np.mgrid[:SIZE, :SIZE]
    distance = np.hypot(x - 8 - 2 * number, y - 11)
    alpha = np.clip(7 - distance, 0, 1)
    colour = np.stack([0.8 + 0 * x, x / SIZE, y / SIZE], axis=-1)
    return np.concatenate([colour * alpha[..., None], alpha[..., None]], axis=-1)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def student_frame(number: int) -> np.ndarray:
    return teacher_frame(number) * 0.9


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for number in range(3):
        write_frame(tmp_path / "teacher", number, teacher_frame(number))
        write_frame(tmp_path / "student", number, student_frame(number))
    write_stats(tmp_path / "student", measure_stats(3, SIZE, SIZE, 1.5))
    return tmp_path / "student", tmp_path / "teacher" / "renders"


def test_a_folder_against_itself_is_perfect(folders):
    scores = compare(folders[1], folders[1])
    assert scores.means["psnr_db"] == math.inf
    assert scores.means["ssim"] == pytest.approx(1)
    assert scores.means["ssim_valid"] == pytest.approx(1)
    assert scores.means["lpips"] is None  # not measured, never a guess
    perfect = pipeline(folders[1].parent, folders[1])
    assert perfect.means["psnr_db"] == math.inf
    assert perfect.means["foreground_psnr_db"] == math.inf
    assert perfect.means["alpha_iou"] == 1


@pytest.mark.parametrize(("background", "value"), [("white", 1.0), ("black", 0.0)])
def test_scores_are_those_of_frames_composed_by_hand(folders, background, value):
    result = pipeline(folders[0], folders[1], background=background)
    for number, frame in enumerate(result.scores.frames):
        ours, theirs = (
            np.rint(255 * (rgba[..., :3] + (1 - rgba[..., 3:]) * value)).astype(np.uint8)
            for rgba in (
                student_frame(number).astype(np.float16).astype(np.float64),
                teacher_frame(number).astype(np.float16).astype(np.float64),
            )
        )
        expected = peak_signal_noise_ratio(theirs, ours, data_range=255)
        assert frame.psnr_db == pytest.approx(expected, abs=0.02)
        visible = teacher_frame(number)[..., 3] > 0
        error = np.mean((ours[visible] / 255 - theirs[visible] / 255) ** 2)
        assert frame.foreground_psnr_db == pytest.approx(-10 * math.log10(error), abs=0.02)
        assert frame.foreground_psnr_db is not None
        assert frame.foreground_psnr_db < frame.psnr_db
        blank = np.mean((theirs / 255 - value) ** 2)
        found = result.blank.frames[number].psnr_db
        assert found == pytest.approx(-10 * math.log10(blank), abs=0.01)
    psnrs = [frame.psnr_db for frame in result.scores.frames]
    assert result.means["psnr_db"] == pytest.approx(np.mean(psnrs))
    # A student of the right colour at opacity p gains -20 log10(1 - p) dB over a blank one.
    blanks = [frame.psnr_db for frame in result.blank.frames]
    assert result.means["blank_psnr_db"] == pytest.approx(np.mean(blanks))
    gain = np.mean(psnrs) - np.mean(blanks)
    assert gain == pytest.approx(20, abs=0.5)


def test_silhouettes_are_compared_at_one_half():
    ours, theirs = np.zeros((4, 4)), np.zeros((4, 4))
    assert alpha_iou(ours, theirs) is None
    ours[0, :3], theirs[0, 1:] = 0.51, 0.9
    ours[1], theirs[1] = 0.5, 0.49
    assert alpha_iou(ours, theirs) == 2 / 4


def test_a_blank_student_scores_exactly_the_blank_row(folders, tmp_path: Path):
    for number in range(3):
        write_frame(tmp_path / "blank", number, np.zeros((SIZE, SIZE, 4)))
    result = pipeline(tmp_path / "blank", folders[1])
    assert result.means["psnr_db"] == result.means["blank_psnr_db"]
    assert result.means["alpha_iou"] == 0


def test_rgba_pictures_and_opaque_pictures_serve_as_teachers(folders, tmp_path: Path):
    expected = pipeline(*folders).means
    for number in range(3):
        rgba = teacher_frame(number)
        straight = rgba[..., :3] / np.maximum(rgba[..., 3:], 1e-9)
        stored = np.rint(255 * np.concatenate([straight, rgba[..., 3:]], -1)).astype(np.uint8)
        write_png(tmp_path / "set" / f"r_{number}.png", stored)
        write_frame(tmp_path / "opaque", number, rgba, store_rgba=False)
    found = pipeline(folders[0], tmp_path / "set").means
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, abs=0.05)), name
    opaque = pipeline(folders[0], tmp_path / "opaque").means
    assert opaque["psnr_db"] == pytest.approx(expected["psnr_db"], abs=0.05)
    assert opaque["alpha_iou"] is None
    assert opaque["foreground_psnr_db"] is None
    with pytest.raises(UserError, match="is on white, the evaluation on black"):
        pipeline(folders[0], tmp_path / "opaque", background="black")
    with pytest.raises(UserError, match="partly transparent"):
        compare(tmp_path / "set", tmp_path / "set")


def test_frames_on_one_side_only_are_named(folders, tmp_path: Path):
    (folders[0] / "rgba_npz" / "00001.npz").unlink()
    (folders[0] / "renders" / "00002.png").unlink()
    with pytest.raises(UserError, match=r"student lacks frames 00001 \(2 in .*, 3 in") as caught:
        pipeline(*folders)
    assert "--frames" in caught.value.hint
    with pytest.raises(UserError, match="student lacks frames 00002"):
        compare(*folders)
    with pytest.raises(UserError, match="renders lacks frames 00002"):
        compare(folders[1], folders[0] / "renders")
    assert len(compare(*folders, frames=2).frames) == 2
    assert len(pipeline(*folders, frames=1).scores.frames) == 1
    with pytest.raises(UserError, match="no frames in rgba_npz"):
        pipeline(folders[0] / "renders", folders[1])


def test_a_frame_of_another_size_is_named(folders):
    write_frame(folders[0], 1, np.zeros((SIZE, SIZE + 2, 4)))
    for judge in (compare, pipeline):
        with pytest.raises(UserError, match="frame 00001: .* 26x24"):
            judge(*folders)


def test_results_are_written_in_full_and_never_silently_replaced(folders, tmp_path: Path):
    output, summary = tmp_path / "out" / "results.json", tmp_path / "out" / "summary.csv"
    options: dict[str, Any] = {
        "method_name": "student_50k",
        "output_json": output,
        "summary": summary,
        "sources": {"config": "ab" * 32, "checkpoint": "cd" * 32},
    }
    result = pipeline(*folders, **options)
    content = json.loads(output.read_text())
    assert content["method"] == "student_50k"
    assert content["sources"]["checkpoint"] == "cd" * 32
    assert content["render_stats"]["avg_fps"] == 2.0
    assert [frame["name"] for frame in content["frames"]] == ["00000", "00001", "00002"]
    means = {
        name: np.mean([frame[name] for frame in content["frames"]])
        for name in ("psnr_db", "ssim", "ssim_valid", "foreground_psnr_db", "alpha_iou")
    }
    for name, value in means.items():
        assert content["means"][name] == pytest.approx(value)
    assert content["means"]["lpips"] is None
    assert content["blank"]["psnr_db"] == result.means["blank_psnr_db"]
    (row,) = rows_of(summary)
    assert row["method"] == "student_50k"
    assert float(row["psnr_db"]) == pytest.approx(content["means"]["psnr_db"], rel=1e-5)
    assert row["lpips"] == ""
    assert row["config_sha256"] == "ab" * 32
    assert "gpu_power_w" not in row
    on_device = replace(result, render_stats={**result.render_stats, "gpu_power_w": 187.6})
    assert on_device.row()["gpu_power_w"] == 187.6
    assert "gpu_peak_memory_mib" not in on_device.row()

    before = output.read_bytes(), summary.read_bytes()
    with pytest.raises(UserError, match="holds results already"):
        pipeline(*folders, **options)
    with pytest.raises(UserError, match="holds results already"):
        compare(folders[1], folders[1], output_json=output)
    assert (output.read_bytes(), summary.read_bytes()) == before
    pipeline(*folders, **options, force=True)
    assert len(rows_of(summary)) == 2
    compare(folders[1], folders[1], output_json=output, force=True)
    assert json.loads(output.read_text())["means"]["psnr_db"] == "inf"


def test_a_diverged_or_damaged_student_is_named(folders):
    path = folders[0] / "rgba_npz" / "00002.npz"
    np.savez(path, rgba=np.full((SIZE, SIZE, 4), np.nan, np.float16))
    with pytest.raises(UserError, match=r"00002.npz: alpha must be finite"):
        pipeline(*folders)
    (folders[0] / "render_stats.json").write_text("{")
    with pytest.raises(UserError, match=r"render_stats.json"):
        pipeline(*folders)


def test_a_summary_with_new_columns_gets_one_header_and_keeps_its_rows(tmp_path: Path):
    path = tmp_path / "summary.csv"
    append_summary(path, {"method": "a, b", "psnr_db": 9.6066, "lpips": None})
    append_summary(path, {"method": "c", "alpha_iou": 1 / 3})
    append_summary(path, {"method": "d", "psnr_db": 40, "lpips": 0.5})
    assert path.read_text() == (
        'method,psnr_db,lpips,alpha_iou\n"a, b",9.6066,,\nc,,,0.333333\nd,40,0.5,\n'
    )


def test_a_summary_torn_at_its_last_newline_is_continued(tmp_path: Path):
    path = tmp_path / "summary.csv"
    path.write_text("method,psnr_db\na,1")
    append_summary(path, {"method": "b", "psnr_db": 2})
    assert path.read_text() == "method,psnr_db\na,1\nb,2\n"


@pytest.mark.parametrize(
    "text",
    ["a,b\n1,2\na,b\n3,4\n", "a,a\n1,2\n", "a,b\n1,2,3\n", 'a,b\n"1,2\n', "a,b\n\0\n"],
)
def test_a_damaged_summary_is_refused_and_left_alone(tmp_path: Path, text: str):
    path = tmp_path / "summary.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"summary.csv"):
        append_summary(path, {"a": 1})
    assert path.read_text() == text


def test_evaluations_that_end_at_once_lose_no_row(tmp_path: Path):
    path = tmp_path / "summary.csv"
    threads = [
        threading.Thread(target=append_summary, args=(path, {"method": i, f"column_{i % 3}": i}))
        for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = rows_of(path)
    assert sorted(int(row["method"]) for row in rows) == list(range(12))
    assert all(row[f"column_{int(row['method']) % 3}"] == row["method"] for row in rows)


def test_half_precision_is_enough_for_eight_bits(folders):
    stored = read_rgba(folders[0] / "rgba_npz" / "00000.npz")
    error = np.abs(stored - student_frame(0)).max()
    assert error < 0.5 / 255 / 4
    assert torch.from_numpy(stored).dtype == torch.float32


@pytest.mark.parametrize(
    ("names", "net"),
    [
        (["vgg16-1.pth", "vgg.pth"], "vgg"),
        (["alexnet-1.pth", "alex.pth"], "alex"),
        (["alexnet-1.pth", "alex.pth", "vgg16-1.pth", "vgg.pth"], "vgg"),
    ],
)
def test_weights_of_alexnet_alone_give_the_lpips_of_alexnet(monkeypatch, tmp_path, names, net):
    asked = []
    monkeypatch.setattr(Lpips, "from_files", lambda path, net: asked.append(net) or Named(net))
    for name in names:
        (tmp_path / name).touch()
    assert lpips_metric(tmp_path) == net
    assert lpips_metric(tmp_path / names[0]) == ("alex" if "alex" in names[0] else "vgg")
    assert lpips_metric(None) is None


class Named(NamedTuple):
    """Stands for a metric."""

    net: str

    def as_metric(self) -> str:
        return self.net
