"""The network: parity with open_clip, any number of slices, the two repaired faults, captions, saving."""

import pytest
import torch

from lgekit.clip.model import (
    PolarEncoder,
    StudyBatch,
    StudyEncoder,
    build_coca,
    join,
    load_coca,
    pad_studies,
    save_coca,
)
from lgekit.clip.tokenizer import ReportTokenizer
from lgekit.clip.zeroshot import write_captions
from lgekit.config import FitSettings, make_settings, read_changes, size_settings
from lgekit.errors import InputError

TEXTS = [
    "No late gadolinium enhancement.",
    "Late gadolinium enhancement in the inferior wall, 50%.",
]
TINY = {
    "width": 16,
    "polar_channels": 8,
    "embed_dim": 16,
    "text_width": 16,
    "text_layers": 1,
    "depths": 16,
}
TINY |= {"angles": 24, "context_length": 24, "dropout": 0.0}


@pytest.fixture(scope="module")
def tokenizer():
    return ReportTokenizer.train(TEXTS, 200, 24)


def make(tokenizer, **changes):
    torch.manual_seed(0)
    return build_coca(make_settings(**(TINY | changes)), tokenizer).eval()


def studies(slices=(3, 5), height=16, width=24):
    torch.manual_seed(1)
    return pad_studies(
        [(torch.randn(n, 1, height, width), torch.linspace(0, 1, n)) for n in slices]
    )


def test_forward_is_open_clips_own(tokenizer):
    from lgekit.clip.train import ContrastiveCaptioner

    model, tokens = make(tokenizer), tokenizer(TEXTS)
    ours = ContrastiveCaptioner(model)(studies(), tokens, torch.arange(2), torch.arange(2))
    theirs = model(studies(), tokens)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)


def test_text_part_loads_in_open_clip(tokenizer):
    from open_clip.coca_model import CoCa

    model = make(tokenizer)
    shape = {
        "width": 16,
        "heads": 4,
        "layers": 1,
        "context_length": 24,
        "vocab_size": tokenizer.vocab_size,
    }
    theirs = CoCa(
        16,
        shape,
        shape | {"embed_cls": True, "output_tokens": True, "pad_id": tokenizer.pad_id},
        {
            "image_size": 32,
            "patch_size": 32,
            "layers": 1,
            "width": 64,
            "attentional_pool": True,
            "output_tokens": True,
        },
    ).eval()
    state = {
        name: value for name, value in model.state_dict().items() if not name.startswith("visual.")
    }
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("visual.") for name in missing)
    theirs.text.correct_cls_mask = True
    tokens = tokenizer(TEXTS)
    whole = torch.nn.functional.pad(
        tokens, (0, 24 - tokens.shape[1]), value=tokenizer.pad_id
    )  # as open_clip pads
    for ours in (tokens, whole):
        torch.testing.assert_close(theirs.encode_text(whole), model.encode_text(ours))


def test_a_texts_embedding_does_not_depend_on_the_texts_beside_it(tokenizer):
    model, short = make(tokenizer), "no scar"
    alone, beside = tokenizer([short]), tokenizer([short, max(TEXTS, key=len)])
    assert beside.shape[1] > alone.shape[1]
    torch.testing.assert_close(model.encode_text(beside)[0], model.encode_text(alone)[0])


def test_decoder_is_initialised(tokenizer):
    projection = make(tokenizer).text_decoder.text_projection
    assert torch.isfinite(projection).all()
    assert float(projection.detach().std()) == pytest.approx(16**-0.5, rel=0.1)


def test_class_token_sees_itself(tokenizer):
    model = make(tokenizer)
    before = model.encode_text(tokenizer(TEXTS))
    model.text.cls_emb.data.add_(torch.randn(16))
    assert (model.encode_text(tokenizer(TEXTS)) - before).abs().max() > 1e-3


