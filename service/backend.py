"""What a server serves: an engine, a sandbox, a checkpoint's policy. Every API starts its episodes here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import with_instruction
from service.driver import new_episode, run_episode
from service.engines.base import Engine, Sampling
from service.events import EpisodeEvent
from service.plain import run_plain
from service.sandbox.base import Sandbox, SessionLimits

Messages = Sequence[dict[str, object]]


@dataclass(frozen=True, slots=True)
class Backend:
    """Engine, sandbox and policy, and how they become an episode."""

    engine: Engine
    sandbox: Sandbox
    policy: DeferralPolicy
    sampling: Sampling
    """What a request that says nothing is sampled with."""

    def render(
        self,
        messages: Messages,
        *,
        deferral: bool,
        thinking: bool = False,
        continue_final: bool = False,
        tools: Sequence[dict[str, object]] = (),
    ) -> list[int]:
        """Return the prompt ids of ``messages``; with ``deferral`` the instruction is added, once.

        Args:
            messages: turns as the chat template takes them.
            deferral: code that the model writes will run.
            thinking: let the model think first.
            continue_final: leave the last message open, for the model to continue it.
            tools: functions of the client, in OpenAI's form, that the model may call.

        Raises:
            ValueError: there is no user turn to carry the instruction.
            EngineError: the template refused.
        """
        turns = with_instruction(messages, self.policy.prompt) if deferral else list(messages)
        options: dict[str, object] = {"enable_thinking": thinking}
        if tools:
            options["tools"] = list(tools)
        return self.engine.tokenizer.render_chat(
            turns, template_kwargs=options, continue_final=continue_final
        )

    def room(self, prompt_ids: Sequence[int], *, deferral: bool) -> int:
        """Tokens that may follow the prompt."""
        limit = min(self.engine.context_length, self.policy.max_episode_tokens if deferral else 2**62)
        return limit - len(prompt_ids)

    def plain(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, stops: Sequence[str] = ()
    ) -> AsyncGenerator[EpisodeEvent, None]:
        """Generation without deferral."""
        return run_plain(prompt_ids, self.engine, sampling, stops=stops)

    def episode(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        policy: DeferralPolicy,
        *,
        eager: bool,
        episode_id: str,
        stops: Sequence[str] = (),
        code_is_answer: bool = False,
    ) -> AsyncGenerator[EpisodeEvent, None]:
        """A deferred episode under ``policy``; for ``code_is_answer`` see `service.driver.new_episode`.

        Raises:
            ValueError: the tokenizer has no execute marker, so the checkpoint can't defer.
        """
        episode = new_episode(prompt_ids, policy, self.engine, code_is_answer=code_is_answer)
        session = self.sandbox.session(SessionLimits(run_limit_s=policy.run_limit_s, eager=eager))
        return run_episode(
            episode, self.engine, session, sampling, episode_id=episode_id, stops=stops, prepare=True
        )
