"""Write what the interactive figures start from: their data and their static pictures, both from the package.

For each figure NAME there are, in book/_static/figures: NAME.js, written by hand; NAME.data.js, the numbers that it
draws from; and NAME.svg, the picture for paper and for readers without scripts.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from drawings import shorten
from fingerprint import ROOT
from matplotlib.figure import Figure
from torch.distributions import Independent, Normal

from vaebook import DiagGaussianMixture, plots
from vaebook.aggregate import aggregated_posterior
from vaebook.bounds import quadrature_log_prob
from vaebook.checkpoint import load
from vaebook.data import binarize, digits
from vaebook.information import mutual_information_quadrature
from vaebook.modes import find_modes
from vaebook.priors import StandardNormal
from vaebook.storage import write_atomically

TARGET = ROOT / "book" / "_static" / "figures"
WEIGHTS = ROOT / "book" / "results" / "digits-normal-2-1.safetensors"
Data = dict[str, Any]


def mixture_data() -> Data:
    """Nine codes in the plane, the first five well apart on the line; and how wide each is beside the others."""
    generator = torch.Generator().manual_seed(8)
    loc = 1.5 * torch.randn(9, 2, generator=generator)
    ratio = (0.25 * torch.randn(9, 2, generator=generator)).exp()
    return {"loc": rounded(loc), "ratio": rounded(ratio)}


def mixture_picture(data: Data) -> Figure:
    """Five Gaussians on the line at three widths: five peaks, fewer, one."""
    loc, ratio = (torch.tensor(data[name], dtype=torch.float64)[:5, :1] for name in ("loc", "ratio"))
    z = torch.linspace(-4, 4, 121, dtype=torch.float64)[:, None]
    figure, panels = plt.subplots(1, 3, figsize=(7.2, 2.5))
    for axes, width in zip(panels, (0.12, 0.5, 1.6), strict=True):
        q = DiagGaussianMixture(loc, width * ratio)
        for n in range(5):
            near = z[(z[:, 0] - loc[n]).abs() < 4 * width * ratio[n]]
            part = q[[n]].log_prob(near).exp() / 5
            axes.fill_between(near[:, 0], part, color=plots.COLORS[n], alpha=0.3)
        axes.plot(z[:, 0], q.log_prob(z).exp(), color="black", ls="solid")
        told = math.exp(mutual_information_quadrature(q))
        peaks = len(find_modes(q, z[::6]))
        axes.set_title(f"N = 5, told apart {told:.1f}, peaks {peaks}")
        axes.set(xlabel=f"z (width {width:g})", yticks=[])
    panels[0].set_ylabel("density")
    return figure


def ghosts_data() -> Data:
    """Codes of five digits of different classes, by the trained VAE, far from each other in both coordinates."""
    data = digits()
    with torch.no_grad():
        q_agg = aggregated_posterior(load(WEIGHTS).float().encoder, data.train)
    middle = torch.stack([q_agg.loc[data.train_labels == k].median(0).values for k in range(10)])
    chosen = max(combinations(range(10), 3), key=lambda some: apart(middle[list(some)]))
    while len(chosen) < 5:
        rest = [k for k in range(10) if k not in chosen]
        chosen = (*chosen, max(rest, key=lambda k: apart(middle[[*chosen, k]])))
    nearest = [int((q_agg.loc - middle[k]).square().sum(1).argmin()) for k in chosen]
    scale = q_agg.scale[nearest]
    return {"loc": rounded(q_agg.loc[nearest]), "ratio": rounded(scale / scale.mean())}


def apart(points: torch.Tensor) -> float:
    """Return the smallest difference of two points in any coordinate."""
    return min(float((a - b).abs().min()) for a, b in combinations(points, 2))


def ghosts_picture(data: Data) -> Figure:
    """Show three codes as a mixture, and as the product of its marginals."""
    loc, ratio = (torch.tensor(data[name], dtype=torch.float64)[:3] for name in ("loc", "ratio"))
    q = DiagGaussianMixture(loc, 0.28 * ratio)
    figure, panels = plt.subplots(1, 2, figsize=(6.4, 3.2), sharey=True)
    for axes, log_prob in zip(panels, (q.log_prob, lambda z: q.log_prob_marginals(z).sum(-1)), strict=True):
        plots.density(axes, log_prob, limit=2.6, num_points=101)
        axes.plot(*loc.T, "x", color="black", ms=6, mew=2)
        axes.set(xlabel="$z_1$")
    ghosts = torch.stack([torch.stack([loc[n, 0], loc[m, 1]]) for n in range(3) for m in range(3) if n != m])
    panels[1].plot(*ghosts.T, "o", color=plots.COLORS[1], ms=17, mfc="none")
    panels[0].set(title="mixture", ylabel="$z_2$")
    panels[1].set(title="product of its marginals: six ghosts")
    return figure


def sample_data() -> Data:
    """Where the two groups of the population lie, and how wide each is."""
    return {"centre": 1.2, "spread": 0.3, "seed": 1}


def sample_picture(data: Data) -> Figure:
    """Draw plug-in and leave-one-out against N, for five samples from the two groups."""
    generator, width = torch.Generator().manual_seed(data["seed"]), 0.25
    sizes = [round(2 ** (k / 2)) for k in range(2, 19)]
    u = torch.linspace(-7, 7, 113, dtype=torch.float64)
    weight = torch.exp(-0.5 * u**2) / math.sqrt(2 * math.pi) * (u[1] - u[0])
    z = torch.linspace(-8, 8, 1601, dtype=torch.float64)[:, None]
    spread = torch.full((2, 1), math.hypot(data["spread"], width), dtype=torch.float64)
    whole = DiagGaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64) * data["centre"], spread)
    excess = whole.log_prob(z) - StandardNormal(1).double().log_prob(z)
    truth = float(torch.trapezoid(whole.log_prob(z).exp() * excess, z[:, 0]))
    figure, axes = plt.subplots(figsize=(5.6, 2.8))
    for _ in range(5):
        side = 2.0 * torch.randint(2, (512, 1), generator=generator) - 1
        loc = data["centre"] * side + data["spread"] * torch.randn(512, 1, generator=generator, dtype=torch.float64)
        rows = [closing(loc[:n], width, u, weight) for n in sizes]
        for values, color in zip(zip(*rows, strict=True), plots.COLORS, strict=False):
            axes.plot(sizes, values, color=color, ls="solid", lw=1)
    axes.axhline(truth, color="black", ls="--", lw=1.2)
    axes.text(2, truth + 0.03, "population", va="bottom")
    axes.text(24, truth + 0.5, "plug-in", color=plots.COLORS[0])
    axes.text(24, truth - 0.7, "leave-one-out", color=plots.COLORS[1])
    axes.set(xscale="log", ylim=(-1, 1.6), xlabel="codes, N", ylabel="mismatch, nats")
    return figure


def closing(loc: torch.Tensor, width: float, u: torch.Tensor, weight: torch.Tensor) -> tuple[float, float]:
    """Return plug-in and leave-one-out mismatch of codes on the line, integrated about each code."""
    q = DiagGaussianMixture(loc, torch.full_like(loc, width))
    z = loc + width * u
    flat, index = z.reshape(-1, 1), torch.arange(len(loc))[:, None].expand_as(z).reshape(-1)
    log_prior = StandardNormal(1).double().log_prob(flat)
    ends = (q.log_prob(flat), q.log_prob_leave_one_out(flat, index))
    return tuple(float(((log_q - log_prior).reshape(z.shape) @ weight).mean()) for log_q in ends)


def draws_data() -> Data:
    """Where the draws start."""
    return {"seed": 3}


def draws_picture(data: Data) -> Figure:
    """Draw the average of 1, 4 and 64 Gaussians beside the exact density."""
    prior, generator = StandardNormal(1).double(), torch.Generator().manual_seed(data["seed"])

    def bend(z: torch.Tensor) -> torch.Tensor:
        return z + torch.sin(3 * z)

    x = torch.linspace(-4, 4, 201, dtype=torch.float64)[:, None]
    exact = quadrature_log_prob(lambda z: Independent(Normal(bend(z), 0.3), 1), prior, x).exp()
    loc = bend(prior.sample((64,), generator=generator))
    figure, panels = plt.subplots(1, 3, figsize=(6.4, 2.4), sharey=True)
    for axes, num in zip(panels, (1, 4, 64), strict=True):
        average = DiagGaussianMixture(loc[:num], torch.full_like(loc[:num], 0.3)).log_prob(x).exp()
        plots.curves(axes, x[:, 0], {f"{num} draws": average, "exact": exact}, xlabel="x")
        axes.set(title=f"K = {num}", ylim=(0, 1.45))
        axes.legend().set_visible(False)
    panels[0].set_ylabel("density")
    return figure


def digits_data() -> Data:
    """Return the decoder, the Gaussians that the encoder gives to the digits, and the digits, one bit a pixel."""
    vae, data = load(WEIGHTS), digits()
    x = binarize(data.train, torch.Generator().manual_seed(0))
    with torch.no_grad():
        q_agg = aggregated_posterior(vae.float().encoder, x)
    middles = torch.stack([q_agg.loc[data.train_labels == k].median(0).values for k in range(10)])
    hidden, logits = vae.half().decoder.body[0], vae.decoder.logits
    layers = {"hidden": hidden.weight, "hidden_bias": hidden.bias, "logits": logits.weight, "logits_bias": logits.bias}
    return {
        "loc": packed(q_agg.loc.numpy().astype("<f4")),
        "scale": packed(q_agg.scale.numpy().astype("<f4")),
        "images": packed(np.packbits(x.bool().numpy())),
        "decoder": {name: packed(value.detach().numpy().astype("<f2")) for name, value in layers.items()},
        "middles": rounded(middles),
        "seed": 0,
    }


def digits_picture(data: Data) -> Figure:
    """Show the density of the codes with the middle of each class, and the plane decoded."""
    vae = load(WEIGHTS).float()
    loc, scale = (unpacked(data[name], "<f4").reshape(-1, 2) for name in ("loc", "scale"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.8, 3.3))
    plots.density(left, DiagGaussianMixture(loc, scale).log_prob, limit=3.6, num_points=81)
    plots.prior_rings(left)
    for digit, place in enumerate(data["middles"]):
        left.text(*place, str(digit), ha="center", va="center", fontweight="bold")
    side = torch.linspace(-3, 3, 9)
    z = torch.stack([torch.stack([a, b]) for b in side.flip(0) for a in side])
    with torch.no_grad():
        images = vae.decoder(z).mean.reshape(9, 9, 8, 8).permute(0, 2, 1, 3).reshape(72, 72)
    right.imshow(images, cmap="gray_r", vmin=0, vmax=1, extent=(-3.375, 3.375, -3.375, 3.375))
    left.set(title="density of the codes, prior (rings)", xlabel="$z_1$", ylabel="$z_2$")
    right.set(title="the same plane, decoded", xlabel="$z_1$")
    return figure


def recall_data() -> Data:
    """Return the training digits with four levels of grey, two bits a pixel."""
    level = (3 * digits().train).round().to(torch.uint8).reshape(-1, 4)
    return {"images": packed((level * torch.tensor([64, 16, 4, 1])).sum(1).numpy().astype("u1")), "first": 5, "seed": 1}


def recall_images(data: Data) -> torch.Tensor:
    """Return the images of the figure, (N, 64) from 0 to 1."""
    level = unpacked(data["images"], "u1")[:, None] // torch.tensor([64, 16, 4, 1]) % 4
    return level.double().reshape(-1, 64) / 3


def recall_picture(data: Data) -> Figure:
    """Show an image with more and more noise, and below it the averages that attention makes of that."""
    x, generator = recall_images(data), torch.Generator().manual_seed(data["seed"])
    noise = torch.randn(64, generator=generator, dtype=torch.float64)
    scales = (0.1, 0.3, 0.5, 1.0, 2.0, 4.0)
    noisy = torch.stack([x[data["first"]] + s * noise for s in scales])
    kernels = [DiagGaussianMixture(x, torch.full_like(x, s)) for s in scales]
    clean = [q.posterior_mean(z[None], x)[0] for q, z in zip(kernels, noisy, strict=True)]
    captions = [f"noise {s:g}" for s in scales] + ["recalled"] * len(scales)
    plots.image_strip(torch.cat([noisy.clamp(0, 1), torch.stack(clean)]), captions=captions, num_columns=len(scales))
    return plt.gcf()


FIGURES: dict[str, tuple[Callable[[], Data], Callable[[Data], Figure]]] = {
    "mixture": (mixture_data, mixture_picture),
    "ghosts": (ghosts_data, ghosts_picture),
    "sample": (sample_data, sample_picture),
    "draws": (draws_data, draws_picture),
    "digits": (digits_data, digits_picture),
    "recall": (recall_data, recall_picture),
}


def rounded(values: torch.Tensor, digits: int = 3) -> Any:
    """Return nested lists of short numbers: what is written is what both the script and the tests start from."""
    return [rounded(row, digits) for row in values] if values.dim() else round(float(values), digits)


def packed(values: np.ndarray) -> str:
    """Return numbers as text: base64 of their bytes."""
    return base64.b64encode(values.tobytes()).decode()


def unpacked(text: str, dtype: str) -> torch.Tensor:
    """Return packed numbers again."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype).copy())


def read(name: str) -> Data:
    """Return the data of a figure as they lie in its file."""
    text = (TARGET / f"{name}.data.js").read_text(encoding="utf-8")
    return json.loads(text.split(" = ", 1)[1].removesuffix(";\n"))


def drawing(picture: Callable[[Data], Figure], name: str) -> str:
    """Draw the static picture of a figure from its stored data, as SVG."""
    plots.use_style()
    svg = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "vaebook"}):
        picture(read(name)).savefig(svg, format="svg")
    plt.close("all")
    return shorten(svg.getvalue())


def main() -> None:
    """Write all figures anew."""
    for name, (data, picture) in FIGURES.items():
        text = json.dumps(data(), separators=(",", ":"))
        write_atomically(TARGET / f"{name}.data.js", f"figures.data.{name} = {text};\n".encode())
        write_atomically(TARGET / f"{name}.svg", drawing(picture, name).encode())


if __name__ == "__main__":
    main()
