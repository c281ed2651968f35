"""The training loop: losses with known values, over-fitting, determinism, resuming, two processes, the control."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toys import WALLS, settings, toy

from lgekit import cache as precision
from lgekit.clip import train as training
from lgekit.clip.data import Pairs, augment, epoch_batches
from lgekit.clip.model import ImageEncoder, StudyBatch
from lgekit.clip.tokenizer import ReportTokenizer
from lgekit.clip.train import caption_loss, contrastive_loss, fit, learning_rate
from lgekit.clip.zeroshot import write_captions
from lgekit.config import PLAIN_CLIP, make_settings
from lgekit.errors import InputError
from lgekit.reports.reader import read_report
from lgekit.reports.writer import write_report


def test_identity_targets_are_clips_loss():
    from open_clip.loss import ClipLoss

    torch.manual_seed(0)
    image, text = torch.nn.functional.normalize(torch.randn(2, 5, 8), dim=-1)
    ids = torch.tensor([0, 1, 0, 2, 1])
    torch.testing.assert_close(
        contrastive_loss(10 * image @ text.T, ids, "identity"),
        ClipLoss()(image, text, torch.tensor(10.0)),
    )


def test_a_perfect_encoder_and_repeated_texts():
    """12 distinct texts over 64 studies: identity targets stay far above 0, same-text ones reach 0."""
    ids = torch.arange(64) % 12
    logits = 100.0 * (ids[:, None] == ids[None])
    counts = torch.bincount(ids).float()
    floor = float((counts / 64 * counts.log()).sum())
    assert float(contrastive_loss(logits, ids, "identity")) == pytest.approx(floor, abs=1e-4)
    assert float(contrastive_loss(logits, ids, "same_text")) == pytest.approx(0, abs=1e-4)
    distinct = torch.randn(6, 6)
    both = [
        contrastive_loss(distinct, torch.arange(6), targets)
        for targets in ("identity", "same_text")
    ]
    torch.testing.assert_close(*both)


def test_caption_loss_is_open_clips():
    from open_clip.loss import CoCaLoss

    torch.manual_seed(0)
    logits, labels = torch.randn(3, 7, 11), torch.randint(1, 11, (3, 7))
    labels[0, 3:] = 0
    theirs = CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=0.0, pad_id=0)
    image = torch.randn(3, 4)
    _, expected = theirs(
        image_features=image,
        text_features=image,
        logits=logits,
        labels=labels,
        logit_scale=torch.tensor(1.0),
    )
    torch.testing.assert_close(caption_loss(logits, labels, 0), expected)


def test_learning_rate_warms_up_and_ends_at_zero():
    own = settings(learning_rate=0.01, warmup=0.1)
    rates = [learning_rate(step, 100, own) for step in range(101)]
    assert (
        rates[0] == pytest.approx(0.001) and max(rates) == rates[10] == 0.01 and rates[100] < 1e-9
    )


def test_epochs_see_every_real_study_and_new_synthetic_ones():
    texts = [np.array([0]), np.array([1]), np.array([2, 3]), *[np.array([4])] * 8]
    own = settings(synthetic_per_real=1, batch_size=4)
    seen = [
        np.concatenate([index for index, _ in epoch_batches(epoch, 3, 8, texts, own)])
        for epoch in range(6)
    ]
    for index in seen:
        assert sorted(index[index < 3]) == [0, 1, 2] and (index >= 3).sum() == 3
    assert len({number for index in seen for number in index if number >= 3}) > 5
    assert [a.tolist() for a, _ in epoch_batches(1, 3, 8, texts, own)] == [
        a.tolist() for a, _ in epoch_batches(1, 3, 8, texts, own)
    ]


def test_augmentation_keeps_the_batch_and_depends_on_the_seed_alone():
    batch = toy().batch
    before = batch.images.clone()
    for view in ("polar", "image"):
        own = settings(view=view, augment=1.0)
        one, other = (augment(batch, own, torch.Generator().manual_seed(4)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert one.images.shape == batch.images.shape and torch.isfinite(one.images).all()
        assert not torch.allclose(one.images, batch.images) and one.mask.any(1).all()
        assert not (one.mask & ~batch.mask).any()
    assert torch.equal(batch.images, before)
    assert augment(batch, settings(augment=0.0), torch.Generator()) is batch


def test_polar_augmentation_is_circular():
    """A stripe at the seam of the circle stays one stripe: nothing is smeared or lost at angle 0."""
    image = torch.zeros(1, 1, 1, 12, 24)
    image[..., :3], image[..., -3:] = 1, 1
    batch = StudyBatch(image, torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    clean = settings(augment=1.0)
    for seed in range(5):
        row = augment(batch, clean, torch.Generator().manual_seed(seed)).images[0, 0, 0, 6]
        middle = (row.max() + row.min()) / 2
        assert 4 <= int((row > middle).sum()) <= 8
        assert int(((row > middle) != (row.roll(1) > middle)).sum()) == 2


def test_two_studies_are_learned_by_heart():
    pairs = toy(2)
    result = fit(
        pairs,
        settings(epochs=150, learning_rate=5e-3, augment=0.0, caption_weight=1.0),
        progress=False,
    )
    last = result.history.iloc[-1]
    assert last["caption"] < 0.1 and last["contrastive"] < 0.1
    for beams in (1, 4):
        written = write_captions(result.model, result.tokenizer, pairs.batch, beams)
        assert written == [texts[0] for texts in pairs.texts]


def test_learns_where_the_scar_is():
    result = fit(toy(24), settings(epochs=40, learning_rate=5e-3), progress=False)
    unseen = toy(12, seed=9)
    with torch.no_grad():
        words = result.model.encode_text(
            result.tokenizer(["no scar", *(f"scar in the {wall} wall" for wall in WALLS)])
        )
        best = (result.model.encode_image(unseen.batch) @ words.T).argmax(1)
    assert (best == torch.arange(12) % 3).float().mean() >= 0.9


def test_shuffled_texts_teach_nothing():
    result = fit(
        toy(24), settings(epochs=40, learning_rate=5e-3, shuffle_text=True), progress=False
    )
    unseen = toy(24, seed=9)
    with torch.no_grad():
        words = result.model.encode_text(
            result.tokenizer(["no scar", *(f"scar in the {wall} wall" for wall in WALLS)])
        )
        best = (result.model.encode_image(unseen.batch) @ words.T).argmax(1)
    assert (best == torch.arange(24) % 3).float().mean() < 0.7


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    runs = [
        fit(toy(), settings(epochs=2, seed=seed, dropout=0.1), progress=False) for seed in (3, 3, 4)
    ]
    states = [run.model.state_dict() for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize("extra", [{}, {"average": 0.5}, {"view": "image", "pixels": 32}])
def test_a_killed_run_goes_on_to_the_same_end(tmp_path, extra):
    own = settings(epochs=5, dropout=0.1, synthetic_per_real=0.5, **extra)
    options = {
        "synthetic": toy(8, seed=5),
        "validation": None if extra else toy(6, seed=7),
        "progress": False,
    }
    whole = fit(toy(), own, **options)
    fit(toy(), own, checkpoint=tmp_path / "run.safetensors", stop_after=2, **options)
    rest = fit(toy(), own, checkpoint=tmp_path / "run.safetensors", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name]), name
    columns = [column for column in whole.history if column != "seconds"]
    assert whole.history[columns].equals(rest.history[columns])


def test_texts_that_are_all_the_same_teach_nothing_and_choose_no_epoch():
    pairs, alike = toy(8), Pairs(toy(8).batch, [("no scar",)] * 8)
    with pytest.raises(InputError, match="all 8 say the same: 'no scar'"):
        fit(alike, settings(), progress=False)
    assert len(fit(alike, settings(epochs=1), synthetic=toy(6), progress=False).history) == 1
    with pytest.warns(UserWarning, match="the validation texts are all the same"):
        result = fit(pairs, settings(epochs=2), validation=alike, progress=False)
    assert "validation_contrastive" not in result.history


@pytest.mark.parametrize("encoder", ["regnetx_002", "resnet18"])
def test_statistics_over_several_gpus_keep_the_encoder_as_it_is(encoder):
    """Some norms of timm hold their activation; torch's converter drops it and says nothing."""
    from timm.layers import BatchNormAct2d

    from lgekit.clip import train as training

    plain = ImageEncoder(encoder).eval()
    for norm in plain.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    assert any(isinstance(part, BatchNormAct2d) for part in plain.modules()) is (
        encoder == "regnetx_002"
    )
    synchronised = training.synchronised_norms(copy.deepcopy(plain)).eval()
    assert any(isinstance(part, torch.nn.SyncBatchNorm) for part in synchronised.modules())
    picture = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(synchronised(picture), plain(picture))


