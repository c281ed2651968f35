"""How the scanner sees the digital heart: inversion recovery, then coil, k-space, noise, reconstruction.

Relaxation is not drawn freely but follows from where gadolinium goes: R1 = R1_native + λ·ΔR1_blood with the partition
coefficient λ = ECV / (1 − haematocrit). Sources, 1.5 T:

* native T1 of myocardium 1.07 s, of blood 1.58 s: Sharma et al., J Magn Reson Imaging 2006;23:323.
* 15 min after contrast: blood 442–457 ms (SD 98–121), remote 540 ± 88 ms, acute infarct 425 ± 68 ms; remote drifts
  from 523 to 561 ms while a stack is acquired: J Cardiovasc Magn Reson 2013;15:11 (doi:10.1186/1532-429X-15-11).
* ECV 25.4 ± 2.5 % normal, 68.5 ± 8.6 % core of a chronic infarct, 38 % diffuse disease: Kellman et al., J Cardiovasc
  Magn Reson 2012;14:64.
* T1 of fat 343 ± 37 ms and native liver 586 ± 39 ms: de Bazelaire et al., Radiology 2004;230:652.
* Phase-sensitive reconstruction keeps the sign of the signal: Kellman et al., Magn Reson Med 2002;47:372.

Amplitudes of coil bias, ghosts, noise and nulling error are ours [O], set so that two threshold rules are right as
often as on real studies (``realism.realism_table``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft

from lgekit import phantom_heart as tissue

HAEMATOCRIT = 0.42
T1_NATIVE_MYOCARDIUM, T1_NATIVE_BLOOD = 1070.0, 1580.0  # ms
ECV_REMOTE, ECV_SCAR, ECV_ACUTE = 0.254, 0.685, 0.52


def t1_after_contrast(ecv, t1_blood) -> np.ndarray:
    """T1 (ms) of myocardium with this extracellular volume when blood has ``t1_blood`` (ms)."""
    delta_blood = 1 / np.asarray(t1_blood) - 1 / T1_NATIVE_BLOOD
    return 1 / (1 / T1_NATIVE_MYOCARDIUM + np.asarray(ecv) / (1 - HAEMATOCRIT) * delta_blood)


def inversion_recovery(t1, inversion_time) -> np.ndarray:
    """Longitudinal magnetisation ``1 − 2·exp(−TI/T1)`` at the inversion time, both in ms (long repetition time)."""
    return 1 - 2 * np.exp(-np.asarray(inversion_time) / np.asarray(t1))


@dataclass(frozen=True)
class Scanner:
    """One examination's settings and faults.

    Attributes:
        t1_blood: ms, in each slice (contrast washes out while the stack is acquired), ``(slices,)``.
        inversion_time: ms, ``(slices,)``.
        noise: SD in each of the two channels, relative to M0 at the middle of the field.
        resolution: share of k-space acquired in the phase-encoding direction.
        ghost, ghost_period: amplitude and period (lines) of the respiratory modulation of k-space.
        phase_axis: image axis of phase encoding.
        coil: amplitudes of the bias field: linear in two directions, quadratic; natural log.
        gain, offset: receiver gain, and level of zero signal (pictures are windowed slice by slice when they are
            exported), ``(slices,)``.
        inversion_loss: mean and spatial SD of the share of spins that is not inverted, ``(slices,)`` and a number;
            at the null point a loss of 10 % lifts myocardium by 5 % of M0.
        magnitude: magnitude reconstruction (else phase-sensitive).
        texture: relative SD of tissue texture.
    """

    t1_blood: np.ndarray
    inversion_time: np.ndarray
    noise: float
    resolution: float
    ghost: float
    ghost_period: float
    phase_axis: int
    coil: np.ndarray
    gain: np.ndarray
    offset: np.ndarray
    inversion_loss: np.ndarray
    loss_spread: float
    magnitude: bool
    texture: float
    ecv_remote: float
    ecv_scar: float
    fat_t1: float
    tissue_gain: np.ndarray


def draw_scanner(rng: np.random.Generator, levels: np.ndarray, ecv_scar: float, magnitude_share: float) -> Scanner:
    """An examination at random. ``levels`` of the slices: washout follows the order in which they are acquired."""
    t1_blood = float(np.clip(rng.normal(400, 65), 280, 560)) * (1 + 0.07 * (0.5 - levels) * rng.choice([-1, 1]))
    t1_blood = t1_blood * (1 + 0.01 * rng.normal(size=len(levels)))
    ecv_remote = float(np.clip(rng.normal(ECV_REMOTE, 0.025), 0.2, 0.33))
    null = float(np.median(t1_after_contrast(ecv_remote, t1_blood))) * np.log(2)
    inversion_time = null * rng.normal(1.0, 0.06) * (1 + 0.04 * rng.normal(size=len(levels)))
    return Scanner(
        t1_blood=t1_blood,
        inversion_time=inversion_time,
        noise=float(np.exp(rng.normal(np.log(0.024), 0.35))),
        resolution=float(rng.uniform(0.6, 0.9)),
        ghost=float(rng.gamma(1.2, 0.03)),
        ghost_period=float(rng.uniform(2.5, 9)),
        phase_axis=int(rng.integers(2)),
        coil=rng.normal(0, [0.30, 0.15, 0.12]) + [0.35, 0, 0],
        gain=1 + 0.08 * rng.normal(size=len(levels)),
        offset=rng.gamma(2.0, 0.028) * rng.normal(size=len(levels)),
        inversion_loss=np.clip(rng.normal(0.08, 0.04) + 0.06 * rng.normal(size=len(levels)), 0, 0.3),
        loss_spread=float(rng.uniform(0.03, 0.10)),
        magnitude=bool(rng.random() < magnitude_share),
        texture=float(rng.uniform(0.03, 0.08)),
        ecv_remote=ecv_remote,
        ecv_scar=ecv_scar,
        fat_t1=float(np.clip(rng.normal(300, 30), 220, 380)),
        tissue_gain=rng.normal(1, 0.1, size=12),
    )


def tissue_signal(scanner: Scanner) -> np.ndarray:
    """Signed signal of every tissue in every slice, ``(slices, 12)`` float32, by the codes of ``phantom_heart``."""
    t1, ti = scanner.t1_blood, scanner.inversion_time
    ecv = {
        tissue.MYOCARDIUM: scanner.ecv_remote,
        tissue.PAPILLARY: scanner.ecv_remote + 0.02,
        tissue.MUSCLE: 0.16,
        tissue.LIVER: 0.36,
        tissue.STOMACH: 0.22,
        tissue.SCAR: scanner.ecv_scar,
        tissue.NO_REFLOW: 0.13,
        tissue.LUNG: 0.40,
    }
    signal = np.zeros((len(t1), 12), dtype=np.float32)
    for code, volume in ecv.items():
        signal[:, code] = inversion_recovery(t1_after_contrast(volume, t1), ti)
    signal[:, [tissue.BLOOD, tissue.RV_BLOOD]] = inversion_recovery(t1, ti)[:, None]
    signal[:, tissue.FAT] = inversion_recovery(scanner.fat_t1, ti)
    signal[:, tissue.LUNG] *= 0.15  # proton density of lung
    heart = [tissue.MYOCARDIUM, tissue.SCAR, tissue.NO_REFLOW, tissue.PAPILLARY, tissue.BLOOD, tissue.RV_BLOOD]
    gain = scanner.tissue_gain.copy()
    gain[heart] = 1
    return signal * gain.astype(np.float32)


def smooth_field(rng: np.random.Generator, shape: tuple[int, int, int], knots: int) -> np.ndarray:
    """A smooth random field of unit variance in each slice, ``(slices, X, Y)`` float32, bilinear between knots."""
    coarse = rng.standard_normal((shape[0], knots, knots), dtype=np.float32)
    weights = []
    for size in shape[1:]:
        position = np.linspace(0, knots - 1, size, dtype=np.float32)
        low = np.minimum(position.astype(int), knots - 2)
        weight = np.zeros((size, knots), dtype=np.float32)
        weight[np.arange(size), low] = 1 - (position - low)
        weight[np.arange(size), low + 1] = position - low
        weights.append(weight)
    return np.matmul(np.matmul(weights[0], coarse), weights[1].T) * np.float32(1.5)


def acquire(
    rng: np.random.Generator, signal: np.ndarray, body: np.ndarray, x: np.ndarray, v: np.ndarray, scanner: Scanner
) -> np.ndarray:
    """Image of a signal: coil bias, point spread of a truncated k-space, ghosts, noise, reconstruction.

    Args:
        rng: source of the noise.
        signal: signed signal, ``(slices, X, Y)`` float32.
        body: proton density, 0 air … 1 tissue, ``(slices, X, Y)`` float32.
        x, v: mm in the heart frame, ``(X, Y)``.
        scanner: the examination.

    Returns:
        ``(slices, X, Y)`` float32; phase-sensitive images are signed.
    """
    slices, size_x, size_y = signal.shape
    front = (-0.57 * x + 0.82 * v) / 100  # towards the anterior coil
    side = (0.82 * x + 0.57 * v) / 100
    bias = np.exp(scanner.coil[0] * front + scanner.coil[1] * side + scanner.coil[2] * (front**2 + side**2))
    loss = np.float32(scanner.loss_spread) * smooth_field(rng, signal.shape, 5)
    loss += scanner.inversion_loss.astype(np.float32)[:, None, None]
    signal = signal + loss * (body - signal) * np.float32(0.5)  # 1 − (2 − loss)·exp(−TI/T1)
    loaded = signal * (bias[None] * scanner.gain[:, None, None]).astype(np.float32)
    loaded *= 1 + np.float32(scanner.texture) * smooth_field(rng, signal.shape, 24)
    space = fft.fft2(loaded, axes=(1, 2))
    lines = [np.abs(fft.fftfreq(n)) * 2 for n in (size_x, size_y)]  # 0 centre … 1 edge of k-space
    reach = [0.95, 0.95]
    reach[scanner.phase_axis] = scanner.resolution
    window = [
        np.where(line < edge, 0.5 + 0.5 * np.cos(np.pi * np.clip((line / edge - 0.6) / 0.4, 0, 1)), 0)
        for line, edge in zip(lines, reach, strict=True)
    ]
    order = np.arange((size_x, size_y)[scanner.phase_axis])
    start = rng.uniform(0, 2 * np.pi, size=(slices, 1))
    swing = 1 + scanner.ghost * np.cos(2 * np.pi * order / scanner.ghost_period + start)
    swing = swing[:, :, None] if scanner.phase_axis == 0 else swing[:, None, :]
    window_2d = (window[0][:, None] * window[1]).astype(np.float32)
    noise = rng.standard_normal((slices, size_x, 2 * size_y), dtype=np.float32).view(np.complex64)
    noise *= np.float32(scanner.noise * np.sqrt(size_x * size_y))
    space = (space * swing.astype(np.float32) + noise) * window_2d
    image = fft.ifft2(space, axes=(1, 2), overwrite_x=True)
    image = np.abs(image) if scanner.magnitude else np.ascontiguousarray(image.real)
    return image + scanner.offset.astype(np.float32)[:, None, None]
