"""Where traces go: nowhere, or to a collector over OTLP."""

from __future__ import annotations

from collections.abc import Callable

from opentelemetry.trace import NoOpTracer, Tracer


def open_tracer(endpoint: str | None, version: str) -> tuple[Tracer, Callable[[], None]]:
    """A tracer, and what sends the last spans when the server stops.

    Args:
        endpoint: URL of an OTLP/HTTP collector, as ``http://localhost:4318/v1/traces``; None: no traces.
        version: of this server.

    Raises:
        ValueError: the packages for it are not installed.
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
    # The provider is the server's own; the process-wide one stays whoever embeds it has set.
    provider = TracerProvider(
        resource=Resource.create({"service.name": "ih-grpo", "service.version": version})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider.get_tracer("ih-grpo", version), provider.shutdown
