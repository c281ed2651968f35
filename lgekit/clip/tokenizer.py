"""A tokenizer trained on reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lgekit.errors import InputError

PAD, START, END, UNKNOWN = "[PAD]", "[SOT]", "[EOT]", "[UNK]"


class ReportTokenizer:
    """Texts → token ids, `(texts, length)` int64: start, the text, end, padding.

    Call it with one text or several. Texts longer than ``context_length`` are cut, and the end
    token still follows.

    Attributes:
        core: a ``tokenizers.Tokenizer``.
        context_length: longest text in tokens, start and end included.
        special: names of the tokens for padding, start and end.
        pad_id, start_id, end_id: their ids.
    """

    def __init__(self, core: Any, context_length: int, special: Sequence[str] = (PAD, START, END)):
        self.core, self.context_length, self.special = core, context_length, tuple(special)
        self.pad_id, self.start_id, self.end_id = (core.token_to_id(token) for token in special)

    @classmethod
    def train(
        cls, texts: Iterable[str], vocabulary: int = 600, context_length: int = 64
    ) -> ReportTokenizer:
        """Learn byte-pair merges (Sennrich 2016) in lower case; each digit is a token of its own.

        The vocabulary holds all printable ASCII characters, so that any typed sentence has tokens.
        """
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers
        from tokenizers.pre_tokenizers import Digits, Metaspace, Punctuation, Split
        from tokenizers.pre_tokenizers import Sequence as Steps
        from tokenizers.trainers import BpeTrainer

        core = Tokenizer(models.BPE(unk_token=UNKNOWN))
        one_space = normalizers.Replace(Regex("[ \\t]+"), " ")
        core.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Lowercase(), one_space]
        )
        steps = [Metaspace(prepend_scheme="first"), Split("\n", "isolated")]
        steps += [Punctuation("isolated"), Digits(individual_digits=True)]
        core.pre_tokenizer = Steps(steps)
        core.decoder = decoders.Metaspace(prepend_scheme="first")
        trainer = BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PAD, START, END, UNKNOWN],
            initial_alphabet=["\n", "\u2581", *map(chr, range(33, 127))],
            show_progress=False,
        )
        core.train_from_iterator(sorted(set(texts)), trainer)
        return cls(core, context_length)

    @classmethod
    def from_hugging_face(cls, name: str, context_length: int = 64) -> ReportTokenizer:
        """Load the tokenizer of a Hugging Face encoder, by hub name or folder.

        Texts start with its [CLS] and end with its [SEP], or its beginning and end tokens. Raises
        InputError if there is no such tokenizer, or it lacks one of these tokens or padding.
        """
        from transformers import AutoTokenizer

        field = "setting text_encoder"
        remedy = "Give the hub name or the folder of an encoder with a fast tokenizer."
        try:
            fast = AutoTokenizer.from_pretrained(name, use_fast=True)
        except (OSError, ValueError) as error:
            raise InputError(field, f"{name!r}: {error}", remedy) from error
        special = {
            "padding": fast.pad_token,
            "start": fast.cls_token or fast.bos_token,
            "end": fast.sep_token or fast.eos_token,
        }
        if missing := [kind for kind, token in special.items() if token is None]:
            problem = f"{name!r}: its tokenizer has no token for {' and '.join(missing)}"
            raise InputError(field, problem, remedy)
        if not fast.is_fast:
            raise InputError(field, f"{name!r}: no fast tokenizer", remedy)
        fast.backend_tokenizer.no_padding()
        fast.backend_tokenizer.no_truncation()
        return cls(fast.backend_tokenizer, context_length, list(special.values()))

    @classmethod
    def from_json(
        cls, text: str, context_length: int, special: Sequence[str] = (PAD, START, END)
    ) -> ReportTokenizer:
        """Read what `to_json` wrote. Raises ValueError if it is not a whole tokenizer."""
        from tokenizers import Tokenizer

        try:
            core = Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"tokenizer.json cannot be read ({error})") from error
        return cls(core, context_length, special)

    def to_json(self) -> str:
        """The tokenizer in the JSON format of `tokenizers`."""
        return self.core.to_str()

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.core.get_vocab_size()

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Token ids `(texts, longest)`, int64, padded to the longest of these texts."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = [
            [self.start_id, *encoded.ids[: self.context_length - 2], self.end_id]
            for encoded in self.core.encode_batch(texts, add_special_tokens=False)
        ]
        ids = torch.full((len(rows), max(map(len, rows), default=2)), self.pad_id)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
        return ids

    def share_cut(self, texts: Sequence[str]) -> float:
        """Share of the texts that are longer than the context, so that their ends are cut."""
        encoded = self.core.encode_batch(list(texts), add_special_tokens=False)
        return sum(len(one.ids) > self.context_length - 2 for one in encoded) / max(1, len(encoded))

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of one row of ids, without special tokens."""
        special = {self.pad_id, self.start_id, self.end_id}
        return self.core.decode([int(token) for token in ids if int(token) not in special]).strip()