def test_padding_changes_nothing(tokenizer):
    model, batch = make(tokenizer), studies((3, 5))
    alone = StudyBatch(batch.images[:1, :3], batch.levels[:1, :3], batch.mask[:1, :3])
    dirty = batch._replace(images=batch.images.masked_fill(~batch.mask[..., None, None, None], 1e3))
    for one, other in zip(model.visual(dirty), model.visual(alone), strict=True):
        torch.testing.assert_close(one[:1], other, atol=1e-5, rtol=1e-4)
    features, _ = model.visual.slice_features(batch)
    _, weights = model.visual.gather(features, batch.mask)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert (weights[0, 3:] == 0).all()


def test_forward_leaves_its_input_alone(tokenizer):
    batch = studies()
    before = [part.clone() for part in batch]
    make(tokenizer).visual(batch)
    assert all(torch.equal(a, b) for a, b in zip(before, batch, strict=True))


def test_one_slice_alone_is_the_study(tokenizer):
    model, batch = make(tokenizer), studies((1,))
    features, _ = model.visual.slice_features(batch)
    torch.testing.assert_close(model.visual.each_slice(features)[:, 0], model.visual(batch)[0])


def test_polar_encoder_turns_with_the_heart():
    torch.manual_seed(0)
    encoder, image = PolarEncoder(8), torch.randn(2, 1, 16, 48)
    turned = encoder(image.roll(8, -1))  # 8 of 48 angles = 2 of 12 sectors
    torch.testing.assert_close(turned, encoder(image).roll(2, -1), atol=1e-5, rtol=1e-4)


def test_levels_matter(tokenizer):
    model, batch = make(tokenizer), studies((4,))
    other = batch._replace(levels=1 - batch.levels)
    assert (model.visual(batch)[0] - model.visual(other)[0]).abs().max() > 1e-4


def test_image_view_starts_from_segmentation_weights(tokenizer):
    import segmentation_models_pytorch as smp

    model = make(tokenizer, view="image", encoder="regnetx_002")
    torch.manual_seed(5)
    unet = smp.Unet(
        "tu-regnetx_002", encoder_weights=None, in_channels=1, decoder_channels=(8, 8, 8, 8, 8)
    )
    model.visual.load_segmentation(unet.encoder.state_dict())
    ours, theirs = model.visual.encoder.net.state_dict(), unet.encoder.state_dict()
    for name, value in ours.items():
        assert torch.equal(value, theirs[f"model.{name}"]), name
    picture = torch.randn(2, 1, 64, 64)
    deepest = unet.eval().encoder(picture)[-1]
    torch.testing.assert_close(
        model.visual.encoder.net.forward_features(picture), deepest, atol=1e-4, rtol=1e-4
    )
    with pytest.raises(InputError, match="random"):
        make(tokenizer).visual.load_segmentation(unet.encoder.state_dict())


@pytest.mark.parametrize("name", ["convnext_atto", "densenet121"])
def test_segmentation_weights_fit_whatever_timm_calls_the_stages(tokenizer, name):
    import segmentation_models_pytorch as smp

    model = make(tokenizer, view="image", encoder=name)
    state = smp.Unet(f"tu-{name}", encoder_weights=None, in_channels=1).encoder.state_dict()
    model.visual.load_segmentation(state)
    first = next(value for value in state.values() if value.ndim == 4)
    assert torch.equal(
        next(w for w in model.visual.encoder.net.state_dict().values() if w.ndim == 4), first
    )


def test_any_timm_name_and_a_wrong_one(tokenizer):
    settings = make_settings(**(TINY | {"view": "image", "encoder": "convnext_atto"}))
    assert StudyEncoder(settings)(studies((2,), 32, 32))[0].shape == (1, 16)
    with pytest.raises(InputError, match="encoder"):
        StudyEncoder(settings.override(encoder="regnet_of_nowhere"))
    for name in (
        "vit_tiny_patch16_224",
        "swin_tiny_patch4_window7_224",
    ):  # one size of picture; channels last
        with pytest.raises(InputError, match="gives no feature map"):
            StudyEncoder(settings.override(encoder=name))


