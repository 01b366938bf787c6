from __future__ import annotations

import pytest

from tests.docs.blocks import Block, blocks
from tests.docs.shell_commands import unknown_names

PAGE = """
<!-- test: run needs=server,rollout -->
```sh
ls
```

````text
```sh
not one
```
````

<!-- test: not run: needs a GPU -->
```python
1 / 0
```
```bash
unmarked
```
<!-- test: run by tests/compose/test_stack.py as start -->
```sh
up
```
"""


def test_parses_blocks_and_comments() -> None:
    assert list(blocks(PAGE, "p.md")) == [
        Block("p.md:3", "sh", "ls\n", True, frozenset({"server", "rollout"}), None),
        Block("p.md:14", "python", "1 / 0\n", False, frozenset(), "needs a GPU"),
        Block("p.md:17", "sh", "unmarked\n", False, frozenset(), None),
        Block("p.md:21", "sh", "up\n", False, frozenset(), None, by="tests/compose/test_stack.py as start"),
    ]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("ih-grpo srve", "ih-grpo has no command srve"),
        ("cd x && .venv/bin/ih-grpo serve --prt 1", "ih-grpo serve has no option --prt"),
        ("A=1 make serv  # starts it", "make has no target serv"),
        ("ih-grpo train warm-start \\\n  --stps 3", "ih-grpo train has no option --stps"),
        ("ih-grpo train --recipe recipes/none.toml", "there is no recipes/none.toml"),
    ],
)
def test_finds_unknown_names(code: str, error: str) -> None:
    assert list(unknown_names(code)) == [error]


def test_accepts_existing_names() -> None:
    code = (
        "make setup EXTRA=train && source .venv/bin/activate\nih-grpo train warm-start --steps=3 | tee log\n"
    )
    assert list(unknown_names(code + "curl x -d '{\n \"a\": 1}'\nih-grpo --version")) == []
