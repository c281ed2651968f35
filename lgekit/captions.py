"""Captions from a trained CoCa: greedy and beam decoding (open_clip's own ``generate`` fails with transformers 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from lgekit.model import CoCaModel, StudyBatch
from lgekit.tokenizer import ReportTokenizer


@torch.no_grad()
def write_captions(
    model: CoCaModel,
    tokenizer: ReportTokenizer,
    batch: StudyBatch,
    beams: int = 1,
    longest: int | None = None,
    encoded: tuple[Tensor, Tensor] | None = None,
) -> list[str]:
    """Captions by greedy (``beams=1``) or beam decoding.

    Args:
        model: a CoCa in eval mode.
        batch: the studies.
        beams: kept hypotheses, those with the largest mean log-probability of their tokens: by the sum, short ones
            would win.
        longest: most tokens; the context length if None.
        encoded: what `StudyEncoder.slice_features` gave of the batch, where that is known.
    """
    encoded = encoded if encoded is not None else model.visual.slice_features(batch)
    _, image_tokens = model.visual.embed(*encoded, batch.mask)
    studies, device = len(image_tokens), image_tokens.device
    longest = min(longest or tokenizer.context_length, tokenizer.context_length)
    text = torch.full((studies, 1, 1), tokenizer.start_id, device=device)  # (studies, beams, length)
    score = torch.zeros(studies, 1, device=device)
    for _ in range(longest - 1):
        kept = text.shape[1]
        flat = text.flatten(0, 1)
        _, embedded = model._encode_text(flat)
        logits = model.text_decoder(image_tokens.repeat_interleave(kept, 0), embedded)[:, -1]
        log_p = logits.log_softmax(-1)
        log_p[:, [tokenizer.pad_id, tokenizer.start_id]] = float("-inf")
        ended = (flat == tokenizer.end_id).any(1)
        log_p[ended] = float("-inf")
        log_p[ended, tokenizer.pad_id] = 0.0
        total = (score[..., None] + log_p.unflatten(0, (studies, kept))).flatten(1)
        lengths = (text != tokenizer.pad_id).sum(-1) - ended.unflatten(0, (studies, kept)).int()  # start not counted
        means = total / lengths.repeat_interleave(log_p.shape[1], 1)
        best = means.topk(min(beams, total.shape[1]), 1).indices
        score = total.gather(1, best)
        parent, token = best // log_p.shape[1], best % log_p.shape[1]
        text = torch.cat([text.gather(1, parent[..., None].expand(-1, -1, text.shape[2])), token[..., None]], -1)
        if ((text == tokenizer.end_id).any(-1)).all():
            break
    lengths = (text != tokenizer.pad_id).sum(-1) - 1
    best = (score / lengths).argmax(1)
    return [tokenizer.decode(text[study, best[study]]) for study in range(studies)]
