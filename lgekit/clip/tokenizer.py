"""A tokenizer trained on reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lgekit.errors import InputError

PAD, START, END, UNKNOWN = "[PAD]", "[SOT]", "[EOT]", "[UNK]"


class ReportTokenizer:
    """Texts → token ids `(texts, longest)` int64: start, the text, end, padding.

    Longer texts than ``context_length`` (in tokens, start and end included) are cut; the end token
    is kept. ``core`` is a ``tokenizers.Tokenizer``, ``special`` names its tokens for padding, start
    and end.
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
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
        from tokenizers.trainers import BpeTrainer

        core, split = Tokenizer(models.BPE(unk_token=UNKNOWN)), pre_tokenizers
        one_space = normalizers.Replace(Regex("[ \\t]+"), " ")
        core.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Lowercase(), one_space]
        )
        steps = [split.Metaspace(prepend_scheme="first"), split.Split("\n", "isolated")]
        steps += [split.Punctuation("isolated"), split.Digits(individual_digits=True)]
        core.pre_tokenizer = split.Sequence(steps)
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
        """Load the tokenizer of a Hugging Face encoder, by hub name or folder."""
        from transformers import AutoTokenizer

        try:
            fast = AutoTokenizer.from_pretrained(name, use_fast=True)
            start, end = fast.cls_token or fast.bos_token, fast.sep_token or fast.eos_token
            special = [fast.pad_token, start, end]
            if None in special or not fast.is_fast:
                raise ValueError("no fast tokenizer with tokens for padding, start and end")
        except (OSError, ValueError) as error:
            remedy = "Give the hub name or the folder of an encoder with a fast tokenizer."
            raise InputError("setting text_encoder", f"{name!r}: {error}", remedy) from error
        fast.backend_tokenizer.no_padding()
        fast.backend_tokenizer.no_truncation()
        return cls(fast.backend_tokenizer, context_length, special)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.core.get_vocab_size()

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Token ids of one text or several, padded to the longest of them."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = [
            torch.tensor([self.start_id, *encoded.ids[: self.context_length - 2], self.end_id])
            for encoded in self.core.encode_batch(texts, add_special_tokens=False)
        ]
        return pad_sequence(rows, batch_first=True, padding_value=self.pad_id)

    def share_cut(self, texts: Sequence[str]) -> float:
        """Share of the texts that are longer than the context."""
        encoded = self.core.encode_batch(texts, add_special_tokens=False)
        return sum(len(one.ids) > self.context_length - 2 for one in encoded) / len(encoded)

    def decode(self, ids: Tensor) -> str:
        """The text of one row of ids, without special tokens."""
        return self.core.decode(ids.tolist(), skip_special_tokens=True).strip()
