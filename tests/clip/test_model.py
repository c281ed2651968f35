"""The network: parity with open_clip, any number of slices, first weights, saving."""

import pytest
import torch
from torch.nn import functional
from toys import settings

from lgekit.anatomy.frame import View
from lgekit.clip.data import batch_of
from lgekit.clip.model import CoCa, ImageEncoder, PolarEncoder, ReportTokenizer, StudyEncoder
from lgekit.config import FitSettings, read_changes, size_settings
from lgekit.errors import InputError
from lgekit.segmentation.model import HeartSettings, build_unet

BOTH = torch.arange(2)
TEXTS = [
    "No late gadolinium enhancement.",
    "Late gadolinium enhancement in the inferior wall, 50%.",
]


@pytest.fixture(scope="module")
def tokenizer():
    return ReportTokenizer.train(TEXTS, 24, 200)


def make(tokenizer, **changes):
    torch.manual_seed(0)
    return CoCa(settings(**changes), tokenizer).eval()


def studies(slices=(3, 5), height=12, width=24):
    torch.manual_seed(1)
    images = [torch.randn(n, 1, height, width) for n in slices]
    return batch_of([View(own, torch.linspace(0, 1, len(own)), None) for own in images])


def test_gives_what_open_clips_own_class_gives(tokenizer):
    from open_clip.coca_model import CoCa as OpenClipCoCa

    model, shape = make(tokenizer), {"width": 16, "heads": 4, "layers": 1, "context_length": 24}
    shape["vocab_size"] = tokenizer.core.get_vocab_size()
    text = shape | {"embed_cls": True, "output_tokens": True, "pad_id": tokenizer.pad_id}
    vision = {"image_size": 32, "patch_size": 32, "layers": 1, "width": 64}
    theirs = OpenClipCoCa(16, shape, text, vision | {"attentional_pool": True})
    state = {name: w for name, w in model.state_dict().items() if not name.startswith("visual.")}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("visual.") for name in missing)
    theirs.visual, theirs.text.correct_cls_mask = model.visual, True
    tokens = tokenizer(TEXTS)
    padded = functional.pad(tokens, (0, 24 - tokens.shape[1]), value=tokenizer.pad_id)
    expected, out = theirs.eval()(studies(), padded), model(studies(), padded, BOTH, BOTH)
    assert set(out) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(out[name], value)
    torch.testing.assert_close(model.encode_text(tokens), expected["text_features"])


def test_a_text_is_encoded_independently_of_the_others_and_once(tokenizer):
    model, tokens, row = make(tokenizer), tokenizer(TEXTS), torch.tensor([1, 1])
    once, twice = model(studies(), tokens, row, row), model(studies(), tokens[row], BOTH, BOTH)
    for name in twice:
        torch.testing.assert_close(once[name], twice[name])
    assert "logits" not in model(studies(), tokens, row)
    alone, together = tokenizer(["no scar"]), tokenizer(["no scar", max(TEXTS, key=len)])
    assert together.shape[1] > alone.shape[1]
    torch.testing.assert_close(model.encode_text(together)[0], model.encode_text(alone)[0])


def test_faults_of_open_clip_are_repaired(tokenizer):
    model = make(tokenizer)
    projection = model.text_decoder.text_projection.detach()
    assert float(projection.std()) == pytest.approx(16**-0.5, rel=0.1)
    before = model.encode_text(tokenizer(TEXTS))
    model.text.cls_emb.data.add_(torch.randn(16))  # the class token sees itself
    assert (model.encode_text(tokenizer(TEXTS)) - before).abs().max() > 1e-3