def test_hugging_face_text_encoder(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    )
    fast.save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    torch.manual_seed(3)
    bert = BertModel(config, add_pooling_layer=False)
    bert.save_pretrained(tmp_path)
    tokenizer = ReportTokenizer.from_hugging_face(str(tmp_path), 24)
    model = make(tokenizer, text_encoder=str(tmp_path))
    word = model.text.net.embeddings.word_embeddings.weight
    assert torch.equal(word, bert.embeddings.word_embeddings.weight)  # loaded, not drawn anew
    tokens = tokenizer(TEXTS)
    assert tokens[0, 0] == fast.cls_token_id and tokenizer.decode(tokens[0]).startswith(
        "No late gadolinium"
    )
    out = model(studies(), tokens)
    changed = tokens.clone()
    changed[:, -1] = 7  # the decoder must not know the word it has to guess
    torch.testing.assert_close(model(studies(), changed)["logits"][:, :-1], out["logits"][:, :-1])
    save_coca(
        tmp_path / "model",
        model,
        tokenizer,
        make_settings(**(TINY | {"text_encoder": str(tmp_path)})),
    )
    assert str(tmp_path) not in (tmp_path / "model/text.json").read_text()
    bert.half().save_pretrained(tmp_path)
    half = make(tokenizer, text_encoder=str(tmp_path))  # as many are stored
    torch.testing.assert_close(
        half.encode_text(tokens), model.encode_text(tokens), atol=0.05, rtol=0.05
    )
    for file in ("config.json", "model.safetensors"):
        (
            tmp_path / file
        ).unlink()  # a saved model is whole: it asks no hub and no folder for the encoder's shape
    again, _, _ = load_coca(tmp_path / "model")
    torch.testing.assert_close(again.encode_text(tokens), model.encode_text(tokens))


def test_a_text_encoder_that_cannot_be_used_is_named(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    with pytest.raises(InputError, match="text_encoder.*nowhere"):
        ReportTokenizer.from_hugging_face(str(tmp_path / "nowhere"))
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"[PAD]": 0})), pad_token="[PAD]"
    )
    bare.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no token for start and end"):
        ReportTokenizer.from_hugging_face(str(tmp_path))


def test_an_encoder_that_has_learned_its_language_moves_slowly():
    from lgekit.clip.train import adamw

    module = torch.nn.Module()
    module.coca = torch.nn.Module()
    module.coca.text = torch.nn.ModuleDict(
        {"net": torch.nn.Linear(2, 3), "out": torch.nn.Linear(3, 4)}
    )
    found = {}
    for group in adamw(module, make_settings(text_encoder_rate=0.05)).param_groups:
        found |= {
            weight.shape: (group["share"], group["weight_decay"] > 0) for weight in group["params"]
        }
    assert found == {
        (3, 2): (0.05, True),
        (3,): (0.05, False),
        (4, 3): (1.0, True),
        (4,): (1.0, False),
    }


def test_captions_follow_the_decoder(tokenizer):
    """Greedy and beam decoding find the most probable next tokens, checked against a plain search."""
    model, batch = make(tokenizer), studies()
    model.text_decoder.text_projection.data.mul_(
        20
    )  # peaked, so that the search has something to find
    _, image_tokens = model._encode_image(batch)
    text = torch.full((2, 1), tokenizer.start_id)
    for _ in range(6):
        _, words = model._encode_text(text)
        scores = model.text_decoder(image_tokens, words)[:, -1]
        scores[:, [tokenizer.pad_id, tokenizer.start_id]] = float("-inf")
        text = torch.cat([text, scores.argmax(-1, keepdim=True)], 1)
    ended = [(row.tolist() + [tokenizer.end_id]).index(tokenizer.end_id) for row in text]
    expected = [tokenizer.decode(row[:end]) for row, end in zip(text, ended, strict=True)]
    assert write_captions(model, tokenizer, batch, longest=7) == expected
    assert len(write_captions(model, tokenizer, batch, beams=3, longest=7)) == 2


