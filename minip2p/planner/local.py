"""A language model of a folder as planner: it can write nothing but plans for the caption, whatever its weights are.

llguidance allows the tokens that continue a JSON schema, and the likeliest of these is taken. The model answers twice:
first the kind and the target; then the plan, when the words of its target are known.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minip2p.metrics.pretrained import load_network, named_errors
from minip2p.planner.endpoint import write_messages
from minip2p.planner.plan import KINDS, LONGEST, TAU, Plan, plan_schema, read_plan, strict_object
from minip2p.validation import is_integer

MAX_TOKENS = 2000  # of an answer
MORE_CHARACTERS = 50  # of a target, beside those of the caption and of the instruction


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model of transformers as planner. `model(instruction, caption)` returns a `Plan`.

    folder: for errors. vocabulary: the tokenizer as llguidance reads it. max_tokens: of each answer.
    """

    folder: str
    network: Any
    tokenizer: Any
    vocabulary: Any
    max_tokens: int = MAX_TOKENS

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str | torch.device = "cpu", max_tokens: int = MAX_TOKENS
    ) -> "LanguageModel":
        """The model of a folder: config.json, weights in safetensors, a fast tokenizer. Nothing is downloaded.

        Raises ValueError, one line, for a folder without such a model, and where llguidance is not installed.
        """
        try:
            from llguidance.hf import from_tokenizer
        except ImportError:
            raise ValueError("a language model of a folder needs llguidance: pip install 'minip2p[llm]'") from None
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if not is_integer(max_tokens) or max_tokens < 1:
            raise ValueError(f"max_tokens must be a positive integer, not {max_tokens!r}")
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        load: Any = AutoModelForCausalLM.from_pretrained
        network = load_network(folder, "a causal language model in safetensors", load, dtype="auto", **options)
        with named_errors(folder, "a model with a fast tokenizer"):
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
            vocabulary = from_tokenizer(tokenizer)
        if len(tokenizer) > network.get_input_embeddings().num_embeddings:
            raise ValueError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, which are more than the model's")
        return cls(str(folder), network.to(device), tokenizer, vocabulary, max_tokens)

    def __call__(self, instruction: str, caption: str) -> Plan:
        """The plan. Raises ValueError, one line, for an answer that is too long or that changes nothing."""
        prompt = self.prompt_tokens(instruction, caption)
        start = json.loads(self.answer(prompt, start_schema(instruction, caption)))
        text = self.answer(prompt, plan_schema(caption, **start))
        return read_plan(text, caption, location=f"{self.folder}: the answer", without=TAU)

    def prompt_tokens(self, instruction: str, caption: str) -> list[int]:
        """The tokens of what the model is asked, in its chat template if it has one."""
        messages = write_messages(instruction, caption)
        for token in self.special_tokens():  # within a JSON string, where an escaped character is the same
            escaped = f"\\u{ord(token[0]):04x}{token[1:]}"
            messages[1]["content"] = messages[1]["content"].replace(token, escaped)
        if self.tokenizer.chat_template is None:
            text = "\n\n".join(message["content"] for message in messages) + "\n"
            return list(self.tokenizer(text).input_ids)
        with named_errors(self.folder, "a model whose chat template has a system message"):
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def special_tokens(self) -> list[str]:
        """What the tokenizer reads as a mark, as "</s>"."""
        return [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]

    @torch.inference_mode()
    def answer(self, prompt: list[int], schema: dict[str, Any]) -> str:
        """JSON of a schema: at each place the likeliest of the tokens that can follow. Raises ValueError."""
        from llguidance import LLMatcher

        text = json.dumps(schema | {"x-guidance": {"whitespace_flexible": False}}, ensure_ascii=False)
        is_plain = not any(token in text for token in self.special_tokens())  # "</s>" would be forced as a token
        grammar = f'%llguidance {{"no_forcing": {json.dumps(not is_plain)}}}\nstart: %json {text}'
        matcher = LLMatcher(self.vocabulary, LLMatcher.grammar_from_lark(grammar))
        room = getattr(self.network.config, "max_position_embeddings", None) or len(prompt) + self.max_tokens
        limit = min(self.max_tokens, room - len(prompt))
        written: list[int] = []
        unread, cache = list(prompt), None
        while not matcher.is_stopped():
            if len(written) >= limit:
                raise ValueError(
                    f"{self.folder}: no plan within {max(limit, 0)} tokens, after the {len(prompt)} of the question"
                )
            tokens = matcher.compute_ff_tokens()  # those without a choice
            if not tokens:
                read = torch.tensor([unread], device=self.network.device)
                output = self.network(input_ids=read, past_key_values=cache, use_cache=True)
                unread, cache = [], output.past_key_values
                allowed = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8).nonzero()[:, 0]
                tokens = [int(allowed[output.logits[0, -1].cpu()[allowed].argmax()])]
            matcher.consume_tokens(tokens)
            unread += tokens
            written += tokens
        if matcher.is_error():
            raise ValueError(f"{self.folder}: {' '.join(matcher.get_error().split())}")
        return str(self.vocabulary.decode_str(written))


def start_schema(instruction: str, caption: str) -> dict[str, Any]:
    """Of the first answer: a kind of edit and its target, which is the caption where the words stay.

    A removal may leave words out. Another target begins with a letter or a digit, and has printable characters of ASCII
    and of the two texts.
    """
    more = sorted({letter for letter in instruction + caption if not letter.isascii()})
    codes = {letter: f"\\x{{{ord(letter):x}}}" for letter in more}
    first = "".join(code for letter, code in codes.items() if letter.isalnum())
    longest = min(LONGEST, len(caption) + len(instruction) + MORE_CHARACTERS)
    pattern = f"^[0-9A-Za-z{first}][ -~{''.join(codes.values())}]{{0,{longest - 1}}}$"
    of_words = [kind for kind, settings in KINDS.items() if not settings.needs or kind == "remove"]
    of_objects = [kind for kind, settings in KINDS.items() if settings.needs]
    return {
        "anyOf": [
            strict_object(kind={"enum": of_words}, target={"type": "string", "pattern": pattern}),
            strict_object(kind={"enum": of_objects}, target={"const": caption}),
        ]
    }
