"""Settings: YAML 1.2, layers, overrides, origins, and errors that say what to do."""

import enum
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pydantic
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from loom.config import (
    Config,
    config_hash,
    differences,
    plain,
    resolve,
    show,
    to_yaml,
)
from loom.errors import UserError


class Mode(enum.Enum):
    FAST = "fast"
    EXACT = "exact"


class Cosine(Config):
    type: Literal["cosine"] = "cosine"
    peak: float = 1.0
    warmup: int = 10


class Linear(Config):
    type: Literal["linear"] = "linear"
    peak: float = 1.0
    slope: float = 0.1


class Phase(Config):
    removed_keys: ClassVar[Mapping[str, str]] = {
        "freeze_student": "list what learns in `optimize`",
        "force_feature_on": "the projector phase turns the feature loss on by itself",
    }
    name: str = "joint"
    end_step: int = 100
    optimize: tuple[str, ...] = ("student", "projector")
    weight: float | None = None


class Train(Config):
    lr: Annotated[float, pydantic.Field(gt=0)] = 1e-3
    """Peak learning rate."""
    max_steps: int = 100
    resume_often: bool = False
    phases: tuple[Phase, ...] = (Phase(),)
    schedule: Annotated[Cosine | Linear, pydantic.Field(discriminator="type")] = Cosine()
    decay: float | Cosine = 0.5

    @pydantic.model_validator(mode="after")
    def _phases_end_inside(self):
        last = self.phases[-1].end_step if self.phases else 0
        if last > 1000 + self.max_steps:
            raise ValueError(
                f"the last phase ends at {last}, far beyond max_steps {self.max_steps}"
            )
        return self

    def notices(self):
        if self.lr > 0.1:
            yield f"lr {self.lr} is very high"


class Settings(Config):
    seed: int = 0
    name: str = ""
    data: Path | None = None
    mode: Mode = Mode.FAST
    box: tuple[float, float] = (-1.0, 1.0)
    weights: dict[str, float] = {"color": 1.0}
    train: Train = Train()


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        return path

    return write


def outcome(attempt) -> tuple[object, UserError | None]:
    """Return (value, None) or (None, the refusal); any other exception is the test's failure."""
    try:
        return attempt(), None
    except UserError as error:
        return None, error


def refusal(*overrides, source=None, model=Settings, **options) -> tuple[str, str]:
    with pytest.raises(UserError) as caught:
        resolve(model, source, overrides, **options)
    return caught.value.message, caught.value.hint


# --- any input -----------------------------------------------------------------------------------

YAML_ALPHABET = st.sampled_from(list("ab01-+.eE:,[]{}&*!|>'\"%@`#?~=<\\ \n\t_xou\x00\x85\ufeff é"))


@settings(max_examples=150, deadline=None)
@given(
    st.text(YAML_ALPHABET, max_size=20), st.sampled_from(["seed", "train", "train.phases.0", "x"])
)
def test_any_override_resolves_or_is_a_user_error(value, key):
    resolved, error = outcome(lambda: resolve(Settings, None, [f"{key}={value}"]))
    assert resolved or error.message


