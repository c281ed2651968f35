"""A tokenizer trained on reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lgekit.errors import InputError

PAD, START, END, UNKNOWN = "[PAD]", "[SOT]", "[EOT]", "[UNK]"


class ReportTokenizer:
    """Texts → token ids, `(texts, length)` int64: start, the text, end, padding.

    Callable with one text or several, as open_clip's tokenizers are. Texts longer than ``context_length`` are cut
    and still closed by the end token.

    Attributes:
        context_length: longest text in tokens, start and end included.
        pad_id, start_id, end_id: the special tokens.
    """

    def __init__(
        self, core, context_length: int, special: tuple[str, str, str] = (PAD, START, END)
    ):
        self.core, self.context_length, self.special = core, context_length, special
        self.pad_id, self.start_id, self.end_id = (core.token_to_id(token) for token in special)

    @classmethod
    def train(
        cls, texts: Iterable[str], vocabulary: int = 600, context_length: int = 64
    ) -> ReportTokenizer:
        """Learn byte-pair merges (Sennrich 2016) on the texts: lower case, each digit a token of its own.

        All printable ASCII characters are in the vocabulary, so that any typed sentence has tokens.
        """
        from tokenizers import (
            Regex,
            Tokenizer,
            decoders,
            models,
            normalizers,
            pre_tokenizers,
            trainers,
        )

        core = Tokenizer(models.BPE(unk_token=UNKNOWN))
        core.normalizer = normalizers.Sequence(
            [
                normalizers.NFKC(),
                normalizers.Lowercase(),
                normalizers.Replace(Regex("[ \\t]+"), " "),
            ]
        )
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(prepend_scheme="first"),
                pre_tokenizers.Split("\n", "isolated"),
                pre_tokenizers.Punctuation("isolated"),
                pre_tokenizers.Digits(individual_digits=True),
            ]
        )
        core.decoder = decoders.Metaspace(prepend_scheme="first")
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PAD, START, END, UNKNOWN],
            initial_alphabet=["\n", "\u2581", *map(chr, range(33, 127))],
            show_progress=False,
        )
        core.train_from_iterator(sorted(set(texts)), trainer)
        return cls(core, context_length)

    @classmethod
    def from_hugging_face(cls, name: str, context_length: int = 64) -> ReportTokenizer:
        """The tokenizer of a Hugging Face encoder, by hub name or folder.

        Texts are framed by its [CLS] and [SEP]; where it has none, by its tokens for beginning and end.

        Raises:
            InputError: there is no such tokenizer, or it lacks one of these tokens or one for padding.
        """
        from transformers import AutoTokenizer

        field, remedy = (
            "setting text_encoder",
            "Give the hub name or the folder of an encoder with a fast tokenizer.",
        )
        try:
            fast = AutoTokenizer.from_pretrained(name, use_fast=True)
        except (OSError, ValueError) as error:
            raise InputError(field, f"{name!r}: {error}", remedy) from error
        special = (
            fast.pad_token,
            fast.cls_token or fast.bos_token,
            fast.sep_token or fast.eos_token,
        )
        lacking = [
            what
            for what, token in zip(("padding", "start", "end"), special, strict=True)
            if token is None
        ]
        if lacking or not fast.is_fast:
            problem = (
                f"its tokenizer has no token for {' and '.join(lacking)}"
                if lacking
                else "no fast tokenizer"
            )
            raise InputError(field, f"{name!r}: {problem}", remedy)
        core = fast.backend_tokenizer
        core.no_padding()
        core.no_truncation()
        return cls(core, context_length, special)

    @classmethod
    def from_json(
        cls, text: str, context_length: int, special: Sequence[str] = (PAD, START, END)
    ) -> ReportTokenizer:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is cut off, or no tokenizer.
        """
        from tokenizers import Tokenizer

        pad, start, end = special
        try:
            core = Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"tokenizer.json cannot be read ({error})") from error
        return cls(core, context_length, (pad, start, end))

    def to_json(self) -> str:
        """The tokenizer in the `tokenizers` JSON format."""
        return self.core.to_str()

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.core.get_vocab_size()

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Token ids `(texts, longest)`, int64: padded to the longest of these texts, or to a ``context_length`` that is
        given, as open_clip's tokenizers do."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        most = (context_length or self.context_length) - 2
        rows = [
            [self.start_id, *encoded.ids[:most], self.end_id]
            for encoded in self.core.encode_batch(texts, add_special_tokens=False)
        ]
        longest = context_length or max(map(len, rows), default=2)
        ids = torch.full((len(rows), longest), self.pad_id, dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
        return ids

    def share_cut(self, texts: Sequence[str]) -> float:
        """Share of the texts that are longer than the context, so that their ends are not read."""
        encoded = self.core.encode_batch(list(texts), add_special_tokens=False)
        return sum(len(one.ids) > self.context_length - 2 for one in encoded) / max(1, len(encoded))

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of one row of ids, special tokens left out."""
        skip = {self.pad_id, self.start_id, self.end_id}
        return self.core.decode([int(token) for token in ids if int(token) not in skip]).strip()
