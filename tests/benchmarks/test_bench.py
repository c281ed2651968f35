"""Benchmarks, run by `make bench`, and tests that they compare like with like."""

import dataclasses
import subprocess
import sys
import time
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import ring_study

from lgekit.anatomy.frame import StandardizeShortAxis
from lgekit.anatomy.polar import polar_grid
from lgekit.cache import accelerator
from lgekit.clip.detector import Detector
from lgekit.clip.fit import cohort_pairs
from lgekit.clip.model import StudyBatch, StudyEncoder, build_coca
from lgekit.clip.tokenizer import ReportTokenizer
from lgekit.clip.train import adamw, caption_loss, contrastive_loss, fit
from lgekit.clip.zeroshot import Calibration
from lgekit.config import size_settings
from lgekit.data.phantom import phantom_cohort
from lgekit.errors import InputError
from lgekit.findings import Findings, draw_scar
from lgekit.reports.training_texts import report_texts
from lgekit.scars.transforms import prepare_canvas
from lgekit.segmentation.train import fit_heart_network
from lgekit.study import Cohort

ROUNDS = 5


def seconds(call) -> float:
    """Time one call; wait for the GPU where there is one."""
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


@pytest.mark.bench
def test_standardize(fastest, record, one_thread):
    """The standard frame against a bare ``grid_sample`` to the same size."""
    study = ring_study(size=256, slices=10)
    frame = StandardizeShortAxis(96).find_frame(study)
    image = study.get_image("image").data
    pictures = image.permute(3, 0, 1, 2).contiguous()  # (slices, 1, X, Y)
    turn = 0.4 * torch.eye(2, 3).repeat(len(pictures), 1, 1)
    grid = F.affine_grid(turn, [len(pictures), 1, 96, 96], align_corners=True)

    def grid_sample():
        return F.grid_sample(pictures, grid, align_corners=True)

    bare = min(seconds(grid_sample) for _ in range(30))
    ours = fastest(lambda: frame.to_frame(image))
    record("bare grid_sample", 1e3 * bare, "ms")
    record("into the frame", 1e3 * ours, "ms")
    record("into the frame / bare grid_sample", ours / bare, "×", "≤ 1.5")


@pytest.mark.bench
def test_phantom(fastest, record, tmp_path, monkeypatch):
    """Render a phantom cohort into an empty cache, then read it."""
    monkeypatch.setenv("LGEKIT_CACHE", str(tmp_path))

    def read():
        return phantom_cohort(965, seed=0, pixels=128, slices=10)

    name = "phantom: 965 studies of 128 x 128 x 10"
    record(name, seconds(read), "s", "≤ 60 on two idle cores")
    record(f"{name}, from the cache", fastest(read, rounds=3), "s", "≤ 2")


@pytest.mark.bench
def test_scars(benchmark, record, one_thread):
    """Paint 400 random scars into 10 slices of 128 x 128, and view each as the network does."""
    study, rng = ring_study(size=128, slices=10), np.random.default_rng(0)
    canvas, grid = prepare_canvas(study), polar_grid(study)
    painting, viewing = [], []

    def paint():
        findings = canvas.fit(Findings((draw_scar(rng),)))
        started = time.perf_counter()
        try:
            image, _ = canvas.paint(findings, rng)
        except InputError:  # no room for this scar
            return
        painted = time.perf_counter()
        grid.view(torch.from_numpy(image)[None])
        painting.append(painted - started)
        viewing.append(time.perf_counter() - started)

    benchmark.pedantic(paint, rounds=400)
    # Medians: other jobs on the machine disturb a mean.
    record("scars painted", 1 / float(np.median(painting)), "1/s", ">= 300")
    record("scar in a polar view, per study", 1e3 * float(np.median(viewing)), "ms", "<= 10")


def distinct_pairs(studies: int, settings):
    """Phantom studies with one text each, all different, so that every loop encodes as many."""
    pairs = cohort_pairs(phantom_cohort(studies, seed=0), settings)
    texts = [(f"{options[0]} {number}",) for number, options in enumerate(pairs.texts)]
    return dataclasses.replace(pairs, texts=texts)


def network_of(pairs, settings):
    """The tokenizer and the untrained network of `fit`, on the device that trains."""
    texts = [options[0] for options in pairs.texts]
    tokenizer = ReportTokenizer.train(texts, settings.vocabulary, settings.longest_text)
    return tokenizer, build_coca(settings, tokenizer).to(accelerator()).train()


def bare_step(pairs, settings):
    """Forward, backward and optimiser step of the network of `fit`, on prepared batches."""
    tokenizer, network = network_of(pairs, settings)
    device, optimizer = accelerator(), adamw(network, settings)
    tokens = tokenizer([options[0] for options in pairs.texts]).to(device)
    batch = pairs.batch.to(device)
    parts = torch.arange(len(tokens), device=device).split(settings.batch_size)
    ready = [(batch.rows(part), tokens[part], part) for part in parts]

    def step(number: int = 0) -> float:
        studies, texts, own = ready[number % len(ready)]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            out = network(studies, texts)
        image, text = out["image_features"].float(), out["text_features"].float()
        logits = out["logit_scale"].float() * image @ text.T
        loss = contrastive_loss(logits, own, settings.targets)
        caption = caption_loss(out["logits"].float(), out["labels"], tokenizer.pad_id)
        optimizer.zero_grad()
        (loss := loss + settings.caption_weight * caption).backward()
        optimizer.step()
        return loss.detach()

    return step


