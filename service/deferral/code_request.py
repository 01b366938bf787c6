"""Heuristic that distinguishes requests for program code from requests for a computed value.

If the server decides that code runs (``unflushed: "run"``), code that *is* the answer must not run: a user
who asks for a function wants to read it. Whether a block prints does not
matter, because example functions usually come with a demonstration. The rule uses only the words of the
request. It therefore needs no model call and is the same for every model. A model that wants the code to run
anyway can write the execute marker.
"""

from __future__ import annotations

import ast
import re
from typing import Final

# Names of things made of code. "function", "program", "class" and "loop" also occur in word problems, so they
# count only near a verb such as "write" or "show", or near the name of a programming language.
_CODE_NOUN: Final = (
    r"(?:functions?|scripts?|code|snippets?|programs?|one[- ]liners?|decorators?|"
    r"generators?|iterators?|lambdas?|comprehensions?|reg(?:ular )?ex(?:pression)?(?:es|s)?|quer(?:y|ies)|"
    r"(?:(?:for|while|do)[- ])?loops?|unit tests?|test cases?|implementations?|"
    r"algorithms?|data ?class(?:es)?|context managers?|"
    r"dockerfiles?|makefiles?|html|css|web ?pages?|linked lists?|"
    r"dict(?:ionar(?:y|ies))?s?|"
    r"binary (?:search|trees?)|hash ?(?:maps?|tables?)|(?:bubble|quick|merge|insertion|selection|"
    r"heap) ?sorts?)"
)
_STRONG_NOUN: Final = (
    r"(?:code|snippets?|scripts?|source code|one[- ]liners?|decorators?|lambdas?|comprehensions?|"
    r"reg(?:ular )?ex(?:es|s)?|regular expressions?|unit tests?|context managers?|dockerfiles?|makefiles?|"
    r"pseudo-?code|linked lists?|binary search|hash ?maps?|(?:bubble|quick|merge|insertion|selection|"
    r"heap) ?sorts?)"
)
_LANGUAGE: Final = (
    r"(?:python3?|javascript|typescript|js|java|rust|golang|ruby|php|kotlin|swift|scala|haskell|perl|lua|"
    r"bash|shell|powershell|sql|html|css|react|node(?:\.?js)?|django|flask|fastapi|pandas|numpy|pytest|"
    r"git|docker)"
    r"\b|(?<!\w)(?:c\+\+|c#|f#)(?!\w)|\bin c\b"
)
_OTHER_LANGUAGE: Final = _LANGUAGE.replace("python3?|", "").replace("|pandas|numpy|pytest", "")
_MAKE: Final = (
    r"(?:write|show|give|creat|implement|mak|build|generat|provid|draft|complet|refactor|rewrit|fix|debug|"
    r"improv|optimi[sz]|convert|design|defin|develop|cod|sketch|need|want|"
    r"example|demonstrat|illustrat|explain|suggest|share|post|propose|set up)(?:e|es|ed|ing|s)?"
)
# Spaces and other characters exclude each other, so that matching takes time linear in the text.
_WORDS: Final = r"(?:\s+\S+){0,6}?\s+[\"'(`*]?"
_GAP: Final = r".{0,80}"
_HOW_TO: Final = (
    r"\bhow (?:do|can|could|would|should|might) (?:i|we|you|one|someone)\b|\bhow to\b|"
    r"\bwhat(?:'s| is| does| are)\b|\bdifference between\b"
)
_HANDLE: Final = (
    r"read|open|sort|parse|reverse|split|join|iterate|loop|merge|append|remove|delete|convert|check|"
    r"import|install|"
    r"create|write|call|handle|catch|use|access|declare|define|initiali[sz]e|copy|flatten|filter|map|"
    r"format|print|"
    r"replace|concatenate|rename|save|load|connect|query|insert|find|get|make"
)
_PROGRAMMING: Final = (
    rf"{_STRONG_NOUN}|csv(?: files?)?|json(?: files?)?|(?:text )?files?|strings?|arrays?|tuples?|"
    rf"dict(?:ionar(?:y|ies))?s?|"
    r"exceptions?|lists?|recursion|inheritance|closures?|async(?:io)?|threads?|data ?frames?|"
    r"environment variables?|command line|http|apis?|databases?|tables?|indexes|pointers?|generators?|"
    r"iterators?"
)

