"""`plan`: an instruction and a caption become a `Plan`. There are three planners; none stands in for the other."""

from pathlib import Path

from minip2p.planner.endpoint import TIMEOUT, ask_endpoint
from minip2p.planner.local import LanguageModel
from minip2p.planner.plan import Plan, check_text
from minip2p.planner.rules import write_plan
from minip2p.planner.tagger import Tagger
from minip2p.validation import is_finite

MIN_CONFIDENCE = 0.5  # below, the tagger's reading is refused


def plan(
    instruction: str,
    caption: str,
    *,
    by: Tagger | LanguageModel | str | Path | None = None,
    by_model: str | None = None,
    timeout: float = TIMEOUT,
) -> Plan:
    """What an instruction asks for, as a plan for `Pipeline.edit`.

    instruction: one change, in English: "make the cat a tiger". caption: what the picture shows, in the words of its
    prompt. by: None is the tagger that ships, a `Tagger` another; the address of an OpenAI-compatible server, as
    "http://localhost:11434/v1"; the folder of a language model of transformers, or a `LanguageModel`. by_model,
    timeout: of the server, see `minip2p.planner.endpoint.ask_endpoint`.
    Raises ValueError, one line, for an instruction that is not understood, and where a language model gives no plan.
    """
    check_text("the instruction", instruction)
    check_text("the caption", caption)
    if isinstance(by, str) and not Path(by).is_dir():
        if not is_finite(timeout) or timeout <= 0:
            raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
        return ask_endpoint(instruction, caption, by, by_model, timeout)
    if by_model is not None:
        raise ValueError(f"by_model: {by_model!r} is a model of a server: give its address as by")
    if isinstance(by, str | Path):
        by = LanguageModel.load(by)
    if isinstance(by, LanguageModel):
        return by(instruction, caption)
    if by is not None and not isinstance(by, Tagger):
        raise ValueError(
            "by is None, a Tagger, a LanguageModel, its folder, or the address of a server, as "
            f"http://localhost:11434/v1, not {by!r}"
        )
    reading = (by or Tagger.load())(instruction, caption)
    if reading.confidence < MIN_CONFIDENCE:
        raise ValueError(
            f"{instruction!r} is not understood for certain ({reading.confidence:.2f}, and {MIN_CONFIDENCE} is the "
            "least): say it as 'make the cat a tiger', 'add fog' or 'move the cat to the left'"
        )
    return write_plan(reading, caption)
