"""The recipes of the chapter practice/your-vae, run as they are printed, against the libraries that are installed."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from vaebook.adapters import adapt
from vaebook.diagnosis import diagnose
from vaebook.likelihood import importance_log_prob

PAGE = (Path(__file__).parent.parent / "book" / "practice" / "your-vae.md").read_text(encoding="utf-8")


def run(title, **names):
    """Run the block below a heading of the page, and return what it defines."""
    block = re.search(rf"^### {title}\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    assert block is not None, f"no recipe {title!r}"
    names |= {"adapt": adapt, "diagnose": diagnose, "np": np, "torch": torch}
    exec(block.group(1), names)
    return names


def images(num, *shape):
    return torch.rand(num, *shape, generator=torch.Generator().manual_seed(0))


def test_plain_torch():
    torch.manual_seed(0)
    down, up, x = nn.Linear(6, 4), nn.Linear(2, 6), images(70, 6)
    model = SimpleNamespace(encode=lambda x: down(x).chunk(2, 1), decode=up)
    report = run("Plain torch", model=model, x=x[:50], x_test=x[50:])["report"]
    mu, log_var = down(x[:50]).chunk(2, 1)
    rate = 0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum(1).mean()
    assert report.rate.value == pytest.approx(rate.item(), rel=1e-5)
    assert report.sampling is not None


def test_pyro():
    """A guide and a model as Pyro's own tutorial has them; its ELBO and ours agree."""
    pyro = pytest.importorskip("pyro", reason="pyro-ppl is not installed")
    distributions, infer = pytest.importorskip("pyro.distributions"), pytest.importorskip("pyro.infer")
    torch.manual_seed(0)
    net, back, x = nn.Linear(6, 4), nn.Linear(2, 6), images(50, 6).round()

    def encoder(x):
        loc, raw = net(x).chunk(2, 1)
        return loc, raw.exp()

    module = SimpleNamespace(encoder=encoder, decoder=lambda z: back(z).sigmoid())

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", distributions.Normal(*encoder(x)).to_event(1))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", distributions.Normal(torch.zeros(len(x), 2), torch.ones(len(x), 2)).to_event(1))
            pyro.sample("x", distributions.Bernoulli(module.decoder(z)).to_event(1), obs=x)

    found = run("Pyro", model=module, x=x)
    loss = infer.TraceMeanField_ELBO(num_particles=400, vectorize_particles=False).loss(model, guide, x) / len(x)
    ours = importance_log_prob(found["vae"], x, 500, generator=torch.Generator().manual_seed(0)).log_prob.mean()
    gap = float(ours) + loss  # log p(x) less the ELBO: the encoder's gap, never negative
    assert -0.02 < gap < found["report"].rate.value + 1


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_pythae(loss):
    models = pytest.importorskip("pythae.models", reason="pythae is not installed")
    torch.manual_seed(0)
    model = models.VAE(models.VAEConfig(input_dim=(1, 3, 3), latent_dim=2, reconstruction_loss=loss))
    x = images(40, 1, 3, 3)
    found = run("pythae", model=model, x=x)
    theirs = model.eval().get_nll(x, n_samples=200, batch_size=200)  # -log p(x) by importance sampling
    ours = importance_log_prob(found["vae"], x, 500, generator=torch.Generator().manual_seed(0)).log_prob.mean()
    assert float(ours) == pytest.approx(float(theirs), abs=0.05)


def test_diffusers():
    library = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    model = library.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, sample_size=8)
    x = images(45, 3, 4, 4)
    report = run("diffusers", model=model, x=x)["report"]
    with torch.no_grad():
        rate = model.eval().encode(x).latent_dist.kl().mean()
    assert report.rate.value == pytest.approx(float(rate), rel=1e-4)
    assert report.latent_dim == 2 * 4 * 4


def test_scvi_tools():
    """The call returns means and variances; what the library computes is another's test where it is not installed."""
    scvi, anndata = (pytest.importorskip(name, reason="scvi-tools is not installed") for name in ("scvi", "anndata"))
    counts = np.random.default_rng(0).poisson(2.0, (60, 20)).astype(np.float32)
    data = anndata.AnnData(counts)
    scvi.model.SCVI.setup_anndata(data)
    model = scvi.model.SCVI(data, n_latent=3)
    model.is_trained_ = True
    assert run("scvi-tools", model=model)["report"].latent_dim == 3


def test_arrays_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mean, log_variance = np.random.default_rng(0).normal(size=(50, 2)), np.full((50, 2), -2.0)
    run("Arrays from anywhere", mean=mean, log_variance=log_variance)
    with np.load("codes.npz") as codes:
        assert diagnose(codes).num_data == 50
