"""Instructions: the frozen encoder against transformers' own, and what a policy makes of them."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import maniflow_overlay
import numpy as np
import pytest
import torch
from loom.config import resolve
from loom.errors import UserError
from loom.run import Run
from loom.sampling import Shard
from maniflow_overlay import train as training
from maniflow_overlay.cli import app
from maniflow_overlay.config import TrainConfig
from maniflow_overlay.data.frame_store import FrameStore
from maniflow_overlay.policy.objective import FlowObjective
from maniflow_overlay.policy.runtime import load_policy
from maniflow_overlay.policy.text_encoder import TextEncoder
from maniflow_overlay.policy.text_tokens import Instructions, TextTokens
from maniflow_overlay.stored_instructions import read_instructions
from maniflow_overlay.training_batches import TrainingBatches
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
from small_policy import shape, stirred
from small_t5 import WIDTH, change_config, write_t5
from teachable_store import SIDE, VECTOR, make_teachable

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
TEXTS = ("go left", "put the block on the disc and then go up", "stay", "Go to the disc")
SIDES = {"left": ("go left", "go to the left and stay"), "right": ("go right",)}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return write_t5(tmp_path_factory.mktemp("t5") / "t5")


@pytest.fixture
def folder(published, tmp_path) -> Path:
    """A copy that may be spoilt."""
    return shutil.copytree(published, tmp_path / "t5")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Only the instruction tells where to go: left or right of the middle."""
    return make_teachable(tmp_path_factory.mktemp("store"), episodes=12, said=SIDES)


class Counted:
    """An encoder that counts."""

    width = 3

    def __init__(self, digest: str = "a" * 64) -> None:
        self.digest, self.asked = digest, []

    def encode(self, text: str) -> np.ndarray:
        self.asked.append(text)
        return np.random.default_rng(len(text)).normal(size=(len(text), 3)).astype(np.float32)


# The encoder --------------------------------------------------------------------------------------


def test_tokens_are_those_of_transformers_own_loader_and_of_a_padded_batch(published):
    """One text at a time here, a padded batch with its mask there; two loaders, two tokenizers."""
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(published / "tokenizer.json"), pad_token="<pad>", eos_token="</s>"
    )
    asked = tokenizer(list(TEXTS), padding="longest", truncation=False, return_tensors="pt")
    model = T5EncoderModel.from_pretrained(published, local_files_only=True).eval()
    with torch.no_grad():
        expected = model(asked["input_ids"], attention_mask=asked["attention_mask"])[0].numpy()
    encoder = TextEncoder(published)
    assert encoder.width == WIDTH
    for text, row, there in zip(TEXTS, expected, asked["attention_mask"].numpy(), strict=True):
        assert there.sum() == len(text.split()) + 1  # the words and the end mark
        np.testing.assert_allclose(encoder.encode(text), row[there.astype(bool)], atol=2e-6)
    spread = np.abs(encoder.encode(TEXTS[0])).max()
    assert spread > 0.1, "tokens that are all but zero would agree with anything"


def test_a_text_has_the_same_bits_whatever_was_asked_before(published):
    first, second = TextEncoder(published), TextEncoder(published)
    alone = second.encode(TEXTS[1])
    assert [first.encode(text).tobytes() for text in TEXTS][1] == alone.tobytes()


def test_the_end_mark_is_added_where_the_tokenizer_leaves_it_out(folder):
    expected = TextEncoder(folder).encode("go left")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["post_processor"] = None
    path.write_text(json.dumps(content), encoding="utf-8")
    np.testing.assert_array_equal(TextEncoder(folder).encode("go left"), expected)


def spoil_weights(folder: Path, change) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