@settings(max_examples=80, deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*Settings.model_fields, *Train.model_fields]), inner)
        ),
        max_leaves=8,
    )
)
def test_any_mapping_as_a_config_resolves_or_is_a_user_error(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("c") / "c.yaml"
    path.write_text(yaml.safe_dump({"train": value}), encoding="utf-8")
    resolved, error = outcome(lambda: resolve(Settings, path))
    assert resolved or error.message


# --- layers and origins -----------------------------------------------------------------------


def test_sources_win_in_the_documented_order(write):
    write("base.yaml", "seed: 1\nname: base\ntrain: {max_steps: 1, lr: 0.01}\n")
    path = write("a.yaml", "extends: base.yaml\nname: file\ntrain:\n  max_steps: 2\n")
    write("groups/train/long.yaml", "max_steps: 3\nresume_often: true\n")
    resolved = resolve(
        Settings, path, ["train.max_steps=4", "train=long"], flags={"train.max_steps": None}
    )
    config = resolved.config
    assert (config.seed, config.name, config.train.max_steps) == (1, "file", 4)
    assert config.train.resume_often is True
    assert config.train.lr == 0.01
    flagged = resolve(Settings, path, ["train.max_steps=4"], flags={"train.max_steps": 5})
    assert flagged.config.train.max_steps == 5
    assert resolve(Settings, path).config.train.max_steps == 2


def test_every_value_knows_where_it_came_from(write):
    base = write("base.yaml", "seed: 1\n")
    path = write("a.yaml", "extends: base.yaml\ntrain:\n  lr: 5e-4\n  phases:\n    - name: warm\n")
    group = write("groups/train/often.yaml", "resume_often: true\n")
    resolved = resolve(
        Settings, path, ["train=often", "train.phases.0.end_step=7"], flags={"name": "x"}
    )
    origins = resolved.origins
    assert origins["seed"] == f"{base}:1"
    assert origins["train.lr"] == f"{path}:3"
    assert origins["train.phases.0.name"] == f"{path}:5"
    assert origins["train.phases.0.weight"] == "default"
    assert origins["train.resume_often"] == f"train=often ({group}):1"
    assert origins["train.phases.0.end_step"] == "override train.phases.0.end_step=7"
    assert origins["name"] == "flag --name"
    assert origins["mode"] == "default"
    assert "train.lr=0.0005" in show(plain(resolved.config), origins)
    assert show(plain(resolved.config), origins).count("\n") + 1 == len(origins)


def test_lists_and_free_mappings_are_replaced_and_sections_merge(write):
    path = write("a.yaml", "weights: {depth: 2}\ntrain: {phases: [{name: a}, {name: b}]}\n")
    config = resolve(Settings, path, ["weights.alpha=3", "train.phases.1.end_step=5"]).config
    assert config.weights == {"depth": 2.0, "alpha": 3.0}
    assert [phase.name for phase in config.train.phases] == ["a", "b"]
    assert config.train.phases[1].end_step == 5
    assert config.train.lr == 1e-3


def test_an_index_reaches_into_a_default_list_and_the_next_one_appends():
    overrides = ["train.phases.0.end_step=7", "train.phases.1.name=second"]
    phases = resolve(Settings, None, overrides).config.train.phases
    assert [(phase.name, phase.end_step) for phase in phases] == [("joint", 7), ("second", 100)]
    message, hint = refusal("train.phases.3.name=x")
    assert "`train.phases` is a list of 1" in message
    assert "index" in hint


def test_another_variant_keeps_only_the_keys_it_knows(write):
    path = write("a.yaml", "train: {schedule: {type: cosine, peak: 2, warmup: 3}}\n")
    schedule = resolve(Settings, path, ["train.schedule.type=linear"]).config.train.schedule
    assert schedule == Linear(peak=2.0)
    same = resolve(Settings, path, ["train.schedule.warmup=4"]).config.train.schedule
    assert same == Cosine(peak=2.0, warmup=4)


def test_a_group_without_a_field_is_laid_over_the_whole_config(write, tmp_path):
    write("groups/machine/laptop.yaml", "seed: 7\ntrain: {max_steps: 9}\n")
    config = resolve(Settings, None, ["machine=laptop"], groups=tmp_path / "groups").config
    assert (config.seed, config.train.max_steps) == (7, 9)
    message, hint = refusal("machine=laptob", groups=tmp_path / "groups")
    assert "no `laptob`" in message
    assert hint == "did you mean `machine=laptop`?"
    write("secret.yaml", "seed: 1\n")
    assert "no `../../secret`" in refusal("machine=../../secret", groups=tmp_path / "groups")[0]


def test_extends_is_relative_takes_lists_and_refuses_circles(write):
    write("lib/one.yaml", "extends: ../two.yaml\nseed: 1\n")
    write("two.yaml", "seed: 2\nname: two\n")
    path = write("a.yaml", "extends: [lib/one.yaml]\n")
    assert resolve(Settings, path).config.seed == 1
    assert resolve(Settings, path).config.name == "two"
    write("two.yaml", "extends: a.yaml\n")
    assert "circle: a.yaml -> one.yaml -> two.yaml -> a.yaml" in refusal(source=path)[0]
    missing = write("b.yaml", "seed: 1\nextends: gone.yaml\n")
    assert "b.yaml:2: `extends` names gone.yaml" in refusal(source=missing)[0]
    assert "should be a path" in refusal(source=write("c.yaml", "extends: {a: 1}\n"))[0]


def test_an_overridden_file_value_is_a_notice(write):
    path = write("a.yaml", "train:\n  max_steps: 50000\n  lr: 0.5\n")
    resolved = resolve(Settings, path, ["seed=3"], flags={"train.max_steps": 200})
    assert resolved.notices == (
        f"train.max_steps: 50000 ({path}:2) -> 200 (flag)",
        "train: lr 0.5 is very high",
    )


# --- refusals ---------------------------------------------------------------------------------


def test_an_unknown_key_names_its_path_its_line_and_the_likely_one(write):
    path = write("a.yaml", "seed: 1\ntrain:\n  phases:\n    - {nam: x}\n")
    message, hint = refusal(source=path)
    assert message == f"{path}:4: unknown key `train.phases.0.nam`"
    assert hint == "did you mean `train.phases.0.name`?"
    assert refusal("lr=1")[1] == "did you mean `train.lr`?"
    assert refusal("train.qqqq=1")[1].startswith("known here: lr, max_steps")
    assert refusal("trian.lr=1") == (
        "override trian.lr=1: unknown key `trian`", "did you mean `train`?",
    )  # fmt: skip


def test_a_removed_key_has_a_message_of_its_own_and_comes_first(write):
    path = write("a.yaml", "sed: 1\ntrain:\n  phases:\n    - name: x\n      freeze_student: true\n")
    message, hint = refusal(source=path)
    assert message.startswith(f"{path}:5: the key `train.phases.0.freeze_student` was removed; ")
    assert "unknown key `sed`" in message
    assert hint == "list what learns in `optimize`"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seed=true", "`seed` is true, but should be an integer"),
        ("seed=1.5", "`seed` is 1.5, but should be an integer"),
        ("seed=1e5", "`seed` is 100000.0, but should be an integer"),
        ("seed='1'", '`seed` is "1", but should be an integer'),
        ("train.lr='1'", '`train.lr` is "1", but should be a number'),
        ("train.lr=true", "`train.lr` is true, but should be a number"),
        ("train.lr=-1", "`train.lr` is -1, but should be greater than 0"),
        ("train.resume_often=yes", '`train.resume_often` is "yes", but should be true or false'),
        ("train.resume_often=1", "`train.resume_often` is 1, but should be true or false"),
        ("name=12", "`name` is 12, but should be text"),
        ("data=3", "`data` is 3, but should be text"),
        ("mode=slow", "`mode` is \"slow\", but should be 'fast' or 'exact'"),
        ("box=[1]", "`box.1` is missing"),
        ("train=3", "`train` is 3, but should be a section"),
        ("train.phases=x", '`train.phases` is "x", but should be a list'),
        ("weights.color=x", '`weights.color` is "x", but should be a number'),
        ("train.schedule.type=cosin", '`train.schedule.type` is "cosin", which is none of its'),
        ("train.schedule.slope=1", "unknown key `train.schedule.slope`"),
        ("train.decay=x", "should be a number, or should be a section"),
        ("train.decay={q: 1}", "unknown key `train.decay.q`"),
        ("train.phases.0.end_step=5000", "`train`: the last phase ends at 5000, far beyond"),
        ("seed.x=1", "`seed` is 0, which has no parts"),
    ],
)
def test_a_wrong_value_is_refused_in_a_sentence_with_a_remedy(override, sentence):
    message, hint = refusal(override)
    assert sentence in message
    assert override in message
    assert hint


