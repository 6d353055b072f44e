"""Registry entries of ``config/models.yaml``: encoders, decoders and verifiers, where each comes from, its limits."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from langptune.config.base import Strict
from langptune.errors import UserError

ENDPOINT_TERMS = (
    "key",
    "requests_per_minute",
    "tokens_per_minute",
    "input_price",
    "output_price",
    "parallel",
    "timeout",
    "retries",
)
"""Keys of an endpoint that say how it is reached and paid; no answer depends on them."""
ENDPOINT_ONLY = ("endpoint", "model", "limit_key", "omit", "prefill", *ENDPOINT_TERMS)
OMISSIBLE = ("seed", "temperature", "stop")
"""Settings of a request that some servers refuse."""

CHAT_TERMS = ("chat_template_kwargs", "date", "fold_system")
"""Keys of an encoder that change its chat format."""


class ModelSource(Strict):
    """Where a model comes from: an installed package, a hub snapshot, a folder, or an endpoint. Exactly one.

    An endpoint is a server with OpenAI's chat API (``POST {endpoint}/chat/completions``); it has no weights here.
    """

    package: str | None = Field(None, description="name of the distribution that carries the model")
    module: str | None = Field(None, description="its importable module, where the files lie")
    hub: str | None = Field(None, description="model id on the Hugging Face hub")
    revision: str | None = Field(None, description="full commit hash on the hub; a branch name is refused")
    gated: bool = Field(False, description="the hub asks for a token and an accepted licence")
    folder: str | None = Field(None, description="local folder, absolute or relative to the repository")
    path: str = Field("", description="sub-folder of the package or folder, or a GGUF file in it")
    endpoint: str | None = Field(None, description="base URL of an OpenAI-compatible chat API, such as http://host/v1")
    model: str | None = Field(None, description="the endpoint's name of the model; a dated one where there is one")
    key: str | None = Field(None, description="NAME of the environment variable that holds the key; null: none needed")
    requests_per_minute: Annotated[int, Field(ge=1)] | None = Field(None, description="null: no limit of ours")
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = Field(None, description="null: no limit of ours")
    input_price: Annotated[float, Field(ge=0, strict=False)] | None = Field(
        None, description="US dollars per million prompt tokens; 0 for a server of your own"
    )
    output_price: Annotated[float, Field(ge=0, strict=False)] | None = Field(
        None, description="US dollars per million generated tokens; 0 for a server of your own"
    )
    parallel: Annotated[int, Field(ge=1)] = Field(4, description="requests under way at once")
    timeout: Annotated[float, Field(gt=0, strict=False)] = Field(
        120.0, description="seconds an answer may take, whole: from its request to its last byte"
    )
    retries: Annotated[int, Field(ge=0)] = Field(
        6, description="of a request that failed for the moment (429, 5xx, no connection), with growing pauses"
    )
    limit_key: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="how the endpoint calls the longest answer; OpenAI's reasoning models want the second"
    )
    omit: list[Literal["seed", "temperature", "stop"]] = Field(
        [], description="settings that are not sent, for servers that refuse them; the server's own values then hold"
    )
    prefill: dict[str, bool | int | float | str] | None = Field(
        None,
        description="for prompts with `starts`: more settings of a request that ends with a message of the assistant, "
        "so that the server goes on writing that message: {} where it does so by itself (Anthropic), "
        "{continue_final_message: true, add_generation_prompt: false} with vLLM; null: it cannot, or nobody has tried",
    )

    @model_validator(mode="after")
    def _one(self) -> ModelSource:
        if sum(value is not None for value in (self.package, self.hub, self.folder, self.endpoint)) != 1:
            raise ValueError("name exactly one of 'package', 'hub', 'folder' and 'endpoint'")
        self._check_endpoint()
        if self.hub and not (
            self.revision and len(self.revision) == 40 and set(self.revision) <= set("0123456789abcdef")
        ):
            raise ValueError(f"hub model '{self.hub}' needs 'revision', a full 40-digit commit hash")
        if self.package and not self.module:
            raise ValueError(f"package '{self.package}' needs 'module', the name it is imported by")
        return self

    def _check_endpoint(self) -> None:
        if self.endpoint is None:
            if given := sorted(self.model_fields_set & set(ENDPOINT_ONLY[1:])):
                raise ValueError(f"'{given[0]}' goes with 'endpoint', which is not there")
            return
        # Not a ValueError: that would come with the value found, which may hold a secret.
        if not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", self.endpoint):
            raise UserError(
                f"models.yaml: the endpoint of model '{self.model}' must be a base URL such as "
                "https://api.openai.com/v1, without user, password or query; a key goes into an environment variable"
            )
        if self.endpoint.rstrip("/").endswith("/chat/completions"):
            raise ValueError("endpoint is the base URL alone; leave out '/chat/completions'")
        if not self.model:
            raise ValueError("an endpoint needs 'model', the name it knows the model by")
        if self.key is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.key):
            raise UserError(
                f"models.yaml: {self.endpoint}: key must be the NAME of an environment variable in capitals, such as "
                "OPENAI_API_KEY; a key itself belongs into no file"
            )
        if self.input_price is None or self.output_price is None:
            raise ValueError(
                "an endpoint needs 'input_price' and 'output_price' (US dollars per million tokens; 0 for a server of "
                "your own), or no cap on spending could hold"
            )

    @model_serializer(mode="wrap")
    def _without_endpoint(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A model with files says nothing of endpoints: its specs and manifests stay what they were."""
        told = handler(self)
        if not self.omit:  # and an endpoint that is sent everything says nothing of what it is not sent
            told.pop("omit", None)
        if self.prefill is None:
            told.pop("prefill", None)
        return told if self.endpoint is not None else {k: v for k, v in told.items() if k not in ENDPOINT_ONLY}

    @property
    def terms_left_out(self) -> ModelSource:
        """The same without limits and prices: what answers depend on."""
        if self.endpoint is None:
            return self
        return ModelSource(
            endpoint=self.endpoint,
            model=self.model,
            limit_key=self.limit_key,
            omit=self.omit,
            prefill=self.prefill,
            input_price=0,
            output_price=0,
        )

    @property
    def is_gguf(self) -> bool:
        """Whether the source is one GGUF file, to be converted into a safetensors folder once."""
        return self.path.endswith(".gguf")


