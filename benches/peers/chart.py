"""A chart as SVG: a panel for each figure, a line for each server, with a dot at the median, a bar from the least to the most, and the values in
words. The scale is logarithmic, since the servers differ by more than ten times; a dot has no length that could be misread on it.
"""

import math
from html import escape

WIDTH = 900
LABEL = 260
RIGHT = 220
ROW = 24
HEAD = 44
FOOT = 34
MARGIN = 16

# Both backgrounds are the chart's own, so that it is legible wherever it is shown.
STYLE = """
svg { font: 13px system-ui, sans-serif; color-scheme: light dark; }
.ground { fill: #ffffff } text { fill: #1f2328 } .faint { fill: #59636e; font-size: 11px } .title { font-weight: 600 }
.grid { stroke: #d1d9e0 } .dot { fill: #59636e } .spread { stroke: #59636e; stroke-width: 3; opacity: .45 }
.own { fill: #bc4c00 } .own.spread { stroke: #bc4c00 } .own.name { font-weight: 600 }
@media (prefers-color-scheme: dark) {
.ground { fill: #0d1117 } text { fill: #f0f6fc } .faint { fill: #9198a1 }
.grid { stroke: #3d444d } .dot { fill: #9198a1 } .spread { stroke: #9198a1 }
.own { fill: #f0883e } .own.spread { stroke: #f0883e }
}
"""


def draw(panels, own):
    """`panels` are (title, [(name, {median, ratio, least, most, exact})]); the one whose name begins with `own` stands out."""
    panels = [(title, [(name, found) for name, found in rows if found["median"] > 0]) for title, rows in panels]
    panels = [(title, rows) for title, rows in panels if rows]
    note = "Dots are medians, bars reach from the least to the most of all rounds; the scales are logarithmic. Less is better."
    parts, top = [f'<text class="faint" x="{MARGIN}" y="{MARGIN + 10}">{note}</text>'], MARGIN + 28
    for title, rows in panels:
        parts.append(panel(title, rows, own, top))
        top += HEAD + ROW * len(rows) + FOOT
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" role="img" aria-label="Signalpost beside its peers">\n'
        f"<style>{STYLE}</style>\n"
        f'<rect class="ground" width="{WIDTH}" height="{top}"/>\n{body}\n</svg>\n'
    )


def panel(title, rows, own, top):
    least = min(max(found["least"], found["median"] / 100) for _, found in rows)
    most = max(found["most"] for _, found in rows)
    low, high = math.log10(least) - 0.05, math.log10(most) + 0.05
    bottom = top + HEAD + ROW * len(rows)

    def x(value):
        share = (math.log10(max(value, least)) - low) / (high - low)
        return LABEL + share * (WIDTH - LABEL - RIGHT)

    out = [f'<text class="title" x="{MARGIN}" y="{top + 16}">{escape(title)}</text>']
    last = -math.inf
    for tick in ticks(least, most):
        if x(tick) - last < 44:
            continue
        last = x(tick)
        out.append(f'<line class="grid" x1="{last:.1f}" x2="{last:.1f}" y1="{top + HEAD - 14}" y2="{bottom}"/>')
        out.append(f'<text class="faint" text-anchor="middle" x="{last:.1f}" y="{bottom + 14}">{round(tick, 6):,g}</text>')
    for index, (name, found) in enumerate(rows):
        y = top + HEAD + ROW * index
        mark = " own" if name.startswith(own) else ""
        ratio = f", {found['ratio']:.1f} × floor" if found["ratio"] is not None and name != "floor" else ""
        doubt = "" if found["exact"] else ", not exact"
        value = f"{found['median']:,.0f}" if found["median"] >= 100 else f"{found['median']:.3g}"
        out.append(f'<text class="name{mark}" x="{MARGIN}" y="{y + 4}">{escape(name)}</text>')
        out.append(f'<line class="spread{mark}" x1="{x(found["least"]):.1f}" x2="{x(found["most"]):.1f}" y1="{y}" y2="{y}"/>')
        out.append(f'<circle class="dot{mark}" cx="{x(found["median"]):.1f}" cy="{y}" r="5"/>')
        out.append(f'<text x="{WIDTH - RIGHT + 16}" y="{y + 4}">{value}{ratio}{doubt}</text>')
    return "\n".join(out)


def ticks(least, most):
    """Round numbers between the two, two at least; where there are none, the two themselves."""
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    for steps in ([1, 2, 5], range(1, 10), [step / 10 for step in range(10, 100)]):
        within = [step * 10.0**power for power in powers for step in steps if least <= step * 10.0**power <= most]
        if len(within) > 1:
            return within
    return [least, most]
