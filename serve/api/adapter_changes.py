"""The requests that load and unload a LoRA adapter, with the fields of vLLM's server, and what carries them out."""

from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field


class LoadRequest(BaseModel):
    """A LoRA adapter to load. Fields that vLLM does not have are optional, and those of an adapter in a config."""

    model_config = ConfigDict(extra="forbid", strict=True)

    lora_name: Annotated[str, Field(max_length=200)] = Field(description="The name for the field `model`.")
    lora_path: Annotated[str, Field(min_length=1, max_length=1000)] = Field(
        description="Its folder, in PEFT's format, within the operator's folder for adapters: absolute, or relative to "
        "that."
    )
    load_inplace: bool = Field(default=False, description="Replace the adapter of this name, if there is one.")
    is_3d_lora_weight: Literal[False] = Field(default=False, description="Adapters of experts are not served.")
    base_model_name: str | None = Field(
        default=None,
        max_length=200,
        description="The served model that it is an adapter of. Needed where several take adapters.",
    )
    tasks: list[str] | None = Field(default=None, min_length=1, description="Of its base's tasks; default: all.")
    prompts: dict[str, str] = Field(default={}, description="The words that it was tuned on, by task.")
    max_tokens: int | None = Field(default=None, ge=1, le=4096, description="Default length of its replies.")
    weight: float = Field(default=1.0, ge=0, le=1000, description="Weight of its replies in merging.")


class UnloadRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    lora_name: str = Field(min_length=1, max_length=200, description="The name of a loaded adapter.")
    lora_int_id: int | None = Field(default=None, description="Not used, as in vLLM.")


class AdapterChanges(Protocol):
    """Loads and unloads LoRA adapters on every replica of their base, for every gateway."""

    async def load(self, given: LoadRequest) -> None:
        """Load an adapter everywhere, or nowhere. Raises ServeError naming the field at fault."""

    async def unload(self, name: str) -> None:
        """Unload an adapter; requests that run with it end first. Raises ServeError."""