def scars_of(epoch: int) -> Pairs:
    return toy(4, seed=100 + epoch)


def test_fresh_synthetic_studies_go_on_after_a_kill(tmp_path):
    """Each epoch is given its own; a run that was killed asks for those of the epochs left, and ends the same."""
    asked = []

    def fresh(epochs):
        asked.append(epochs)
        return (scars_of(epoch) for epoch in epochs)

    own = settings(epochs=4, synthetic_per_real=0.25, dropout=0.2)
    options = {"synthetic": scars_of(-1), "fresh": fresh, "progress": False}
    whole = fit(toy(), own, **options)
    fit(toy(), own, checkpoint=tmp_path / "run.safetensors", stop_after=2, **options)
    rest = fit(toy(), own, checkpoint=tmp_path / "run.safetensors", **options)
    assert asked == [range(0, 4), range(0, 4), range(2, 4)]
    for (name, one), other in zip(
        whole.model.state_dict().items(), rest.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_an_epoch_trains_on_its_fresh_studies(monkeypatch):
    """All real studies and that epoch's own synthetic ones; with shuffled texts, their texts dealt over both."""
    from lgekit.clip import train as training

    seen: list[tuple[set, list]] = []
    monkeypatch.setattr(training.Store, "of", _noting(training.Store.of, seen))
    for shuffle in (False, True):
        seen.clear()
        own = settings(epochs=2, synthetic_per_real=0.25, shuffle_text=shuffle)
        fit(
            toy(),
            own,
            synthetic=scars_of(-1),
            fresh=lambda epochs: map(scars_of, epochs),
            progress=False,
        )
        assert len(seen) == 3, "before the first epoch, and at the start of each"
        for epoch, (pictures, texts) in enumerate(seen[1:]):
            assert pictures == _pictures(toy()) | _pictures(scars_of(epoch))
            truth = [*toy().texts, *scars_of(epoch).texts]
            assert sorted(texts) == sorted(truth) and (texts == truth) is not shuffle


def _pictures(pairs: Pairs) -> set[bytes]:
    return {picture.numpy().tobytes() for picture in pairs.batch.images[pairs.batch.mask]}


def _noting(of, seen):
    def noted(tokenizer, device, *told):
        seen.append(
            (
                set().union(*map(_pictures, told)),
                [options for group in told for options in group.texts],
            )
        )
        return of(tokenizer, device, *told)

    return noted


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    own, file = settings(epochs=2), tmp_path / "run.safetensors"
    fit(toy(), own, checkpoint=file, stop_after=1, progress=False)
    for pairs, changed, held in (
        (toy(), {"seed": 1}, None),
        (toy(seed=1), {}, None),
        (toy(), {}, toy(6)),
    ):
        with pytest.raises(InputError, match=r"run.safetensors.*other settings, texts or images"):
            fit(pairs, own.override(**changed), validation=held, checkpoint=file, progress=False)
    assert len(fit(toy(), own, checkpoint=file, progress=False).history) == 2
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"run.safetensors.*no checkpoint"):
        fit(toy(), own, checkpoint=file, progress=False)


