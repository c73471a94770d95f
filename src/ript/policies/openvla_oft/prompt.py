"""Words for the policy: the question that an instruction is put into, and its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ript.core.errors import PolicyError
from ript.core.files import read_text
from ript.core.memory import translated

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FIRST = 1
"""Token that begins a sequence."""
SPACE = 29871
"""Token of an empty word, which published policies were trained to see behind the question."""
FILE = "tokenizer.json"
SMALL_SPECIAL = ("<unused>", "<s>", "</s>")
"""First tokens of `small_tokenizer`; begin and end of a sequence have Llama's ids."""


def question(instruction: str) -> str:
    """What the policy is asked."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


class Prompts:
    """Token ids of instructions, each computed once.

    Args:
        tokenizer: None when there is no such file; instructions that were not given are refused then.
        room: most tokens of a prompt.
        last: token that a prompt ends with, added where it is not the last already; None for none.
        where: the folder, for messages.
    """

    def __init__(self, tokenizer: Tokenizer | None, room: int, last: int | None = SPACE, where: str = "the policy"):
        self.tokenizer, self.room, self.last, self.where = tokenizer, room, last, where
        self.known: dict[str, tuple[int, ...]] = {}

    def __call__(self, instructions: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of each instruction's whole prompt, from the first token on.

        Raises:
            PolicyError: an instruction is too long, or there is no tokenizer.
        """
        for sentence in instructions:
            if sentence not in self.known:
                self.known[sentence] = self._checked(sentence, self._ids(sentence))
        return [self.known[sentence] for sentence in instructions]

    def remember(self, given: Mapping[str, Sequence[int]]) -> None:
        """Use these ids, as a tokenizer gives them for `question(instruction)`, first token included."""
        for sentence, ids in given.items():
            self.known[sentence] = self._checked(sentence, list(ids))

    def _ids(self, sentence: str) -> list[int]:
        if not isinstance(sentence, str):
            raise PolicyError(f"instruction {sentence!r}: expected words")
        if self.tokenizer is None:
            raise PolicyError(
                f"{self.where} has no {FILE}, so the instruction {sentence!r} cannot be read: add the file of the "
                "checkpoint's own folder, or give its token ids (policy.remember)"
            )
        ids = list(self.tokenizer.encode(question(sentence)).ids)
        return ids if ids[:1] == [FIRST] else [FIRST, *ids]

    def _checked(self, sentence: str, ids: list[int]) -> tuple[int, ...]:
        if self.last is not None and ids[-1:] != [self.last]:
            ids = [*ids, self.last]
        if len(ids) > self.room:
            raise PolicyError(
                f"the instruction {sentence[:60]!r}... has {len(ids)} tokens with its question; there is room for "
                f"{self.room}: shorten it"
            )
        if len(ids) < 2 or ids[0] != FIRST or min(ids) < 0:
            raise PolicyError(f"the instruction {sentence!r} has token ids {ids[:4]}...: expected {FIRST} first")
        return tuple(ids)


def tokenizer_of(folder: Path) -> Tokenizer | None:
    """The tokenizer of a checkpoint's folder; None when it has none.

    Raises:
        PolicyError: it cannot be read.
    """
    from tokenizers import Tokenizer

    path = folder / FILE
    if not path.is_file():
        return None
    with translated(lambda error: PolicyError(f"{path} is no tokenizer: {error}; fetch it again")):  # it may panic
        return Tokenizer.from_str(read_text(path, PolicyError))


def small_tokenizer(instructions: Sequence[str], vocabulary: int) -> Tokenizer:
    """A tokenizer for a policy that was never taught a language: bytes, and the words of its own instructions.

    Whatever else it is asked later is read byte by byte. The same instructions give the same tokenizer.

    Args:
        instructions: to learn words from; their questions are read as a few tokens.
        vocabulary: most tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SMALL_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([question(sentence) for sentence in sorted({"", *instructions})], trainer)
    first = SMALL_SPECIAL[FIRST]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=[(first, FIRST)])
    return tokenizer
