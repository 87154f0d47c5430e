"""METHOD.md as a page, each formula beside the code that computes it: one file, read offline.

    python -m experiments.read    # writes reading.html

On the left stands METHOD.md; on the right the source, as it is now, of each function that the text
names as `module.function`, where the text first names it.
"""

import inspect
import os
import pkgutil
import re
from html import escape, unescape
from itertools import pairwise
from pathlib import Path
from textwrap import dedent

from latex2mathml import converter
from markdown_it import MarkdownIt
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from support import files, options

ROOT = Path(__file__).parents[1]
METHOD = ROOT / "METHOD.md"
MARK = "<!doctype html><!-- written by python -m experiments.read -->\n"
NAMED = re.compile(r"<code>([a-z]\w*(?:\.\w+)+)(?<!\.py)</code>")  # `module.function`, no file
MARKDOWN = MarkdownIt().enable("table")
STYLE = Path(__file__).with_suffix(".css").read_text()
HEAD = """<marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7"
orient="auto"><path d="M0 0L8 4L0 8"/></marker>"""  # of an arrow


def mathml(latex: str, display: str = "inline") -> str:
    """A formula of METHOD.md as MathML."""
    latex = re.sub(r"\\mathrm\{(\w+)\}", r"\\operatorname{\1}", latex)
    latex = latex.replace(r"\arg", r"\operatorname{arg}")
    if display == "block":  # what stands below a word there
        latex = re.sub(r"\\(max|min|sum)_", r"\\\1\\limits_", latex)
    tags = converter.convert(latex, display=display).replace("<mi>:</mi>", "<mo>:</mo>")
    tags = tags.replace("<mo>&#x02016;", '<mo stretchy="false">&#x02016;')  # the bars of a norm
    word = r'<mo lspace="0.17em" rspace="0.17em">\1</mo>'  # upright, and apart from its neighbours
    return re.sub(r"<m[io]>([A-Za-z]{2,})</m[io]>", word, tags)


def formula(latex: str) -> str:
    """A ```math block, whose parts between \\qquad may stand below each other."""
    parts = (mathml(part.strip(), "block") for part in latex.split(r"\qquad"))
    return f'<div class="formula">{"".join(parts)}</div>'


def diagram(text: str) -> str:
    """A mermaid flowchart from left to right as SVG: a box's column is the length of the longest
    way to it; a dashed arrow's words stand below."""
    dashed = re.findall(r'(\w+) -\. "(.*?)" \.-> (\w+)', text)
    solid = []
    for line in re.sub(r'\[".*?"\]', "", text).splitlines():  # a & b --> c & d
        groups = [re.findall(r"\w+", group) for group in line.split("-->")]
        solid += [(a, b) for left, right in pairwise(groups) for a in left for b in right]
    labels = dict(re.findall(r'(\w+)\["(.*?)"\]', text))
    column = dict.fromkeys(labels, 0)
    for _ in labels:
        column |= {b: max(column[b], column[a] + 1) for a, b in solid}
    columns = [[a for a in labels if column[a] == c] for c in range(max(column.values()) + 1)]
    height, place = 48 * max(map(len, columns)), {}
    for c, boxes in enumerate(columns):
        # long arrows run above the boxes that they skip, to one as high as those before it
        boxes.sort(key=lambda a: -max((column[z] for b, z in solid if b == a), default=0))
        for row, box in enumerate(boxes):
            before = [place[a][1] for a, b in solid if b == box]
            alone = before and len(boxes) == 1
            y = sum(before) / len(before) if alone else height * (row + 0.5) / len(boxes)
            place[box] = 10 + 205 * c, y  # the middle of the left side
    width = 205 * len(columns) - 20
    parts = [f'<svg viewBox="0 0 {width} {height + 24 * len(dashed) + 30}" width="{width}">{HEAD}']
    for a, b in solid:
        (x, y), (u, v) = place[a], place[b]
        parts.append(f'<path d="M{x + 165} {y}C{x + 190} {y} {u - 25} {v} {u} {v}"/>')
    for k, (a, words, b) in enumerate(dashed):
        (x, y), (u, v), low = place[a], place[b], height + 38 + 24 * k
        way = f"M{x} {y}C{x - 90} {y} {u + 190} {v - 45} {u + 140} {v - 17}"
        if a in columns[-1]:  # back below all boxes
            way = f"M{x + 82} {y}V{height + 12}H{u + 82}V{v + 17}"
        parts.append(f'<g class="dashed-{k % 2}"><path d="{way}"/><path d="M10 {low}h50"/>')
        parts.append(f'<text x="70" y="{low + 4}">{escape(words)}</text></g>')
    for box, (x, y) in place.items():
        label = re.sub(r"_(\w)", r'<tspan dy="4" font-size="10">\1</tspan>', escape(labels[box]))
        parts.append(f'<rect x="{x}" y="{y - 17}" width="165" height="34" rx="5"/>')
        parts.append(f'<text x="{x + 82}" y="{y + 4}" text-anchor="middle">{label}</text>')
    return f"<figure>{''.join(parts)}</svg></figure>"


