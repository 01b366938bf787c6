"""The engine interface: token ids in, token ids and their text out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Final, Literal, NamedTuple, Protocol, get_args

FinishReason = Literal["stop", "length"]
StructureKind = Literal["json_schema", "regex", "grammar"]
STRUCTURE_KINDS: Final[tuple[StructureKind, ...]] = get_args(StructureKind)
"""Fields of `Sampling` that constrain the text. At most one of them is set."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters of one call. The defaults are the paper's rollout settings (section 4)."""

    temperature: float = 1.0
    """0 means greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 means no limit."""
    min_p: float = 0.0
    seed: int | None = None
    """The same seed, prompt and weights give the same tokens, regardless of the rest of the batch."""
    max_tokens: int = 8000
    min_tokens: int = 0
    """Number of tokens to sample before a stop token is allowed."""
    logprobs: bool = True
    """False: the engine may skip them and report NaN."""
    top_logprobs: int = 0
    """Number of alternatives to report for each sampled token."""
    prompt_logprobs: int | None = None
    """Report the log-probabilities of the prompt's tokens, with this number of alternatives. They don't
    depend on the other fields."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that this call has already sampled."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token once for each time that this call has sampled it."""
    repetition_penalty: float = 1.0
    """Divides positive logits, and multiplies negative ones, of tokens in the prompt or already sampled."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the logits of these token ids."""
    json_schema: str | None = None
    """JSON schema, as text, that the sampled text must match. ``{"type": "object"}``: any JSON object."""
    regex: str | None = None
    """Regular expression that the whole sampled text must match."""
    grammar: str | None = None
    """Context-free grammar that the sampled text must match, in llama.cpp's GBNF or in Lark."""
    adapter: str | None = None
    """One of the engine's ``adapters``; None is the model itself."""

    @property
    def structure(self) -> tuple[StructureKind, str] | None:
        """The constraint on the sampled text: its kind and its definition. None if the text is free."""
        for kind in STRUCTURE_KINDS:
            text: str | None = getattr(self, kind)
            if text is not None:
                return kind, text
        return None

    def without_structure(self) -> Sampling:
        """Return the same parameters for free text."""
        return replace(self, json_schema=None, regex=None, grammar=None)

    @property
    def has_penalties(self) -> bool:
        """Whether a bias, a penalty or ``min_tokens`` changes the logits."""
        penalties = (
            self.presence_penalty,
            self.frequency_penalty,
            self.repetition_penalty - 1,
            self.min_tokens,
        )
        return bool(self.logit_bias) or any(penalties)


OPTIONAL_SAMPLING: Final = (
    "min_tokens",
    "top_logprobs",
    "prompt_logprobs",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    *STRUCTURE_KINDS,
)
"""Fields of ``Sampling`` that are optional for an engine; ``Engine.capabilities`` lists the supported
ones."""


