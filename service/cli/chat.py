"""``ih-grpo chat``."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.output import abort


def chat(
    question: Annotated[
        str | None, typer.Argument(help="Ask one question and exit. Omit to start a chat.")
    ] = None,
    url: Annotated[
        str, typer.Option(help="Base URL of the server, with or without /v1.", envvar="IHGRPO_URL")
    ] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Model name. Default: the server's first model.")] = None,
    api_key: Annotated[str | None, typer.Option(help="API key.", envvar="IHGRPO_API_KEY")] = None,
    eager: Annotated[
        bool, typer.Option(help="Let the server start blocks before the model requests their results.")
    ] = True,
    mcp: Annotated[
        list[str] | None,
        typer.Option(
            help="MCP server whose tools code may call: LABEL=URL, or LABEL of the operator's. Repeatable."
        ),
    ] = None,
    approve: Annotated[bool, typer.Option(help="Ask before each call of a tool.")] = True,
) -> None:
    """Chat with a server in the terminal.

    Shows when the model's code blocks wait, run and return, and a timeline of each reply.

    \b
    Examples:
      ih-grpo chat
      ih-grpo chat "What is 739184 times 52967?" --url http://127.0.0.1:8000
      ih-grpo chat --mcp tickets=https://mcp.example.com/mcp
    """
    from service.cli.conversation import ChatError, converse

    try:
        tools = [_server(text, approve=approve) for text in mcp or ()]
        converse(url, question=question, model=model, api_key=api_key, eager=eager, tools=tools)
    except ChatError as error:
        abort(str(error))


def _server(text: str, *, approve: bool) -> dict[str, str]:
    """Return the tool of an MCP server, given as ``LABEL`` or ``LABEL=URL``."""
    label, _, url = text.partition("=")
    tool = {"type": "mcp", "server_label": label, "require_approval": "always" if approve else "never"}
    return {**tool, "server_url": url} if url else tool
