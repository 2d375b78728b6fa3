"""What other tools read as commands in a prompt, and minip2p as plain words.

A1111's web UI and its relatives weight words by `(cat:1.3)` and `((cat))`, load LoRAs by `<lora:name:0.8>`, and know
`BREAK`, `AND`, `[cat:dog:0.5]` and `[cat|dog]`.
"""

import re

# What a user can do instead -> the pattern of the syntax.
INSTEAD = (
    ("re-weight words in an edit (--reweight, reweight=)", r"\([^()]*:\s*[+-]?\d*\.?\d+\s*\)|\({2,}[^()]+\)+"),
    ("merge LoRAs into the model (--lora, merged())", r"<(?:lora|lyco|hypernet):[^<>]*>"),
    ("leave it out", r"\[[^\[\]]*[:|][^\[\]]*\]"),
)
KEYWORD = r"(?<![\w-])(?:BREAK|AND)(?![\w-])"


def foreign_syntax(text: str) -> str | None:
    """A sentence about the syntax of other tools in a prompt; None where there is none. Each kind is named once."""
    matches: list[str] = []
    advice: list[str] = []
    for instead, pattern in INSTEAD:
        if match := re.search(pattern, text, re.IGNORECASE):
            matches.append(match[0])
            advice.append(instead)
    keyword = None if text.isupper() else re.search(KEYWORD, text)
    if keyword:
        matches.append(keyword[0])
        advice.append("leave it out")
    if not matches:
        return None
    return (
        f"a prompt has syntax of A1111's web UI, {', '.join(map(repr, matches))}, which is read as plain words here; "
        f"instead: {', '.join(dict.fromkeys(advice))}"
    )
