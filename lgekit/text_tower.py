"""Text towers beside the slice encoder: open_clip's with one place for its class token, or a Hugging Face encoder."""

from __future__ import annotations

import functools
import json

import torch
from torch import Tensor, nn

from lgekit.errors import InputError
from lgekit.settings import FitSettings
from lgekit.tokenizer import ReportTokenizer


@functools.cache
def report_text_tower() -> type:
    """The class of the text tower that is trained from scratch; made when first needed, for it brings open_clip."""
    from open_clip.transformer import TextTransformer

    class ReportTextTransformer(TextTransformer):
        """open_clip's text tower, but the class token has one place, the last, whatever the padding before it.

        In open_clip every text is padded to the context, which comes to the same; here only to the longest of a call,
        and a text's embedding would depend on the texts beside it.
        """

        def _embeds(self, text: Tensor) -> tuple[Tensor, Tensor]:
            embedded, mask = super()._embeds(text)
            places = self.positional_embedding
            own = embedded[:, -1:] - places[text.shape[1]] + places[-1]
            return torch.cat([embedded[:, :-1], own], 1), mask

    return ReportTextTransformer


class HuggingFaceText(nn.Module):
    """Text tower from any Hugging Face encoder: `(texts, length)` ids → embedding, tokens for the decoder.

    An encoder sees the whole text, so its states would tell the caption decoder the word it has to guess; the
    decoder's tokens therefore come from an embedding of their own.

    Attributes:
        shape: the encoder's configuration, JSON, without the name or folder that it came from.
    """

    def __init__(self, name: str, settings: FitSettings, tokenizer: ReportTokenizer, shape: str | None = None):
        super().__init__()
        from transformers import AutoConfig, AutoModel

        kept = {"dtype": torch.float32}  # many are stored in half precision, which a CPU does not train in
        try:
            if shape is None:
                config = AutoConfig.from_pretrained(name)
                self.net = AutoModel.from_pretrained(name, **kept)
            else:
                config = AutoConfig.for_model(**json.loads(shape))
                self.net = AutoModel.from_config(config, **kept)
        except (OSError, ValueError) as error:
            raise InputError("setting text_encoder", f"{name!r}: {error}", "Give a hub name or a folder.") from error
        about = {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}
        self.shape = json.dumps(about, default=str)
        self.pad_id = tokenizer.pad_id
        self.out = nn.Linear(config.hidden_size, settings.embed_dim, bias=False)
        self.words = nn.Embedding(tokenizer.vocab_size, settings.text_width)
        self.place = nn.Parameter(torch.randn(tokenizer.context_length, settings.text_width) * 0.01)

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        mask = (text != self.pad_id).long()
        states = self.net(input_ids=text, attention_mask=mask).last_hidden_state
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.out(mean), self.words(text) + self.place[: text.shape[1]]
