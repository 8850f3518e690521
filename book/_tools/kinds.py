"""Small models of every kind that people bring, each with an oracle: the raw module on one row, and own formulas."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, StudentT
from torch.nn import functional as F

from vaebook.adapters import adapt

N, P = 12, 8
X = (torch.rand(N, P, generator=torch.Generator().manual_seed(7)) > 0.5).double()
GREY = torch.rand(N, P, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
LABEL = torch.arange(N, dtype=torch.float64)[:, None] / N


def log_normal(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Log-density of N(loc, scale²)."""
    return -0.5 * ((z - loc) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)


def standard(z: Tensor) -> Tensor:
    """Log-density of the standard normal, (M)."""
    return log_normal(z, torch.zeros(()).double(), torch.ones(()).double()).sum(-1)


def bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """Log-density of (grey) pixels."""
    return (x * logits - F.softplus(logits)).flatten(1).sum(1)


@dataclass
class Kind:
    """A model as somebody hands it over, some data, and what is true of it."""

    vae: Any
    codes: Callable[..., tuple[Tensor, Tensor]]
    """One row of data (and of the condition) → loc and scale."""
    log_lik: Callable[..., Tensor]
    """One code and one row of data (and of the condition) → log p(x|z)."""
    mean: Callable[..., Tensor]
    """One code (and a row of the condition) → E[x|z]."""
    log_prior: Callable[[Tensor], Tensor] = standard
    x: Tensor = X
    condition: dict[str, Tensor] = field(default_factory=dict)

    def row(self, n: int) -> tuple[Tensor, ...]:
        """Datum n, and its condition."""
        return (self.x[[n]], *(value[[n]] for value in self.condition.values()))

    def named(self, num: int | None = None) -> dict[str, Any]:
        """Return the argument ``condition``, where there is one."""
        return {"condition": {k: v[:num] for k, v in self.condition.items()}} if self.condition else {}


def dense(num_in: int, num_out: int, *middle: nn.Module) -> nn.Sequential:
    """Build a small network in double precision, in training mode."""
    return nn.Sequential(nn.Linear(num_in, 8), *middle, nn.Tanh(), nn.Linear(8, num_out)).double()


def settled(net: nn.Module, num_in: int) -> nn.Module:
    """Give batch norm running statistics that are not those of any batch."""
    for _ in range(5):
        net(1.5 * torch.randn(20, num_in, dtype=torch.float64) + 0.3)
    return net


def split(out: Tensor) -> tuple[Tensor, Tensor]:
    """Split into means, and standard deviations between 0.8 and 1.3, wider than the posteriors."""
    return out[:, :1], 0.8 + 0.5 * out[:, 1:].sigmoid()


def plain(net: nn.Module | None = None, back: nn.Module | None = None, *, form: Callable[..., Any] | None = None,
          decode: Callable[[nn.Module], Any] | None = None, log_lik: Callable[..., Tensor] = bernoulli,
          mean: Callable[[Tensor], Tensor] = torch.sigmoid, log_prior: Callable[..., Tensor] = standard,
          x: Tensor = X, **named: Any) -> Kind:  # fmt: skip
    """Build a kind around an encoder's and a decoder's network; form and decode are what is particular to it."""
    net, back = net or dense(P, 2), back or dense(1, P)
    raw_net, raw_back = copy.deepcopy(net).eval(), copy.deepcopy(back).eval()
    if decode is None:
        named.setdefault("likelihood", "bernoulli_logits")
    form = form or (lambda loc, scale: (loc, scale))
    vae = adapt(lambda x: form(*split(net(x))), decode(back) if decode else back, modules=(net, back), **named)
    return Kind(
        vae,
        torch.no_grad()(lambda x: split(raw_net(x))),
        torch.no_grad()(lambda z, x: log_lik(raw_back(z), x)),
        torch.no_grad()(lambda z: mean(raw_back(z))),
        log_prior,
        x,
    )


class OverRows(nn.Module):
    """Attention over the rows of one image, (B, 4, 2)."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.enter, self.attention = nn.Linear(num_in, 8), nn.MultiheadAttention(2, 1, batch_first=True)
        self.leave = nn.Linear(8, num_out)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, then read out."""
        rows = self.enter(x).reshape(len(x), 4, 2)
        return self.leave((rows + self.attention(rows, rows, rows)[0]).flatten(1))