NORM = "encoder.final_layer_norm.weight"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: w.pop(NORM), f"{NORM} is missing"),
        (lambda w: w.update({"encoder.more": torch.ones(1)}), "encoder.more does not belong there"),
        (lambda w: w.update({NORM: torch.ones(3)}), rf"{NORM} is \(3,\), expected \(16,\)"),
        (lambda w: w[NORM].fill_(float("nan")), f"{NORM} is not finite"),
        (lambda w: w.pop("shared.weight"), "shared.weight is missing"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(folder, change, complaint):
    spoil_weights(folder, change)
    with pytest.raises(UserError, match=complaint):
        TextEncoder(folder).encode("go left")


def test_a_folder_that_cannot_be_used_is_refused_with_the_remedy(folder, monkeypatch):
    with pytest.raises(UserError, match="no such folder") as caught:
        TextEncoder(folder / "absent")
    assert "t5-small" in caught.value.hint
    encoder = TextEncoder(folder)
    with pytest.raises(UserError, match="instruction is empty"):
        encoder.encode(" ")
    with pytest.raises(UserError, match="600 tokens|601 tokens"):
        encoder.encode("go " * 600)
    tokenizer = folder / "tokenizer.json"
    words = json.loads(tokenizer.read_text(encoding="utf-8"))
    words["model"]["vocab"]["disc"] = 40
    tokenizer.write_text(json.dumps(words), encoding="utf-8")
    with pytest.raises(UserError, match="token 40, config.json a vocabulary of 32"):
        TextEncoder(folder).encode("go to the disc")
    for wrong in ({"model_type": "bert"}, {"d_model": "x"}, {"num_layers": 10**9}, {"d_ff": None}):
        copy = shutil.copytree(folder, folder.parent / "copy", dirs_exist_ok=True)
        change_config(copy, **wrong)
        with pytest.raises(UserError, match=r"config\.json"):
            TextEncoder(copy)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="no weights as safetensors"):
        TextEncoder(folder)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "transformers" else find_spec(n, *a)
    )
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    with pytest.raises(UserError, match="transformers") as caught:
        TextEncoder(folder).encode("go")
    assert "maniflow-overlay[text]" in caught.value.hint


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file_ends_in_tokens_or_in_a_named_error(folder, name):
    path = folder / name
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for trial in range(30):
        content = bytearray(whole)
        if trial % 2:
            content = content[: int(rng.integers(len(content)))]
        else:
            for place in rng.integers(0, min(len(content), 4000), 3):
                content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        try:
            assert TextEncoder(folder).encode("go left").shape == (3, WIDTH)
        except UserError as error:
            refused += 1
            assert str(folder) in error.message
    assert refused >= 15


# The tokens of a store ----------------------------------------------------------------------------


def test_a_stores_texts_are_encoded_once_for_each_encoder(store, tmp_path):
    opened = FrameStore(shutil.copytree(store, tmp_path / "store"))
    encoder = Counted()
    first = read_instructions(opened, encoder)
    assert encoder.asked == sorted({text for texts in SIDES.values() for text in texts})
    again = Counted()
    second = read_instructions(opened, again)
    texts = ["go right", "go left"]
    assert torch.equal(first.tokens(texts).tokens, second.tokens(texts).tokens)
    assert again.asked == []
    other = Counted("b" * 64)
    read_instructions(opened, other)
    assert len(other.asked) == 3
    second.tokens(["new", "go left", "new"])
    assert again.asked == ["new"]


def test_damaged_tokens_of_a_store_are_refused(store, tmp_path):
    opened = FrameStore(shutil.copytree(store, tmp_path / "store"))
    expected = read_instructions(opened, Counted()).tokens(["go left"]).tokens
    (path,) = (opened.folder / "instructions").glob("*.npz")
    whole = path.read_bytes()
    for place in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[place] ^= 8
        path.write_bytes(damaged)
        try:
            assert torch.equal(
                read_instructions(opened, Counted()).tokens(["go left"]).tokens, expected
            )
        except UserError as error:
            assert str(path) in error.message
    path.write_bytes(whole)
    wider = Counted()
    wider.width = 4
    with pytest.raises(UserError, match="tokens of 4 numbers"):
        read_instructions(opened, wider)


def test_an_episode_without_a_text_is_named(tmp_path):
    made = make_teachable(tmp_path, episodes=3, said={"left": ()})
    with pytest.raises(UserError, match="episode 0 of left has no instruction"):
        read_instructions(FrameStore(made), Counted())


