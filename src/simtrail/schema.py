"""The records that the code of an encoder is made of: pydantic's or, where it is not installed, the same unchecked.

A registered encoder carries its code, which must run with few packages. What it reads was checked when it was written.
"""

from __future__ import annotations

from copy import copy, deepcopy
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

__all__ = [
    "BaseModel",
    "BeforeValidator",
    "ConfigDict",
    "Discriminator",
    "Field",
    "PrivateAttr",
    "Tag",
    "ValidationError",
    "field_validator",
    "model_validator",
]

if TYPE_CHECKING or find_spec("pydantic"):
    from pydantic import (
        BaseModel,
        BeforeValidator,
        ConfigDict,
        Discriminator,
        Field,
        PrivateAttr,
        Tag,
        ValidationError,
        field_validator,
        model_validator,
    )
else:

    class BaseModel:
        """Sets its fields to the given values, or to their defaults; fields of another record take a dict, too."""

        def __init__(self, **values: Any):
            for name, kind in get_type_hints(type(self)).items():
                if not name.startswith("_") and name != "model_config":
                    vars(self)[name] = _built(kind, values[name]) if name in values else _default(type(self), name)

        @classmethod
        def model_validate(cls, tree: dict[str, Any]) -> Any:
            return cls(**tree)

        def model_copy(self, update: dict[str, Any]) -> Any:
            new = copy(self)
            vars(new).update(update)
            return new

    class _Default:
        def __init__(self, value: Any = None, **options: Any):
            self.value, self.factory = value, options.get("default_factory")

    def _default(record: type, name: str) -> Any:
        value = getattr(record, name)  # an AttributeError names a field without a value
        if isinstance(value, _Default):
            return value.factory() if value.factory else deepcopy(value.value)
        return deepcopy(value)

    def _built(kind: Any, value: Any) -> Any:
        for choice in (kind, *get_args(kind)):  # of a union
            if isinstance(value, dict) and isinstance(choice, type) and issubclass(choice, BaseModel):
                return choice(**value)
        return value

    def _decorator(*_: Any, **__: Any) -> Any:
        return lambda function: function

    ConfigDict, Field, PrivateAttr, ValidationError = dict, _Default, _Default, ValueError
    BeforeValidator = Discriminator = Tag = lambda value: value
    field_validator = model_validator = _decorator