class OverBatch(OverRows):
    """Linear attention of each datum to all of its batch: p(x|z) depends on what else is decoded."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the first dimension."""
        rows = self.enter(x)
        return self.leave(rows + rows @ (rows.mT @ rows) / len(rows))


def convolutional() -> Kind:
    """Images (1, 4, 2), convolutions and batch norm."""
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2))
    back = nn.Sequential(
        nn.Linear(1, 24), nn.Unflatten(1, (3, 4, 2)), nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 1, 3, padding=1)
    )
    return plain(net.double(), back.double(), x=GREY.reshape(N, 1, 4, 2))


def latent_images() -> Kind:
    """Codes of shape (1, 1, 1), as those of a convolutional network without a flat layer."""
    net = nn.Sequential(nn.Conv2d(1, 4, 2), nn.Tanh(), nn.Conv2d(4, 2, (3, 1))).double()
    back = nn.Sequential(nn.ConvTranspose2d(1, 4, (3, 1)), nn.Tanh(), nn.ConvTranspose2d(4, 1, 2)).double()
    kind = plain(net, back, x=GREY.reshape(N, 1, 4, 2), latent_shape=(1, 1, 1))
    flat = kind.log_lik, kind.mean
    kind.log_lik, kind.mean = lambda z, x: flat[0](z[:, :, None, None], x), lambda z: flat[1](z[:, :, None, None])
    return kind


def conditional() -> Kind:
    """Both parts take a label."""
    net, back = dense(P + 1, 2), dense(2, P)
    raw_net, raw_back = copy.deepcopy(net).eval(), copy.deepcopy(back).eval()
    vae = adapt(
        lambda x, label: split(net(torch.cat([x, label], 1))),
        lambda z, label: back(torch.cat([z, label], 1)),
        likelihood="bernoulli_logits", condition="label", modules=(net, back),
    )  # fmt: skip
    kind = Kind(
        vae,
        torch.no_grad()(lambda x, y: split(raw_net(torch.cat([x, y], 1)))),
        torch.no_grad()(lambda z, x, y: bernoulli(raw_back(torch.cat([z, y], 1)), x)),
        torch.no_grad()(lambda z, y: raw_back(torch.cat([z, y], 1)).sigmoid()),
    )
    kind.condition = {"label": LABEL}
    return kind


class OnlyDensity:
    """A likelihood of somebody's own, without moments."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density, one a row."""
        return bernoulli(self.logits, x)


def gaussian(loc: Tensor, x: Tensor) -> Tensor:
    """Log-density of Gaussian pixels with standard deviation 0.5."""
    return log_normal(x, loc, torch.full_like(loc, 0.5)).sum(1)


def categorical(out: Tensor, x: Tensor) -> Tensor:
    """Log-probability of four pixels of two classes."""
    log_p = out.reshape(-1, 4, 2).log_softmax(-1)
    return (log_p[..., 1] * x + log_p[..., 0] * (1 - x)).sum(1)


def student(loc: Tensor, x: Tensor) -> Tensor:
    """Log-density of Cauchy pixels."""
    return -(math.log(math.pi) + (x - loc).square().log1p()).sum(1)


WEIGHT, LOC, SCALE = (torch.tensor(v, dtype=torch.float64) for v in ((0.3, 0.7), (-1.0, 0.8), (0.6, 0.9)))


def mixture_prior(z: Tensor) -> Tensor:
    """Log-density of two Gaussians."""
    return (WEIGHT.log() + log_normal(z, LOC, SCALE)).logsumexp(-1)


def one_prior(z: Tensor) -> Tensor:
    """Log-density of N(0.8, 0.9²)."""
    return log_normal(z[..., 0], LOC[1], SCALE[1])


