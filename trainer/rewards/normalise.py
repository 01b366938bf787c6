"""Normalisation of the typography of LaTeX answers, without changing their meaning.

:func:`normalise` maps the spellings of an answer (Unicode signs, spacing commands, font commands, synonyms,
thousands separators, sentence punctuation) to one form, which the rest of the package expects.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from trainer.rewards.units import LENGTHS, PRODUCT_WORDS, UNIT_WORDS, find_unit

_SYMBOLS: Final = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "×": r"\times ", "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∙": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "∓": r"\mp ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ",
    "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv ", "∞": r"\infty ", "∅": r"\emptyset ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∉": r"\notin ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "°": r"^{\circ}", "º": r"^{\circ}",
    "√": r"\sqrt ", "∠": r"\angle ", "…": r"\ldots ", "⋯": r"\ldots ", "′": "'", "’": "'", "‘": "'",
    "“": '"', "”": '"', "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ",
    "⟨": r"\langle ", "⟩": r"\rangle ", "∣": r"\mid ", "→": r"\to ", "€": r"\euro ", "£": r"\sterling ",
    "¥": r"\yen ", "₹": r"\rupee ",
    "∖": r"\setminus ",
    "\u200b": "", "\u200c": "", "\u200d": "", "\ufeff": "", "\u2060": "", "∑": r"\sum ", "∫": r"\int ",
    "△": r"\triangle ", "⁄": "/", "∕": "/", "％": r"\%", "∶": ":", "∧": r"\and ", "∨": r"\or ",
    "⊂": r"\subset ", "∴": "", "∎": "", "■": "", "✓": "", "✔": "",
}  # fmt: skip
_GREEK: Final = {
    letter: f"\\{unicodedata.name(letter).rpartition(' ')[2].lower()} "
    for letter in "αβγδεζηθικλμνξπρστυφχψω"
} | {"λ": r"\lambda ", "Γ": r"\Gamma ", "Δ": r"\Delta ", "Θ": r"\Theta ", "Λ": r"\Lambda ", "Π": r"\Pi ",
     "Σ": r"\Sigma ", "Φ": r"\Phi ", "Ψ": r"\Psi ", "Ω": r"\Omega ", "ϕ": r"\phi ", "ϵ": r"\epsilon ",
     "ϑ": r"\theta "}  # fmt: skip
_UNICODE: Final = str.maketrans(_SYMBOLS | _GREEK)
_SUPERSCRIPTS: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni")
_SUBSCRIPTS: Final = str.maketrans("₀₁₂₃₄₅₆₇₈₉ₙ", "0123456789n")

_SYNONYMS: Final = {
    "leq": "le", "leqslant": "le", "leqq": "le", "geq": "ge", "geqslant": "ge", "geqq": "ge", "neq": "ne",
    "lt": "<", "gt": ">", "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "nicefrac": "frac",
    "sfrac": "frac", "flatfrac": "frac", "dbinom": "binom",
    "tbinom": "binom", "varnothing": "emptyset", "dots": "ldots", "cdots": "ldots", "dotsc": "ldots",
    "dotsb": "ldots", "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]", "lvert": "|", "rvert": "|",
    "vert": "|", "colon": ":", "ast": "cdot", "smallsetminus": "setminus", "backslash": "setminus",
    "bmod": "mod", "lor": "or", "land": "and", "vee": "or", "wedge": "and", "degree": "^{\\circ}",
    "degrees": "^{\\circ}", "Longrightarrow": "Rightarrow",
    "infin": "infty", "R": "mathbb{R}", "reals": "mathbb{R}", "Z": "mathbb{Z}",
    "thickapprox": "approx", "simeq": "approx", "doteq": "approx", "varphi": "phi", "epsilon": "epsilon",
    "lparen": "(", "rparen": ")", "divides": "mid", "imath": "i", "percent": "\\%", "differentialD": "d",
    "exponentialE": "e", "imaginaryI": "i", "rightarrow": "to", "longrightarrow": "to",
    "measuredangle": "angle", "lcm": "lcm", "nmid": "nmid", "lg": "log_{10}",
}  # fmt: skip
_LITERAL: Final = {"<", ">", "[", "]", "|", ":", "(", ")", "^{\\circ}", "i", "d", "e", "\\%"}
_DROPPED: Final = frozenset({
    "displaystyle", "textstyle", "scriptstyle", "limits", "nolimits", "left", "right", "mleft", "mright",
    "middle", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "Biggl",
    "Biggr", "bf", "rm", "it", "cal", "sf", "tt", "boldmath", "hfill", "mathopen", "mathclose", "notag",
    "nonumber", "tiny", "scriptsize", "footnotesize", "small", "normalsize", "large", "Large", "LARGE",
    "huge", "Huge", "therefore", "because", "blacksquare", "qed", "qedsymbol", "checkmark",
})  # fmt: skip
_SPACES: Final = {"thinspace", "enspace", "space", "nobreakspace", "medspace", "thickspace"}
FUNCTIONS: Final = frozenset({
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log",
    "ln", "exp", "max", "min", "gcd", "lcm", "det", "lim",
})  # fmt: skip
_GREEK_NAMES: Final = {"pi", "theta", "alpha", "beta", "gamma", "delta", "lambda", "phi", "omega", "sigma"}
_PHRASES: Final = {
    phrase.replace(" ", ""): meaning
    for meaning, phrases in {
        r"\infty ": ["infinity", "inf", "positive infinity", "infty"],
        r"-\infty ": ["negative infinity"],
        r"\mathbb{R}": ["all real numbers", "all reals", "the real numbers", "real numbers", "all real x"],
        r"\emptyset ": [
            "empty set", "the empty set", "no solution", "no solutions", "no real solution",
            "no real solutions",
        ],
        r"\text{does not exist}": ["dne", "doesn't exist", "the limit does not exist"],
    }.items()
    for phrase in phrases
}  # fmt: skip
"""Meanings of phrases, by their letters."""
_FONTS: Final = (
    "text|textbf|textit|textrm|textnormal|textsf|texttt|textup|textsc|emph|mbox|hbox|mathrm|mathbf|mathit|mathsf|"
    "mathtt|mathnormal|boldsymbol|bm|pmb|bold|operatorname|underline|mathop|mathord|mathcal|mathscr|unit|tag"
)

_COMMAND: Final = re.compile(r"\\\\|\\([A-Za-z]+)\*?|\\(.)", re.DOTALL)
_FONT: Final = re.compile(rf"\\({_FONTS})\*?\s*(?:\{{([^{{}}]*)\}}|(?<=\s)([0-9A-Za-z]))")
_LABELS: Final = re.compile(
    "{0}(?:\\s*,\\s*{0})+(?:,?\\s*and\\s+{0})?|{0}\\s+and\\s+{0}".format(r"(?:[IVX]{2,5}|[A-Z])")
)
"""Letters or Roman numerals of several choices, as in ``I, III and IV``."""
LABEL_SPACE: Final = re.compile(
    r"(?:(?<=\b[A-Z])|(?<=\b[A-Z]{2})|(?<=\b[A-Z]{3}))\s+(?=[A-Z]{1,3}(?![A-Za-z]))"
)
"""Spaces between letters or Roman numerals of several choices, as in ``I II``."""
_BRACKETS: Final = re.compile(
    r"(?:(?<=\\cup)|(?<=\\cap)|(?<=\\in)|(?<==)|^)\s*([\[\]])([^\[\]=]+[,;][^\[\]=]+)([\[\]])(?=\s*(?:\\c[ua]p|[.]?\s*$))"
)
_BOX: Final = re.compile(
    r"\\(?:boxed|fbox)\s*\{([^{}]*(?:\{[^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*\}[^{}]*)*)\}"
)
_TOKEN: Final = re.compile(r"\\text\{[^{}]*\}|\\[A-Za-z]+|\\.|[^\W\d_]{2,}|.", re.DOTALL)
_REPEATING: Final = re.compile(
    r"(?<![\d.,}])(\d{0,20})\.(\d{0,20})\\(?:overline|bar|dot|overbar)\s*(?:\{\s*(\d{1,20})\s*\}|(\d))(?!\d)"
)
_GROUPED: Final = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")


def normalise(latex: str) -> str:
    r"""Return ``latex`` in normalised form. Words become ``\text{...}``, list words ``\and`` and ``\or``.

    Takes time linear in the length of the text.
    """
    text = re.sub(r"^\s*\"(.*)\"\s*$", r"\1", _unicode(latex), flags=re.DOTALL)
    text = re.sub(r"(?<=\d),\s*\\!\s*(?=\d{3})", "", text)
    text = re.sub(r"\s*\\!\s*", "", text)
    text = _money(text)
    text = text.replace("$", " ").replace("`", "'")
    text = re.sub(r"^\s*\*\*(.*)\*\*\s*$", r"\1", text, flags=re.DOTALL).replace("**", "^")
    text = re.sub(r"\\\\\*?\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm|in|mu|bp|pc)\s*\]", r"\\\\", text)
    text = re.sub(r"\\(begin|end)\s*\{(\w+)\*\}", r"\\\1{\2}", text)
    text = re.sub(r"\\[()\[\]]", " ", text)
    for _ in range(3):
        text, found = _BOX.subn(r" \1 ", text)
        if not found:
            break
    text = _commands(re.sub(r"(?<=\d)\s*(?:''|\")", r"\\text{ inches}", text))
    text = re.sub(r"\^\s*\{\s*(\d)\s*\}", r"^\1", text)
    for _ in range(3):
        text, found = _FONT.subn(_font, text)
        if not found:
            break
    text = re.sub(r"\^\s*\{?\s*\\text\{\s*(th|st|nd|rd)\s*\}\s*\}?", r"\\text{\1}", text)
    text = re.sub(r"(?<=\d)\s*\^\s*\{\s*(th|st|nd|rd)\s*\}", r"\\text{\1}", text)
    text = re.sub(
        r"\\frac\s*\{\s*\\text\{([^{}]*)\}\s*\}\s*\{\s*\\text\{([^{}]*)\}\s*\}", r"\\text{\1/\2}", text
    )
    text = re.sub(r"(?<=\d)\s*(km|m|cm|ft|mi)\s*/\s*(s|h|hr|min|sec)(?![A-Za-z])", r"\\text{ \1/\2}", text)
    text = _words(text)
    text = _relations(text)
    text = re.sub(r"([\^_])\s*(\d+|[A-Za-z])", r"\1{\2}", text)
    text = _numbers(text)
    text = _arguments(text)
    return strip_punctuation(re.sub(r"\s+", " ", text))


def strip_punctuation(text: str) -> str:
    """Remove spaces and sentence punctuation around an answer."""
    while True:
        before = text
        text = text.strip().removeprefix(r"\quad").removesuffix(r"\quad").removesuffix("\\\\").strip()
        text = re.sub(r"^([\"'])(.*)\1$", r"\2", text)
        text = (
            re.sub(r"(?:(?<!\\)[.,;:!?](?<!\d!)(?<!!)|\\text\{[.,;: ]*\})$", "", text)
            if not re.search(r"[\w)}\]]!$", text)
            else text
        )
        text = re.sub(r"^(?:[,;:=](?!=)|\\text\{[.,;: ]*\}|\\(?:implies|Rightarrow)(?![a-z]))\s*", "", text)
        text = re.sub(r"(?<=[\w)}])\s*\\(?:square|Box)$", "", text)
        if text == before:
            return text


def _unicode(text: str) -> str:
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ]+", lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub("[₀-₉ₙ]+", lambda m: "_{" + m[0].translate(_SUBSCRIPTS) + "}", text)
    text = re.sub("[¼-¾⅐-⅞]", _vulgar_fraction, text)
    text = text.translate(_UNICODE)
    return text if text.isascii() else unicodedata.normalize("NFKC", text).translate(_UNICODE)


def _vulgar_fraction(match: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match[0]).partition("⁄")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _money(text: str) -> str:
    r"""Rewrite currencies as units: ``\$5`` becomes ``5\text{ dollars}``."""
    amount = r"\s*((?:\\[,! ]|\{,\}|[\d,. ])*\d)"
    text = re.sub(r"\\\$" + amount, r" \1\\text{ dollars}", text)
    for command, name in (("euro", "euros"), ("sterling", "gbp"), ("yen", "yen"), ("rupee", "rupees")):
        text = re.sub(rf"\\{command} {amount}", rf" \1\\text{{ {name}}}", text)
        text = text.replace(rf"\{command} ", rf"\text{{ {name}}}")
    for _ in range(2):  # amounts within text
        text = re.sub(
            r"\\text\s*\{([^{}]*)\\text\{([^{}]*)\}([^{}]*)\}", r"\\text{ \1}\\text{\2}\\text{ \3}", text
        )
    return text.replace(r"\$", " ")


def _commands(text: str) -> str:
    if r"\begin" not in text:
        text = re.sub(
            r"\\\\(?=(?:text|[dt]?frac|sqrt|pi|math|left|right|cdot|times|pm|infty)(?![a-z]))", r"\\", text
        )
    text = re.sub(r"\\(?:text|page)?color(?:box)?\s*(?:\[\w*\])?\s*\{[^{}]*\}", " ", text)
    text = re.sub(r"\\[hv]?phantom\s*(?:\{[^{}]*\}|\\[A-Za-z]+|[^\s\\{}])", " ", text)
    text = re.sub(r"\\[hvmk]?(?:space|skip|kern)\*?\s*\{[^{}]*\}", " ", text)
    text = re.sub(r"\\(?:left|right)\s*\.", " ", text)
    text = re.sub(
        r"\\(?:text|mathrm)\s*\{([^{}]*)(\^\{\\circ\})\s*([^{}]*)\}", r"\\text{\1 }\2\\text{ \3}", text
    )
    text = re.sub(r"\\(?:Bbb|mathbb)\s*\{?\s*([A-Z])\s*\}?", r"\\mathbb{\1}", text)
    text = _COMMAND.sub(_command, text.replace("~", " "))
    text = re.sub(r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])", r"^{\\circ}", text)
    text = text.replace(r"^{^{\circ}}", r"^{\circ}").replace("{}", "")
    text = re.sub(r"\{\s*([^{}\\]*)\\over(?![A-Za-z])\s*([^{}]*?)\s*\}", r"\\frac{\1}{\2}", text)
    return re.sub(r"\{\s*([^{}\\]*)\\choose(?![A-Za-z])\s*([^{}]*?)\s*\}", r"\\binom{\1}{\2}", text)


def _command(match: re.Match[str]) -> str:
    name, sign = match[1], match[2]
    if name is None and sign is None:
        return match[0]  # the end of a row
    if name is None:
        return {
            "!": "",
            "{": r"\{",
            "}": r"\}",
            "%": r"\%",
            "|": r"\|",
            "_": "_",
            "&": "&",
            "#": "#",
            "-": "",
        }.get(sign, f" {sign}" if sign.isalnum() else " ")
    if name in _DROPPED:
        return " "
    if name in _SPACES:
        return " "
    if name in ("quad", "qquad"):
        return r" \quad "
    new = _SYNONYMS.get(name, name)
    if new in ("{", "}"):
        return "\\" + new
    return new if new in _LITERAL else "\\" + new


def _font(match: re.Match[str]) -> str:
    name = match[1]
    content = re.sub(r"\s+", " ", match[2] if match[2] is not None else match[3])
    word = content.strip()
    if not word:
        return " "
    if name == "tag":
        return " "
    if name in ("mathcal", "mathscr"):
        return "{" + word + "}"
    if re.search(r"[A-Za-z].*[\^/]", word) and find_unit(word):
        unit, power, last = word.rpartition("^")
        return rf"\text{{{(unit + last if '/' in last else unit or last).replace('^', '')}}}" + (
            f"^{last}" if power and "/" not in last else ""
        )
    if not any(map(str.isalpha, word)) or re.search(r"[\\^_=<>]", word):
        return f" {word} "
    if re.search(r"\d", word):
        return f" {word} "
    if (
        name in ("mathbf", "mathit", "boldsymbol", "bm", "pmb", "bold", "underline", "mathnormal")
        and len(word) == 1
    ):
        return "{" + word + "}"
    if name in ("mathrm", "operatorname", "mathop", "mathord") and word in ("e", "i", "d"):
        return word + " "
    if word.strip("., ").casefold() in ("and", "or"):
        return rf" \{word.strip('., ').casefold()} "
    before = match.string[max(match.start() - 8, 0) : match.start()]
    if _LABELS.fullmatch(LABEL_SPACE.sub(", ", word)):
        return LABEL_SPACE.sub(", ", word).replace(" and", ",").replace(",,", ",")
    if word in FUNCTIONS and not (word in UNIT_WORDS and re.search(r"[\d}]\s*$", before)):
        return rf"\{word} "
    return _text(word)


def _text(words: str) -> str:
    plain = words.strip(" .,;:").casefold()
    if plain in ("%", "percent", "pct", "percentage", "per cent", "percents"):
        return r"\%"
    if plain in ("degrees", "degree", "deg", "degs"):
        return r"^{\circ}"
    if scale := re.fullmatch(r"deg(?:ree)?s? (c|f|celsius|fahrenheit)", plain):
        return rf"^{{\circ}}\text{{{scale[1][0].upper()}}}"
    if plain == "to":
        return ":"
    if meaning := _PHRASES.get(plain.replace(" ", "")):
        return meaning
    return rf"\text{{{words}}}"


def _words(text: str) -> str:
    """Wrap words written as bare letters in ``\\text``. Products of a few variables are kept."""
    if meaning := _PHRASES.get(text.strip(" .").casefold().replace(" ", "")):
        return meaning
    pieces: list[str] = []
    environment = False
    tokens = _TOKEN.findall(text)
    for at, token in enumerate(tokens):
        if token in (r"\begin", r"\end", r"\mathbb", r"\operatorname"):
            environment = True
        elif environment:
            environment = not token.startswith("}")
        elif token.isalpha() and (len(token) > 1 or token.lower() == token.upper()):
            # A single letter is a variable, unless it has no case, as in Chinese.
            before = "".join(pieces)
            pieces.append(_word(token, before, "".join(tokens[at + 1 : at + 3])))
            continue
        pieces.append(token)
    joined = "".join(pieces)
    for _ in range(2):
        joined = re.sub(r"\\text\{([^{}]*)\}(\s*)\\text\{([^{}]*)\}", r"\\text{\1 \3}", joined)
    return joined


def _word(word: str, before: str, after: str) -> str:
    if not word.isascii():
        return _text(word)
    lower = word.casefold()
    if lower in ("and", "or"):
        return rf" \{lower} "
    spaced, before = before.endswith(" "), before.rstrip()
    after_number = bool(re.search(r"(?:[\d)}]|\\pi)$", before))
    # The space after \pi only ends the command.
    is_product = lower in PRODUCT_WORDS and not _ends_number(before, lower)
    is_product &= not spaced or before.endswith("i")
    power = re.match(r"\s*\^\s*[23]", after) if word in LENGTHS else None
    is_unit = lower in UNIT_WORDS and (power or not after.lstrip().startswith(("_", "(", "^")))
    if after_number and is_unit and not is_product:
        return _text(word)
    if word in FUNCTIONS or lower in ("sin", "cos", "tan", "log", "ln"):
        return rf"\{lower} "
    if word in _GREEK_NAMES:
        return rf"\{word} "
    if word == "sqrt":
        return r"\sqrt"
    if word == "mod":
        return r"\mod "
    if word in ("inf", "oo"):
        return r"\infty "
    rendered = _text(word)
    if not rendered.startswith(r"\text"):
        return rendered
    if (
        before.endswith("}")
        and re.search(r"\\text\{[^{}]*\}$", before)
        and (len(word) > 2 or lower in UNIT_WORDS)
    ):
        return rendered
    is_word = len(word) >= 4 and not may_be_product(lower)
    return rendered if is_word and not before.endswith("_") and not before.endswith("_{") else word


def may_be_product(word: str) -> bool:
    """Return True if lower-case letters may be a product: sorted, without vowels or names of unknowns."""
    return (
        list(word) == sorted(word)
        or not re.search("[aeiouy]", word)
        or re.fullmatch("[t-z]+", word) is not None
        or "xyz" in word
    )


def _ends_number(before: str, word: str) -> bool:
    """Return True if ``word`` ends an ordinal number or a time, as in ``1st`` and ``5:30pm``."""
    ordinal = {"st": r"1(?<!11)", "nd": r"2(?<!12)", "rd": r"3(?<!13)"}.get(word, r"\d:\d\d")
    return bool(re.search(rf"{ordinal}$", before))


def _relations(text: str) -> str:
    text = re.sub(r"<\s*=|=\s*<", r"\\le ", text)
    text = re.sub(r">\s*=", r"\\ge ", text)
    text = re.sub(r"!=|\\not\s*=", r"\\ne ", text)
    text = re.sub(r"\\not\s*\\in(?![a-z])", r"\\notin ", text)
    text = re.sub(r"\\text\{\s*(\(?)\s*mod(?:ulo)?\s*\}", r"\1\\mod ", text)
    text = re.sub(r"\(\s*\\mod\s*\{?\s*(\w+)\s*\}?\s*\)|\\pmod\s*\{?\s*(\w+)\s*\}?", _modulo, text)
    if r"\equiv" in text:
        text = re.sub(r"\\mod\s*\{?\s*(\w+)\s*\}?()", _modulo, text)
        if r"\pmod" not in text and not text.rstrip(" .").endswith(")"):
            text = text.replace(r"\equiv", "=")
    text = re.sub(r"\\mathbb\{R\}\s*-\s*\\\{", r"\\mathbb{R}\\setminus\\{", text)
    text = re.sub(r"\\\{\s*\\\}", r"\\emptyset ", text)
    text = _BRACKETS.sub(_interval, text)
    text = re.sub(r"\.\.\.+", r"\\ldots ", text)
    text = re.sub(r"(?<!\\)%", r"\\%", text)
    text = text.replace("*", r"\cdot ")
    return re.sub(r"\^\s*(?:\{\s*\\prime\s*\}|\\prime(?![a-z]))", "'", text)


def _interval(match: re.Match[str]) -> str:
    """Rewrite the French notation of open intervals, as in ``]3,5[``."""
    left = "(" if match[1] == "]" else "["
    return left + match[2] + (")" if match[3] == "[" else "]")


def _modulo(match: re.Match[str]) -> str:
    return rf" \pmod{{{match[1] or match[2]}}}"


def _numbers(text: str) -> str:
    text = _REPEATING.sub(_fraction, text)
    text = re.sub(r"(?<=\d)\s*\{\s*,\s*\}\s*(?=\d{3}(?!\d))", "", text)
    # Spaces group digits only if every group has three digits.
    text = re.sub(
        r"(?<![\d.,])[1-9]\d{0,2}(?: +\d{3})+(?!\d| +\d| */)", lambda m: m[0].replace(" ", ""), text
    )
    text = _thousands(text)
    text = re.sub(r"(?<![\d.)}\w])\.(?=\d)", "0.", text)
    return re.sub(r"(?<![\w.}])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![\w.])", _scientific, text)


def _fraction(match: re.Match[str]) -> str:
    """Return the fraction that a repeating decimal equals."""
    before, first, repeated = match[1], match[2], match[3] or match[4]
    difference = int(before + first + repeated) - int("0" + before + first)
    return rf"\frac{{{difference}}}{{{'9' * len(repeated)}{'0' * len(first)}}}"


def _scientific(match: re.Match[str]) -> str:
    return rf"{match[1]}\cdot 10^{{{int(match[2])}}}"


def _thousands(text: str) -> str:
    """Join ``1,234`` outside brackets, which enclose lists."""
    if "," not in text:
        return text
    depth, pieces = 0, []
    for piece in re.split(r"([()\[\]]|\\[{}]|\\[lr]angle)", text):
        if piece in ("(", "[", r"\{", r"\langle"):
            depth += 1
        elif piece in (")", "]", r"\}", r"\rangle"):
            depth -= 1
        pieces.append(_GROUPED.sub(lambda m: m[0].replace(",", ""), piece) if depth == 0 else piece)
    return "".join(pieces)


def _arguments(text: str) -> str:
    r"""Put braces around the arguments of ``\frac12``, ``\sqrt2``, ``\binom nk`` and ``x^-1``."""
    atom = r"(\\[A-Za-z]+|[0-9A-Za-z])"
    group = r"(\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})"
    text = re.sub(r"\\(frac|binom)\s+", r"\\\1 ", text)
    text = re.sub(rf"\\(frac|binom)\s*{atom}\s*{atom}", r"\\\1{\2}{\3}", text)
    text = re.sub(rf"\\(frac|binom)\s*{atom}\s*(?=\{{)", r"\\\1{\2}", text)
    text = re.sub(rf"\\(frac|binom)\s*{group}\s*{atom}", r"\\\1\2{\3}", text)
    text = re.sub(rf"\\(frac|binom)\s*{group}\s+(?=\{{)", r"\\\1\2", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(rf"\\sqrt\s*(\[[^\[\]]*\])?\s*{atom}", lambda m: rf"\sqrt{m[1] or ''}{{{m[2]}}}", text)
    text = re.sub(r"\^\s*([+-]\s*(?:\d+|[A-Za-z]))", r"^{\1}", text)
    return re.sub(r"\^\s*(\\[A-Za-z]+)(?!\s*[\[{A-Za-z])", r"^{\1}", text)


def key(text: str) -> str:
    """Return ``text`` without typographic variants: answers with equal keys are identical."""
    text = re.sub(r"\\text\{([^{}]*)\}", lambda m: rf"\text{{{_text_key(m[1])}}}", text)
    text = re.sub(r"(?<=[\d]) (?=[\d])", "\0", text)
    text = re.sub(r"(\\[A-Za-z]+) (?=[A-Za-z])", "\\1\0", text)
    text = text.replace(" ", "").replace("\0", " ")
    text = re.sub(r"([_^])\{([0-9A-Za-z])\}", r"\1\2", text)
    return text.removesuffix(".")


def _text_key(words: str) -> str:
    words = LABEL_SPACE.sub(",", words.strip(" .,;"))
    return re.sub(r"[\s.]", "", words)
