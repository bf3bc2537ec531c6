"""Check a checkpoint's config.json against its model's card before any weight is loaded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.errors import ModelError

KIND = ("architectures", "text_config.model_type")
"""Fields that a fine-tune of a known model shares with it."""


def kind(expect: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of `expect` that also holds for a user's own checkpoint of the same architecture."""
    return {field: expect[field] for field in KIND if field in expect}


def check_config(folder: Path, expect: Mapping[str, Any]) -> None:
    """Raise ModelError naming each field of config.json that differs from the card, with both values.

    expect: values by dotted field, such as `text_config.vocab_size`. Fields that the file leaves out have transformers'
    defaults: published files hold little more than what differs from these.
    """
    written = json.loads((folder / "config.json").read_text())
    actual = {field: _field(written, field) for field in expect}
    if actual.get("architectures", expect.get("architectures")) != expect.get("architectures"):
        raise _mismatch(
            folder, {"architectures": actual["architectures"]}, expect
        )  # further differences would only distract
    if None in actual.values():
        filled = _with_defaults(folder)
        actual = {field: _field(filled, field) if value is None else value for field, value in actual.items()}
    wrong = {field: value for field, value in actual.items() if value != expect[field]}
    if wrong:
        raise _mismatch(folder, wrong, expect)


def _mismatch(folder: Path, wrong: Mapping[str, Any], expect: Mapping[str, Any]) -> ModelError:
    fields = "; ".join(f"{field} should be {_format(expect[field])} and is {_format(wrong[field])}" for field in wrong)
    return ModelError(f"{folder / 'config.json'} is of another model than its card: {fields}.", code="config_mismatch")


def _format(value: Any) -> str:
    return "missing" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _field(config: Any, field: str) -> Any:
    for name in field.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _with_defaults(folder: Path) -> Any:
    """Return the config with transformers' defaults. The import takes seconds, and an engine needs it anyway."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder).to_dict()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read: {error}", code="config_mismatch") from error
