"""What a model expects at each place: which section, which keys, which element type."""

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pydantic

Section = type[pydantic.BaseModel]


def alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union, without `Annotated` and aliases around them."""
    annotation = getattr(annotation, "__value__", annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [leaf for member in get_args(annotation) for leaf in alternatives(member)]
    return [annotation]


def sections(annotation: Any) -> list[Section]:
    """Return the models that an annotation allows."""
    return [
        member
        for member in alternatives(annotation)
        if isinstance(member, type) and issubclass(member, pydantic.BaseModel)
    ]


def discriminator(models: Sequence[Section]) -> str | None:
    """Return the field whose literal value tells the models apart, such as `type`."""
    if len(models) < 2:
        return None
    for name in models[0].model_fields:
        if all(tags(model, name) for model in models):
            return name
    return None


def tags(model: Section, name: str) -> tuple[Any, ...]:
    """Return the literal values a field may take; none if it is missing or free."""
    field = model.model_fields.get(name)
    if field is None or get_origin(field.annotation) is not Literal:
        return ()
    return get_args(field.annotation)


def section_of(annotation: Any, value: Any) -> Section | None:
    """Return the one model that a mapping at this place stands for, if that can be told."""
    models = sections(annotation)
    if len(models) == 1:
        return models[0]
    name = discriminator(models)
    if name is None or not isinstance(value, Mapping):
        return None
    return next((model for model in models if value.get(name) in tags(model, name)), None)


def part(annotation: Any, value: Any, key: str | int) -> Any:
    """Return the annotation of one part of a value: a field, an item or an entry."""
    model = section_of(annotation, value)
    if model is not None and isinstance(value, Mapping):
        field = model.model_fields.get(str(key))
        return Any if field is None else field.annotation
    for member in alternatives(annotation):
        kind, arguments = get_origin(member), get_args(member)
        if not isinstance(kind, type) or not arguments:
            continue
        if isinstance(value, Mapping) and issubclass(kind, Mapping):
            return arguments[1]
        if isinstance(key, int) and issubclass(kind, tuple) and arguments[-1] is not Ellipsis:
            return arguments[key] if key < len(arguments) else Any
        if isinstance(key, int) and issubclass(kind, Sequence):
            return arguments[0]
    return Any


def takes_mapping(annotation: Any) -> bool:
    """Tell whether a mapping can stand at this place."""
    for member in alternatives(annotation):
        kind = get_origin(member) or member
        if kind in (Any, typing.Any, object):
            return True
        if isinstance(kind, type) and issubclass(kind, Mapping | pydantic.BaseModel):
            return True
    return False


def every_key(model: Section, prefix: str = "", depth: int = 0) -> Iterator[str]:
    """Yield the dotted path of every key a model knows, list items left out."""
    if depth > 8:  # a model that contains itself
        return
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        yield path
        for child in sections(field.annotation):
            yield from every_key(child, f"{path}.", depth + 1)
