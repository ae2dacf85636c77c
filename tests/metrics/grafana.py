"""What is wrong with a dashboard, by the types that Grafana publishes of its own schema (its foundation SDK)."""

import enum
import json
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

_SDK = "grafana_foundation_sdk"


def faults(dashboard: Mapping[str, Any]) -> list[str]:
    """Fields that Grafana does not know, and values that they cannot have; skips without the SDK."""
    models = pytest.importorskip(f"{_SDK}.models.dashboard", reason="needs grafana-foundation-sdk, of the extra dev")
    plugins, encoder = pytest.importorskip(f"{_SDK}.cog.plugins"), pytest.importorskip(f"{_SDK}.cog.encoder")
    plugins.register_default_plugins()
    read = models.Dashboard.from_json(dashboard)
    written = json.loads(encoder.JSONEncoder().encode(read))
    return [*_unknown(dashboard, written, "dashboard"), *_misfits(read, "dashboard")]


def _unknown(given: object, written: object, path: str) -> Iterator[str]:
    """What the types did not keep."""
    if isinstance(given, dict) and isinstance(written, dict):
        for key, value in given.items():
            if key in written:
                yield from _unknown(value, written[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}: no such field"
    elif isinstance(given, list) and isinstance(written, list) and len(given) == len(written):
        for number, (one, other) in enumerate(zip(given, written, strict=True)):
            yield from _unknown(one, other, f"{path}[{number}]")
    elif given != written:
        yield f"{path}: {given!r} became {written!r}"


def _misfits(value: object, path: str) -> Iterator[str]:
    """Values that are not of their field's type: the SDK reads any."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _misfits(item, f"{path}[{number}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _misfits(item, f"{path}.{key}")
    elif type(value).__module__.startswith(_SDK) and not isinstance(value, enum.Enum):
        hints = typing.get_type_hints(type(value))
        for name, item in vars(value).items():
            if name in hints and not _fits(item, hints[name]):
                yield f"{path}.{name}: {item!r} is no {hints[name]}"
            yield from _misfits(item, f"{path}.{name}")


def _fits(value: object, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (object, Any):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if issubclass(hint, enum.Enum):
        return value in [member.value for member in hint]
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    # The SDK leaves what transformations hold as it was; its fields were compared already.
    return isinstance(value, hint) or (hint.__module__.startswith(_SDK) and isinstance(value, dict))
