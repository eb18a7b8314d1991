#!/usr/bin/env python3
"""Draws the way of an event, README's first picture: docs/pictures/flow.py writes flow-light.svg and flow-dark.svg beside itself."""

from pathlib import Path

WIDTH, HEIGHT = 880, 250
PALETTES = {
    "light": {"ink": "#1f2328", "soft": "#59636e", "line": "#818b98", "box": "#ffffff", "server": "#f6f8fa", "wasm": "#ddf4ff", "edge": "#0969da"},
    "dark": {"ink": "#f0f6fc", "soft": "#9198a1", "line": "#656c76", "box": "#0d1117", "server": "#151b23", "wasm": "#121d2f", "edge": "#4493f8"},
}


def draw(colors):
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="14">',
        "<title>A backend posts an event. A routing policy decides who is told, each user's mailbox keeps the message, a formatting policy "
        "words it, and WebSockets carry it to every device of the user.</title>",
        f'<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{colors["line"]}"/></marker></defs>',
    ]

    def box(x, y, width, height, title, about=(), fill="box", edge="line"):
        parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{colors[fill]}" stroke="{colors[edge]}" stroke-width="1.5"/>')
        middle, top = x + width / 2, y + height / 2 - 9 * len(about) + 5
        parts.append(f'<text x="{middle}" y="{top}" text-anchor="middle" font-weight="600" fill="{colors["ink"]}">{title}</text>')
        for number, line in enumerate(about, 1):
            parts.append(f'<text x="{middle}" y="{top + 19 * number}" text-anchor="middle" font-size="12" fill="{colors["soft"]}">{line}</text>')

    def arrow(x1, y1, x2, y2):
        parts.append(f'<path d="M{x1} {y1} {x2} {y2}" stroke="{colors["line"]}" stroke-width="1.5" fill="none" marker-end="url(#head)"/>')

    def note(x, y, text):
        parts.append(f'<text x="{x}" y="{y}" text-anchor="middle" font-size="12" fill="{colors["soft"]}">{text}</text>')

    parts.append(f'<rect x="172" y="14" width="540" height="222" rx="12" fill="{colors["server"]}" stroke="{colors["line"]}" stroke-dasharray="5 4"/>')
    parts.append(f'<text x="188" y="38" font-weight="600" fill="{colors["ink"]}">Signalpost</text>')
    note(548, 38, "replace a policy while clients stay connected")
    box(16, 90, 96, 66, "Backend", ["any language"])
    box(196, 84, 144, 78, "Routing policy", ["WebAssembly:", "who is told"], "wasm", "edge")
    for y in (64, 123, 182):
        box(380, y - 18, 120, 36, {64: "Mailbox 1001", 123: "Mailbox 2002", 182: "Mailbox 3003"}[y])
    box(540, 84, 158, 78, "Formatting policy", ["WebAssembly:", "in what words"], "wasm", "edge")
    for y, device in ((52, "Phone"), (98, "Laptop"), (144, "Phone"), (190, "Car")):
        box(776, y - 15 + 2, 88, 32, device)
    arrow(114, 123, 193, 123)
    note(142, 114, "POST")
    note(142, 142, "event")
    for y in (64, 123, 182):
        arrow(342, 123 + (y - 123) / 6, 377, y)
        arrow(502, y, 537, 123 + (y - 123) / 6)
    for y in (52, 98, 144, 190):
        arrow(700, 123 + (y - 123) / 6, 773, y + 3)
    note(440, 222, "one ordered mailbox for each user, kept on disk")
    note(820, 226, "WebSockets")
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


for name, colors in PALETTES.items():
    Path(__file__).with_name(f"flow-{name}.svg").write_text(draw(colors), encoding="utf-8")
