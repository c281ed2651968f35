"""Training: losses with known values, over-fitting, determinism, resuming, the shuffled control."""

import copy
import math

import numpy as np
import pytest
import torch
from toys import TEXTS, settings, toy

from lgekit.clip import train as training
from lgekit.clip.data import ImageTextPairs, augment
from lgekit.clip.model import ReportTokenizer, StudyBatch
from lgekit.clip.train import both_losses, contrastive_loss, epoch_batches, fit
from lgekit.clip.zeroshot import write_captions
from lgekit.config import PLAIN_CLIP, FitSettings
from lgekit.errors import InputError
from lgekit.findings import draw_findings
from lgekit.reports.reader import read_report
from lgekit.reports.writer import write_report


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("LGEKIT_CACHE", "")


def same_weights(one, other) -> bool:
    states = one.model.state_dict(), other.model.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_losses_are_those_of_open_clip():
    from open_clip.loss import ClipLoss, CoCaLoss

    torch.manual_seed(0)
    image, text = torch.nn.functional.normalize(torch.randn(2, 5, 8), dim=-1)
    logits, labels = torch.randn(5, 7, 11), torch.randint(1, 11, (5, 7))
    labels[0, 3:] = 0
    out = {"image_features": image, "text_features": text, "logit_scale": torch.tensor(10.0)}
    theirs = CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=0.0, pad_id=0)
    _, caption = theirs(logits=logits, labels=labels, **out)
    own = settings(targets="identity")
    found = both_losses(out | {"logits": logits, "labels": labels}, torch.arange(5), own, 0)
    torch.testing.assert_close(found, torch.stack([ClipLoss()(**out), caption]))


def test_only_same_text_targets_let_a_perfect_encoder_reach_zero():
    ids = torch.arange(64) % 12
    logits = 100.0 * (ids[:, None] == ids[None])
    counts = torch.bincount(ids).float()
    floor = float((counts / 64 * counts.log()).sum())
    assert float(contrastive_loss(logits, ids, "identity")) == pytest.approx(floor, abs=1e-4)
    assert float(contrastive_loss(logits, ids, "same_text")) == pytest.approx(0, abs=1e-4)
    distinct, own = torch.randn(6, 6), torch.arange(6)
    both = [contrastive_loss(distinct, own, targets) for targets in ("identity", "same_text")]
    torch.testing.assert_close(*both)


def test_each_epoch_uses_all_real_studies_and_draws_synthetic_ones():
    texts = [[0], [1], [2, 3], *[[4]] * 8]
    own, drawn = settings(synthetic_per_real=1, batch_size=4), set()
    for epoch in range(6):
        steps = epoch_batches(epoch, 3, texts, own)
        index = np.concatenate([studies for studies, _ in steps])
        assert sorted(index[index < 3]) == [0, 1, 2] and (index >= 3).sum() == 3
        again = np.concatenate([studies for studies, _ in epoch_batches(epoch, 3, texts, own)])
        assert (index == again).all()
        drawn |= set(index[index >= 3].tolist())
    assert len(drawn) > 5


