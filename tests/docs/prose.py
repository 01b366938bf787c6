"""Prose lint for the text of this project.

``violations`` checks one file: Markdown outside code; docstrings, comments, messages and names of Python; the
whole of shell scripts, configuration and web pages. On the command line::

    python -m tests.docs.prose service/api docs README.md

A line that quotes a phrase on purpose ends with ``prose: ok``.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PHRASES: Final[dict[str, str]] = {
    r"\btold\b": "reported, listed, documented, or distinguished",
    r"\btell(s|ing)? (of|what|how|which|apart|whether|that|it|so|its|their)\b": "report, list, or show",
    r"\banew\b": "again",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bbe had\b": "be available",
    r"\b(hangs?|hung) on\b": "depend on",
    r"(?<!\bthere )\b(is|are) no "
    r"(?!(longer|more|less|larger|smaller|different|worse|better)\b)[a-z`]": "unknown, not a, or invalid",
    r"\bsave (for|where|when|if)\b|, save (that|what|in|the|its)\b": "except",
    r"\bsees to\b": "the ordinary verb",
    r"\b(goes|go|went|going) on\b(?! to\b)": "continue or resume",
    r"\b(writes?|sleeps?|lives?) on\b(?! (a|the|an|one|disk)\b)": "keeps writing",
    r"\b(refus\w+|400|rejects?|rejected) (\w+ )?by name\b": "reject, and name the field",
    r"\b(says?|tells?) so\b": "report it",
    r"\bas (it|they|she|he) (stands?|stood|came|comes?)\b": "unchanged",
    r"\b(of|by) (yours|ours|mine)\b": "your own, our own",
    r"\bwhoever\b|\bwhosoever\b": "anyone who, or name the role",
    r"\bvouch(es|ed|ing)?\b": "report",
    r"\b(comes?|came|become|became) of (it|them|that|this|what)\b": "result",
    r"\bwhat of\b": "the part of",
    r"\bwhere (unset|set|given|none|not set|it is set|they are set)\b": "if",
    r"\b(is|are|was|were) asked for\b": "required, or requested",
    r"\b(is|are) going down\b": "shutting down",
    r"\bforesaw\b|\bforeseen\b": "unexpected",
    r"\bremed(y|ies)\b": "fix or hint",
    r"(^|[.;:] )Nor\b|(^|[.;:] )Else:": "a full sentence",
    r"\b(thereof|therein|wherein|whereof|whence|whither|hither|lest|ere|naught|nought)\b": "plain words",
    r"\ball the same\b": "still or anyway",
    r"\band leave\b[.,;]": "exit",
    r"\b(a|an|one|each) (?!(as|for|from|in|of|on|to|with|without)\b)[a-z]+ an? "
    r"(line|step|flush|episode|turn|sample|group|block|host|process|reply|choice"
    r"|row|page|problem|prompt|token|service|kind|case)\b": "per",
    r"\bnobody (in|need|may|else need|is|was|has|had|reads|would|uses|watches|listens|waits)\b": "no one",
    r"\bby (its|their) field\b": "a plain sentence",
    r"\bhas said nothing\b|\bsays nothing of\b": "omits",
    r"\balgorithm\.md\b": "the documentation",
    r"\bat once\b": "immediately, or at the same time",
    r"\ban? ([a-z-]+ ){1,2}of (its|their|his|your) own\b|\b[a-z]+s of their own\b": "its own, or separate",
    r"\bwhatever\b": "regardless of, or any",
    r"\bwhere (there|it|they|one|none|this) (is|are|has|have|can|does|do)\b": "if",
    r"\b(is|are) what\b": "a direct statement",
    r"\bwhat (came|comes)\b": "the noun",
    r"\bfor ever\b": "indefinitely, or forever",
    r"\bother [a-z`]+ than\b": "X other than Y",
    r"\bmaximum of (?!(the|all|two|both)\b)[a-z]": "maximum number of, or name the quantity",
    r"\b(requests|tokens|calls|steps|blocks|flushes|episodes) an? "
    r"(minute|second|hour|step|flush|token|episode)\b": "per",
    r", for (it|they|this|that|there|he)\b": "because",
    r"\b(nothing|none) but\b|\bno [a-z]+ but (?!(is|are|not|the)\b)": "only",
    r"\b(gives?|gave|giving) way\b": "yield, or is ignored",
    r"\bjoint\b": "combined, or shared",
    r"\b(an?|the) running training\b": "training run",
    r"\bdecides? (it|them)sel(f|ves) (when|how|what|whether)\b": "decide",
}
OPENING: Final = re.compile(r"(What|Who|Whose|Whom|How|Where|Which|That|Those|Tells?|Says|Told)\b")
NAMES: Final = frozenset({"told", "anew", "nor", "mend", "mended", "vouch", "vouches"})
WHOLE_NAMES: Final = frozenset({"told", "said", "held", "tell", "tells"})

_PATTERNS: Final = [(re.compile(pattern, re.IGNORECASE), hint) for pattern, hint in PHRASES.items()]
_TEXT: Final = {
    ".md", ".py", ".sh", ".toml", ".yml", ".yaml", ".html", ".js", ".css", ".svg", ".ini", ".cfg", ".jinja",
}  # fmt: skip
_NAMED: Final = {"Dockerfile", "Makefile", ".env.example", ".dockerignore", ".gitignore"}
_SKIPPED_FOLDERS: Final = {
    ".git",
    "__pycache__",
    "node_modules",
    "vendor",
    "build",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
}
_SKIPPED: Final = {"swagger-ui-bundle.js", "swagger-ui.css", "prose.py", "test_prose.py"}
"""Vendored files, and those that quote the phrases."""

MODEL_TEXTS: Final = (
    "service/deferral/prompt.py",
    "trainer/quickstart/ordinary.py",
    "trainer/quickstart/phrasing.py",
)
"""Modules with texts that a model reads or that imitate its users. Checkpoints were trained on them, so only
docstrings and comments are checked."""

Line = tuple[int, str]


def violations(path: Path) -> list[str]:
    """Phrases to replace, as ``path:line: 'phrase': write HINT``. Empty for files that the lint skips."""
    if not is_text(path):
        return []
    text = path.read_text(encoding="utf-8")
    allowed = {number for number, line in enumerate(text.splitlines(), 1) if "prose: ok" in line}
    found: list[tuple[int, str]] = []
    if _is_python(path, text):
        found += _openings(text)
        found += _names(text)
        lines = _python(text, literals=not path.as_posix().endswith(MODEL_TEXTS))
    elif path.suffix == ".md":
        lines = _markdown(text)
    else:
        lines = enumerate(text.splitlines(), 1)
    for paragraph in _paragraphs(lines):
        found += _phrases(paragraph)
    return [f"{path}:{number}: {words}" for number, words in sorted(set(found)) if number not in allowed]


def is_text(path: Path) -> bool:
    """Whether the lint reads this file: text that people of this project wrote."""
    if path.name in _SKIPPED or not path.is_file():
        return False
    if path.suffix in _TEXT or path.name in _NAMED:
        return True
    if path.suffix:
        return False
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def files(paths: list[Path]) -> Iterator[Path]:
    """The text files among ``paths``, folders included; build outputs and environments are left out."""
    for path in paths:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in inside:
            parts = file.relative_to(path).parts[:-1]
            if not any(part in _SKIPPED_FOLDERS or part.startswith(".venv") for part in parts) and is_text(
                file
            ):
                yield file


def _is_python(path: Path, text: str) -> bool:
    return path.suffix == ".py" or (not path.suffix and "python" in text.partition("\n")[0])


def _phrases(paragraph: list[Line]) -> Iterator[tuple[int, str]]:
    """Matches in the joined lines, so that a phrase may run over the end of a line."""
    starts: list[tuple[int, int]] = []
    joined = ""
    for number, line in paragraph:
        starts.append((len(joined), number))
        joined += " ".join(line.split()) + " "
    for pattern, hint in _PATTERNS:
        for match in pattern.finditer(joined):
            number = next(number for start, number in reversed(starts) if start <= match.start())
            yield number, f"{match[0].strip()!r}: write {hint}"


def _paragraphs(lines: Iterator[Line]) -> Iterator[list[Line]]:
    """Runs of consecutive lines without an empty one."""
    paragraph: list[Line] = []
    for number, line in lines:
        if paragraph and (not line.strip() or number > paragraph[-1][0] + 1):
            yield paragraph
            paragraph = []
        if line.strip():
            paragraph.append((number, line))
    if paragraph:
        yield paragraph


def _markdown(text: str) -> Iterator[Line]:
    """Lines outside fenced blocks, without inline code and link targets; comments of shell and Python."""
    fence = ""
    language = ""
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*(`{3,})\s*(\S*)", line)
        if fence:
            if line.strip() == fence:
                fence = ""
            elif language in ("sh", "python") and (comment := re.search(r"(^|\s)#\s(.*)", line)):
                yield number, comment[2]
        elif mark:
            fence, language = mark[1], mark[2]
        elif line.lstrip().startswith("|"):  # rows of tables stand alone
            yield number, ""
            yield number, _without_code(line)
            yield number, ""
        else:
            yield number, _without_code(line)


def _without_code(line: str) -> str:
    line = re.sub(r"\]\([^)]*\)", "]", line)
    return re.sub(r"``?[^`]*``?", "`x`", line)


def _python(text: str, *, literals: bool = True) -> Iterator[Line]:
    """Comments and docstrings of at least three words, and with ``literals`` all other string literals."""
    tree = ast.parse(text)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    in_f_string = {
        id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
    }
    lines: list[list[Line]] = [
        [(token.start[0], token.string.lstrip("#! "))]
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    ]
    for node in ast.walk(tree):
        checked = id(node) in docstrings or (literals and id(node) not in in_f_string)
        literal = _literal(node) if checked else None
        if literal is not None and len(literal.split()) >= 3:
            first = node.lineno  # type: ignore[attr-defined]
            parts = [re.sub(r"``?[^`]*``?", "`x`", part) for part in literal.splitlines()]
            lines.append(
                [*((first + at, part) for at, part in enumerate(parts)), (first + len(parts) - 1, "")]
            )
    lines.sort(key=lambda group: group[0][0])
    for group in lines:
        yield from group


def _literal(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        values = (part.value if isinstance(part, ast.Constant) else "`x`" for part in node.values)
        return "".join(str(value) for value in values)
    return None


def _openings(text: str) -> Iterator[tuple[int, str]]:
    """Docstrings, also those under attributes, that open with a question word."""
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", ())
        for statement in body if isinstance(body, list) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                value = statement.value.value
                if isinstance(value, str) and (match := OPENING.match(value.strip())):
                    yield (
                        statement.lineno,
                        f"docstring opens with {match[0]!r}: write a noun phrase or an imperative",
                    )


def _names(text: str) -> Iterator[tuple[int, str]]:
    """Definitions whose names are words of the old dialect."""
    for node in ast.walk(ast.parse(text)):
        name = ""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        words = set(name.lower().split("_"))
        if name.lstrip("_") in WHOLE_NAMES or (NAMES & words and not {"neither", "nor"} <= words):
            yield node.lineno, f"name {name!r}: name what it holds or does"  # type: ignore[attr-defined]


def main() -> None:
    """Check the given files and folders; exit code 1 if anything was found."""
    parser = argparse.ArgumentParser(description="Report phrases that plain English avoids.")
    parser.add_argument("paths", nargs="+", type=Path)
    found = [line for file in files(parser.parse_args().paths) for line in violations(file)]
    print("\n".join([*found, f"{len(found)} found"]))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
