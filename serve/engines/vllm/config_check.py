"""Is it the checkpoint that the card describes? Asked of its config.json before any weight is loaded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.errors import ModelError

KIND = ("architectures", "text_config.model_type")
"""What a fine-tune of a known model has in common with it, whatever else was changed."""


def kind(expect: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `expect` that holds for a user's own checkpoint of the same architecture too."""
    return {field: expect[field] for field in KIND if field in expect}


def check(folder: Path, expect: Mapping[str, Any]) -> None:
    """Raises ModelError naming each field of config.json that is not what the card says, expected and found.

    expect: values by dotted field, such as `text_config.vocab_size`. Fields that the file leaves out have the value
    that transformers gives them: published files write little more than what differs from its defaults.
    """
    written = json.loads((folder / "config.json").read_text())
    found = {field: _at(written, field) for field in expect}
    if found.get("architectures", expect.get("architectures")) != expect.get("architectures"):
        raise _mismatch(folder, {"architectures": found["architectures"]}, expect)  # the rest would only confuse
    if None in found.values():
        filled = _filled(folder)
        found = {field: _at(filled, field) if value is None else value for field, value in found.items()}
    wrong = {field: value for field, value in found.items() if value != expect[field]}
    if wrong:
        raise _mismatch(folder, wrong, expect)


def _mismatch(folder: Path, wrong: Mapping[str, Any], expect: Mapping[str, Any]) -> ModelError:
    fields = "; ".join(f"{field} should be {_said(expect[field])} and is {_said(wrong[field])}" for field in wrong)
    return ModelError(f"{folder / 'config.json'} is of another model than its card: {fields}.", code="config_mismatch")


def _said(value: Any) -> str:
    return "missing" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _at(config: Any, field: str) -> Any:
    for name in field.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _filled(folder: Path) -> Any:
    """The config with transformers' defaults. Takes seconds to import, which an engine must do anyway."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder).to_dict()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read: {error}", code="config_mismatch") from error
