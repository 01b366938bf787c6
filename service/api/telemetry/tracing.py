"""OpenTelemetry traces: one span per request, and one per invocation, execution and delivery of code.

Execution and delivery are separate, because the output of a successful run may not fit into the context. No
span contains a prompt, a reply or code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from opentelemetry.trace import NoOpTracer, Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from service.episode.events import (
    EpisodeEvent,
    ExecutedTool,
    Finished,
    FlushFinished,
    FlushStarted,
    Invoked,
    Observed,
    Sampled,
)


def open_tracer(endpoint: str | None, version: str) -> tuple[Tracer, Callable[[], None]]:
    """Return a tracer, and a function that sends the remaining spans when the server stops.

    Args:
        endpoint: URL of an OTLP/HTTP collector such as ``http://localhost:4318/v1/traces``; None for no
        traces.
        version: version of this server.

    Raises:
        ValueError: the required packages are not installed.
    """
    if endpoint is None:
        return NoOpTracer(), lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ValueError(
            f"otel_endpoint needs packages that are not installed ({error.name}): pip install 'ih-grpo[otel]'"
        ) from None
    # A separate provider: the process-wide one belongs to the application that embeds the server.
    provider = TracerProvider(
        resource=Resource.create({"service.name": "ih-grpo", "service.version": version})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider.get_tracer("ih-grpo", version), provider.shutdown


Attributes = Mapping[str, str | int | float | bool]


class RequestTrace:
    """Span of one request, a child of the client's span if it sent one.

    Args:
        tracer: creates the spans.
        operation: OpenTelemetry's ``gen_ai.operation.name``.
        model: model name in the request.
        prompt_tokens: length of the prompt.
        attributes: more attributes of the span.
    """

    def __init__(
        self,
        tracer: Tracer,
        operation: str,
        model: str,
        *,
        prompt_tokens: int,
        attributes: Attributes | None = None,
    ) -> None:
        all_attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": model,
            "gen_ai.usage.input_tokens": prompt_tokens,
            **(attributes or {}),
        }
        self._tracer = tracer
        self._span = tracer.start_span(
            f"{operation} {model}", kind=SpanKind.SERVER, attributes=all_attributes
        )
        self._episodes: dict[int, _EpisodeTrace] = {}
        self._output_tokens = 0

    def add(self, index: int, event: EpisodeEvent) -> None:
        """Record an event of the episode ``index``."""
        if isinstance(event, Sampled):
            self._output_tokens += len(event.chunk.ids)
            return
        if index not in self._episodes:
            self._episodes[index] = _EpisodeTrace(self._tracer, self._span, index)
        self._episodes[index].add(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for episode in self._episodes.values():
            episode.close()
        self._span.set_attribute("gen_ai.usage.output_tokens", self._output_tokens)
        if isinstance(error, Exception):
            self._span.set_attribute("error.type", type(error).__name__)
            self._span.set_status(Status(StatusCode.ERROR))
        elif error is not None:
            self._span.set_attribute("ih_grpo.client_left", True)
        self._span.end()


class _EpisodeTrace:
    def __init__(self, tracer: Tracer, parent: Span, index: int) -> None:
        self._tracer = tracer
        self._parent = parent
        self._index = index
        self._pending: list[Span] = []
        self._delivery: Span | None = None

    def add(self, event: EpisodeEvent) -> None:
        match event:
            case Invoked(tool_id, index, block):
                span = self._span("invoke", tool_id, block.invoked_at)
                span.set_attribute("ih_grpo.block.index", index)
                span.set_attribute("ih_grpo.block.at_token", block.invoked_at_token)
                self._pending.append(span)
            case FlushStarted(tool_id):
                self._end_pending(dropped=False)
                self._delivery = self._span("deliver", tool_id, None)
            case FlushFinished(tool):
                self._executed(tool)
            case Observed():
                self._end_delivery(delivered=True)
            case Finished(outcome):
                self._parent.set_attribute(f"ih_grpo.outcome.{self._index}", outcome.value)

    def close(self) -> None:
        """End open spans: pending blocks were dropped, outputs were not delivered."""
        self._end_pending(dropped=True)
        self._end_delivery(delivered=False)

    def _executed(self, tool: ExecutedTool) -> None:
        # If nothing ran, the span has no length and starts at the flush.
        span = self._span("execute", tool.id, tool.started_at or tool.flushed_at)
        span.set_attribute("ih_grpo.status", tool.status)
        span.set_attribute("ih_grpo.blocks", len(tool.blocks))
        if tool.status != "ok":
            span.set_attribute("error.type", tool.status)
            span.set_status(Status(StatusCode.ERROR))
        span.end(_ns(tool.finished_at or tool.flushed_at))
        if self._delivery is not None:
            self._delivery.set_attribute("ih_grpo.waited_ms", tool.waited_ms)
            self._delivery.set_attribute("ih_grpo.hidden_ms", tool.hidden_ms)
            self._delivery.set_attribute("ih_grpo.container_wait_ms", tool.container_wait_ms)
            self._delivery.set_attribute("ih_grpo.delayed", tool.delayed)
            self._delivery.set_attribute("ih_grpo.requested_by", tool.requested_by)

    def _end_pending(self, *, dropped: bool) -> None:
        for span in self._pending:
            span.set_attribute("ih_grpo.dropped", dropped)
            span.end()
        self._pending = []

    def _end_delivery(self, *, delivered: bool) -> None:
        if self._delivery is None:
            return
        self._delivery.set_attribute("ih_grpo.delivered", delivered)
        if not delivered:
            self._delivery.set_status(Status(StatusCode.ERROR))
        self._delivery.end()
        self._delivery = None

    def _span(self, verb: str, tool_id: str, at: float | None) -> Span:
        return self._tracer.start_span(
            f"{verb} python",
            context=set_span_in_context(self._parent),
            attributes={
                "gen_ai.tool.name": "python",
                "ih_grpo.tool.id": tool_id,
                "ih_grpo.choice": self._index,
            },
            start_time=None if at is None else _ns(at),
        )


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
