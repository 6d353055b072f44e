"""Registry entries of ``config/models.yaml``: encoders and decoders, where each comes from, and its limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from langptune.config.base import Strict


class ModelSource(Strict):
    """Where a model's files come from: an installed package, a hub snapshot, or a folder. Exactly one."""

    package: str | None = Field(None, description="name of the distribution that carries the model")
    module: str | None = Field(None, description="its importable module, where the files lie")
    hub: str | None = Field(None, description="model id on the Hugging Face hub")
    revision: str | None = Field(None, description="full commit hash on the hub; a branch name is refused")
    gated: bool = Field(False, description="the hub asks for a token and an accepted licence")
    folder: str | None = Field(None, description="local folder, absolute or relative to the repository")
    path: str = Field("", description="sub-folder of the package or folder, or a GGUF file in it")

    @model_validator(mode="after")
    def _one(self) -> ModelSource:
        if sum(value is not None for value in (self.package, self.hub, self.folder)) != 1:
            raise ValueError("name exactly one of 'package', 'hub' and 'folder'")
        if self.hub and not (
            self.revision and len(self.revision) == 40 and set(self.revision) <= set("0123456789abcdef")
        ):
            raise ValueError(f"hub model '{self.hub}' needs 'revision', a full 40-digit commit hash")
        if self.package and not self.module:
            raise ValueError(f"package '{self.package}' needs 'module', the name it is imported by")
        return self

    @property
    def is_gguf(self) -> bool:
        """Whether the source is one GGUF file, to be converted into a safetensors folder once."""
        return self.path.endswith(".gguf")


class _Model(Strict):
    title: str = Field(description="how tables and plots call it")
    source: ModelSource
    sha256: dict[str, str] = Field({}, description="source file -> SHA-256 it must have")
    licence: str
    parameters: Annotated[int, Field(gt=0)] = Field(description="number of weights, for resources and plots")


class EncoderEntry(_Model):
    """A profile encoder: an instruction-tuned causal language model with a chat template."""

    role: Literal["encoder"]
    context: Annotated[int, Field(gt=0)] = Field(description="longest prompt plus profile, in tokens")
    max_prompt_tokens: Annotated[int, Field(gt=0)] = Field(
        1024, description="longer prompts lose their oldest history items, counted in the manifest"
    )


class DecoderEntry(_Model):
    """A recommender decoder: a text embedder whose cosine similarity ranks the items."""

    role: Literal["decoder"]
    pooling: Literal["mean", "cls", "last"] = Field(
        description="how token states become one vector; checked against the model's own files"
    )
    dimensions: Annotated[int, Field(gt=0)]
    max_tokens: Annotated[int, Field(gt=0)] = Field(description="longer texts are cut, counted in the manifest")
    padding: Literal["right", "left"] = Field(
        "right",
        description="side on which shorter texts of a batch are padded; left with pooling cls reads the first "
        "position, often padding, as the published text-only baseline did (PAPER: defect 9)",
    )
    query_prefix: str = Field("", description="put before a profile or history (the side that searches)")
    item_prefix: str = Field("", description="put before an item's text")


ModelEntry = Annotated[EncoderEntry | DecoderEntry, Field(discriminator="role")]
