"""Variables that look like settings and are none: they would be passed over in silence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Final

from service.settings import Settings

_PREFIX: Final = "IHGRPO_"
_OTHERS: Final = frozenset({"api_key", "runner_token", "runner_warm_containers"})
"""Right, and near to a setting: ``ih-grpo chat``'s and the runner's."""
_ALIKE: Final = 0.75


def misspelt(environment: Mapping[str, str]) -> Iterator[str]:
    """A warning for each variable whose name nearly is a setting's."""
    for variable in sorted(environment):
        name = variable.removeprefix(_PREFIX).lower()
        if not variable.startswith(_PREFIX) or name in Settings.model_fields or name in _OTHERS:
            continue
        for meant in get_close_matches(name, Settings.model_fields, n=1, cutoff=_ALIKE):
            yield f"{variable} is no setting; did you mean {_PREFIX}{meant.upper()}?"