def test_a_checkpoint_knows_what_the_encoder_started_from(tmp_path):
    from lgekit.clip.model import ImageEncoder, PolarEncoder

    polar, image = settings(epochs=2), settings(epochs=1, view="image", pixels=32)
    states = [ImageEncoder(image.encoder).net.state_dict() for _ in range(2)]
    pairs, file = toy(8, height=32, width=32), tmp_path / "image.safetensors"
    fit(pairs, image, encoder_state=states[0], checkpoint=file, progress=False)
    with pytest.raises(InputError, match="other settings"):
        fit(pairs, image, encoder_state=states[1], checkpoint=file, progress=False)
    # those of the polar view follow from its pictures, rounded otherwise on another machine: the run goes on
    states = [PolarEncoder(polar.polar_channels).state_dict() for _ in range(2)]
    fit(
        toy(),
        polar,
        encoder_state=states[0],
        checkpoint=tmp_path / "polar",
        stop_after=1,
        progress=False,
    )
    assert (
        len(
            fit(
                toy(), polar, encoder_state=states[1], checkpoint=tmp_path / "polar", progress=False
            ).history
        )
        == 2
    )


def test_a_loss_that_is_no_number_ends_the_training():
    pairs = toy()
    pairs.batch.images[0] = math.nan
    with pytest.raises(InputError, match="loss of epoch 1 is not a number"):
        fit(pairs, settings(epochs=2), progress=False)


