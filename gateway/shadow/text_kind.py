"""What kind of text it is: its script, and whether it is prose, code, mathematics or JSON."""

import re
from types import MappingProxyType

_SCRIPTS = MappingProxyType(
    {
        "latin": re.compile(r"[A-Za-zªº\u00c0-\u024f\u1e00-\u1eff]"),
        "cjk": re.compile(
            r"[\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
            r"\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003134f]"
        ),
        "cyrillic": re.compile(r"[\u0400-\u052f\u1c80-\u1c8f\u2de0-\u2dff\ua640-\ua69f]"),
        "arabic": re.compile(
            r"[\u0620-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff]"
        ),
        "devanagari": re.compile(r"[\u0900-\u097f\ua8e0-\ua8ff]"),
    }
)

_LETTER = re.compile(r"[^\W\d_]")

_JSON = re.compile(r'\s*(?:```(?:json)?\s*)?(?:\{\s*(?:"|\})|\[\s*(?:["\[{\]\d-]|true|false|null))')

_LANGUAGES = r"(?:python|javascript|typescript|golang|rust|java|sql|bash|html|css)"
_WORKS = r"(?:function|code|script|program|query|class|method|regex)"

# Every repetition is bounded, so that no text can keep the process busy.
_CODE = re.compile(
    r"```"
    r"|^[ \t]*(?:def|class|async def|fn|func|function|public|private|struct|interface|enum)"
    r" \w{1,60}.{0,200}[({:]"
    r"|^[ \t]*(?:import|using|package) [\w.]{1,80}(?: as \w{1,40})?;?[ \t]*$"
    r"|^[ \t]*from [\w.]{1,80} import\b"
    r"|^[ \t]*#include[ \t]*[<\"]|^#!/"
    r"|\bSELECT\b.{1,200}\bFROM\b|\bINSERT INTO\b|\bCREATE TABLE\b"
    r"|^[ \t]*(?:const|let|var|int|auto|return)\b.{0,200};[ \t]*$"
    r"|\bconsole\.log\(|\bprint(?:f|ln)?\(|=> ?\{|\b\w{1,60}\(\w{0,60}\) ?\{"
    r"|</?(?:div|span|html|body|script|table|button)\b"
    rf"|\b{_LANGUAGES}\b.{{0,60}}\b{_WORKS}\b"
    rf"|\b{_WORKS}\b.{{0,60}}\b{_LANGUAGES}\b",
    re.MULTILINE | re.IGNORECASE,
)

# A minus or a slash between digits without spaces is a date, or a range.
_MATH = re.compile(
    r"\\(?:frac|sqrt|sum|int|begin\{(?:equation|align)|cdot|times|boxed)\b|\$\$|\\\[|\\\("
    r"|\d ?[+*^=\u00d7\u00f7] ?\(?-?\d|\d [-/] \(?-?\d|\b[a-z] ?[=^] ?-?\d|\d[a-z] ?[-+] ?\d"
    r"|\b(?:equation|integral|derivative|polynomial|theorem|factorial|square root)\b",
    re.IGNORECASE,
)


def script_of(text: str) -> str | None:
    """Return the script of most of its letters, or None where it has none."""
    num_letters = len(_LETTER.findall(text))
    if not num_letters:
        return None
    counts = {name: len(letters.findall(text)) for name, letters in _SCRIPTS.items()}
    counts["other"] = num_letters - sum(counts.values())
    return max(counts, key=lambda name: counts[name])


def domain_of(question: str, answer: str) -> str:
    """Return ``json``, ``code``, ``math`` or ``prose``: what is asked for, and what comes."""
    if _JSON.match(answer):
        return "json"
    for domain, signs in (("code", _CODE), ("math", _MATH)):
        if signs.search(question) or signs.search(answer):
            return domain
    return "prose"
