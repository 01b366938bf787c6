"""What every token generator offers. An engine speaks token ids; text travels beside them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw the next token. The defaults are the paper's rollout settings (section 4)."""

    temperature: float = 1.0
    """0 means greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 means no limit."""
    min_p: float = 0.0
    seed: int | None = None
    """The same seed, prompt and weights give the same tokens, whatever else shares the batch."""
    max_tokens: int = 8000
    min_tokens: int = 0
    """Tokens to sample before a stop token may be."""
    logprobs: bool = True
    """False: nobody reads them, so an engine may save the work; they are NaN then."""
    top_logprobs: int = 0
    """How many alternatives to report beside each sampled token."""
    presence_penalty: float = 0.0
    """Taken off the logit of every token that this call has sampled already."""
    frequency_penalty: float = 0.0
    """Taken off the logit of a token once for each time that this call has sampled it."""
    repetition_penalty: float = 1.0
    """Divides the positive logits and multiplies the negative ones of tokens in the prompt or sampled."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the logits of these token ids."""
    json_schema: str | None = None
    """JSON schema, as text, that the sampled text must match. ``{"type": "object"}``: any JSON object."""
    adapter: str | None = None
    """One of the engine's ``adapters``; None is the model itself."""

    @property
    def has_penalties(self) -> bool:
        """Whether bias, a penalty or a least length changes the logits."""
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
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "json_schema",
)
"""Fields of ``Sampling`` that an engine may lack; ``Engine.capabilities`` holds those that it has."""


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One alternative at a position."""

    token_id: int
    logprob: float


class TokenChunk(NamedTuple):  # one is made for every token: a frozen dataclass takes three times as long
    """One or more sampled tokens, in order.

    ``text`` is what these ids add to the decoded text. A token that ends in the middle of a UTF-8 character
    adds nothing until the character is whole, so the text of a chunk may belong to earlier ids.
    ``logprobs`` are taken after the temperature and before top-p, top-k and min-p; after penalties and bias.
    A stop token is delivered too: its id, its text (special tokens included) and its logprob.
    """

    ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] = ()
    cached_tokens: int | None = None
    """Prompt tokens that were not prefilled again: on the first or the last chunk of a call, else None. An
    engine that can't know it leaves it out."""
    finish_reason: FinishReason | None = None
    """Set on the last chunk: ``stop`` when the last id is a stop token, ``length`` at ``max_tokens`` or at
    the model's context length."""


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
    """The engine does not take what this request asks for, as a JSON schema with a keyword that it lacks."""


class ContextLengthExceededError(EngineError):
    """The prompt leaves no room for one token in the model's context."""


class Tokenizer(Protocol):
    """The few things that the service asks of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        ...

    def encode(self, text: str, *, allow_special: bool) -> list[int]:
        """Token ids of ``text``; with ``allow_special`` false, a special token spelled out stays text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens included."""
        ...

    def token_id(self, token: str) -> int | None:
        """The id of one special token by name, or None where the vocabulary lacks it."""
        ...

    def render_chat(
        self,
        messages: Sequence[dict[str, object]],
        *,
        template_kwargs: dict[str, object] | None = None,
        continue_final: bool = False,
    ) -> list[int]:
        """Return the ids of the prompt that the chat template makes of ``messages``.

        The beginning of a reply is included; with ``continue_final`` the last message is left open instead.
        A control token spelled in a message, or in ``tools``, stays text: only the template's own and those
        of a `service.deferral.prompt.ControlText` count. See `service.deferral.prompt.Content`.
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
        """Started, and able to serve."""
        ...

    @property
    def capabilities(self) -> frozenset[str]:
        """Those of `OPTIONAL_SAMPLING` that it honours."""
        ...

    def supports_logprobs(self, sampling: Sampling) -> bool:
        """Whether it can tell the logprobs that `TokenChunk` promises for such a call."""
        ...

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA adapters that it can sample with."""
        ...

    def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, stop_token_ids: Collection[int] = ()
    ) -> AsyncGenerator[TokenChunk, None]:
        """Sample until a stop token, ``max_tokens`` or the context's end. Closing the iterator cancels.

        A prompt that goes on from an earlier call (its prompt, what it sampled, then new tokens) is not
        prefilled again: engines keep a prefix cache.

        Raises:
            ContextLengthExceededError: the prompt leaves no room.
            EngineError: the engine failed; nothing more will come.
        """
        ...

    def stats(self) -> EngineStats: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


def unsupported(engine: Engine, sampling: Sampling) -> list[str]:
    """Names of the fields that ``sampling`` asks for and ``engine`` can't honour."""
    neutral = Sampling()
    asked = [name for name in OPTIONAL_SAMPLING if getattr(sampling, name) != getattr(neutral, name)]
    missing = [name for name in asked if name not in engine.capabilities]
    if sampling.logprobs and not engine.supports_logprobs(sampling):
        missing.append("logprobs")
    return missing