def test_saved_and_read_again(tokenizer, tmp_path):
    model, settings = make(tokenizer), make_settings(**TINY)
    save_coca(tmp_path / "clip", model, tokenizer, settings)
    again, words, kept = load_coca(tmp_path / "clip")
    assert kept == settings and torch.equal(words(TEXTS), tokenizer(TEXTS))
    torch.testing.assert_close(again.encode_image(studies()), model.encode_image(studies()))
    with pytest.raises(InputError, match="config.json"):
        load_coca(tmp_path / "nowhere")


def test_tokenizer_is_reversible_and_pads(tokenizer):
    ids = tokenizer([*TEXTS, "Scar ~ 7"])
    assert ids.dtype == torch.long and ids.shape[0] == 3
    assert tokenizer.decode(ids[1]) == TEXTS[1].lower()
    awkward = "segments 4 5, 10-11\n- ~ 50 % (no-reflow): yes"
    assert tokenizer.decode(tokenizer(awkward, context_length=99)[0]) == awkward
    assert (ids[2] == tokenizer.pad_id).any() and tokenizer.core.token_to_id("[UNK]") not in ids
    assert tokenizer(TEXTS[1], context_length=6).shape == (1, 6)
    assert tokenizer(TEXTS[1], context_length=60).shape == (
        1,
        60,
    )  # as open_clip's: padded to the context asked for
    assert tokenizer(TEXTS[1], context_length=6)[0, -1] == tokenizer.end_id


def test_joined_batches_keep_their_studies():
    a, b = studies((2,)), studies((5, 1))
    both = join(a, b)
    assert both.mask.sum(1).tolist() == [2, 5, 1]
    assert torch.equal(both.images[1:], b.images) and torch.equal(both.images[0, :2], a.images[0])


def test_changes_of_the_command_line_are_text_where_text_is_wanted():
    assert read_changes(
        ["masks=true", "patience=10", "bfloat16=true", "text_encoder=1e5", "orientation='none'"]
    ) == {
        "masks": "true",
        "patience": 10,
        "bfloat16": True,
        "text_encoder": "1e5",
        "orientation": "none",
    }
    assert make_settings(**read_changes(["masks=true"])).masks == "true"


def test_settings_refuse_what_they_do_not_know():
    with pytest.raises(InputError, match="widht"):
        make_settings(widht=3)
    with pytest.raises(InputError, match="orientation"):
        FitSettings().override(orientation="up")
    with pytest.raises(InputError, match="huge"):
        size_settings("huge")
    with pytest.raises(InputError, match="text_heads: text_width, 50, is no multiple of it"):
        make_settings(text_width=50)
    assert FitSettings().override(learning_rate="1e-4").learning_rate == 1e-4
    assert FitSettings(orientation="none").frame == "image"


def test_slices_are_encoded_in_parts_as_all_at_once(monkeypatch):
    encoder, slices = PolarEncoder(8).double(), torch.randn(7, 1, 16, 24, dtype=torch.float64)
    results = []
    for part in (3, 100):
        monkeypatch.setattr("lgekit.clip.model.PART", part)
        seen: list[int] = []
        hook = encoder.body.register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(len(output))
        )
        encoder.zero_grad()
        output = encoder(slices)
        output.square().sum().backward()
        hook.remove()
        results.append((seen, output, [weight.grad.clone() for weight in encoder.parameters()]))
    assert results[0][0] == [3, 3, 1] and results[1][0] == [7]
    torch.testing.assert_close(results[0][1:], results[1][1:])
    assert encoder(slices[:0]).shape == (0, 16, 2, 12)