_SHOWS_CODE: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # "Write a Python function that ...", "I need a small script", "give me an example of a for loop"
        rf"\b{_MAKE}{_WORDS}{_CODE_NOUN}\b(?!\s*(?:notation|\$|\\\(|[a-z]\s*\())",
        # "Create a Stack class"
        r"\b(?:write|implement|define|create|make|build|design|code|develop|show me|give me|need)\b"
        r"(?:\s+\S+){0,4}?\s+class(?:es)?\b",
        # "Build a simple Flask app"
        rf"\b{_MAKE}{_WORDS}(?:{_LANGUAGE})\s+\w+",
        # "Implement quicksort", "code a parser"
        r"\b(?:implement|refactor|debug)\b",
        # "A regex for phone numbers, please", "... Just the code"
        rf"\b(?:an?|the|your|this|some|following|just|only|full|complete|my) (?:\w+ )?{_STRONG_NOUN}\b",
        # "How do I read a file in Python?", "what is a list comprehension?"
        rf"(?:{_HOW_TO}){_GAP}\b(?:in|using|with|from|of|a|an|my|your) (?:a |an |the )?(?:{_LANGUAGE})",
        rf"(?:{_HOW_TO}){_GAP}\b(?:{_STRONG_NOUN}|(?:{_PROGRAMMING})\W{_GAP}(?:{_LANGUAGE})|"
        rf"(?:{_LANGUAGE})\W{_GAP}(?:{_PROGRAMMING}))",
        # "How do I sort a dict by value?", "explain recursion with an example in Python"
        rf"\bhow (?:do|can|could|should|would|"
        rf"to)\b(?:\W+\w+){{0,4}}?\W+(?:{_HANDLE})\b{_GAP}\b(?:{_PROGRAMMING})\b",
        rf"\b(?:explain|describe|teach|understand|learn|tutorial|"
        rf"introduc)\w*\b{_GAP}(?:\b(?:{_PROGRAMMING})\b{_GAP})?(?:{_LANGUAGE})",
        # "Reverse a string in JavaScript", "an SQL statement that ..."
        rf"\b(?:in|using|with) (?:{_OTHER_LANGUAGE})",
        r"\b(?:select|insert|update|delete|create table)\b.{0,80}\b(?:statement|sql)\b|\bsql\b",
        # Fenced code in the request: the user asks about code.
        r"^\s*```",
        # German, French, Spanish, Portuguese, Italian, Dutch, Polish, Russian, Chinese, Japanese, Korean
        r"\b(?:schreib|zeig|erstell|programmier|implementier|gib)\w*\b.{0,80}\b(?:funktion|code|skript|"
        r"programm|klasse|"
        r"methode|beispiel(?:code)?|schleife|abfrage)\b",
        r"\b(?:écri|ecri|montr|donn|cré|génér|implément|programm)\w*\b.{0,80}\b(?:fonction|code|script|"
        r"programme|classe|"
        r"méthode|boucle|requête)\b",
        r"\b(?:escrib|muestr|muéstr|dame|cre[ae]|genera|implementa|program|"
        r"enseñ)\w*\b.{0,80}\b(?:función|funcion|código|codigo|"
        r"script|programa|clase|método|bucle|consulta)\b",
        r"\b(?:escrev|mostr|crie|cria|implement|me dê|scriv|mostra|crea|dammi|"
        r"fammi)\w*\b.{0,80}\b(?:função|código|script|programa|"
        r"classe|método|laço|funzione|codice|programma|metodo|ciclo)\b",
        r"\b(?:schrijf|toon|geef|maak|napisz|pokaż|stwórz)\w*\b.{0,80}\b(?:functie|code|script|"
        r"programma|klasse|funkcj\w*|kod|"
        r"skrypt|program|klas\w*)\b",
        r"(?:напиши|покажи|создай|реализуй|дай)\w*.{0,80}(?:функци|код|скрипт|программ|класс|метод)",
        r"(?:写|编写|寫|给我|給我|展示|示例|实现|實現|用).{0,80}(?:函数|函數|代码|代碼|程序|程式|脚本|腳本|方法|类)",
        r"(?:関数|コード|スクリプト|プログラム|クラス).{0,80}(?:書|作|見せ|示|実装|教え|ください)",
        r"(?:함수|코드|스크립트|프로그램|클래스).{0,80}(?:작성|보여|만들|구현|알려)",
    )
)

