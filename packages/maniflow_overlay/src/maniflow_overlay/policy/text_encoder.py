"""A frozen T5 that turns instructions into tokens, from a local folder; nothing is downloaded.

ManiFlow's language option hands the tokens of T5-small (512 numbers each) through two layers to the
transformer's context. The folder is what `transformers` publishes: `config.json`, `tokenizer.json`
and weights as safetensors. A decoder in the file is left alone; every tensor of the encoder must be
there in its shape, and nothing else may claim to belong to it.

Each text is encoded by itself, in float32: its tokens do not depend on what else is asked for, and
no padding ever enters the encoder.
"""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from loom.errors import UserError
from loom.files import explained, read_json, sha256_file

from maniflow_overlay.policy.pretrained import require_fit

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import T5EncoderModel

CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "*.safetensors"
LONGEST = 512
"""Tokens of the longest text that T5 was trained on."""
_LARGEST = {
    "vocab_size": 2**20,
    "d_model": 2**14,
    "d_kv": 2**12,
    "d_ff": 2**18,
    "num_layers": 128,
    "num_heads": 1024,
    "relative_attention_num_buckets": 2**12,
    "relative_attention_max_distance": 2**16,
    "eos_token_id": 2**20,
}
_DEFAULTS = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "eos_token_id": 1,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
}
_FEED_FORWARD = ("relu", "gated-gelu")
_TIED = ("shared.weight", "encoder.embed_tokens.weight")
_NOT_OURS = ("decoder.", "lm_head.")
_HINT = "give the folder of a T5 as transformers saves it, such as a copy of google-t5/t5-small"
_EXTRA = "uv pip install 'maniflow-overlay[text]'"


class TextEncoder:
    """The encoder of a folder; the network is read when the first text is asked for."""

    def __init__(self, folder: Path) -> None:
        """Look at a folder.

        Raises:
            UserError: It is missing, incomplete, or of another kind of model.
        """
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder of a text encoder", hint=_HINT)
        self._settings = _read_settings(self.folder / CONFIG)
        self.width: int = self._settings["d_model"]
        """Numbers of a token."""
        self._weights = sorted(self.folder.glob(WEIGHTS))
        if not self._weights:
            raise UserError(
                f"{self.folder} has no weights as safetensors",
                hint="pickled weights are not read; save_pretrained of transformers writes "
                "model.safetensors",
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over settings, tokenizer and weights."""
        files = [self.folder / CONFIG, self.folder / TOKENIZER, *self._weights]
        return hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()

    @torch.no_grad()
    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of a text, (tokens, width) float32, the end mark's token included.

        Raises:
            UserError: transformers is not installed, a file is damaged, or the text is too long.
        """
        if not text.strip():
            raise UserError("an instruction is empty", hint="language=task needs none")
        model = self._model
        ids: list[int] = self._tokenizer.encode(text).ids
        end = self._settings["eos_token_id"]
        if ids[-1:] != [end]:
            ids = [*ids, end]
        if len(ids) > LONGEST:
            raise UserError(
                f"an instruction of {len(ids)} tokens: {text[:60]!r}...",
                hint=f"T5 was trained on {LONGEST}; shorten it",
            )
        if max(ids) >= self._settings["vocab_size"]:
            raise UserError(
                f"{self.folder / TOKENIZER} has token {max(ids)}, {CONFIG} a vocabulary of "
                f"{self._settings['vocab_size']}",
                hint="both must be of the same T5",
            )
        tokens = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        if not bool(tokens.isfinite().all()):
            raise UserError(f"{self.folder}: the tokens of {text[:60]!r} are not finite")
        return tokens.numpy()

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        path = self.folder / TOKENIZER
        with explained(path):
            content = path.read_bytes()
        try:
            tokenizer = Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises nothing more special
            raise UserError(f"{path} cannot be read: {error}", hint=_HINT) from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @cached_property
    def _model(self) -> T5EncoderModel:
        if importlib.util.find_spec("transformers") is None:
            raise UserError("instructions need the library transformers", hint=_EXTRA)
        from transformers import T5Config, T5EncoderModel

        with torch.device("meta"):
            model = T5EncoderModel(T5Config(**self._settings))
        weights = self._read_weights()
        require_fit(self.folder, model.state_dict(), weights, "the encoder of its T5", hint=_HINT)
        model.load_state_dict(weights, assign=True)
        return model.eval().requires_grad_(False)

    def _read_weights(self) -> dict[str, Tensor]:
        """Return the encoder's tensors in float32; its embedding stands under both of its names."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        weights: dict[str, Tensor] = {}
        for path in self._weights:
            try:
                weights |= {
                    name: value.float() if value.is_floating_point() else value
                    for name, value in load_file(path).items()
                    if not name.startswith(_NOT_OURS)
                }
            except (OSError, SafetensorError, ValueError) as error:
                raise UserError(f"{path} cannot be read: {error}", hint=_HINT) from error
        for name, other in (_TIED, _TIED[::-1]):
            if name in weights:
                weights.setdefault(other, weights[name])
        return weights


def _read_settings(path: Path) -> dict[str, Any]:
    """Return what fixes a T5's encoder."""
    found = read_json(path)
    kind = found.get("model_type") if isinstance(found, dict) else None
    if kind != "t5":
        raise UserError(f"{path}: a model of type {kind!r}, no T5", hint=_HINT)
    names = (*_LARGEST, "layer_norm_epsilon", "feed_forward_proj")
    settings = {name: found.get(name, _DEFAULTS.get(name)) for name in names}
    sound = {
        name: type(settings[name]) is int and 0 < settings[name] <= most
        for name, most in _LARGEST.items()
    }
    epsilon = settings["layer_norm_epsilon"]
    sound["layer_norm_epsilon"] = type(epsilon) is float and 0 < epsilon < 1
    sound["feed_forward_proj"] = settings["feed_forward_proj"] in _FEED_FORWARD
    for name, good in sound.items():
        if not good:
            raise UserError(f"{path}: {name} is {settings[name]!r}", hint=_HINT)
    return settings