def test_averaged_weights_are_kept_beside_a_validation_split():
    runs = [
        fit(toy(), settings(epochs=4, average=a), validation=toy(6, seed=2), progress=False)
        for a in (0.0, 0.9)
    ]
    states = [run.model.state_dict() for run in runs]
    assert not all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_shuffled_control_chooses_its_epoch_by_shuffled_texts_too(monkeypatch):
    seen, held = [], toy(12, seed=3)
    monkeypatch.setattr(
        training,
        "validation_loss",
        lambda model, tokenizer, pairs, *rest: seen.append(pairs) or 1.0,
    )
    for shuffle in (True, False):
        fit(toy(), settings(epochs=1, shuffle_text=shuffle), validation=held, progress=False)
    shuffled, plain = (pairs.texts for pairs in seen)
    assert (
        plain == held.texts and sorted(shuffled) == sorted(plain) and list(shuffled) != list(plain)
    )


@pytest.mark.parametrize("changes", [{}, {"view": "image", "pixels": 32}, {"caption_weight": 0}])
def test_trains_in_mixed_precision_as_on_a_gpu(changes):
    from lightning_fabric import Fabric

    side = {"height": 32, "width": 32} if "view" in changes else {}
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    result = fit(toy(8, **side), settings(epochs=1, **changes), fabric=fabric, progress=False)
    assert np.isfinite(result.history[["contrastive", "caption"]]).all(axis=None)
    assert all(value.dtype == torch.float32 for value in result.model.parameters())


def test_a_cpu_multiplies_in_bfloat16_where_it_is_asked_to_and_can(monkeypatch):
    losses = []
    for asked, able in ((False, False), (False, True), (True, False), (True, True)):
        monkeypatch.setattr(precision, "has_fast_bfloat16", lambda able=able: able)
        result = fit(toy(8), settings(epochs=2, bfloat16=asked), progress=False)
        losses.append(result.history["contrastive"].tolist())
    assert losses[0] == losses[1] == losses[2] != losses[3]
    assert np.allclose(losses[0], losses[3], rtol=0.05)


def test_whole_reports_are_read_to_their_end():
    from lgekit.findings import draw_findings

    rng = np.random.default_rng(0)
    drawn = [draw_findings(rng, positive=0.5) for _ in range(60)]
    reports = [write_report(findings, rng) for findings in drawn]
    own = make_settings(**PLAIN_CLIP)
    tokenizer = ReportTokenizer.train(reports, own.vocabulary, own.longest_text)
    read = [read_report(tokenizer.decode(tokenizer(report)[0])).present for report in reports]
    assert read == [findings.present for findings in drawn]
    with pytest.warns(UserWarning, match="longer than 24 tokens"):
        texts = [(report,) for report in reports[:16]]
        fit(Pairs(toy().batch, texts), settings(epochs=1), progress=False)


