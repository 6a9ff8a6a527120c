"""YAML text to plain values, by the rules of YAML 1.2.

PyYAML follows YAML 1.1, where `5e-4` is text, `no` is false, `010` is eight, `12:30:45` is a number
and the second of two equal keys wins in silence. Here scalars follow the YAML 1.2 core schema
(https://yaml.org/spec/1.2.2/#103-core-schema), a repeated key is refused, each value remembers its
line, and text of any kind ends in a value or in a `UserError`: nesting, size and the expansion of
aliases are bounded.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import yaml
from yaml.reader import ReaderError

from loom.errors import UserError

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 64
MAX_VALUES = 100_000

Path = tuple[str | int, ...]  # from the root of a value to one of its parts

_TAG = "tag:yaml.org,2002:"
_CORE_SCHEMA = [
    (_TAG + "null", re.compile(r"^(?:~|null|Null|NULL|)$")),
    (_TAG + "bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")),
    (_TAG + "int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")),
    (
        _TAG + "float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
    ),
]


@dataclass(frozen=True)
class Text:
    """A parsed document: its value, and the line on which each part of it stands."""

    value: Any
    lines: dict[Path, int]
    notices: tuple[str, ...] = ()


_TIGHT_KEY = re.compile(r"^(\s*[A-Za-z_][\w-]*:)(?=[\[{])", re.MULTILINE)


class _TooDeep(yaml.MarkedYAMLError):
    """The text nests deeper than any configuration does."""


class _Loader(yaml.SafeLoader):
    """Composes nodes with the tags of the core schema; values are built by `_Builder`."""

    yaml_implicit_resolvers = {None: _CORE_SCHEMA}
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise _TooDeep(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the text that `_Loader` would not read back as text."""

    yaml_implicit_resolvers = {None: _CORE_SCHEMA}

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    """Escape what a plain or single-quoted scalar would read back as a plain line break."""
    special = any(character in "\r\x85\u2028\u2029\ufeff" for character in value)
    return dumper.represent_scalar(_TAG + "str", value, style='"' if special else None)


_Dumper.add_representer(str, _represent_text)


def parse(text: str, source: str) -> Text:
    """Parse one YAML document.

    A key that stands tight before a bracket (`loss:{ weight: 1 }`) makes a text that is no YAML; it
    is read as it was meant, and a notice names the line.

    Args:
        text: The document; an empty one is None.
        source: Its name in messages, usually the path.

    Raises:
        UserError: The text is not one well-formed document of plain values.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f"{source}: {len(text)} characters, more than the {MAX_CHARACTERS} a config may have",
            hint="keep data in files of their own and name them in the config",
        )
    try:
        root = yaml.compose(text, Loader=_Loader)
    except ReaderError as error:
        character = f"character number {error.position} ({error.character!r})"
        raise UserError(
            f"{source}: {character} is not allowed in YAML",
            hint="remove the control character, or write it as an escape in double quotes",
        ) from error
    except yaml.MarkedYAMLError as error:
        spaced = _TIGHT_KEY.sub(r"\1 ", text)
        if spaced != text:
            meant = parse(spaced, source)
            return replace(meant, notices=tuple(_tight_keys(text, source)))
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        raise UserError(
            f"{place}: not valid YAML: {error.problem or error.context}",
            hint="check indentation, quotes and brackets at and before this line",
        ) from error
    except (ValueError, OverflowError) as error:  # an escape such as "\U00110000"
        raise UserError(
            f"{source}: not valid YAML: {error}", hint="check the escapes in double quotes"
        ) from error
    if root is None:
        return Text(None, {})
    builder = _Builder(source)
    return Text(builder.build(root, ()), builder.lines)


def _tight_keys(text: str, source: str) -> Iterator[str]:
    """Name the lines that lack a space after a key."""
    for match in _TIGHT_KEY.finditer(text):
        line = text.count("\n", 0, match.start(1)) + 1
        key = match[1].strip()
        yield f"{source}:{line}: `{key}` has no space after its colon; read as if it had"


class _Builder:
    """Turns composed nodes into values, counting what aliases expand to."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[Path, int] = {}

    def build(self, node: yaml.Node, path: Path) -> Any:
        if len(path) > MAX_DEPTH:
            raise self.error(node, f"nested deeper than {MAX_DEPTH} levels (an alias of itself?)")
        if len(self.lines) >= MAX_VALUES:
            raise self.error(node, f"more than {MAX_VALUES} values, counting what aliases expand")
        self.lines[path] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            if node.tag != _TAG + "seq":
                raise self.error(node, f"the tag {node.tag!r} is not supported on a list")
            return [self.build(child, (*path, i)) for i, child in enumerate(node.value)]
        return self.scalar(node)

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        if node.tag != _TAG + "map":
            raise self.error(node, f"the tag {node.tag!r} is not supported on a mapping")
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error(key_node, "a key must be a word, not a list or a mapping")
            key = self.text(key_node)
            if key in result:
                first = self.lines[(*path, key)]
                dotted = ".".join(map(str, (*path, key)))
                raise self.error(
                    key_node,
                    f"the key `{dotted}` stands twice (first on line {first})",
                    hint="remove one of the two",
                )
            result[key] = self.build(value_node, (*path, key))
            self.lines[(*path, key)] = key_node.start_mark.line + 1
        return result

    def scalar(self, node: yaml.Node) -> Any:
        text, tag = self.text(node), node.tag.removeprefix(_TAG)
        if tag == "str":
            return text
        if not any(name == node.tag and form.match(text) for name, form in _CORE_SCHEMA):
            raise self.error(node, f"{text[:40]!r} is not a value of the tag {node.tag!r}")
        if tag == "null":
            return None
        if tag == "bool":
            return text.lower() == "true"
        if tag == "float":
            return _float(text)
        try:
            return int(text, 0) if text.startswith(("0x", "0o")) else int(text)
        except ValueError as error:
            raise self.error(node, f"an integer of {len(text)} digits") from error

    def text(self, node: yaml.Node) -> str:
        """Return a scalar as written; a lone surrogate could never be saved again."""
        if any("\ud800" <= character <= "\udfff" for character in node.value):
            raise self.error(node, "an escape that is half of a character (a lone surrogate)")
        return node.value

    def error(self, node: yaml.Node, message: str, hint: str = "") -> UserError:
        hint = hint or "a config holds mappings, lists, text, numbers, true, false and null"
        return UserError(f"{self.source}:{node.start_mark.line + 1}: {message}", hint=hint)


def _float(text: str) -> float:
    special = text.lower().lstrip("+-")
    if special in {".inf", ".nan"}:
        return float(text.lower().replace(".", ""))
    return float(text)


def dump(value: Any) -> str:
    """Write plain values as YAML that `parse` reads back equal."""
    return yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=2**16,
    )