# The request is for a value, even if it also mentions code.
_WANTS_VALUE: Final = re.compile(
    r"(?:^|[.?!;,]\s+)how (?:many|much)\b|\bwhat(?:'s| is) [-(\[{\d]|"
    r"\bwhat(?:'s| is) the (?:sum|product|quotient|remainder|average|mean|median|total|maximum|minimum|"
    r"square root|cube root|factorial|value) (?:of|when|between|if)\b(?! the (?:code|two))|"
    r"(?:^|\b(?:and|then|please|also|now|just|you)\b|[,;.:]) ?(?:run|execute)\b(?! (?:a |an |"
    r"the )?(?:command|server|test))|"
    r"\b(?:run|execute) (?:it|this|that|them|the (?:code|script|function|program|snippet))\b|"
    r"\b(?:tell|give|show) me (?:only |just )?(?:the |its |what )(?:\w+ ){0,2}?(?:result|value|answer|"
    r"output|sum|total|number|it (?:prints|returns|gives))\b|"
    r"\bwhat (?:does|do|will|would) (?:it|this|that|they) (?:print|return|output|give|evaluate)|"
    r"\bwhat(?:'s| is| are) (?:the |its )?(?:\w+ )?(?:result|output|value|answer|return value)\b|"
    r"\b(?:use|using|with|in|via) python\b[\s,]*(?:to\b|,)?\s*(?:calculat|comput|find|work out|determin|"
    r"solv|check|count|evaluat|add|sum|what)\w*|"
    r"\b(?:calculat|comput|work out|determin|evaluat|solv|count|find|"
    r"check)\w*\b[^.?!\n]{0,80}\b(?:using|with|in|by running) python\b",
    re.IGNORECASE,
)
_CHANGES_IT: Final = re.compile(
    r"\b(?:make|change|modify|update|rename|shorten|simplify|extend|rewrite|add|fix|adapt|turn|convert|"
    r"improve)\b.{0,60}"
    r"\b(?:it|this|that|them|the|a|an|some|type hints?|docstrings?|comments?)\b",
    re.IGNORECASE,
)
_FORMULA: Final = re.compile(r"\$\$?[^$]{1,500}\$\$?|\\\[.{1,500}?\\\]|\\\(.{1,500}?\\\)", re.DOTALL)
_LENGTH: Final = 2000
"""Number of characters of a request that are examined, half from each end."""


def asks_for_code(request: str, *, after_code: bool = False) -> bool:
    """Return whether ``request`` asks for program code, which is to be read and not run.

    This is a heuristic on words in the most used languages. At most 2,000 characters are examined.

    Args:
        request: the last user message.
        after_code: the reply before it contained code, so that "make it shorter" refers to that code.
    """
    half = _LENGTH // 2
    text = request if len(request) <= _LENGTH else f"{request[:half]}\n{request[-half:]}"
    # Formulas contain no request, and "the function $f(x)$" is mathematics.
    text = _FORMULA.sub(" $ ", text)
    if _WANTS_VALUE.search(text):
        return False
    if after_code and _CHANGES_IT.search(text):
        return True
    return any(pattern.search(line) for line in text.splitlines() for pattern in _SHOWS_CODE)


def computes_nothing(code: str) -> bool:
    """Return whether running ``code`` would show nothing that is not in the code itself.

    This holds if it only imports, defines functions or classes, or prints constant text, and if it reads
    input, which is never available. Code with a syntax error returns False, because running it reports the
    error to the model.
    """
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if all(isinstance(node, _DEFINITIONS) or _is_constant(node) for node in tree.body):
        return True
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(isinstance(func, ast.Name) and func.id == "input" for func in calls)


_DEFINITIONS: Final = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Import,
    ast.ImportFrom,
    ast.Pass,
)


def _is_constant(node: ast.stmt) -> bool:
    """Return whether ``node`` is a constant string or a ``print`` of constant strings only."""
    if not isinstance(node, ast.Expr):
        return False
    match node.value:
        case ast.Constant(value=str()):
            return True
        case ast.Call(func=ast.Name(id="print"), args=args, keywords=[]):
            return all(isinstance(arg, ast.Constant) and isinstance(arg.value, str) for arg in args)
    return False