class Flow(nn.Module):
    """A monotone function of a standard normal, as a flow library writes it: a module that returns a distribution."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(1, dtype=torch.float64))

    def forward(self) -> torch.distributions.Distribution:
        """Return the distribution."""
        return Independent(Bent(self.zero), 1)


class Bent(torch.distributions.Distribution):
    """Distribution of z = 1.5 asinh(u), where u is standard normal."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = torch.distributions.constraints.real

    def __init__(self, zero: Tensor) -> None:
        self.zero = zero
        super().__init__(zero.shape, validate_args=False)

    def log_prob(self, z: Tensor) -> Tensor:
        """Change of variables."""
        return log_normal((z / 1.5).sinh(), self.zero, self.zero + 1) + (z / 1.5).cosh().log() - math.log(1.5)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw."""
        return 1.5 * torch.randn(*sample_shape, *self.zero.shape, dtype=self.zero.dtype).asinh()


def mixture_of(part: torch.distributions.Distribution) -> MixtureSameFamily:
    """Mix two."""
    return MixtureSameFamily(Categorical(WEIGHT), part)


KINDS: dict[str, Callable[[], Kind]] = {
    "fully connected": plain,
    "batch norm": lambda: plain(settled(dense(P, 2, nn.BatchNorm1d(8)), P), settled(dense(1, P, nn.BatchNorm1d(8)), 1)),
    "group norm": lambda: plain(dense(P, 2, nn.GroupNorm(2, 8)), dense(1, P, nn.GroupNorm(2, 8))),
    "layer norm": lambda: plain(dense(P, 2, nn.LayerNorm(8)), dense(1, P, nn.LayerNorm(8))),
    "dropout": lambda: plain(dense(P, 2, nn.Dropout(0.5)), dense(1, P, nn.Dropout(0.5))),
    "attention over rows of an image": lambda: plain(OverRows(P, 2).double(), OverRows(1, P).double()),
    "attention over the batch": lambda: plain(OverBatch(P, 2).double(), OverBatch(1, P).double()),
    "convolutional, images": convolutional,
    "codes (C, H, W)": latent_images,
    "encoder: Normal": lambda: plain(form=Normal),
    "encoder: Independent, rank 1": lambda: plain(form=lambda *q: Independent(Normal(*q), 1)),
    "encoder: Independent, rank 3": lambda: plain(
        form=lambda *q: Independent(Normal(*(p[..., None, None] for p in q)), 3),
        decode=lambda back: lambda z: back(z.flatten(1)), likelihood="bernoulli_logits"),
    "encoder: diagonal MultivariateNormal": lambda: plain(
        form=lambda m, s: MultivariateNormal(m, torch.diag_embed(s**2))),
    "encoder: mapping": lambda: plain(form=lambda m, s: {"mu": m, "logvar": 2 * s.log()}),
    "encoder: object": lambda: plain(form=lambda m, s: SimpleNamespace(mean=m, std=s)),
    "encoder: spread named var": lambda: plain(form=lambda m, s: (m, s**2), spread="var"),
    "encoder: spread named log_var": lambda: plain(form=lambda m, s: (m, 2 * s.log()), spread="log_var"),
    "conditional": conditional,
    "Bernoulli, grey pixels": lambda: plain(x=GREY, decode=lambda b: lambda z: b(z).sigmoid(), likelihood="bernoulli"),
    "Gaussian": lambda: plain(
        x=GREY, decode=lambda b: lambda z: (b(z), torch.full((), 0.5).double()), likelihood="gaussian",
        log_lik=gaussian, mean=lambda loc: loc),
    "Categorical": lambda: plain(dense(4, 2), x=X[:, :4], decode=lambda b: lambda z: b(z).reshape(-1, 4, 2),
                                 likelihood="categorical_logits", log_lik=categorical),
    "StudentT, one degree of freedom": lambda: plain(
        x=GREY, decode=lambda b: lambda z: Independent(StudentT(1.0, b(z)), 1), log_lik=student),
    "likelihood without moments": lambda: plain(decode=lambda b: lambda z: OnlyDensity(b(z))),
    "likelihood: a callable": lambda: plain(x=GREY, decode=lambda b: b, likelihood=lambda loc: Normal(loc, 0.5),
                                            log_lik=gaussian, mean=lambda loc: loc),
    "prior: Independent": lambda: plain(prior=Independent(Normal(LOC[1:], SCALE[1:]), 1), log_prior=one_prior),
    "prior: MixtureSameFamily": lambda: plain(prior=mixture_of(Independent(Normal(LOC[:, None], SCALE[:, None]), 1)),
                                              log_prior=mixture_prior),
    "prior: MultivariateNormal": lambda: plain(
        prior=MultivariateNormal(LOC[1:], SCALE[1:, None] ** 2), log_prior=one_prior),
    "prior: a flow": lambda: plain(prior=Flow(), log_prior=lambda z: Bent(torch.zeros(1).double()).log_prob(z)[..., 0]),
}  # fmt: skip
