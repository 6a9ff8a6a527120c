"""8-bit PNG pictures, decoded with the check sum of every chunk verified.

Decoding alone ignores most check sums, and believes a header that asks for gigabytes of pixels.
"""

from io import BytesIO

import numpy as np
from PIL import Image

LARGEST_PIXELS = 2**26
HEADER_BYTES = 33
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_size(content: bytes) -> tuple[int, int]:
    """Return width and height from the first `HEADER_BYTES` of a PNG, without decoding it.

    Raises:
        ValueError: It is no PNG, or says that it has no pixels or more than `LARGEST_PIXELS`.
    """
    if content[:8] != _SIGNATURE or len(content) < HEADER_BYTES:
        raise ValueError("no PNG file")
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    if not 0 < width * height <= LARGEST_PIXELS:
        raise ValueError(f"its header says {width}x{height} pixels, 1 to {LARGEST_PIXELS} are read")
    return width, height


def decode_png(content: bytes, convert: dict[str, str] | None = None) -> tuple[str, np.ndarray]:
    """Decode a PNG; return its mode (L, RGB, RGBA, P, I;16 ...) and its pixels.

    Args:
        content: The file's bytes.
        convert: Which modes are converted to which, as `{"P": "RGB"}`.

    Raises:
        ValueError: It is no PNG, too large, or damaged.
    """
    png_size(content)
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            image.verify()
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            wanted = (convert or {}).get(image.mode, image.mode)
            return wanted, np.asarray(image if wanted == image.mode else image.convert(wanted))
    except (OSError, ValueError, SyntaxError, EOFError, OverflowError) as error:
        raise ValueError(f"damaged: {error}") from error
