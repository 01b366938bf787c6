"""``final_answer``: the one field that holds just the answer of a reply, without code and observations."""

from __future__ import annotations

from service.deferral.answer import last_boxed


class FinalAnswer:
    r"""Finds the answer while a reply grows.

    It is what the last complete ``\boxed{...}`` holds; one that code printed counts, as it ends the episode.
    A reply without a box is answered by its last turn: the text after the last observation, or all of it if
    no code ran. There is no answer if such a turn was cut by a limit, ends with code that never ran, or calls
    the client's functions. Thoughts are never searched.
    """

    def __init__(self) -> None:
        self._boxed: str | None = None
        self._turn: list[str] = []

    def wrote(self, text: str) -> None:
        """The model wrote ``text`` as content."""
        self._turn.append(text)

    def observed(self, text: str) -> None:
        """The observation ``text`` ends the turn."""
        self._boxed = last_boxed(text) or last_boxed("".join(self._turn)) or self._boxed
        self._turn = []

    def result(self, *, complete: bool) -> str | None:
        """Return the answer; None if there is none.

        Args:
            complete: the last turn ended by itself, with no code pending and no call of a function.
        """
        text = "".join(self._turn)
        boxed = last_boxed(text) or self._boxed
        return boxed if boxed is not None or not complete else text.strip() or None
