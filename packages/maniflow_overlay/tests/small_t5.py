"""A random T5 in a folder, as transformers saves it, with a tokenizer of a few words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

WORDS = [
    "go",
    "left",
    "right",
    "up",
    "down",
    "to",
    "the",
    "block",
    "disc",
    "put",
    "on",
    "and",
    "then",
    "stay",
]
WIDTH = 16


def write_t5(folder: Path, seed: int = 0) -> Path:
    """Write it, decoder included; skip the test where transformers is not installed."""
    transformers = pytest.importorskip("transformers", reason="the extra `text` is not installed")
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=32, d_model=WIDTH, d_kv=4, d_ff=32, num_layers=2, num_heads=4, dropout_rate=0.3
    )
    model = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{w: k for k, w in enumerate(WORDS, 3)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    # As the published file has it: both would change what a text is.
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(pad_token="<pad>", length=9)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def change_config(folder: Path, **changes: object) -> None:
    """Overwrite settings of a folder's `config.json`; None removes one."""
    path = folder / "config.json"
    settings = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    kept = {name: value for name, value in settings.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")