# The policy ---------------------------------------------------------------------------------------


def velocity(model, text: TextTokens) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    count = len(text.tokens)
    one = torch.rand(1, 2, 3, 16, 20, generator=generator).expand(count, -1, -1, -1, -1)
    state = torch.zeros(count, 2, 14)
    context = model.context(one, None, state, torch.zeros(count, dtype=torch.int64), text)
    at = torch.full((count,), 0.5)
    return model.velocity(torch.ones(count, 8, 14), at, at, context)


@pytest.fixture(scope="module")
def model():
    return stirred(shape("current", text_width=3)).eval()


def test_what_fills_a_text_up_is_not_looked_at(model):
    tokens = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    alone = velocity(model, TextTokens(tokens, torch.ones(2, 4, dtype=torch.bool)))
    wider = torch.cat([tokens, torch.full((2, 5, 3), 50.0)], dim=1)
    there = torch.cat([torch.ones(2, 4), torch.zeros(2, 5)], dim=1).bool()
    torch.testing.assert_close(velocity(model, TextTokens(wider, there)), alone, atol=1e-6, rtol=0)
    every = velocity(model, TextTokens(wider, torch.ones_like(there)))
    assert (every - alone).abs().max() > 1e-3, "the filling would have told"


def test_every_token_of_a_text_counts(model):
    tokens = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    there = torch.ones(1, 4, dtype=torch.bool)
    before = velocity(model, TextTokens(tokens, there))
    for place in range(4):
        changed = tokens.clone()
        changed[:, place] += 1
        assert (velocity(model, TextTokens(changed, there)) - before).abs().max() > 1e-4


def test_parts_of_a_context_keep_their_texts(model):
    instructions = Instructions(Counted())
    text = instructions.tokens(["a", "three words here", "bb"])
    state = torch.zeros(3, 2, 14)
    context = model.context(
        torch.rand(3, 2, 3, 16, 20), None, state, torch.zeros(3, dtype=torch.int64), text
    )
    part = context.part(slice(1, None))
    assert part.there is not None
    assert part.there.sum(dim=1).tolist() == [part.tokens.shape[1] + 2 + n for n in (16, 2)]


def settings(store: Path, encoder: Path, *more: str) -> list[str]:
    return [
        f"store={store}",
        "language=text",
        f"text_encoder={encoder}",
        "mode=none",
        "n_obs_steps=1",
        "batch_size=16",
        "val_every=1000",
        "checkpoint_every=1000",
        "augment.crop=1",
        "augment.rotation_deg=0",
        *more,
    ]


def data_of(store: Path, encoder: Path, *more: str):
    config = resolve(TrainConfig, None, settings(store, encoder, *more)).config
    store_opened = FrameStore(store)
    instructions = read_instructions(store_opened, TextEncoder(encoder))
    windows = training.Windows(
        store_opened.begins, store_opened.ends, training.WindowShape(8, 1, 0, 7)
    )
    batches = training.Batches(store_opened, None, windows, batch=config.batch_size)
    data = training.TrainingData(
        store_opened, batches, batches, np.arange(len(store_opened)), instructions
    )
    made = training.policy_shape(config, data)
    return TrainingBatches(batches, config, made, CPU, instructions), stirred(made)


def test_other_peoples_instructions_change_the_loss(store, published):
    batch_of, model = data_of(store, published, "consistency_batch_ratio=0", "flow_batch_ratio=1")
    batch = batch_of(0, Shard())
    objective = FlowObjective(model)
    assert batch.text is not None
    loss = objective(model, batch, 0).terms["flow"].value.detach()
    turned = batch._replace(
        text=TextTokens(batch.text.tokens.roll(1, 0), batch.text.there.roll(1, 0))
    )
    changed = objective(model, turned, 0).terms["flow"].value.detach()
    assert abs(float(changed - loss)) > 1e-4