def test_padding_changes_nothing_and_inputs_are_not_modified(tokenizer):
    visual, batch = make(tokenizer).visual, studies((3, 5))
    alone = type(batch)(*(part[:1, :3] for part in batch))
    dirty = batch._replace(images=batch.images.masked_fill(~batch.mask[..., None, None, None], 1e3))
    before = [part.clone() for part in dirty]
    for one, other in zip(visual(dirty), visual(alone), strict=True):
        torch.testing.assert_close(one[:1], other, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(before, dirty, strict=True))
    features, _ = visual.slice_features(batch)
    _, attention, _ = visual.pool(features, batch.mask)
    torch.testing.assert_close(attention.sum(1), torch.ones(2))
    assert (attention[0, 3:] == 0).all()
    other = visual(batch._replace(levels=1 - batch.levels))[0]
    assert (visual(batch)[0] - other).abs().max() > 1e-4  # the levels matter


def test_polar_encoder_rotates_with_the_heart_and_encodes_slices_apart(monkeypatch):
    encoder, image = PolarEncoder(8).double(), torch.randn(7, 1, 16, 48, dtype=torch.float64)
    turned, whole = encoder(image.roll(8, -1)), encoder(image)
    torch.testing.assert_close(turned, whole.roll(2, -1))  # 8 of 48 angles are 2 of 12 sectors
    monkeypatch.setattr("lgekit.clip.model.SLICES_AT_ONCE", 3)
    torch.testing.assert_close(encoder(image), whole)
    assert encoder(image[:0]).shape == (0, 16, 2, 12)


@pytest.mark.parametrize("name", ["regnetx_002", "convnext_atto", "densenet121"])
def test_image_view_starts_from_a_segmentation_encoder(tokenizer, name):
    heart_settings = HeartSettings(encoder=name)
    unet = build_unet(heart_settings, 5).eval()
    model, picture = make(tokenizer, view="image", encoder=name), torch.randn(2, 1, 64, 64)
    model.visual.load_segmentation(unet.encoder.state_dict())
    features, deepest = model.visual.encoder.net(picture), unet.encoder(picture)
    assert torch.equal(features[-1], deepest[-1]) and features[-1].shape[2:] == (2, 2)


def test_only_convolutional_timm_encoders_are_accepted():
    own = settings(view="image", encoder="convnext_atto")
    assert StudyEncoder(own)(studies((2,), 32, 32))[0].shape == (1, 16)
    for name in ("regnet_of_nowhere", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"):
        with pytest.raises(InputError, match=f"setting encoder: '{name}'"):
            ImageEncoder(own.override(encoder=name))


def test_tokenizer_is_reversible_pads_and_cuts(tokenizer):
    ids = tokenizer([*TEXTS, "Scar ~ 7"])
    assert ids.dtype == torch.long and tokenizer.decode(ids[1]) == TEXTS[1].lower()
    assert (ids[2] == tokenizer.pad_id).any() and tokenizer.core.token_to_id("[UNK]") not in ids
    awkward = "segments 4 5, 10-11\n- ~ 50 % (no-reflow): yes"
    long = ReportTokenizer(tokenizer.core, 99)
    assert long.decode(long(awkward)[0]) == awkward
    short = ReportTokenizer(tokenizer.core, 6)(TEXTS)
    assert short.shape == (2, 6) and (short[:, -1] == tokenizer.end_id).all()


def test_settings_are_read_from_words_and_wrong_ones_are_refused():
    for changes, word in (({"widht": 3}, "widht"), ({"orientation": "up"}, "orientation")):
        with pytest.raises(InputError, match=word):
            FitSettings().override(**changes)
    with pytest.raises(InputError, match=r"text_width: .*multiple of 4"):
        FitSettings().override(text_width=50)
    with pytest.raises(InputError, match="huge"):
        size_settings("huge")
    assert FitSettings().override(learning_rate="1e-4").learning_rate == 1e-4
    words = ["masks=true", "epochs=10", "shuffle_text=true", "encoder=1e5", "orientation=none"]
    read = size_settings("smoke", **read_changes(words)).model_dump()
    assert [read[word.split("=")[0]] for word in words] == ["true", 10, True, "1e5", "none"]