def test_early_stopping_keeps_the_best_epoch():
    own = settings(epochs=60, patience=3, learning_rate=0.05)
    result = fit(toy(8), own, validation=toy(6, seed=2), progress=False)
    losses = result.history["validation_contrastive"]
    assert len(losses) < 60 and len(losses) - 1 - int(losses.argmin()) == 3


def test_global_random_state_is_left_alone():
    torch.manual_seed(12)
    expected = torch.rand(1)
    torch.manual_seed(12)
    fit(toy(4), settings(epochs=1), progress=False)
    assert torch.equal(torch.rand(1), expected)


def test_one_study_is_refused():
    with pytest.raises(InputError, match="two or more"):
        fit(toy(1), settings(), progress=False)


TWO_PROCESSES = """
import sys, torch
sys.path[:0] = [{tests!r}, {root!r}]
from lightning_fabric import Fabric
from lgekit.clip.train import fit
from toys import settings, toy
if __name__ == "__main__":
    torch.set_num_threads(1)
    contrast_alone = sys.argv[2] == "0"
    strategy = "ddp_find_unused_parameters_true" if contrast_alone else "ddp"
    fabric = Fabric(accelerator="cpu", devices=int(sys.argv[1]), strategy=strategy if sys.argv[1] == "2" else "auto")
    fabric.launch()
    own = settings(epochs=2, augment=0.0, caption_weight=float(sys.argv[2]))
    held = toy(6, seed=7) if contrast_alone else None
    result = fit(toy(16), own, validation=held, progress=False, fabric=fabric)
    columns = ["contrastive", "validation_contrastive" if contrast_alone else "caption"]
    if fabric.global_rank == 0:
        print("LOSSES", *[f"{{x:.5f}}" for x in result.history[columns].to_numpy().ravel()])
"""


@pytest.mark.parametrize("caption_weight", ["1", "0"])
def test_two_processes_train_as_one(tmp_path, caption_weight):
    """Gathered features: loss and gradients (hence the second epoch's loss) equal those of one process."""
    script = tmp_path / "run.py"
    script.write_text(
        TWO_PROCESSES.format(tests=str(Path(__file__).parent), root=str(Path(__file__).parents[2]))
    )
    losses = []
    for processes in ("1", "2"):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(script), processes, caption_weight],
            capture_output=True, text=True, timeout=240, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        line = next(line for line in done.stdout.splitlines() if line.startswith("LOSSES"))
        losses.append([float(word) for word in line.split()[1:]])
    assert math.isfinite(sum(losses[0]))
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-3)


def test_a_wider_beam_does_not_favour_short_captions():
    """Kept by the sum of their log-probabilities, "a" and "a b" would push out "a b c", the likeliest by token."""
    pad, start, end, a, b, c, *others = range(16)
    following = torch.full((16, 16), 1e-6)
    following[start, a] = following[c, end] = 1.0
    following[a, [end, b]] = torch.tensor([0.2, 0.8])
    following[b, [end, c, *others]] = torch.tensor([0.1625, 0.15, *[0.06875] * 10])
    following[others, end] = 1.0
    encoder = SimpleNamespace(embed=lambda *_: (None, torch.zeros(1, 1, 1)))
    model = SimpleNamespace(
        visual=encoder,
        _encode_text=lambda text: (None, text),
        text_decoder=lambda _, text: following[text].log(),
    )
    words = SimpleNamespace(
        pad_id=pad, start_id=start, end_id=end, context_length=8, decode=lambda ids: ids.tolist()
    )
    batch = SimpleNamespace(mask=torch.ones(1, 1, dtype=torch.bool))
    (caption,) = write_captions(
        model, words, batch, beams=2, encoded=(torch.zeros(1), torch.zeros(1))
    )
    assert [token for token in caption if token != pad] == [start, a, b, c, end]