def source(name: str, root: str) -> str:
    """The code of `module.function` with its lines' numbers, and a link to its file, `root` being
    the way to the project. Raises ValueError where the project has no such function."""
    try:
        code = pkgutil.resolve_name(name)
        lines, first = inspect.getsourcelines(code)
        path = Path(inspect.getsourcefile(code)).relative_to(ROOT).as_posix()
    except (ImportError, AttributeError, TypeError, ValueError):
        raise ValueError(f"METHOD.md names {name}, which the code lacks") from None
    numbered = HtmlFormatter(linenos="inline", linenostart=first, cssclass="code")
    code = highlight(dedent("".join(lines)), PythonLexer(), numbered)
    link = f'<a href="{root}/{path}">{path}</a>, lines {first} to {first + len(lines) - 1}'
    return f'<figure id="{name}"><figcaption><b>{name}</b> in {link}</figcaption>{code}</figure>'


def rows(text: str) -> list[tuple[str, list[str]]]:
    """METHOD.md in pieces: (Markdown, the names whose code it is the first to name)."""
    lines, pieces, known = text.splitlines(keepends=True), [("", [])], set()
    blocks = [t for t in MARKDOWN.parse(text) if t.map and t.level < 2]
    starts = [t.map[0] for t in blocks if t.level == 0 or t.type == "list_item_open"]
    for start, end in pairwise([*dict.fromkeys(starts), len(lines)]):
        block = "".join(lines[start:end])
        names = [n for n in dict.fromkeys(NAMED.findall(MARKDOWN.render(block))) if n not in known]
        known.update(names)
        before, others = pieces[-1]
        if block.startswith("## ") or (names and others):
            pieces.append((block, names))
        else:
            pieces[-1] = before + block, others + names
    return pieces


def rendered(text: str, root: str) -> str:
    """A piece of METHOD.md as HTML."""
    html, block = MARKDOWN.render(text), '(?s)<pre><code class="language-{}">(.*?)</code></pre>'
    html = re.sub(block.format("math"), lambda m: formula(unescape(m[1])), html)
    html = re.sub(block.format("mermaid"), lambda m: diagram(unescape(m[1])), html)
    html = re.sub(r"\$<code>(.*?)</code>\$", lambda m: mathml(unescape(m[1])), html)
    html = re.sub(r'href="(?!\w+:|#)', f'href="{root}/', html)
    return NAMED.sub(r'<a href="#\1">\g<0></a>', html)


def page(folder: Path) -> str:
    """The whole page, for a file in `folder`. Raises ValueError, OSError."""
    root = Path(os.path.relpath(ROOT, folder.resolve())).as_posix()
    colours = HtmlFormatter(style="friendly").get_style_defs(".code")
    parts = [MARK, '<html lang="en"><meta charset="utf-8"><title>The method and its code</title>']
    parts.append(f"<style>{colours}\n{STYLE}</style>")
    for text, names in rows(METHOD.read_text(encoding="utf-8")):
        code = "".join(source(name, root) for name in names)
        parts.append(f'<section{"" if code else " class=wide"}><div class="text">')
        parts.append(f"{rendered(text, root)}</div><div>{code}</div></section>\n")
    return "".join(parts)


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.read")
    parser.add_argument("--out", default="reading.html", metavar="FILE", help="the page to write")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        out = Path(args.out)
        if not (out.is_file() and out.read_bytes().startswith(MARK.encode())):
            files.check_new(out, ".html", "--out")
        files.write(out, page(out.parent).encode())
        print(f"wrote {out}")


if __name__ == "__main__":
    main()
