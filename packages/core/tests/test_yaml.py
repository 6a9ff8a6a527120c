"""YAML text: the scalars of YAML 1.2, no repeated keys, and an answer to any text."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loom.config import parse_yaml, read_yaml
from loom.errors import UserError


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("5e-4", 5e-4),
        ("1e5", 1e5),
        ("-.5E+2", -50.0),
        ("1.", 1.0),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("+12", 12),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2025-10-17", "2025-10-17"),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("=", "="),
        ("TRUE", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("'5e-4'", "5e-4"),
        ("!!str 12", "12"),
        ("!!float 12", 12.0),
        ("0b101", "0b101"),
        ("特徴", "特徴"),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(written, value):
    parsed = parse_yaml(f"a: {written}", "t")["a"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_nan_is_a_number():
    assert math.isnan(parse_yaml(".nan", "t"))


def test_keys_are_text_as_written():
    assert parse_yaml("{no: 1, 010: 2, 'x y': 3, ~: 4}", "t") == {
        "no": 1, "010": 2, "x y": 3, "~": 4,
    }  # fmt: skip


def test_a_merge_key_is_an_ordinary_key_in_yaml_1_2():
    assert parse_yaml("a: &x {b: 1}\nc: {<<: *x}", "t")["c"] == {"<<": {"b": 1}}


def test_a_repeated_key_is_refused_with_both_lines(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("train:\n  lr: 1\n  max_steps: 3\n  lr: 2\n")
    with pytest.raises(UserError, match=r"a\.yaml:4: the key `train\.lr` .*first on line 2"):
        read_yaml(path)


@pytest.mark.parametrize(
    "content",
    [
        "a: [1, 2",
        "a: b: c",
        "\ta: 1",
        "a: 1\n---\nb: 2",
        "!!python/object/apply:os.system ['true']",
        "a: !!timestamp 2025-10-17",
        "a: !custom x",
        "{[1, 2]: 3}",
        "a: *nowhere",
        "&a [*a]",
        "[" * 1_000,
        "a: " + "9" * 5_000,
        "a: !!int no",
        "\x00",
        '"\\ud800"',
        '"\\UFFFFFFFF"',
        '"\\U00110000"',
        "x" * 1_000_001,
    ],
    ids=lambda content: content[:20],
)
def test_text_that_is_no_config_is_a_user_error(content):
    with pytest.raises(UserError, match=r"^t"):
        parse_yaml(content, "t")


def test_a_bomb_of_aliases_ends_in_a_user_error():
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(UserError, match="more than 100000 values"):
        parse_yaml("\n".join(levels), "t")


def test_the_number_of_values_is_bounded(monkeypatch):
    monkeypatch.setattr("loom.config.text.MAX_VALUES", 50)
    assert len(parse_yaml(str([1] * 49), "t")) == 49
    with pytest.raises(UserError, match="more than 50 values"):
        parse_yaml(str([1] * 50), "t")


YAML_ALPHABET = st.sampled_from(list("ab01-+.eE:,[]{}&*!|>'\"%@`#?~=<\\ \n\t_xou\x00\x85\ufeff é"))


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(YAML_ALPHABET, max_size=60), st.text(max_size=40)))
def test_any_text_loads_or_is_a_user_error(content):
    try:
        value = parse_yaml(content, "t")
    except UserError as error:
        assert error.message.startswith("t")
        assert error.hint
    else:
        json.dumps(value).encode()


def test_a_key_tight_before_a_bracket_is_read_as_it_was_meant():
    assert parse_yaml("a: 1\nloss:{ weight: 0.1 }\nlist:[1, 2]\n", "t") == {
        "a": 1,
        "loss": {"weight": 0.1},
        "list": [1, 2],
    }


def test_mending_a_tight_key_does_not_hide_another_fault_and_its_line():
    with pytest.raises(UserError, match="^t:2: not valid YAML"):
        parse_yaml("loss:{ weight: 0.1 }\na: b: c\n", "t")
