"""What other tools read as commands in a prompt, and minip2p as plain words."""

import re

REWEIGHT = "re-weight words in an edit (--reweight, reweight=)"
LEAVE_OUT = "leave it out"
A1111 = "A1111's web UI"

# The tool, what a user can do instead, and the pattern of the syntax. Of a text the first pattern that fits it counts.
SYNTAX = (
    (A1111, "merge LoRAs into the model (--lora, merged())", r"<(?:lora|lyco):[^<>]*>"),
    (A1111, "leave the hypernetwork out, which is not supported", r"<hypernet:[^<>]*>"),
    ("ComfyUI", "load it (--embedding, with_embedding()) and write its word alone", r"(?<!\w)embedding:[\w./\\-]+"),
    ("compel", LEAVE_OUT, r"\)\.(?:blend|and)\(|\.swap\("),
    ("compel", REWEIGHT, r"\([^()]*\)(?:[+-]+|\d*\.?\d+)|(?<![\w+-])[^\W\d]\w*(?:\+{1,}|-{2,})(?![\w+-])"),
    (A1111, "leave the backslash out", r"\\[()\[\]]"),
    (A1111, LEAVE_OUT, r"\[[^\[\]]*[:|][^\[\]]*\]"),
    (A1111, REWEIGHT, r"\(+[^()]*[^()\s][^()]*\)+|\[+[^\[\]]*[^\[\]\s][^\[\]]*\]+"),
    ("dynamic prompts", "write one of them", r"\{[^{}]*\|[^{}]*\}|(?<!\w)__[\w/*-]+?__(?!\w)"),
    ("NovelAI", REWEIGHT, r"\{+[^{}]*[^{}\s][^{}]*\}+|(?<![\w.])-?\d*\.?\d+::[^:]*::"),
    ("Midjourney", "write options of minip2p outside of the prompt", r"(?<!\S)--[a-z]+(?!\S)|(?<=\w)::(?=[\d\s]|$)"),
    (A1111, LEAVE_OUT, r"(?<![\w-])(?-i:BREAK|AND)(?![\w-])"),
)


def foreign_syntax(text: str) -> str | None:
    """A sentence about the syntax of other tools in a prompt; None where there is none.

    It names one example of each kind: A1111's web UI and its relatives weight words by `(cat:1.3)`, `(cat)` and
    `[cat]`, load LoRAs by `<lora:name:0.8>`, and know `BREAK`, `AND`, `[cat:dog:0.5]` and `[cat|dog]`; ComfyUI names
    embeddings by `embedding:name`; compel weights by `cat++` and `(cat)1.3`; dynamic prompts choose of `{cat|dog}`.
    """
    examples: dict[str, list[str]] = {}
    advice: list[str] = []
    rest = text
    for tool, instead, pattern in SYNTAX:
        if "BREAK" in pattern and text.isupper():  # words of a text in capitals
            continue
        matches = [match[0].strip() for match in re.finditer(pattern, rest, re.IGNORECASE)]
        if matches:
            examples.setdefault(tool, []).append(matches[0])
            advice.append(instead)
            rest = re.sub(pattern, "…", rest, flags=re.IGNORECASE)
    if not examples:
        return None
    tools = ", and of ".join(f"{tool}, {', '.join(map(repr, names))}" for tool, names in examples.items())
    return (
        f"a prompt has syntax of {tools}, which is read as plain words here; "
        f"instead: {', '.join(dict.fromkeys(advice))}"
    )
