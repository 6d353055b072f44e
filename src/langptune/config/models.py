"""Registry entries of ``config/models.yaml``: encoders, decoders and verifiers, with their sources and limits."""

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
"""Keys of an endpoint's connection and prices; no answer depends on them."""
ENDPOINT_ONLY = ("endpoint", "model", "limit_key", "omit", "prefill", *ENDPOINT_TERMS)
OMISSIBLE = ("seed", "temperature", "stop")
"""Settings of a request that some servers refuse."""

CHAT_TERMS = ("chat_template_kwargs", "date", "fold_system")
"""Keys of an encoder that change its chat format."""


class ModelSource(Strict):
    """Source of a model: exactly one of an installed package, a hub snapshot, a folder and an endpoint.

    An endpoint is a server with OpenAI's chat API (``POST {endpoint}/chat/completions``), without local weights.
    """

    package: str | None = Field(None, description="name of the distribution that contains the model")
    module: str | None = Field(None, description="its importable module with the files")
    hub: str | None = Field(None, description="model id on the Hugging Face hub")
    revision: str | None = Field(None, description="full commit hash on the hub; a branch name is refused")
    gated: bool = Field(False, description="the hub requires a token and an accepted licence")
    folder: str | None = Field(None, description="local folder, absolute or relative to the repository")
    path: str = Field("", description="subfolder of the package or folder, or a GGUF file in it")
    endpoint: str | None = Field(None, description="base URL of an OpenAI-compatible chat API, such as http://host/v1")
    model: str | None = Field(
        None, description="the endpoint's name of the model, with a date if it offers dated names"
    )
    key: str | None = Field(
        None, description="NAME of the environment variable that contains the key; null: no key is needed"
    )
    requests_per_minute: Annotated[int, Field(ge=1)] | None = Field(None, description="rate limit; null: unlimited")
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = Field(None, description="rate limit; null: unlimited")
    input_price: Annotated[float, Field(ge=0, strict=False)] | None = Field(
        None, description="US dollars per million prompt tokens; 0 for a server of your own"
    )
    output_price: Annotated[float, Field(ge=0, strict=False)] | None = Field(
        None, description="US dollars per million generated tokens; 0 for a server of your own"
    )
    parallel: Annotated[int, Field(ge=1)] = Field(4, description="maximum number of concurrent requests")
    timeout: Annotated[float, Field(gt=0, strict=False)] = Field(
        120.0, description="seconds for a complete answer, from request to last byte"
    )
    retries: Annotated[int, Field(ge=0)] = Field(
        6, description="retries after a temporary error (429, 5xx, no connection), with growing pauses"
    )
    limit_key: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens",
        description="the endpoint's parameter for the maximum answer length; OpenAI's reasoning models need the second",
    )
    omit: list[Literal["seed", "temperature", "stop"]] = Field(
        [], description="settings that are not sent, for servers that refuse them; the server's own values then apply"
    )
    prefill: dict[str, bool | int | float | str] | None = Field(
        None,
        description="for prompts with `starts`: further settings of a request that ends with a message of the "
        "assistant, with which the server continues that message: {} if it does so without settings (Anthropic), "
        "{continue_final_message: true, add_generation_prompt: false} with vLLM; null: it cannot, or this is unknown",
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
                raise ValueError(f"'{given[0]}' goes with 'endpoint', which is missing")
            return
        # Not a ValueError: its message would contain the value, which may be a secret.
        if not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", self.endpoint):
            raise UserError(
                f"models.yaml: the endpoint of model '{self.model}' must be a base URL such as "
                "https://api.openai.com/v1, without user, password or query; put a key into an environment variable"
            )
        if self.endpoint.rstrip("/").endswith("/chat/completions"):
            raise ValueError("endpoint is the base URL alone; leave out '/chat/completions'")
        if not self.model:
            raise ValueError("an endpoint needs 'model', the server's name of the model")
        if self.key is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.key):
            raise UserError(
                f"models.yaml: {self.endpoint}: key must be the NAME of an environment variable in capitals, such as "
                "OPENAI_API_KEY; never write the key itself into a file"
            )
        if self.input_price is None or self.output_price is None:
            raise ValueError(
                "an endpoint needs 'input_price' and 'output_price' (US dollars per million tokens; 0 for a server of "
                "your own); without them no limit on spending can be enforced"
            )

    @model_serializer(mode="wrap")
    def _without_endpoint(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the keys of endpoints for a model with files, so that its specs and manifests stay the same."""
        data = handler(self)
        if not self.omit:  # left out at its default, for the same reason
            data.pop("omit", None)
        if self.prefill is None:
            data.pop("prefill", None)
        return data if self.endpoint is not None else {k: v for k, v in data.items() if k not in ENDPOINT_ONLY}

    @property
    def terms_left_out(self) -> ModelSource:
        """The source without rate limits and prices: the keys on which answers depend."""
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
        """Whether the source is one GGUF file, which is converted into a safetensors folder once."""
        return self.path.endswith(".gguf")


class _Model(Strict):
    title: str = Field(description="name in tables and plots")
    source: ModelSource = Field(description="where the model comes from")
    sha256: dict[str, str] = Field({}, description="source file -> expected SHA-256")
    licence: str = Field(description="licence of the model")
    parameters: Annotated[int, Field(ge=0)] = Field(
        0, description="number of weights, for resources and plots; left out for an endpoint"
    )

    @model_validator(mode="after")
    def _weights(self) -> _Model:
        if self.source.endpoint is None and self.parameters == 0:
            raise ValueError("key 'parameters', the number of weights, is missing; only an endpoint may omit it")
        if self.source.endpoint is not None and self.parameters:
            raise ValueError("leave 'parameters' out: an endpoint's weights take no memory here")
        if self.source.endpoint is not None and self.role != "encoder":  # type: ignore[attr-defined]
            raise ValueError(f"a {self.role} cannot be an endpoint; only encoders can")  # type: ignore[attr-defined]
        return self


class EncoderEntry(_Model):
    """A profile encoder: an instruction-tuned causal language model with a chat template."""

    role: Literal["encoder"] = Field(description="writes profiles")
    context: Annotated[int, Field(gt=0)] = Field(description="maximum length of prompt plus profile, in tokens")
    max_prompt_tokens: Annotated[int, Field(gt=0)] = Field(
        1024,
        description="longest prompt, in tokens; longer prompts lose their oldest history items, counted in the "
        "manifest",
    )
    chat_template_kwargs: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], bool | int | float | str] = (
        Field({}, description="arguments of the chat template, such as `enable_thinking: false` for a thinking model")
    )
    date: datetime.date | None = Field(
        None, description="date that the chat template prints instead of today's, such as 2026-01-01"
    )
    fold_system: bool = Field(
        False,
        description="an endpoint whose chat format has no system role (Gemma): a judge's system text is put before "
        "the user's; for models with files this is detected by prefetch",
    )

    @model_validator(mode="after")
    def _own_template(self) -> EncoderEntry:
        if self.source.endpoint is not None and (self.chat_template_kwargs or self.date):
            key = "chat_template_kwargs" if self.chat_template_kwargs else "date"
            raise ValueError(f"'{key}' changes the chat template of a model with files; set it where the server starts")
        if self.source.endpoint is None and self.fold_system:
            raise ValueError(
                "'fold_system' goes with an endpoint; leave it out: prefetch detects it from the model's chat template"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys of the chat format at their defaults, so that specs and manifests stay the same."""
        return {key: value for key, value in handler(self).items() if value or key not in CHAT_TERMS}

    def prompt_limit(self, max_tokens: int) -> int:
        """The longest prompt, in tokens, that leaves room for a profile of ``max_tokens``."""
        return min(self.max_prompt_tokens, self.context - max_tokens)


class DecoderEntry(_Model):
    """A recommender decoder: a text embedder whose cosine similarity ranks the items."""

    role: Literal["decoder"] = Field(description="embeds profiles and items")
    pooling: Literal["mean", "cls", "last"] = Field(
        description="how token states are pooled into one vector; checked against the model's own files"
    )
    dimensions: Annotated[int, Field(gt=0)] = Field(description="size of the vector")
    max_tokens: Annotated[int, Field(gt=0)] = Field(
        description="longest text, in tokens; longer texts are cut, counted in the manifest"
    )
    padding: Literal["right", "left"] = Field(
        "right",
        description="side on which shorter texts of a batch are padded; left with pooling cls reads the first "
        "position, often padding, as the published text-only baseline did (PAPER: defect 9)",
    )
    query_prefix: str = Field("", description="put before a profile or history (the query)")
    item_prefix: str = Field("", description="put before an item's text")


class VerifierEntry(_Model):
    """A model of natural-language inference: does a premise (a history) entail a hypothesis (a claim)?

    The output that means entailment is read from the model's own ``id2label``.
    """

    role: Literal["verifier"] = Field(description="checks claims in `make interpret`")
    max_tokens: Annotated[int, Field(gt=0)] = Field(
        512, description="maximum length of premise plus hypothesis, in tokens"
    )


ModelEntry = Annotated[EncoderEntry | DecoderEntry | VerifierEntry, Field(discriminator="role")]
