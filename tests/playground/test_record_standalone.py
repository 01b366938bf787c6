from __future__ import annotations

import base64
import re
from hashlib import sha256

from service.playground.files import STATIC
from service.playground.record import bundle, standalone


def test_bundle_has_each_module_once_and_no_imports() -> None:
    script = bundle("main.js")
    for module in set(STATIC.glob("*.js")) - {STATIC / "early.js"}:
        first_line = module.read_text(encoding="utf-8").splitlines()[0]
        assert script.count(first_line) == 1, module.name
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)


def test_modules_share_no_top_level_names() -> None:
    names = re.findall(
        r"^(?:export )?(?:async )?(?:function\*?|const|let|class) (\w+)", bundle("main.js"), re.MULTILINE
    )
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


def test_standalone_page_loads_nothing() -> None:
    page = standalone({"v": 1, "events": [[0, "t", '</script>"<img src=x>']]})
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert len(policy) == 1
    assert policy[0].startswith("default-src 'none'; script-src 'sha256-")
    head = page[: page.index("<style>")] + page[page.index("</style>") : page.index("<script>")]
    assert not re.search(r'(?:src|href)="(?!#)', head)
    assert "<img" not in head
    scripts = re.findall(r"<script(?: type=\"module\")?>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 5
    for script in scripts:
        digest = base64.b64encode(sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[0]
        assert "<!--" not in script  # the HTML parser would not find the script's end
