"""The tokens of a store's instructions, encoded once and kept beside it.

    STORE/instructions/<encoder>.npz    texts (UTF-8, end to end), their lengths, token counts,
                                        and all tokens (float32), end to end

The name holds the encoder's digest: another encoder has a file of its own. Texts that are new are
added; several processes of a training wait for the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock
from loom.arrays import read_npz, write_npz
from loom.errors import UserError
from loom.files import explained

from maniflow_overlay.data.frame_store import FrameStore
from maniflow_overlay.policy.text_tokens import Encoder, Instructions

FOLDER = "instructions"
_LARGEST_BYTES = 2**34
_NAMES = ("texts", "text_bytes", "token_counts", "tokens")


def read_instructions(store: FrameStore, encoder: Encoder) -> Instructions:
    """Return the tokens of every instruction of a store; encode those that are not kept yet.

    Raises:
        UserError: An episode has no instruction, the kept tokens are damaged, or a text cannot be
            encoded.
    """
    for episode in store.episodes:
        if not episode.instructions:
            raise UserError(
                f"{store.folder}: episode {episode.number} of {episode.task} has no instruction",
                hint="language=task tells tasks apart without texts",
            )
    texts = sorted({text for episode in store.episodes for text in episode.instructions})
    folder = store.folder / FOLDER
    path = folder / f"{encoder.digest[:16]}.npz"
    with explained(folder):
        folder.mkdir(exist_ok=True)
    with FileLock(folder / ".lock"):
        known = _read(path, encoder.width) if path.is_file() else {}
        missing = [text for text in texts if text not in known]
        known |= {text: encoder.encode(text) for text in missing}
        if missing:
            _write(path, known)
    return Instructions(encoder, known)


def _write(path: Path, known: dict[str, np.ndarray]) -> None:
    encoded = [text.encode() for text in known]
    content = {
        "texts": np.frombuffer(b"".join(encoded), np.uint8),
        "text_bytes": np.array([len(text) for text in encoded], np.int64),
        "token_counts": np.array([len(tokens) for tokens in known.values()], np.int64),
        "tokens": np.concatenate(list(known.values())),
    }
    write_npz(path, content)


def _read(path: Path, width: int) -> dict[str, np.ndarray]:
    arrays = read_npz(path, _NAMES, largest=_LARGEST_BYTES)
    try:
        texts = _parts(arrays["texts"], arrays["text_bytes"], np.dtype(np.uint8), ())
        tokens = _parts(arrays["tokens"], arrays["token_counts"], np.dtype(np.float32), (width,))
        return {text.tobytes().decode(): part for text, part in zip(texts, tokens, strict=True)}
    except ValueError as error:
        raise UserError(
            f"{path} does not hold tokens of {width} numbers ({error})", hint="remove the file"
        ) from error


def _parts(
    whole: np.ndarray, counts: np.ndarray, dtype: np.dtype, row: tuple[int, ...]
) -> Sequence[np.ndarray]:
    """Cut an array into parts of `counts` rows."""
    if whole.dtype != dtype or whole.shape[1:] != row or whole.ndim != 1 + len(row):
        raise ValueError(f"{whole.dtype} {whole.shape}")
    whole_numbers = counts.ndim == 1 and np.issubdtype(counts.dtype, np.integer)
    if not whole_numbers or (counts < 1).any() or counts.sum() != len(whole):
        raise ValueError("the counts do not add up")
    return np.split(whole, np.cumsum(counts)[:-1])
