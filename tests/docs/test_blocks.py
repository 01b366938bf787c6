from __future__ import annotations

import pytest

from tests.docs.blocks import Block, blocks
from tests.docs.words import complaints

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


def test_blocks_and_their_marks() -> None:
    assert list(blocks(PAGE, "p.md")) == [
        Block("p.md:3", "sh", "ls\n", True, frozenset({"server", "rollout"}), None),
        Block("p.md:14", "python", "1 / 0\n", False, frozenset(), "needs a GPU"),
        Block("p.md:17", "sh", "unmarked\n", False, frozenset(), None),
        Block("p.md:21", "sh", "up\n", False, frozenset(), None, by="tests/compose/test_stack.py as start"),
    ]


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("ih-grpo srve", "ih-grpo has no command srve"),
        ("cd x && .venv/bin/ih-grpo serve --prt 1", "ih-grpo serve has no option --prt"),
        ("A=1 make serv  # starts it", "make has no target serv"),
        ("ih-grpo train warm-start \\\n  --stps 3", "ih-grpo train has no option --stps"),
        ("ih-grpo train --recipe recipes/none.toml", "there is no recipes/none.toml"),
    ],
)
def test_what_does_not_exist_is_found(code: str, complaint: str) -> None:
    assert list(complaints(code)) == [complaint]


def test_what_exists_passes() -> None:
    code = (
        "make setup EXTRA=train && source .venv/bin/activate\nih-grpo train warm-start --steps=3 | tee log\n"
    )
    assert list(complaints(code + "curl x -d '{\n \"a\": 1}'\nih-grpo --version")) == []
