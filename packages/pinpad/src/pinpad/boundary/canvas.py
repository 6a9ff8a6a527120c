"""Draw curves, strips of frames and bars as pixels: what the boundary figures are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Array = np.ndarray
Color = tuple[int, int, int]

INK: Color = (32, 33, 36)
FAINT: Color = (218, 220, 224)
READ: Color = (200, 40, 40)
COPY: Color = (70, 110, 190)
EVENT: Color = (20, 140, 90)
SECOND: Color = (225, 140, 20)

LEFT, RIGHT, TEXT = 64, 16, 13


@dataclass(frozen=True)
class Panel:
    """Curves over the steps of an episode, on one axis.

    Attributes:
        title: What y is, with its unit.
        curves: Name -> (T,) values.
        marks: Name -> (T,) bool, drawn as ticks along the lower edge.
        limits: Of y; from the values if None.
    """

    title: str
    curves: Mapping[str, Array]
    marks: Mapping[str, Array] = field(default_factory=dict)
    limits: tuple[float, float] | None = None


_COLORS = (READ, COPY, SECOND, EVENT)


def text_image(text: str, width: int = 640, height: int = 80) -> Array:
    """Return a picture that says something where there is nothing to draw."""
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).text((16, height // 2 - 8), text, fill=INK, font=_font())
    return np.asarray(image)


def panels(shown: Sequence[Panel], *, width: int = 1100, height: int = 130) -> Array:
    """Return curves one below the other, over one axis of steps; (h, width, 3) uint8."""
    image = Image.new("RGB", (width, height * len(shown) + 24), "white")
    draw = ImageDraw.Draw(image)
    steps = max(len(values) for panel in shown for values in panel.curves.values())
    for index, panel in enumerate(shown):
        _panel(draw, panel, index * height, height, width, steps)
    for tick in range(0, steps, _spacing(steps)):
        x = float(_x(tick, steps, width))
        draw.text((x, height * len(shown) + 2), f"{tick}", fill=INK, font=_font(), anchor="ma")
    return np.asarray(image)


def strip(
    frames: Array, borders: Sequence[Color], captions: Sequence[str], *, columns: int
) -> Array:
    """Return frames in rows, each with a coloured border and a caption.

    Args:
        frames: (n, h, w, 3) uint8, as large as they are shown.
        borders: One colour each.
        captions: One line each.
        columns: Frames in a row.
    """
    edge, gap, line = 4, 4, 18
    height, width = frames.shape[1] + 2 * edge, frames.shape[2] + 2 * edge
    rows = -(-len(frames) // columns)
    size = (min(columns, len(frames)) * (width + gap) + gap, rows * (height + line + gap) + gap)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for i, (frame, color, caption) in enumerate(zip(frames, borders, captions, strict=True)):
        x, y = gap + i % columns * (width + gap), gap + i // columns * (height + line + gap)
        draw.rectangle([x, y, x + width - 1, y + height - 1], fill=color)
        image.paste(Image.fromarray(frame), (x + edge, y + edge))
        draw.text((x + width / 2, y + height + 1), caption, fill=INK, font=_font(), anchor="ma")
    return np.asarray(image)


def enlarged(frames: Array, side: int) -> Array:
    """Return square frames (n, h, h, 3) scaled to about `side` pixels, each pixel a block."""
    factor = max(1, round(side / frames.shape[1]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def with_bars(frames: Array, shares: Array, height: int = 10) -> Array:
    """Return frames (n, h, w, 3) with a bar below each, dark up to a share of its width."""
    count, _, width, _ = frames.shape
    filled = np.arange(width) < np.round(np.clip(shares, 0, 1) * width)[:, None]
    bars = np.where(filled[:, None, :, None], INK, (245, 245, 245)).astype(np.uint8)
    bars = np.broadcast_to(bars, (count, height, width, 3))
    return np.concatenate([frames, bars], axis=1)


def stacked(*pictures: Array) -> Array:
    """Return pictures one below the other, padded with white to the widest."""
    width = max(picture.shape[1] for picture in pictures)
    padded = [
        np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures
    ]
    return np.concatenate(padded)


def _panel(
    draw: ImageDraw.ImageDraw, panel: Panel, top: int, height: int, width: int, steps: int
) -> None:
    upper, lower = top + 24, top + height - 10
    low, high = panel.limits or _limits(panel)
    draw.rectangle([LEFT, upper, width - RIGHT, lower], outline=FAINT)
    draw.text((LEFT, top + 6), panel.title, fill=INK, font=_font())
    for value, y in ((high, upper), (low, lower)):
        draw.text((LEFT - 6, y), f"{value:.4g}", fill=INK, font=_font(), anchor="rm")
    legend = width - RIGHT
    for color, (name, values) in zip(_COLORS, panel.curves.items(), strict=False):
        y = lower - (np.asarray(values, float) - low) / (high - low) * (lower - upper)
        x = _x(np.arange(len(values)), steps, width)
        points = np.stack([x, np.clip(y, upper, lower)], axis=1).ravel().tolist()
        draw.line(points, fill=color, width=1)
        if len(panel.curves) > 1:
            draw.text((legend, top + 6), name, fill=color, font=_font(), anchor="ra")
            legend -= int(draw.textlength(name, font=_font())) + 14
    for name, marked in panel.marks.items():
        for x in _x(np.flatnonzero(marked), steps, width):
            draw.line([x, lower - 12, x, lower], fill=EVENT, width=1)
        draw.text((legend, top + 6), f"| {name}", fill=EVENT, font=_font(), anchor="ra")
        legend -= int(draw.textlength(f"| {name}", font=_font())) + 14


def _limits(panel: Panel) -> tuple[float, float]:
    values = np.concatenate([np.asarray(each, float) for each in panel.curves.values()])
    low, high = min(0.0, float(values.min())), float(values.max())
    return low, high if high > low else low + 1


def _x(step: Array | int, steps: int, width: int) -> Array:
    return LEFT + np.asarray(step) * (width - RIGHT - LEFT) / max(1, steps - 1)


def _spacing(steps: int) -> int:
    """Return a round number of steps between ticks, so that there are 5 to 12 of them."""
    power = 10 ** max(0, len(str(steps)) - 2)
    return next(power * factor for factor in (1, 2, 5, 10, 20) if steps / (power * factor) <= 12)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT)
