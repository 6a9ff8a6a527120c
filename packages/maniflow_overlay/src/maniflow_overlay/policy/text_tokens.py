"""Instructions as a policy takes them: tokens of several texts, filled up to the longest of them.

The places that were filled up are named, and nothing attends to them: how long the other texts of a
batch are does not change an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor


class TextTokens(NamedTuple):
    """Tokens of a batch of texts.

    Attributes:
        tokens: (B, T, text_width) float32, zero where there is none.
        there: (B, T) bool, which of them belong to the text.
    """

    tokens: Tensor
    there: Tensor

    def to(self, device: torch.device) -> TextTokens:
        """Return them on a device."""
        return TextTokens(self.tokens.to(device), self.there.to(device))

    def part(self, rows: slice) -> TextTokens:
        """Return those of some samples."""
        return TextTokens(self.tokens[rows], self.there[rows])


class Encoder(Protocol):
    """What is used of an encoder; `policy.text_encoder.TextEncoder` is one."""

    @property
    def digest(self) -> str:
        """Which encoder it is."""
        ...

    @property
    def width(self) -> int:
        """Numbers of a token."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """Return (tokens, width) float32."""
        ...


class Instructions:
    """Texts to tokens; each text is encoded once."""

    def __init__(self, encoder: Encoder, known: Mapping[str, np.ndarray] | None = None) -> None:
        """Take an encoder, and the tokens of texts that it has encoded before."""
        self.encoder = encoder
        self._known = dict(known or {})

    def __len__(self) -> int:
        return len(self._known)

    def tokens(self, texts: Sequence[str]) -> TextTokens:
        """Return the tokens of texts on the CPU, B of them.

        Raises:
            UserError: A text is new and cannot be encoded.
        """
        for text in texts:
            if text not in self._known:
                self._known[text] = self.encoder.encode(text)
        found = [self._known[text] for text in texts]
        longest = max(map(len, found), default=0)
        tokens = np.zeros((len(found), longest, self.encoder.width), np.float32)
        there = np.zeros((len(found), longest), bool)
        for row, each in enumerate(found):
            tokens[row, : len(each)] = each
            there[row, : len(each)] = True
        return TextTokens(torch.from_numpy(tokens), torch.from_numpy(there))