def test_an_integer_may_stand_for_a_float():
    assert resolve(Settings, None, ["train.lr=1"]).config.train.lr == 1.0


@pytest.mark.parametrize("argument", ["lr", "=3", "train..lr=3", "--x=3", "a b=3", "train.=1"])
def test_an_argument_that_is_no_assignment_is_refused(argument):
    assert "is not an override" in refusal(argument)[0]


def test_many_faults_are_told_together_and_counted():
    message, _ = refusal("a=1", "b=1", "c=1", "d=1", "seed=x")
    assert message.count("unknown key") == 3
    assert message.endswith("; and 2 more")


def test_a_missing_value_names_its_key(write):
    class Needs(Config):
        path: str

    message, hint = refusal(model=Needs)
    assert message == "defaults: `path` is missing"
    assert "path=VALUE" in hint


def test_missing_binary_and_foreign_files_are_user_errors(write, tmp_path):
    assert "no such file" in refusal(source=tmp_path / "gone.yaml")[0]
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\xfa")
    assert "not UTF-8" in refusal(source=tmp_path / "b.yaml")[0]
    assert "a config is a mapping" in refusal(source=write("c.yaml", "- 1\n"))[0]
    assert "without a config.yaml" in refusal(source=tmp_path)[0]


def test_a_union_that_was_tried_as_a_section_complains_only_inside_it():
    message, hint = refusal("train.decay={q: 1}")
    assert message == "override train.decay={q: 1}: unknown key `train.decay.q`"
    assert hint == "known here: type, peak, warmup"


