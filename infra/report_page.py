"""A report of differences as one HTML page: no network, light and dark, plots as inline SVG.

Takes the report as plain data, as `--json` prints it, so the page shows what is printed there.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5b6670; --paper: #ffffff; --line: #d9dee3;
  --live: #5b6f8c; --edited: #c2410c; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b1; --paper: #14181c;
  --line: #333b43; --live: #9db4d6; --edited: #fb923c; --card: #1c2228; } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; font: 16px/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--paper) }
h1 { font-size: 1.5rem; margin: .5rem 0 } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
p.soft, .soft { color: var(--soft) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .3rem 0 }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
caption { text-align: left; color: var(--soft); padding-bottom: .2rem }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem }
figure { margin: 0; padding: .6rem; background: var(--card); border-radius: .4rem }
figure svg { width: 100%; height: auto; display: block } figcaption { font-size: .85rem }
.live { color: var(--live) } .edited { color: var(--edited) }
details { margin: .3rem 0 } summary { cursor: pointer }
"""

# What matplotlib is told, and what of the page's own it becomes.
_COLOURS = {"#010203": "currentColor", "#010204": "var(--live)", "#010205": "var(--edited)"}
_INK, _LIVE, _EDITED = _COLOURS
_MOST_PLOTS = 24


def page(report: Mapping[str, Any], *, title: str) -> str:
    """The page of a report.

    Args:
        report: `streams.lab.compare.Report` as plain data.
    """
    sides = [f'<b class="{side}">{escape(report[side])}</b>' for side in ("live", "edited")]
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{report['events']:,} records of {escape(report['read'])}: {sides[1]} against {sides[0]}</p>",
        _table(
            "Rows by source",
            ("source", "records", "live rows", "edited rows", "in both", "lost", "gained"),
            [
                [s[k] for k in ("source", "events", "live", "edited", "both", "lost", "gained")]
                for s in report["sources"]
            ],
        ),
        _decisions(report["decisions"]),
        *(_source(source) for source in report["sources"]),
        _costs(report["costs"]),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        + "".join(body)
        + "</main></body></html>\n"
    )


def _source(source: Mapping[str, Any]) -> str:
    parts = [f"<h2>{escape(source['source'])}</h2>"]
    if source["rules"]:
        rows = [[rule, n, m, m - n] for rule, (n, m) in source["rules"].items()]
        parts.append(_table("Refused or dropped, by rule", ("rule", "live", "edited", "change"), rows))
    if source["tags"]:
        rows = [[t[k] for k in ("tag", "live", "edited", "gained", "lost")] for t in source["tags"]]
        parts.append(
            _table(
                "Rows by tag; gained and lost among rows in both",
                ("tag", "live", "edited", "gained", "lost"),
                rows,
            )
        )
    moved = [column for column in source["columns"] if column["moved"] or column["changed"]]
    parts.append(f"<h3>Columns whose distribution moved, or whose values changed: {len(moved)}</h3>")
    if not moved:
        parts.append(
            '<p class="soft">None: by Kolmogorov-Smirnov, or Hellinger, p below .005 and at least .02.</p>'
        )
    parts.append(f'<div class="plots">{"".join(_figure(column) for column in moved[:_MOST_PLOTS])}</div>')
    if source["examples"]:
        parts.append("<h3>Example rows</h3>")
    for example in source["examples"]:
        some = example["some"]
        names = list(some[0]) if some else []
        table = _table("", names, [[row[name] for name in names] for row in some])
        parts.append(
            f"<details><summary>{escape(example['difference'])}: {example['rows']:,} rows</summary>"
            f"{table}</details>"
        )
    return f"<section>{''.join(parts)}</section>"


def _figure(column: Mapping[str, Any]) -> str:
    said = (
        f"distance {column['distance']:.3f}, p {column['p']:.2g}"
        if column["distance"] is not None
        else column["reason"]
    )
    said += f"; {column['changed']:,} values changed" if column["changed"] else ""
    name = escape(column["column"])
    return (
        f'<figure><div role="img" aria-label="{name}, live and edited: {escape(said)}">{_drawn(column)}</div>'
        f"<figcaption><b>{name}</b> {escape(said)}</figcaption></figure>"
    )


def _drawn(column: Mapping[str, Any]) -> str:
    """Distribution functions of numbers, bars of all else, in the page's own colours."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": column["column"], "font.size": 9}):
        figure, axis = plt.subplots(figsize=(4, 2.4), layout="constrained")
        sides = ((column["live"], _LIVE, "live"), (column["edited"], _EDITED, "edited"))
        if column["numeric"]:
            for points, colour, label in sides:
                axis.plot([v for v, _ in points], [s for _, s in points], color=colour, label=label, lw=1.6)
            axis.set_ylabel("share of rows up to", color=_INK)
        else:
            names = [str(name)[:18] for name, _ in column["live"]]
            for i, (points, colour, label) in enumerate(sides):
                places = [at + (i - 0.5) * 0.4 for at in range(len(points))]
                axis.barh(places, [share for _, share in points], 0.4, color=colour, label=label)
            axis.set_yticks(range(len(names)), names)
            axis.invert_yaxis()
            axis.set_xlabel("share of rows", color=_INK)
        axis.tick_params(colors=_INK)
        for side, spine in axis.spines.items():
            spine.set_color(_INK)
            spine.set_visible(side in ("left", "bottom"))
        axis.legend(frameon=False, labelcolor=_INK, fontsize=8)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    drawn = sink.getvalue()
    for told, own in _COLOURS.items():
        drawn = drawn.replace(told, own)
    # One page holds many: its ids are told apart, and the XML's own beginning is none of HTML.
    return drawn[drawn.index("<svg") :].replace("figure_1", f"plot-{escape(column['column'])}")


def _decisions(decisions: Mapping[str, Any]) -> str:
    if not any(decisions["windows"]):
        return ""
    (live, edited), (yes, yes_edited) = decisions["windows"], decisions["yes"]
    said = (
        f"<h2>Decisions</h2><p>Live: {yes} yes of {live} windows. Edited: {yes_edited} yes of {edited}.</p>"
    )
    if any(decisions["answers"]):
        (answers, answers_edited), (labelled, labelled_edited) = decisions["answers"], decisions["labelled"]
        said += (
            f"<p>Answers of the live model, with their label: live {labelled:,} of {answers:,}, "
            f"edited {labelled_edited:,} of {answers_edited:,}.</p>"
        )
    if decisions["unsaid"]:
        unsaid = [[u[k] for k in ("condition", "live", "edited", "reason")] for u in decisions["unsaid"]]
        columns = ("condition", "live windows", "edited windows", "reason, the last time")
        said += _table("Could not say", columns, unsaid)
    if not decisions["differing"]:
        return said
    rows = [
        [d["name"], d["live"] or "none", d["edited"] or "none", d["reason"]] for d in decisions["differing"]
    ]
    return said + _table("Decided otherwise", ("window (UTC)", "live", "edited", "reason"), rows)


def _costs(costs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    by: dict[tuple[str, str], dict[str, float]] = {}
    for side, each in costs.items():
        for cost in each:
            by.setdefault((cost["source"], cost["step"]), {})[side] = cost["us_per_event"]
    if not by:
        return ""
    rows = [[step, source, us.get("live"), us.get("edited")] for (source, step), us in by.items()]
    return "<h2>Cost</h2>" + _table(
        "CPU time by itself, µs an event", ("step", "source", "live", "edited"), rows
    )


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{said}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(value: Any) -> str:
    if value is None:
        return '<span class="soft">none</span>'
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return escape(", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)[:200])