@pytest.mark.parametrize("view", ["polar", "image"])
def test_augmentation_keeps_the_batch_and_depends_only_on_the_seed(view):
    batch, own = toy().batch, settings(view=view, augment=1.0)
    before = batch.images.clone()
    one, other = (augment(batch, own, torch.Generator().manual_seed(4)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert one.images.shape == batch.images.shape and torch.isfinite(one.images).all()
    assert not torch.allclose(one.images, batch.images) and torch.equal(batch.images, before)
    assert one.mask.any(1).all() and not (one.mask & ~batch.mask).any()
    assert augment(batch, own.override(augment=0.0), torch.Generator()) is batch


def test_polar_augmentation_is_circular():
    """A stripe across angle 0 stays one stripe."""
    image = torch.zeros(1, 1, 1, 12, 24)
    image[..., :3], image[..., -3:] = 1, 1
    batch = StudyBatch(image, torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        row = augment(batch, settings(augment=1.0), generator).images[0, 0, 0, 6]
        bright = row > (row.max() + row.min()) / 2
        assert 4 <= int(bright.sum()) <= 8 and int((bright != bright.roll(1)).sum()) == 2


def test_two_studies_are_overfitted_and_captioned():
    pairs = toy(2)
    own = settings(epochs=150, learning_rate=5e-3, augment=0.0, caption_weight=1.0)
    result = fit(pairs, own, progress=False)
    last = result.history.iloc[-1]
    assert last["caption"] < 0.1 and last["contrastive"] < 0.1
    written = write_captions(result.model, result.tokenizer, pairs.batch)
    assert written == [texts[0] for texts in pairs.texts]


@pytest.mark.parametrize("shuffled", [False, True])
def test_learns_where_the_scar_is_but_not_from_shuffled_texts(shuffled):
    own = settings(epochs=40, learning_rate=5e-3, shuffle_text=shuffled)
    result, unseen = fit(toy(24), own, progress=False), toy(24, seed=9)
    with torch.no_grad():
        words = result.model.encode_text(result.tokenizer(TEXTS))
        best = (result.model.visual(unseen.batch)[0] @ words.T).argmax(1)
    accuracy = (best == torch.arange(24) % 3).float().mean()
    assert accuracy < 0.7 if shuffled else accuracy >= 0.9


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    before = torch.get_rng_state()
    runs = [fit(toy(), settings(epochs=2, seed=s, dropout=0.1), progress=False) for s in (3, 3, 4)]
    assert same_weights(runs[0], runs[1]) and not same_weights(runs[0], runs[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def killed(monkeypatch):
    """Call a fit that is killed before an epoch begins."""

    def run(epoch, *arguments, **named):
        original = training.train_epoch

        def kill(model, optimizer, data, number, own):
            if number == epoch:
                raise KeyboardInterrupt
            return original(model, optimizer, data, number, own)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(training, "train_epoch", kill)
            fit(*arguments, progress=False, **named)

    return run


@pytest.mark.parametrize("extra", [{}, {"view": "image", "pixels": 32}])
def test_a_killed_run_resumes_to_the_same_result(tmp_path, monkeypatch, killed, extra):
    own = settings(epochs=4, dropout=0.1, synthetic_per_real=0.5, **extra)
    options = {"validation": None if extra else toy(6, seed=7)}
    whole = fit(toy(real=8), own, progress=False, **options)
    monkeypatch.setenv("LGEKIT_CACHE", str(tmp_path))
    killed(2, toy(real=8), own, **options)
    (file,) = (tmp_path / "private" / "training").iterdir()
    rest = fit(toy(real=8), own, progress=False, **options)
    assert same_weights(whole, rest) and not file.exists()
    columns = [name for name in whole.history if name != "seconds"]
    assert whole.history[columns].equals(rest.history[columns])
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_epoch", None)  # a finished fit is taken from the cache
        assert same_weights(fit(toy(real=8), own, progress=False, **options), whole)
    for other in (
        {"pairs": toy(seed=1, real=8)},
        {"pairs": toy(real=7)},
        {"settings": own.override(seed=1)},
    ):
        killed(0, **({"pairs": toy(real=8), "settings": own} | other | options))


def test_a_loss_that_is_not_a_number_ends_the_training():
    pairs = toy()
    pairs.batch.images[0] = math.nan
    with pytest.raises(InputError, match="loss of epoch 1 is not a number"):
        fit(pairs, settings(epochs=2), progress=False)


def test_validation_texts_that_are_all_the_same_do_not_select_an_epoch():
    alike = ImageTextPairs(toy(8).batch, [("no scar",)] * 8)
    result = fit(toy(8), settings(epochs=2), validation=alike, progress=False)
    assert "validation_contrastive" not in result.history


def test_the_epoch_with_the_lowest_validation_loss_is_kept(monkeypatch):
    seen, losses = [], [3.0, 1.0, 2.0]

    def loss(model, *_):
        seen.append(copy.deepcopy(model.state_dict()))
        return losses[len(seen) - 1]

    monkeypatch.setattr(training, "validation_loss", loss)
    kept = fit(toy(8), settings(epochs=3), toy(6, seed=2), progress=False).model.state_dict()
    same = [all(torch.equal(kept[name], one[name]) for name in one) for one in seen]
    assert same == [False, True, False]


def test_the_shuffled_control_selects_its_epoch_by_shuffled_texts(monkeypatch):
    used, held = [], toy(12, seed=3)
    watch = lambda _, __, pairs, own: used.append(pairs.texts) or 1.0  # noqa: E731
    monkeypatch.setattr(training, "validation_loss", watch)
    for shuffle in (True, False):
        fit(toy(), settings(epochs=1, shuffle_text=shuffle), validation=held, progress=False)
    shuffled, plain = used
    assert plain == held.texts and sorted(shuffled) == sorted(plain) and shuffled != plain


def test_whole_reports_fit_into_the_context():
    rng = np.random.default_rng(0)
    drawn = [draw_findings(rng, positive=0.5) for _ in range(60)]
    reports = [write_report(findings, rng) for findings in drawn]
    own = FitSettings(**PLAIN_CLIP)
    tokenizer = ReportTokenizer.train(reports, own.longest_text)
    read = [read_report(tokenizer.decode(tokenizer(report)[0])).present for report in reports]
    assert read == [findings.present for findings in drawn]
    assert tokenizer(reports).shape[1] < own.longest_text
    with pytest.warns(UserWarning, match="do not fit into 24 tokens"):
        pairs = ImageTextPairs(toy(6).batch, [(report,) for report in reports[:6]])
        fit(pairs, settings(epochs=1), progress=False)
