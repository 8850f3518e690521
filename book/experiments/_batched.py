"""Train VAEs of one prior and several seeds at once: the parameters of R models, stacked, and one step for all of them.

The protocol is that of the public code of Exemplar VAE (Norouzi, Fleet & Norouzi, 2020): gated layers, log-variances
clamped, Adam on gradients that are divided by their norm, tensor by tensor, binarisation in every step, a KL term of
one draw with a warm-up, and the exemplars looked up in a cache ("retrieval-augmented training"). On a GPU some steps
are captured as one graph, and models of several priors run side by side.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from vaebook.storage import write_atomically

LOG_2PI = math.log(2 * math.pi)
HALVED = ("encoder.log_scale.weight", "encoder.log_scale.bias", "prior.log_scale")
"""Trained as logarithms of variances, as in the public code; as logarithms of scales they are half of it."""
TOGETHER = 5
"""Steps in one graph."""


class _Exact(torch.autograd.Function):
    """A matrix product in all digits of float32, forward and backward, where others may be in TF32."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return exactly(a, b)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return exactly(gradient, b.mT), exactly(a.mT, gradient)


def exactly(a: Tensor, b: Tensor) -> Tensor:
    """Multiply with all digits of float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return a @ b
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def initial(prior: str, seed: int, config: dict[str, Any], data_dim: int) -> dict[str, Tensor]:
    """Draw the parameters of one model: weights of variance 2/fan-in, biases uniform within ±1/√(fan-in)."""
    generator, dim = torch.Generator().manual_seed(seed), config["latent_dim"]
    first, second = config["hidden"]
    sizes = {"encoder.body.0": (data_dim, 2 * first), "encoder.body.2": (first, 2 * second)}
    sizes |= {"encoder.loc": (second, dim), "encoder.log_scale": (second, dim)}
    sizes |= {"decoder.body.0": (dim, 2 * first), "decoder.body.2": (first, 2 * second)}
    sizes |= {"decoder.logits": (second, data_dim)}
    made = {}
    for name, (num_in, num_out) in sizes.items():
        made[f"{name}.weight"] = torch.randn(num_out, num_in, generator=generator) * math.sqrt(2 / num_in)
        made[f"{name}.bias"] = (2 * torch.rand(num_out, generator=generator) - 1) / math.sqrt(num_in)
    if prior == "vamp":
        num = config["num_pseudo_inputs"]
        made["prior.pseudo_inputs"] = torch.randn(num, data_dim, generator=generator) * math.sqrt(2 / num)
    if prior == "exemplar":
        made["prior.log_scale"] = torch.randn((), generator=generator)
    return made


class Batched:
    """Models of one prior, one for each of R seeds.

    Args:
        prior: "normal", "vamp" or "exemplar".
        config: of the experiment.
        images: grey training images, (N, P), uint8, on the device to train on.
        validation: binary images, (M, P), float32, there too.
        path: of the checkpoint.
    """

    def __init__(self, prior: str, config: dict[str, Any], images: Tensor, validation: Tensor, path: Path) -> None:
        self.prior, self.config, self.images, self.validation, self.path = prior, config, images, validation, path
        self.device, self.num = images.device, len(config["seeds"])
        made = [initial(prior, seed, config, images.shape[1]) for seed in config["seeds"]]
        self.parameters = {n: torch.stack([m[n] for m in made]).to(self.device).requires_grad_() for n in made[0]}
        self.best = {name: value.detach().clone() for name, value in self.parameters.items()}
        on_gpu = self.device.type == "cuda"
        rate = config["learning_rate"]
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=rate, fused=True, capturable=on_gpu)
        self.generator, self.stream = torch.Generator(self.device), torch.cuda.Stream() if on_gpu else None
        self.steps = len(images) // config["batch_size"]
        shape = (self.num, self.steps, config["batch_size"])
        self.order = torch.zeros(shape, dtype=torch.long, device=self.device)
        self.position = torch.zeros(1, dtype=torch.long, device=self.device)
        self.beta = torch.ones((), device=self.device)
        self.total = torch.zeros(self.num, device=self.device)
        if prior == "exemplar":
            self.cache = torch.zeros(self.num, len(images), config["latent_dim"], device=self.device)
        self.graph: Any = None
        self.log: dict[str, Any] = {"epoch": 0, "seconds": 0.0, "train": [], "validation": []}
        self.resume()

    # The model

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Map x (R, B, in) by R affine maps."""
        weight, bias = self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]
        return torch.baddbmm(bias[:, None], x, weight.mT)

    def body(self, part: str, x: Tensor) -> Tensor:
        """Apply the two gated layers."""
        return functional.glu(self.linear(f"{part}.body.2", functional.glu(self.linear(f"{part}.body.0", x))))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and logarithms of variances, (R, B, D)."""
        h, (low, high) = self.body("encoder", x), self.config["log_variance_range"]
        return self.linear("encoder.loc", h), self.linear("encoder.log_scale", h).clamp(low, high)

    def means(self, rows: Tensor) -> Tensor:
        """Encode grey training images, (R, B) of them, to the means of their codes."""
        return self.linear("encoder.loc", self.body("encoder", self.images[rows].float() / 255))

    def draw(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the codes' means, one draw z of each and log q(z|x)."""
        loc, log_variance = self.encode(x)
        noise = torch.empty_like(loc).normal_(generator=self.generator)
        log_q = -0.5 * (noise.square() + log_variance + LOG_2PI).sum(-1)
        return loc, loc + (0.5 * log_variance).exp() * noise, log_q

    def log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z), (R, B)."""
        logits = self.linear("decoder.logits", self.body("decoder", z))
        return -functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)

    def log_prior(self, z: Tensor) -> Tensor:
        """Return log p(z), (R, B), under the whole prior; the exemplars' means are those in the cache."""
        if self.prior == "normal":
            return -0.5 * (z.square() + LOG_2PI).sum(-1)
        if self.prior == "vamp":
            loc, log_variance = self.encode(self.parameters["prior.pseudo_inputs"].clamp(0, 1))
            precision = (-log_variance).exp()
            keys = torch.cat([-0.5 * precision, loc * precision], -1)
            constant = -0.5 * (loc.square() * precision + log_variance + LOG_2PI).sum(-1)
            terms = _Exact.apply(torch.cat([z.square(), z], -1), keys.mT) + constant[:, None]
            return terms.logsumexp(-1) - math.log(len(loc[0]))
        return self.log_terms(z, self.cache).logsumexp(-1) - math.log(len(self.images))

    def log_terms(self, z: Tensor, loc: Tensor) -> Tensor:
        """Return log N(z | mean, s² I) for every point and exemplar, (R, B, K)."""
        log_variance = self.parameters["prior.log_scale"][:, None, None]
        half = 0.5 * (z.square().sum(-1)[:, :, None] + loc.square().sum(-1)[:, None])
        product = _Exact.apply(z, loc.mT)
        return (product - half) * (-log_variance).exp() - 0.5 * z.shape[-1] * (log_variance + LOG_2PI)

    def log_prior_of_training(self, z: Tensor, loc: Tensor, index: Tensor) -> Tensor:
        """Return log p(z) as it is trained: for exemplars, under those near the batch, each datum without itself.

        Of some exemplars, drawn anew, those that are among the nearest of any datum of the batch, by the means in the
        cache, are encoded; all of the batch is scored under all of these.
        """
        if self.prior != "exemplar":
            return self.log_prior(z)
        self.cache.scatter_(1, index[:, :, None].expand_as(loc), loc.detach())
        shape = self.num, self.config["num_exemplars"]
        some = torch.randint(len(self.images), shape, generator=self.generator, device=self.device)
        held = self.cache.gather(1, some[:, :, None].expand(-1, -1, loc.shape[-1]))
        nearness = exactly(loc.detach(), held.mT) - 0.5 * held.square().sum(-1)[:, None]
        found = nearness.topk(self.config["neighbours"], sorted=False).indices.flatten(1).sort().values
        again = functional.pad(found[:, 1:] == found[:, :-1], (1, 0))  # one place found by several of the batch
        near = some.gather(1, found)
        centres = self.means(near)
        self.cache.scatter_(1, near[:, :, None].expand_as(centres), centres.detach())
        out = again[:, None] | (near[:, None] == index[:, :, None])
        terms = self.log_terms(z, centres).masked_fill(out, -torch.inf)
        return terms.logsumexp(-1) - (~out).sum(-1).log()

    # Training

    def step(self) -> None:
        """Make one step with every model."""
        index = self.order.index_select(1, self.position)[:, 0]
        x = torch.bernoulli(self.images[index].float() / 255, generator=self.generator)
        loc, z, log_q = self.draw(x)
        cost = log_q - self.log_prior_of_training(z, loc, index)
        loss = (self.beta * cost - self.log_likelihood(z, x)).mean(-1)
        self.optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        with torch.no_grad():
            for name, value in self.parameters.items():
                parts = self.num * (2 if ".body." in name else 1)  # value and gate of a layer are two tensors there
                gradient = value.grad.view(parts, -1)
                gradient /= gradient.norm(dim=1, keepdim=True) + 1e-7
        self.optimizer.step()
        self.total += loss.detach()
        self.position += 1

    def capture(self) -> None:
        """Capture some steps as a graph, and leave parameters and optimizer as they were."""
        held = [value.detach().clone() for value in self.parameters.values()]
        moments = {p: {n: t.clone() for n, t in entry.items()} for p, entry in self.optimizer.state.items()}
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            for _ in range(3):
                self.step()
                self.position.zero_()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(self.generator)
        with torch.cuda.graph(self.graph, stream=self.stream):
            for _ in range(TOGETHER):
                self.step()
        with torch.no_grad():
            for value, before in zip(self.parameters.values(), held, strict=True):
                value.copy_(before)
            for value, entry in self.optimizer.state.items():
                for name, tensor in entry.items():
                    tensor.copy_(moments[value][name]) if value in moments else tensor.zero_()
        torch.cuda.synchronize()

    def begin(self) -> None:
        """Start an epoch: another order, another weight of the KL."""
        epoch = self.log["epoch"]
        kinds = ("normal", "vamp", "exemplar").index(self.prior)
        self.generator.manual_seed(1_000_003 * (self.config["seeds"][0] + 1) + 100_003 * kinds + epoch)
        marks = torch.rand(self.num, len(self.images), generator=self.generator, device=self.device)
        self.order.copy_(marks.argsort(1)[:, : self.order[0].numel()].view_as(self.order))
        self.position.zero_()
        self.total.zero_()
        self.beta.fill_(min(1.0, (epoch + 1) / self.config["warm_up"]))
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Encode all exemplars anew."""
        if self.prior == "exemplar":
            for rows in torch.arange(len(self.images), device=self.device).split(10_000):
                self.cache[:, rows] = self.means(rows.expand(self.num, -1))

    def advance(self) -> None:
        """Make the next few steps."""
        if self.graph is not None:
            self.graph.replay()
            return
        for _ in range(TOGETHER):
            self.step()

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """Return the mean negative ELBO of the validation images under the whole prior, (R), with one draw each."""
        self.refresh()
        losses = []
        for part in self.validation.split(2500):
            x = part.expand(self.num, -1, -1)
            _, z, log_q = self.draw(x)
            losses.append(log_q - self.log_prior(z) - self.log_likelihood(z, x))
        return torch.cat(losses, 1).mean(1)

    # Stopping, keeping, resuming

    @property
    def running(self) -> list[int]:
        """List the models whose patience has not ended."""
        losses, config = self.log["validation"], self.config
        if len(losses) >= config["max_epochs"]:
            return []
        return [r for r in range(self.num) if best_and_end([row[r] for row in losses], config)[1] is None]

    def end(self, validation: list[float], train: list[float]) -> None:
        """Note the losses of an epoch, and keep the weights of the models that had their best."""
        running = self.running
        self.log["validation"].append(validation)
        self.log["train"].append(train)
        self.log["epoch"] += 1
        for r in running:
            if best_and_end([row[r] for row in self.log["validation"]], self.config)[0] == self.log["epoch"]:
                for name, value in self.parameters.items():
                    self.best[name][r].copy_(value.detach()[r])

    def save(self) -> None:
        """Write all or nothing."""
        tensors = {f"now/{name}": t.detach() for name, t in self.parameters.items()}
        tensors |= {f"best/{name}": t for name, t in self.best.items()}
        for name, value in self.parameters.items():
            tensors |= {f"adam/{name}/{key}": t for key, t in self.optimizer.state.get(value, {}).items()}
        tensors = {name: t.cpu().contiguous().clone() for name, t in tensors.items()}
        write_atomically(self.path, safetensors.torch.save(tensors, {"log": json.dumps(self.log)}))

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one; one that cannot be used is an error that names it."""
        if not self.path.exists():
            return
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                log = json.loads(file.metadata()["log"])
                tensors = {name: file.get_tensor(name).to(self.device) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: expected a complete checkpoint, got {error}; remove it") from None
        for name, value in self.parameters.items():
            got = tuple(tensors[f"now/{name}"].shape) if f"now/{name}" in tensors else "none"
            if got != tuple(value.shape):
                raise ValueError(f"{self.path}: {name}: expected shape {tuple(value.shape)}, got {got}; remove it")
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(tensors[f"now/{name}"])
                self.best[name].copy_(tensors[f"best/{name}"])
                kept = {key: tensors.get(f"adam/{name}/{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
                if kept["step"] is not None:
                    self.optimizer.state[value] = kept
        self.log = log

    def weights(self, r: int) -> dict[str, Tensor]:
        """Return the best weights of a model, in float16, under the names that the package has for them."""
        made = {name: value[r].detach().cpu() for name, value in self.best.items()}
        made |= {name: 0.5 * made[name] for name in HALVED if name in made}
        if self.prior == "vamp":
            made["prior.pseudo_inputs"] = made["prior.pseudo_inputs"].clamp(0, 1)
        return {name: value.half() for name, value in made.items()}


def best_and_end(losses: list[float], config: dict[str, Any]) -> tuple[int, int | None]:
    """Return the epoch of the best loss before training ends, and the epoch after which it ends, None if it goes on.

    It ends when the last `patience` epochs and one more were no better than the best; those of the warm-up don't count.
    """
    best, lowest, waited = 0, math.inf, 0
    for epoch, loss in enumerate(losses, start=1):
        if loss < lowest:
            best, lowest, waited = epoch, loss, 0
        else:
            waited = 0 if epoch < config["warm_up"] else waited + 1
        if waited > config["patience"]:
            return best, epoch
    return best, len(losses) if len(losses) >= config["max_epochs"] else None


def train(groups: list[Batched], stop_after: float = math.inf) -> bool:
    """Train all models until their patience ends, side by side; False if the time, in seconds, ended first."""
    start = saved = time.perf_counter()
    for group in groups:
        if group.stream is not None and group.running:
            group.begin()
            group.capture()
    while active := [group for group in groups if group.running]:
        before = time.perf_counter()
        if before - start > stop_after:
            break
        losses = epoch_of(active)
        for group, (validation, loss) in zip(active, losses, strict=True):
            group.end(validation, loss)
            group.log["seconds"] += (time.perf_counter() - before) / len(active)
        if time.perf_counter() - saved > 120:
            saved = time.perf_counter()
            for group in groups:
                group.save()
        if active[0].log["epoch"] % 20 == 1:
            told = "; ".join(f"{g.prior} {g.log['epoch']}: {min(g.log['validation'][-1]):.2f}" for g in active)
            print(f"{told} ({time.perf_counter() - before:.2f} s an epoch)", flush=True)
    for group in groups:
        group.save()
    return not any(group.running for group in groups)


def epoch_of(groups: list[Batched]) -> list[tuple[list[float], list[float]]]:
    """Make one epoch with every group, each on its own stream; return losses of validation and of training."""

    def on(group: Batched) -> Any:
        return torch.cuda.stream(group.stream)  # without a GPU, None does nothing

    for group in groups:
        with on(group):
            group.begin()
    for _ in range(groups[0].steps // TOGETHER):
        for group in groups:
            with on(group):
                group.advance()
    found = []
    for group in groups:
        with on(group):
            found.append((group.evaluate(), group.total / group.steps))
    if groups[0].stream is not None:
        torch.cuda.synchronize()
    return [(validation.tolist(), loss.tolist()) for validation, loss in found]
