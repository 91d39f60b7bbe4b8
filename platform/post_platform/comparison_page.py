"""The comparison as one HTML file: it loads nothing, reads well without its script, and any text in it is inert."""

from __future__ import annotations

import base64
import hashlib
import html
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise

from post_platform.comparison import LETTERS, Comparison, Difference, Row
from post_platform.comparison_pictures import Panel
from post_platform.comparison_style import SCRIPT, STYLE
from post_platform.metrics.score import LOWER_IS_BETTER

CURVE_POINTS = 150
WIDE, HIGH, LEFT, BOTTOM, TOP = 340, 190, 54, 24, 8  # of a chart, in its own units
MARKS = {"better": "▲", "worse": "▼", "noise": "≈", "": ""}
METRICS_BY_CLASS = ("PQ", "sMOTSA", "HOTA", "AP", "IoU")


def page(found: Comparison) -> str:
    """The whole page. Names, tags and settings are somebody's: all text is escaped, and only our script may run."""
    names = " and ".join(f"{run.letter} {plain(run.stored.name)}" for run in found.runs)
    sections = {
        "Runs": _runs(found),
        "Scores": _scores(found),
        "Classes": _classes(found),
        "Curves": _curves(found),
        "Data": _data(found),
        "Config": _config(found),
        "Pictures": _panels(found, found.pictures, "overlay: image, truth, prediction"),
        "Timelines": _panels(found, found.timelines, "identities over time"),
    }
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    body = "".join(
        f'<section id="{name.lower()}"><h2>{name}</h2>{content}</section>' for name, content in sections.items()
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(STYLE)}'; script-src '{_digest(SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{text(names)}</title><style>{STYLE}</style></head><body>"
        f"<header><h1>Runs side by side</h1><p>{len(found.runs)} runs, read from MLflow "
        f"{time.strftime('%Y-%m-%d %H:%M')}. Differences are to {found.runs[0].letter}.</p></header>"
        f"<nav>{links}</nav><main>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )


def plain(value: object) -> str:
    """A text without what steers a terminal or turns the direction of writing."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(value))


def text(value: object) -> str:
    """A text for HTML, also inside quotes."""
    return html.escape(plain(value), quote=True)


def number(metric: str, value: float | None, sign: str = "") -> str:
    """A ratio with four digits, a count as it is, a dash for what is undefined."""
    if value is None:
        return "–"
    return f"{value:{sign}.0f}" if metric in LOWER_IS_BETTER else f"{value:{sign}.4f}"


def spread(metric: str, value: float) -> str:
    """A noise; that of a count has a digit behind the point."""
    return f"{value:.1f}" if metric in LOWER_IS_BETTER else f"{value:.4f}"


def noise_sources(found: Comparison) -> list[str]:
    """A sentence for each difference: what its noise is known from."""
    first = found.runs[0].letter
    lines = []
    for run, pair in zip(found.runs[1:], found.pairs, strict=True):
        source = pair.source or "not known: no repeated seeds, and too few validations"
        lines.append(f"noise of {run.letter} − {first}: {source}")
    return lines


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _letter(number: int) -> str:
    return f'<b class="run c{number}">{LETTERS[number]}</b>'


def _runs(found: Comparison) -> str:
    cards = []
    for index, run in enumerate(found.runs):
        stored = run.stored
        facts = {
            "state": stored.status.lower() + f", step {run.last_step}",
            "scored at step": "–" if run.step is None else str(run.step),
            "mean score": number("", found.mean.values[index]),
            "seed": stored.params.get("seed", "–"),
            "trained for": "–" if stored.end is None else _duration(stored.end - stored.begin),
            "run id": stored.run_id,
        }
        terms = "".join(f"<dt>{text(term)}</dt><dd>{text(value)}</dd>" for term, value in facts.items())
        cards.append(f'<article class="card"><h3>{_letter(index)} {text(stored.name)}</h3><dl>{terms}</dl></article>')
    notes = "".join(f"<li>{text(note)}</li>" for note in found.notes)
    return f'<div class="cards">{"".join(cards)}</div>' + (f'<ul class="notes">{notes}</ul>' if notes else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _scores(found: Comparison) -> str:
    lines = [text(line) for line in noise_sources(found)]
    legend = (
        "Ratios at each run's last validation; IDS (identity switches) is a count, fewer are better. Bold: the "
        "dataset's headline. Below a score: its difference ± one standard deviation of such a difference; ▲ better and "
        "▼ worse by more than twice that, ≈ less."
    )
    content = f'<p class="small">{legend}</p><ul class="small">{"".join(f"<li>{line}</li>" for line in lines)}</ul>'
    content += "<h3>Mean of the datasets' headline scores</h3>" + _table(found, [found.mean], "")
    tables = ""
    for name, rows in found.datasets.items():
        whole = [row for row in rows if not row.native_class]
        tables += f"<div><h3>{text(name)}</h3>{_table(found, whole, found.headlines[name])}</div>"
    return f'{content}<div class="tables of{len(found.runs)}">{tables}</div>'


def _classes(found: Comparison) -> str:
    tables = ""
    for name, rows in found.datasets.items():
        by_class = [row for row in rows if row.native_class]
        if by_class:
            first = class_metric(by_class, found.headlines[name])
            chosen = [row for row in by_class if row.metric == first]
            rest = [row for row in by_class if row.metric != first]
            tables += f"<div><h3>{text(name)}</h3>{_table(found, chosen, '')}"
            if rest:
                more = f"{len(rest)} more: {', '.join(sorted({row.metric for row in rest}))}"
                tables += f"<details><summary>{text(more)}</summary>{_table(found, rest, '')}</details>"
            tables += "</div>"
    field = '<p><input type="search" id="filter" placeholder="filter: car, PQ, ..." aria-label="filter classes"></p>'
    return (
        f'{field}<div class="tables of{len(found.runs)}">{tables}</div>' if tables else "<p>No scores of classes.</p>"
    )


def class_metric(rows: Iterable[Row], headline: str) -> str:
    """The metric to look at by class: the headline if it is known by class, else one that says most."""
    known = {row.metric for row in rows}
    return next((metric for metric in (headline, *METRICS_BY_CLASS) if metric in known), min(known, default=""))


def _table(found: Comparison, rows: Sequence[Row], headline: str) -> str:
    heads = "".join(f'<th scope="col">{_letter(index)}</th>' for index in range(len(found.runs)))
    lines = []
    for row in rows:
        title = f"{row.metric} {row.native_class}" if row.native_class else row.metric
        if row is found.mean:
            title = "mean"
        mark = ' class="headline"' if row.metric == headline else ""
        cells = f"<td>{number(row.metric, row.values[0])}</td>"
        for value, change in zip(row.values[1:], row.differences, strict=True):
            order = "" if change is None else repr(change.value)  # without a difference: not by the score instead
            cells += f'<td data-order="{order}">{number(row.metric, value)}{_difference(row.metric, change)}</td>'
        lines.append(f'<tr{mark}><th scope="row">{text(title)}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table class="scores"><thead><tr><th scope="col">metric</th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _difference(metric: str, change: Difference | None) -> str:
    if change is None:
        return ""
    noise = "" if change.noise is None else f" ±{spread(metric, change.noise)}"
    shown = f"{MARKS[change.verdict]} {number(metric, change.value, '+')}".strip()
    return f'<span class="change {change.verdict}">{shown}<wbr>{noise}</span>'


def _curves(found: Comparison) -> str:
    names = sorted({name for run in found.runs for name in run.history if name.startswith("train/loss/")})
    names.sort(key=lambda name: name != "train/loss/total")
    charts = [("val/mean/score", "mean score of the validations"), *((n, n.split("/", 2)[2] + " loss") for n in names)]
    drawn = []
    for metric, title in charts:
        lines = [sorted(run.history.get(metric, {}).items()) for run in found.runs]
        if any(lines):
            drawn.append(f"<figure><figcaption>{text(title)}</figcaption>{_chart(lines)}</figure>")
    legend = " ".join(f"{_letter(n)} {text(run.stored.name)}" for n, run in enumerate(found.runs))
    thinned = any(len(points) > CURVE_POINTS for run in found.runs for points in run.history.values())
    note = f" Long curves: means over {CURVE_POINTS} equal parts." if thinned else ""
    return f'<p class="small">{legend}. x: optimiser step.{note}</p><div class="charts">{"".join(drawn)}</div>'


def _chart(lines: Sequence[Sequence[tuple[int, float]]]) -> str:
    """One SVG with a line per run; a run with one point has a dot."""
    curves = [_thinned(line) for line in lines]
    xs, ys = [x for curve in curves for x, _ in curve], [y for curve in curves for _, y in curve]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 0.1
    low, high = low - margin, high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left) if right > left else 0.5
        return LEFT + across * (WIDE - LEFT - 8), TOP + (high - y) / (high - low) * (HIGH - TOP - BOTTOM)

    parts = []
    for share in (0.1, 0.5, 0.9):
        value = low + share * (high - low)
        _, y = place(left, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDE - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for value, anchor in ((left, "start"), (right, "end")) if right > left else ((left, "middle"),):
        parts.append(f'<text x="{place(value, low)[0]:.1f}" y="{HIGH - 6}" text-anchor="{anchor}">{value:.0f}</text>')
    for index, curve in enumerate(curves):
        points = [place(x, y) for x, y in curve]
        if len(points) > 1:
            shown = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline class="line l{index}" points="{shown}"/>')
        if 0 < len(points) <= 8:
            parts += [f'<circle class="dot l{index}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points]
    return f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img">{"".join(parts)}</svg>'


def _thinned(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(line) <= CURVE_POINTS:
        return list(line)
    edges = [round(part * len(line) / CURVE_POINTS) for part in range(CURVE_POINTS + 1)]
    parts = [line[start:stop] for start, stop in pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _data(found: Comparison) -> str:
    shares = [run.shares() for run in found.runs]
    names = sorted(set().union(*shares))
    lines = []
    for name in names:
        cells = ""
        for index, each in enumerate(shares):
            share = each.get(name, 0.0) if each else None
            bar = "" if share is None else (
                f'<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none"><rect class="f{index}" width="'
                f'{min(share, 1) * 100:.1f}" height="6"/></svg>'
            )  # fmt: skip
            cells += f"<td>{'–' if share is None else f'{share:.1%}'}{bar}</td>"
        lines.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
    heads = "".join(f'<th scope="col">{_letter(index)}</th>' for index in range(len(found.runs)))
    table = (
        f'<h3>Realised shares of all samples</h3><div class="scroll"><table><thead><tr><th scope="col">dataset</th>'
        f"{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
    entries = "".join(
        f'<li class="{_same(entry["same"])}">{text(" and ".join(entry["runs"]))}: {text(entry["text"])}</li>'
        for entry in found.ledgers
    )
    shown = table if names else "<p>No shares stored.</p>"
    return f"{shown}<h3>Ledgers: did they see the same data?</h3><ul>{entries}</ul>"


def _same(same: bool | None) -> str:
    return "unknown" if same is None else "same" if same else "parted"


def _config(found: Comparison) -> str:
    heads = "".join(f'<th scope="col">{_letter(index)}</th>' for index in range(len(found.runs)))
    lines = []
    for key, values in found.config.items():
        cells = "".join(f"<td>{'–' if value is None else text(value)}</td>" for value in values)
        lines.append(f'<tr><th scope="row">{text(key)}</th>{cells}</tr>')
    same = f'<p class="small">{found.same_settings} settings are the same in all runs.</p>'
    if not lines:
        return "<p>Nothing differs.</p>" + same
    return (
        f'<div class="scroll"><table class="config"><thead><tr><th scope="col">setting</th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{same}"
    )


def _panels(found: Comparison, panels: Sequence[Panel], what: str) -> str:
    if not panels:
        return "<p>None stored.</p>"
    content = ""
    for panel in panels:
        shown = []
        for index, picture in enumerate(panel.pictures):
            name = f"{_letter(index)} {text(found.runs[index].stored.name)}"
            if picture is None:
                shown.append(f'<figure><figcaption>{name}</figcaption><p class="missing">no such picture</p></figure>')
                continue
            width, height = picture.size
            source = "data:image/webp;base64," + base64.b64encode(picture.content).decode()
            alt = text(f"{what}, {panel.dataset} {panel.name}, run {LETTERS[index]}")
            shown.append(
                f"<figure><figcaption>{name}, step {picture.step}</figcaption>"
                f'<div class="scroll"><img width="{width}" height="{height}" alt="{alt}" src="{source}">'
                "</div></figure>"
            )
        title = text(f"{panel.dataset} {panel.name}")
        content += f'<h3>{title}</h3><div class="panel">{"".join(shown)}</div>'
    return content