def test_each_sample_gets_a_text_of_its_own_episode_on_any_number_of_processes(store, published):
    batch_of, _ = data_of(store, published)
    opened, known = FrameStore(store), Instructions(TextEncoder(published))
    met = set()
    for step in range(3):
        whole = texts_of(batch_of(step, Shard()), known)
        parts = [texts_of(batch_of(step, Shard(rank, 2)), known) for rank in (0, 1)]
        assert sorted(whole) == sorted(parts[0] + parts[1])
        met |= set(whole)
    assert {text for _, text in met} == {text for texts in SIDES.values() for text in texts}
    sides = dict(enumerate(opened.tasks))
    # With language=text the policy has no task embedding, but batches still say which task it is.
    assert all(text in SIDES[sides[task]] for task, text in met)


def texts_of(batch, known: Instructions) -> list[tuple[int, str]]:
    every = [text for texts in SIDES.values() for text in texts]
    found = []
    for row in range(len(batch.state)):
        tokens = batch.text.tokens[row][batch.text.there[row]]
        (text,) = [t for t in every if torch.equal(known.tokens([t]).tokens[0], tokens)]
        found.append((int(batch.task[row]), text))
    return found


@pytest.fixture(scope="module")
def taught(store, published, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("taught") / "run"
    done = CliRunner().invoke(
        app,
        [
            "train",
            *settings(store, published, "lr=1e-2", "flow_batch_ratio=1", "log_every=50"),
            "consistency_batch_ratio=0",
            *("--steps", "150", "--run-dir", str(run_dir)),
        ],
    )
    assert done.exit_code == 0, done.output
    return run_dir


def test_two_instructions_lead_to_two_places_after_a_short_training(taught):
    """Pictures and states are the same: only the words tell."""
    policy = load_policy(taught, checkpoint="last")
    texts = ["go left", "go right", "go to the left and stay"]
    count = len(texts)
    pictures = np.full((count, 1, SIDE, SIDE, 3), 60, np.uint8)
    state = np.zeros((count, 1, VECTOR), np.float32)
    state[..., :3] = 0.5, 0.5, 0.2
    ends = policy.act(pictures, state, np.zeros(count, np.int64), instructions=texts)[:, -1, 0]
    assert ends[1] - ends[0] > 0.25
    assert ends[1] - ends[2] > 0.25
    with pytest.raises(UserError, match="an instruction for each of 3 observations, given: none"):
        policy.act(pictures, state, np.zeros(count, np.int64))


def test_a_policy_is_not_asked_through_another_encoder(taught, tmp_path):
    copy = shutil.copytree(taught, tmp_path / "run")
    other = write_t5(tmp_path / "other", seed=1)
    path = copy / "config.yaml"
    content = path.read_text(encoding="utf-8")
    before = resolve(TrainConfig, path).config.text_encoder
    path.write_text(content.replace(str(before), str(other)), encoding="utf-8")
    with pytest.raises(UserError, match="another encoder"):
        load_policy(copy, checkpoint="last")


def test_a_run_goes_on_only_with_the_encoder_that_it_began_with(store, folder, tmp_path):
    def run(steps: int, *, resume: bool = False) -> None:
        wanted = resolve(TrainConfig, None, settings(store, folder, f"steps={steps}"))
        opened = Run.open(
            "maniflow_overlay",
            TrainConfig,
            wanted,
            directory=tmp_path / "run",
            resume=resume,
            quiet=True,
        )
        with opened as run:
            training.train(run.config, run)

    run(2)
    spoil_weights(folder, lambda weights: weights[NORM].add_(1))
    with pytest.raises(UserError, match="text_encoder"):
        run(3, resume=True)


def test_settings_that_do_not_belong_together_are_refused(tmp_path):
    with pytest.raises(UserError, match="language text needs text_encoder"):
        resolve(TrainConfig, None, ["language=text"])
    with pytest.raises(UserError, match="language task does not use text_encoder"):
        resolve(TrainConfig, None, [f"text_encoder={tmp_path}"])


def test_nothing_loads_transformers_until_a_text_is_encoded():
    names = ("transformers", "tokenizers", "safetensors")
    for path in sorted(Path(maniflow_overlay.__file__).parent.rglob("*.py")):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not line.startswith(tuple(f"{w} {n}" for w in ("import", "from") for n in names))
