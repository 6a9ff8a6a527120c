"""PNG pictures and PCD clouds from bytes: what is right is read, the rest is a `ValueError`."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from loom.pcd import coordinates, parse_pcd
from loom.png import LARGEST_PIXELS, decode_png, png_size
from PIL import Image


def png(pixels: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def header(width: int, height: int) -> bytes:
    """A PNG header with a right check sum that says anything."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + check


def test_pixels_come_back_and_modes_are_converted_on_demand_only():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    mode, found = decode_png(png(pixels))
    assert mode == "RGBA"
    assert np.array_equal(found, pixels)
    mode, found = decode_png(png(pixels), {"RGBA": "RGB"})
    assert mode == "RGB"
    assert np.array_equal(found, pixels[..., :3])
    assert png_size(png(pixels)) == (7, 5)


def test_a_header_that_asks_for_gigabytes_is_refused_before_anything_is_decoded():
    for width, height in ((2**31 - 1, 2**31 - 1), (LARGEST_PIXELS + 1, 1), (0, 5)):
        with pytest.raises(ValueError, match="pixels"):
            decode_png(header(width, height) + png(np.zeros((1, 1), np.uint8))[33:])


def test_every_flipped_bit_of_a_png_is_noticed():
    whole = png(np.random.default_rng(1).integers(0, 256, (4, 4, 3), dtype=np.uint8))
    for place in range(len(whole) - 12):  # the last chunk, IEND, holds nothing
        content = bytearray(whole)
        content[place] ^= 4
        with pytest.raises(ValueError, match=r"PNG|pixels|damaged"):
            decode_png(bytes(content))


def pcd(points: np.ndarray, data: str = "binary", count: str = "") -> bytes:
    text = (
        "VERSION 0.7\nFIELDS x y z\nSIZE 8 8 8\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 1\nHEIGHT 1\n"
        f"POINTS {count or len(points)}\nDATA {data}\n"
    )
    body = points.astype("<f8").tobytes()
    if data == "ascii":
        body = "\n".join(" ".join(map(repr, row)) for row in points.tolist()).encode()
    if data == "binary_compressed":
        columns = points.astype("<f8").T.tobytes()
        body = struct.pack("<II", len(columns), len(columns)) + columns
    return text.encode() + body


def copied(packed: np.ndarray, out: np.ndarray) -> int:
    """Stand in for LZF: bytes as they are."""
    out[:] = packed
    return len(packed)


@pytest.mark.parametrize("data", ["ascii", "binary", "binary_compressed"])
def test_every_form_of_a_cloud_gives_its_points(data):
    points = np.random.default_rng(2).normal(size=(6, 3))
    found = coordinates(parse_pcd(pcd(points, data), copied))
    assert np.array_equal(found, points.astype(np.float32))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pcd(np.zeros((2, 3)), "binary_compressed"), "binary_compressed is not read"),
        (pcd(np.zeros((2, 3)))[:-1], "cut short"),
        (pcd(np.zeros((2, 3)), count="99999999999"), "points with fields"),
        (pcd(np.zeros((2, 3))).replace(b"FIELDS x y z", b"FIELDS x y w"), "z"),
        (pcd(np.zeros((2, 3))).replace(b"TYPE F F F", b"TYPE F F Q"), "Q"),
        (b"DATA binary\n", "FIELDS"),
        (b"x" * 99, "header"),
    ],
)
def test_a_cloud_that_cannot_be_read_says_why(content, words):
    with pytest.raises(ValueError, match=words):
        parse_pcd(content)