class Strip(nn.Module):
    """Read studies from strips: their slices one below the other, as open_clip loads a picture."""

    def __init__(self, visual: nn.Module, slices: int):
        super().__init__()
        self.visual, self.slices = visual, slices

    def forward(self, pictures):
        images = pictures[:, 0].unflatten(1, (self.slices, -1))[:, :, None]
        levels = torch.linspace(0, 1, self.slices, device=images.device).expand(len(images), -1)
        return self.visual(StudyBatch(images, levels, torch.ones_like(levels, dtype=torch.bool)))


class PictureFiles(torch.utils.data.Dataset):
    """open_clip's ``CsvDataset``; its module imports packages that are not installed."""

    def __init__(self, table, transforms, tokenize):
        self.table, self.transforms, self.tokenize = table, transforms, tokenize

    def __len__(self):
        return len(self.table)

    def __getitem__(self, index):
        from PIL import Image

        path, title = self.table[index]
        return self.transforms(Image.open(path)), self.tokenize(title)


def open_clip_epoch(pairs, settings, folder):
    """One epoch of open_clip's ``train_one_epoch`` with its loader, on the network of `fit`."""
    from open_clip.loss import CoCaLoss
    from open_clip.transform import image_transform
    from open_clip_train.train import train_one_epoch
    from PIL import Image

    tokenizer, network = network_of(pairs, settings)
    slices, height, width = (pairs.batch.images.shape[axis] for axis in (1, 3, 4))
    network.visual = Strip(network.visual, slices)
    table = []
    for number, (images, texts) in enumerate(zip(pairs.batch.images, pairs.texts, strict=True)):
        picture = ((images.flatten(0, 2).numpy() + 4) * 31.875).round().astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.png")
        table.append((folder / f"{number}.png", texts[0]))

    def tokenize(text):  # padded to the context, as open_clip's own tokenizers do
        ids = tokenizer([text])[0]
        return F.pad(ids, (0, tokenizer.context_length - len(ids)), value=tokenizer.pad_id)

    transforms = image_transform((slices * height, width), is_train=True)
    files, size = PictureFiles(table, transforms, tokenize), settings.batch_size
    loader = torch.utils.data.DataLoader(files, size, True, num_workers=4, drop_last=True)
    loader.num_samples, loader.num_batches = len(table), len(loader)
    data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
    weights = {"caption_loss_weight": settings.caption_weight, "clip_loss_weight": 1.0}
    loss = CoCaLoss(**weights, pad_id=tokenizer.pad_id)
    device = accelerator()
    options = dict.fromkeys(("distill", "horovod", "wandb", "log_local"), False)
    options |= dict(rank=0, local_rank=0, world_size=1, accum_freq=1, skip_scheduler=True)
    options |= dict(batch_size=size, log_every_n_steps=100, grad_clip_norm=1.0)
    options |= dict(device=str(device), precision="amp_bf16" if device.type == "cuda" else "fp32")
    arguments = (network, data, loss, 0, adamw(network, settings), None, None, None)
    return lambda: train_one_epoch(*arguments, SimpleNamespace(**options))


@pytest.mark.bench
def test_fit(benchmark, record, tmp_path):
    """A training step against the bare network, and training against open_clip's own loop."""
    settings = size_settings("laptop", synthetic_per_real=0.0, epochs=3, masks="true")
    studies, count = 96, 96 // settings.batch_size
    pairs = distinct_pairs(studies, settings)
    step, epoch = bare_step(pairs, settings), open_clip_epoch(pairs, settings, tmp_path)
    ours, bare, theirs = [], [], []

    def references():
        bare.append(seconds(lambda: [step(number) for number in range(2 * count)]) / (2 * count))
        theirs.append(seconds(epoch) / studies)

    def train():  # the first epoch of a fit builds what the others reuse
        history = fit(pairs, settings.override(seed=len(ours)), progress=False).history
        ours.append(float(history["seconds"].iloc[1:].mean()) / count)

    benchmark.pedantic(train, setup=references, rounds=ROUNDS, warmup_rounds=1)
    ours, bare, theirs = (float(np.median(times[1:])) for times in (ours, bare, theirs))
    record("training step of fit", 1e3 * ours, "ms")
    record("forward + backward + optimiser on a ready batch", 1e3 * bare, "ms")
    record("fit / bare step", ours / bare, "×", "≤ 1.1")
    record("fit", studies / (ours * count), "studies/s")
    record("open_clip's loop and default loader, studies as PNG files", 1 / theirs, "studies/s")
    record("fit / open_clip", theirs * studies / (ours * count), "×", "≥ 3")