class _Model(Strict):
    title: str = Field(description="how tables and plots call it")
    source: ModelSource
    sha256: dict[str, str] = Field({}, description="source file -> SHA-256 it must have")
    licence: str
    parameters: Annotated[int, Field(ge=0)] = Field(
        0, description="number of weights, for resources and plots; left out for an endpoint"
    )

    @model_validator(mode="after")
    def _weights(self) -> _Model:
        if self.source.endpoint is None and self.parameters == 0:
            raise ValueError("key 'parameters', the number of weights, is missing; only an endpoint goes without")
        if self.source.endpoint is not None and self.parameters:
            raise ValueError("leave 'parameters' out: an endpoint's weights take no memory here")
        if self.source.endpoint is not None and self.role != "encoder":  # type: ignore[attr-defined]
            raise ValueError(f"a {self.role} cannot be an endpoint; only encoders can")  # type: ignore[attr-defined]
        return self


class EncoderEntry(_Model):
    """A profile encoder: an instruction-tuned causal language model with a chat template."""

    role: Literal["encoder"]
    context: Annotated[int, Field(gt=0)] = Field(description="longest prompt plus profile, in tokens")
    max_prompt_tokens: Annotated[int, Field(gt=0)] = Field(
        1024, description="longer prompts lose their oldest history items, counted in the manifest"
    )
    chat_template_kwargs: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], bool | int | float | str] = (
        Field({}, description="arguments of the chat template, such as `enable_thinking: false` of a thinking model")
    )
    date: datetime.date | None = Field(
        None, description="the day that a chat template prints in place of today's, such as 2026-01-01"
    )
    fold_system: bool = Field(
        False,
        description="an endpoint whose chat format has no system role (Gemma): a judge's system text is put before the "
        "user's; models with files are tried when they are fetched",
    )

    @model_validator(mode="after")
    def _own_template(self) -> EncoderEntry:
        if self.source.endpoint is not None and (self.chat_template_kwargs or self.date):
            key = "chat_template_kwargs" if self.chat_template_kwargs else "date"
            raise ValueError(f"'{key}' changes the chat template of a model with files; set it where the server starts")
        if self.source.endpoint is None and self.fold_system:
            raise ValueError("'fold_system' goes with an endpoint; leave it out: the model's chat template is tried")
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """An entry that changes no chat format does not name these keys: its specs and manifests stay the same."""
        told = handler(self)
        return {key: value for key, value in told.items() if value or key not in CHAT_TERMS}

    def prompt_limit(self, max_tokens: int) -> int:
        """The longest prompt, in tokens, that leaves room for a profile of ``max_tokens``."""
        return min(self.max_prompt_tokens, self.context - max_tokens)


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


class VerifierEntry(_Model):
    """A model of natural-language inference: does a premise (a history) entail a hypothesis (a claim)?

    Which of its outputs means entailment is read from the model's own ``id2label``.
    """

    role: Literal["verifier"]
    max_tokens: Annotated[int, Field(gt=0)] = Field(512, description="longest premise with hypothesis")


ModelEntry = Annotated[EncoderEntry | DecoderEntry | VerifierEntry, Field(discriminator="role")]
