"""Plain values laid over each other, each leaf keeping the place it came from."""

from collections.abc import Callable
from typing import Any

import pydantic
import pydantic_core

from loom.config import shape
from loom.config.model import short
from loom.config.text import Path
from loom.errors import UserError

DEFAULT = "default"


class Layers:
    """The merged settings so far and their origins.

    Attributes:
        values: The settings as plain values.
        origins: Path of each value -> where it was set, such as `demo.yaml:12`.
    """

    def __init__(self, model: shape.Section) -> None:
        self.model = model
        self.values: dict[str, Any] = defaults(model)
        self.origins: dict[Path, str] = {}
        self._mark(self.values, (), lambda _: DEFAULT)

    def lay(self, overlay: Any, origin: Callable[[Path], str]) -> None:
        """Lay a mapping of the model's keys over the settings."""
        self._merge_section(self.model, self.values, overlay, (), origin)

    def lay_at(self, dotted: str, value: Any, origin: str) -> Any:
        """Set the value at a dotted path (list items by index) and return what was there.

        Raises:
            UserError: The path runs through something that has no such part.
        """
        *parents, last = dotted.split(".")
        annotation: Any = self.model
        container: Any = self.values
        path: Path = ()
        for name in parents:
            key = self._key(container, name, path)
            inner = shape.part(annotation, container, key)
            child = _get(container, key)
            if not isinstance(child, dict | list):
                if child is not None and not shape.takes_mapping(inner):
                    raise UserError(
                        f"{origin}: `{'.'.join(map(str, (*path, key)))}` is {short(child)}, "
                        "which has no parts",
                        hint="give the whole value, or check the path with `config show`",
                    )
                child = {}
                _set(container, key, child)
                self.origins[(*path, key)] = origin
            container, annotation, path = child, inner, (*path, key)
        key = self._key(container, last, path)
        was = _get(container, key)
        if isinstance(container, dict) and shape.section_of(annotation, container | {key: value}):
            self._merge_section(annotation, container, {str(key): value}, path, lambda _: origin)
        else:
            inner = shape.part(annotation, container, key)
            child_path = (*path, key)
            merged = self._merge(inner, _get(container, key), value, child_path, lambda _: origin)
            _set(container, key, merged)
        return was

    def _merge(
        self, annotation: Any, base: Any, overlay: Any, path: Path, origin: Callable[[Path], str]
    ) -> Any:
        if (
            isinstance(base, dict)
            and isinstance(overlay, dict)
            and shape.section_of(annotation, base | overlay) is not None
        ):
            self._merge_section(annotation, base, overlay, path, origin)
            return base
        self._forget(path)
        self._mark(overlay, path, origin)
        return _copy(overlay)

    def _merge_section(
        self,
        annotation: Any,
        base: dict[str, Any],
        overlay: dict[str, Any],
        path: Path,
        origin: Callable[[Path], str],
    ) -> None:
        """Merge key by key; a changed variant keeps the keys it knows."""
        after = shape.section_of(annotation, base | overlay)
        if after is not None and shape.section_of(annotation, base) is not after:
            for key in [key for key in base if key not in after.model_fields]:
                del base[key]
                self._forget((*path, key))
        for key, value in overlay.items():
            inner = shape.part(annotation, base | overlay, key)
            base[key] = self._merge(inner, base.get(key), value, (*path, key), origin)

    def _key(self, container: Any, name: str, path: Path) -> str | int:
        """Return a dotted component as the key or index it means in its container."""
        if not isinstance(container, list):
            return name
        place, size = ".".join(map(str, path)), len(container)
        if not name.isdecimal() or int(name) > size:
            known = f"0 to {size - 1}" if size else "it is empty"
            raise UserError(
                f"`{place}` is a list of {size}; `{name}` is none of its items",
                hint=f"use an index ({known}; {size} appends)",
            )
        if int(name) == size:
            container.append(None)
        return int(name)

    def _mark(self, value: Any, path: Path, origin: Callable[[Path], str]) -> None:
        self.origins[path] = origin(path)
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, child in items:
                self._mark(child, (*path, key), origin)

    def _forget(self, path: Path) -> None:
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]


def _get(container: Any, key: str | int) -> Any:
    return container[key] if isinstance(key, int) else container.get(key)


def _set(container: Any, key: str | int, value: Any) -> None:
    container[key] = value


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(child) for key, child in value.items()}
    return [_copy(child) for child in value] if isinstance(value, list) else value


def defaults(model: shape.Section) -> dict[str, Any]:
    """Return the defaults of a model as plain values, without the keys that have none."""
    result = {}
    for name, field in model.model_fields.items():
        if field.is_required() or field.default_factory_takes_validated_data:
            continue
        value = field.get_default(call_default_factory=True)
        if isinstance(value, pydantic.BaseModel):
            result[name] = value.model_dump(mode="json")
        else:
            result[name] = pydantic_core.to_jsonable_python(value, inf_nan_mode="constants")
    return result
