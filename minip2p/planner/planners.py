"""`plan`: an instruction and a caption become a `Plan`."""

from minip2p.planner.endpoint import TIMEOUT, ask_endpoint
from minip2p.planner.plan import Plan, check_text
from minip2p.validation import is_finite


def plan(instruction: str, caption: str, *, by: str, by_model: str | None = None, timeout: float = TIMEOUT) -> Plan:
    """What an instruction asks for, as a plan for `Pipeline.edit`.

    instruction: one change, in English: "make the cat a tiger". caption: what the picture shows, in the words of its
    prompt. by: the address of an OpenAI-compatible server, as "http://localhost:11434/v1". by_model, timeout: see
    `minip2p.planner.endpoint.ask_endpoint`.
    Raises ValueError, one line, where the server gives no plan.
    """
    check_text("the instruction", instruction)
    check_text("the caption", caption)
    if not isinstance(by, str):
        raise ValueError(f"by is the address of a server, as http://localhost:11434/v1, not {by!r}")
    if not is_finite(timeout) or timeout <= 0:
        raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
    return ask_endpoint(instruction, caption, by, by_model, timeout)
