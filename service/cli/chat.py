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
) -> None:
    """Chat with a server in the terminal.

    Shows when the model's code blocks wait, run and return, and a timeline of each reply.

    \b
    Examples:
      ih-grpo chat
      ih-grpo chat "What is 739184 times 52967?" --url http://127.0.0.1:8000
    """
    from service.cli.conversation import ChatError, converse

    try:
        converse(url, question=question, model=model, api_key=api_key, eager=eager)
    except ChatError as error:
        abort(str(error))
