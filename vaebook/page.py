"""The HTML page of a diagnosis: nothing is fetched, no script runs, light and dark follow the reader's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vaebook.panels import Panel
from vaebook.tables import number

STYLE = """
.vb{--ink:#1a1a1a;--soft:#4d4d4d;--ground:#fff;--line:#c4c4c4;--card:#f5f5f5;--ok:#0a6640;--look:#7a4b00;
--problem:#a31515;--unknown:#3d4f66;color:var(--ink);background:var(--ground);font:1rem/1.5 system-ui,sans-serif}
@media (prefers-color-scheme:dark){.vb{--ink:#ececec;--soft:#bdbdbd;--ground:#16181b;--line:#4a4d52;--card:#222529;
--ok:#6fd6a4;--look:#f2bd6a;--problem:#ff9c95;--unknown:#a9c3e6}}
.vb main,.vb>div{max-width:64rem;margin:0 auto;padding:1rem}
.vb h1{font-size:1.6rem;line-height:1.25}.vb h2{font-size:1.2rem;margin:2rem 0 .5rem}.vb h3{font-size:1rem;margin:0}
.vb .card{background:var(--card);border-left:.3rem solid var(--tone);margin:.7rem 0;padding:.7rem 1rem}
.vb .card p{margin:.3rem 0}.vb .tag{color:var(--tone);font-weight:700}.vb .soft{color:var(--soft)}
.vb .scroll{overflow-x:auto}.vb table{border-collapse:collapse;font-size:.9rem;color:var(--ink);background:none}
.vb th,.vb td{border-bottom:1px solid var(--line);padding:.3rem .7rem;text-align:left;vertical-align:top}
.vb td.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.vb .grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem}
.vb figure{margin:0}.vb img{width:100%;height:auto;background:#fff}.vb figcaption{font-size:.85rem;color:var(--soft)}
"""
WORDS = {
    "latent, code": "A latent is one coordinate of z. The code of a datum is its Gaussian q(z|x), or a draw of that.",
    "nats": "Units of information and of log-density; 1 nat is 1.44 bits.",
    "prior": "What z is drawn from to make new samples, nearly always a standard normal.",
    "aggregated posterior, q_agg": "The average of the encoder's Gaussians over the data: where codes really lie. "
    "Drawing from it means taking one of your data and encoding it.",
    "rate": "The KL term of the training loss, without any beta. It is the sum of information and mismatch.",
    "information": "How much a code tells about which datum it belongs to; exp(I) of the codes can be told apart.",
    "mismatch": "KL(q_agg | prior), how far codes are from following the prior.",
    "population": "All data that might have been drawn from the same source. N data are a sample of it, and the gaps "
    "between N narrow Gaussians say nothing about it.",
    "hole": "A part of the prior where codes come at most a tenth as often as the prior says. Samples from there are "
    "of nothing that the decoder has seen.",
    "standard error": "About two thirds of such estimates are off by less. “Exact” means that there is none.",
}
"""For a reader who has not opened the book."""


def page(found: Any, status: Mapping[str, str], pictures: Sequence[Panel], *, whole: bool = True) -> str:
    """Write a diagnosis as HTML.

    Args:
        found: a `vaebook.report.Diagnosis`.
        status: how each status of a verdict is written.
        pictures: the pictures, as `vaebook.panels.panels` draws them.
        whole: False for a fragment, as notebooks show it.

    Returns:
        The HTML, as text.
    """
    level = 2 if whole else 3
    head = f"{found.num_data:,} data, {found.latent_dim} latent dimensions, prior: {found.prior}"
    cards = [_card(verdict, status, level + 1) for verdict in found.verdicts]
    parts = [f"<p class=soft>{escape(head)}</p>", _title("Answers", level), *cards]
    parts += [_title("Pictures", level), "<div class=grid>", *map(_figure, pictures), "</div>"]
    parts += [_title("All numbers", level), _numbers(found)]
    for title, lines in (("What it could not tell", found.unknown), ("Notes", found.notes)):
        if lines:
            parts += [_title(title, level), "<ul>", *(f"<li>{escape(line)}</li>" for line in lines), "</ul>"]
    if not whole:
        return f"<style>{STYLE}</style><div class=vb><div>{''.join(parts)}</div></div>"
    words = "".join(f"<dt><strong>{escape(w)}</strong></dt><dd>{escape(text)}</dd>" for w, text in WORDS.items())
    parts += [_title("What the words mean", level), f"<dl>{words}</dl>"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Diagnosis of a latent space</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><style>body{{margin:0}}{STYLE}</style></head><body class=vb><main>'
        f"<h1>Diagnosis of a latent space</h1>{''.join(parts)}</main></body></html>\n"
    )


def _title(text: str, level: int) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


def _card(verdict: Any, status: Mapping[str, str], level: int) -> str:
    topic, kind, finding, decides, advice = (escape(part) for part in verdict)
    return (
        f'<section class=card style="--tone:var(--{kind})"><h{level}><span class=tag>{escape(status[kind])}</span> · '
        f"{topic}</h{level}><p>{finding}</p><p class=soft>Decided by: {decides}.</p>"
        f"<p><strong>Do:</strong> {advice}</p></section>"
    )


def _figure(panel: Panel) -> str:
    alt, title = escape(panel.alt), escape(panel.title)
    caption = f"<figcaption><strong>{title}.</strong> {alt}</figcaption>"
    return f'<figure><img src="{panel.uri}" alt="{alt}">{caption}</figure>'


def _numbers(found: Any) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in ("quantity", "value", "std. error", "meaning"))
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class=n>{escape(number(value))}</td>'
        f"<td class=n>{escape(number(error))}</td><td>{escape(meaning)}</td></tr>"
        for name, value, error, meaning in found.numbers()
    )
    return (
        '<div class=scroll tabindex="0" role="region" aria-label="All numbers"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