JSON_SPACING: Final[Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""llguidance's options for white space in replies with ``Sampling.json_schema``: one line, spaced as in
training data. With free white space, a model that would rather write something else emits white space until
its limit."""


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One alternative at a position."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class PromptLogprob:
    """Log-probability of one token of a prompt, given those before it, and the most likely alternatives."""

    logprob: float
    top_logprobs: tuple[TopLogprob, ...] = ()


class TokenChunk(NamedTuple):  # created for every token: a frozen dataclass takes three times as long
    """One or more sampled tokens, in order.

    ``text`` is the decoded text that these ids add. A token that ends inside a UTF-8 character adds no text
    until the character is complete, so the text of a chunk may belong to earlier ids.
    ``logprobs`` are taken after temperature, penalties and bias, and before top-p, top-k and min-p.
    A stop token is included: its id, its text (also that of special tokens) and its logprob.
    """

    ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] = ()
    cached_tokens: int | None = None
    """Prompt tokens taken from the prefix cache: on the first or the last chunk of a call, else None. None
    on all chunks if the engine does not know it."""
    finish_reason: FinishReason | None = None
    """Set on the last chunk: ``stop`` if the last id is a stop token, ``length`` at ``max_tokens`` or at the
    end of the model's context."""
    weights_version: int = 0
    """Version of the weights that sampled these ids, as given when they were loaded. Engines that cannot
    replace their weights between two tokens report 0."""
    prompt_logprobs: tuple[PromptLogprob, ...] = ()
    """On the first chunk of a call with ``Sampling.prompt_logprobs``: those of the prompt's tokens from the
    second one on."""
    is_forced: bool = False
    """The server wrote these ids; the model did not sample them. Engines never set it."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since start. ``cached_tokens`` are prompt tokens whose keys and values were reused."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    running: int = 0
    waiting: int = 0


class EngineError(Exception):
    """The engine could not serve a request."""


class InvalidRequestError(EngineError):
    """The request is invalid for this engine, such as a JSON schema with an unsupported keyword."""


class ContextLengthExceededError(EngineError):
    """The prompt leaves no room for a token in the model's context."""


class Tokenizer(Protocol):
    """The tokenizer interface that the service needs."""

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        ...

    def encode(self, text: str, *, allow_special: bool) -> list[int]:
        """Token ids of ``text``. If ``allow_special`` is false, the spelling of a special token is encoded
        as text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens included."""
        ...

    def token_id(self, token: str) -> int | None:
        """The id of a token by its spelling, or None if the vocabulary lacks it."""
        ...

    def render_chat(
        self,
        messages: Sequence[dict[str, object]],
        *,
        template_kwargs: dict[str, object] | None = None,
        continue_final: bool = False,
    ) -> list[int]:
        """Render ``messages`` with the chat template and return the token ids of the prompt.

        The prompt ends with the beginning of a reply, or with ``continue_final`` inside the last message.
        The spelling of a control token in a message or in ``tools`` is encoded as text. Only the template's
        own control tokens, and those of a `service.deferral.prompt.ControlText`, are encoded as such. See
        `service.deferral.prompt.Content`.
        """
        ...


class Engine(Protocol):
    """A token generator."""

    @property
    def model_name(self) -> str: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def context_length(self) -> int: ...
    @property
    def eos_token_ids(self) -> frozenset[int]: ...
    @property
    def healthy(self) -> bool:
        """Whether the engine has started and can serve."""
        ...

    @property
    def capabilities(self) -> frozenset[str]:
        """The supported fields of `OPTIONAL_SAMPLING`."""
        ...

    def supports_logprobs(self, sampling: Sampling) -> bool:
        """Whether the engine can report the logprobs that `TokenChunk` documents for such a call."""
        ...

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA adapters that the engine serves."""
        ...

    def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, stop_token_ids: Collection[int] = ()
    ) -> AsyncGenerator[TokenChunk, None]:
        """Sample until a stop token, ``max_tokens`` or the end of the context. Closing the generator cancels
        the call.

        Engines keep a prefix cache: a prompt that continues an earlier call (its prompt, its sampled tokens,
        then new tokens) is prefilled only from there.

        Raises:
            ContextLengthExceededError: the prompt leaves no room for a token.
            EngineError: the engine failed; the stream has ended.
        """
        ...

    def stats(self) -> EngineStats: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


def unsupported(engine: Engine, sampling: Sampling) -> list[str]:
    """Return the names of the fields that ``sampling`` uses and ``engine`` does not support."""
    neutral = Sampling()
    asked = [name for name in OPTIONAL_SAMPLING if getattr(sampling, name) != getattr(neutral, name)]
    missing = [name for name in asked if name not in engine.capabilities]
    if sampling.logprobs and not engine.supports_logprobs(sampling):
        missing.append("logprobs")
    return missing


def check_call(engine: Engine, prompt_ids: Sequence[int], sampling: Sampling, vocab_size: int) -> None:
    """Validate one call of ``engine.generate``.

    Raises:
        ContextLengthExceededError: the prompt leaves no room for one token.
        EngineError: a value is out of range, or the engine does not support a field. The message names the
            field.
    """
    _check_prompt(prompt_ids, engine.context_length, vocab_size)
    _check_ranges(sampling, vocab_size)
    if sampling.adapter is not None and sampling.adapter not in engine.adapters:
        known = ", ".join(engine.adapters) or "none"
        raise EngineError(f"adapter {sampling.adapter!r} is unknown; adapters of this engine: {known}")
    if missing := unsupported(engine, sampling):
        raise EngineError(f"this engine does not support {missing[0]} (model {engine.model_name!r})")


def _check_prompt(prompt_ids: Sequence[int], context_length: int, vocab_size: int) -> None:
    if len(prompt_ids) >= context_length:
        raise ContextLengthExceededError(
            f"the prompt has {len(prompt_ids)} tokens and leaves no room in the context of "
            f"{context_length}: shorten it"
        )
    if not prompt_ids:
        raise EngineError("the prompt is empty: it needs at least one token")
    if not 0 <= min(prompt_ids) <= max(prompt_ids) < vocab_size:
        raise EngineError(f"the prompt holds a token id outside of 0..{vocab_size - 1}")


def _check_ranges(sampling: Sampling, vocab_size: int) -> None:
    for name, right, wanted in (
        ("temperature", 0 <= sampling.temperature < float("inf"), "0 or more"),
        ("top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1"),
        ("top_k", sampling.top_k >= 0, "0 (no limit) or more"),
        ("min_p", 0 <= sampling.min_p <= 1, "between 0 and 1"),
        ("max_tokens", sampling.max_tokens >= 1, "1 or more"),
        ("min_tokens", 0 <= sampling.min_tokens <= sampling.max_tokens, "0 or more, and at most max_tokens"),
        ("top_logprobs", sampling.top_logprobs >= 0, "0 or more"),
        ("prompt_logprobs", (sampling.prompt_logprobs or 0) >= 0, "0 or more"),
        ("presence_penalty", isfinite(sampling.presence_penalty), "a number"),
        ("frequency_penalty", isfinite(sampling.frequency_penalty), "a number"),
        ("repetition_penalty", 0 < sampling.repetition_penalty < float("inf"), "above 0"),
    ):
        if not right:
            raise EngineError(f"{name} is {getattr(sampling, name)}, must be {wanted}")
    for token_id, bias in sampling.logit_bias:
        if not (0 <= token_id < vocab_size and isfinite(bias)):
            raise EngineError(
                f"logit_bias: {token_id} is outside of 0..{vocab_size - 1}, or {bias} is not finite"
            )