# --- the saved config -------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
floats = st.floats(allow_nan=False)
phases = st.builds(
    Phase,
    name=words,
    end_step=st.integers(0, 100),
    optimize=st.lists(words, max_size=3).map(tuple),
    weight=st.none() | floats,
)
cosines = st.builds(Cosine, peak=floats, warmup=st.integers())
configs = st.builds(
    Settings,
    seed=st.integers(),
    name=words | st.sampled_from(["5e-4", "no", "010", "null", "~", "1_0", "<<", ".inf", "true"]),
    data=st.none() | st.just(Path("data/lego")),
    mode=st.sampled_from(Mode),
    box=st.tuples(floats, floats),
    weights=st.dictionaries(words, floats, max_size=3),
    train=st.builds(
        Train,
        lr=st.floats(min_value=1e-12, allow_nan=False),
        resume_often=st.booleans(),
        phases=st.lists(phases, max_size=3).map(tuple),
        schedule=cosines | st.builds(Linear, peak=floats, slope=floats),
        decay=floats | cosines,
    ),
)


@settings(max_examples=60, deadline=None)
@given(configs)
def test_the_saved_config_runs_again_as_it_is(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("saved") / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    again = resolve(Settings, path).config
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert not differences(plain(config), plain(again))
    assert resolve(Settings, path.parent).config == config


def test_the_hash_follows_every_setting_and_not_their_order():
    one = config_hash(Settings(weights={"a": 1.0, "b": 2.0}))
    assert one == config_hash(Settings(weights={"b": 2.0, "a": 1.0}))
    assert one != config_hash(Settings(weights={"a": 1.0, "b": 2.5}))
    assert len(one) == 64


def test_differences_name_each_setting_once():
    was = {"train": {"lr": 5e-4, "phases": [1, 2], "old": 1}, "on": 1, "nan": math.nan}
    now = {"train": {"lr": 1e-3, "phases": [1, 3]}, "on": True, "nan": math.nan, "new": None}
    assert differences(was, now) == [
        "train.lr: 0.0005 -> 0.001",
        "train.phases.1: 2 -> 3",
        "on: 1 -> true",
        "new: absent -> null",
        "train.old: 1 -> absent",
    ]


def test_a_config_cannot_be_changed():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Settings().seed = 1