@pytest.mark.bench
def test_predict(benchmark, record, monkeypatch):
    """`Detector.predict` on all cores with one network, with and without finding the heart.

    The heart network is trained briefly and would be unsure of every heart and look twice; a
    trained one rarely does, so the second look is switched off. The CLIP network is untrained: its
    captions do not end, and are cut at the length of long ones.
    """
    studies, settings = 48, size_settings("laptop", context_length=24)
    cohort = phantom_cohort(studies, seed=0)
    texts = [one for study in cohort.studies for one in report_texts(study["report"])]
    tokenizer = ReportTokenizer.train(texts, settings.vocabulary, settings.longest_text)
    networks = [(build_coca(settings, tokenizer).eval(), tokenizer)]
    heart = fit_heart_network([cohort], steps=60, border_steps=60, progress=False)
    without = Detector(settings, networks, None, Calibration())
    monkeypatch.setattr("lgekit.segmentation.model.SURE", 0.0)

    def predict():  # not `Detector.predict`, which caches the contours
        return without.predict(Cohort(heart.predict_cohort(cohort).studies))

    benchmark.pedantic(predict, rounds=3)
    located = Cohort(heart.predict_cohort(cohort).studies)
    rest = np.median([seconds(lambda: without.predict(located)) for _ in range(3)])
    record("predict, polar view", studies / benchmark.stats.stats.median, "studies/s", "≥ 50")
    record("predict without the heart network", studies / float(rest), "studies/s")


CELLS = (
    'seed: int = 0\nout: str = ""',
    "value = sum(number % 7 for number in range(200_000)) + seed",
    'from lgekit.workbook import save_run\nsave_run(out, {"value": value})',
)
PAPERMILL = """import sys, papermill
folder, name, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])
for seed in range(runs):
    papermill.execute_notebook(f"{folder}/trivial.ipynb", f"{folder}/{name}-{seed}.ipynb",
        {"seed": seed, "out": f"{folder}/{name}/{seed}"}, kernel_name="python3", progress_bar=False)
"""
GRID = """import sys, lgekit
runs = lgekit.run_grid(f"{sys.argv[1]}/{sys.argv[2]}", workers=int(sys.argv[3]), progress=False)
assert (runs["state"] == "done").all()
"""


@pytest.mark.bench
def test_grid(benchmark, record, tmp_path):
    """Trivial runs as a grid on one and two workers, against bare Papermill; needs two cores."""
    runs, kernel = 20, {"name": "python3", "language": "python", "display_name": "Python 3"}
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    cells[0].metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "trivial.ipynb")
    text = f"notebook: trivial.ipynb\nrows: {{full: {{}}}}\nseeds: {list(range(runs))}\n"
    for name in ("one.yaml", "two.yaml"):
        (tmp_path / name).write_text(text)

    def processes(code, *each):
        commands = [[sys.executable, "-c", code, str(tmp_path), *map(str, one)] for one in each]
        running = [subprocess.Popen(one, stderr=subprocess.DEVNULL) for one in commands]
        assert not any([process.wait() for process in running])

    bare = seconds(lambda: processes(PAPERMILL, ("bare", runs)))
    halves = seconds(lambda: processes(PAPERMILL, ("left", runs // 2), ("right", runs // 2)))
    one = seconds(lambda: processes(GRID, ("one.yaml", 1)))
    benchmark.pedantic(lambda: processes(GRID, ("two.yaml", 2)), rounds=1)
    two = benchmark.stats.stats.min
    record(f"grid: {runs} trivial runs over bare Papermill", one / bare, "×", "≤ 1.1")
    record("grid: scaling to two workers", one / two / 2, "×", "≥ 0.85")
    record("bare Papermill: scaling to two processes", bare / halves / 2, "×")
    record(f"grid: {runs} trivial runs on two workers", two, "s")


def test_bare_step_trains_as_fit_does():
    changes = dict(synthetic_per_real=0.0, augment=0.0, dropout=0.0, epochs=1)
    settings = size_settings("smoke", masks="true", **changes)
    pairs = distinct_pairs(8, settings)  # one batch
    (history,) = fit(pairs, settings, progress=False).history.to_dict("records")
    torch.manual_seed(settings.seed)
    step = bare_step(pairs, settings)
    losses = [float(step()) for _ in range(12)]
    expected = history["contrastive"] + settings.caption_weight * history["caption"]
    assert losses[0] == pytest.approx(expected, rel=1e-5) and losses[-1] < losses[0]


def test_strip_is_read_as_the_study():
    settings = size_settings("smoke", depths=12, angles=24, width=16)
    encoder, images = StudyEncoder(settings).eval(), torch.randn(2, 5, 1, 12, 24)
    levels = torch.linspace(0, 1, 5).expand(2, 5)
    batch = StudyBatch(images, levels, torch.ones(2, 5, dtype=torch.bool))
    strips = images[:, :, 0].flatten(1, 2)[:, None].expand(-1, 3, -1, -1)  # grey as RGB
    with torch.no_grad():
        for ours, theirs in zip(encoder(batch), Strip(encoder, 5)(strips), strict=True):
            torch.testing.assert_close(ours, theirs)
