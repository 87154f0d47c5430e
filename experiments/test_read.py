"""The reading page: it shows the code that METHOD.md names, offline and within the window."""

import json
import re
from html import unescape
from pathlib import Path

import pytest

from experiments import read

TEXT = read.METHOD.read_text(encoding="utf-8")
NAMES = re.findall(r"`([a-z]\w*(?:\.\w+)+)(?<!\.py)`", TEXT)
MEASURE = """<script>
const all = kinds => [...document.querySelectorAll(kinds)];
const wide = all("html, .text, .formula, .code, p, table").filter(
  e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 60));
const beside = all("section:not(.wide)").every(
  ({children: [text, code]}) => code.offsetLeft >= text.offsetLeft + text.offsetWidth);
const asked = performance.getEntriesByType("resource").length;
document.title = "measured " + JSON.stringify({wide, beside, asked});
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The file that the command writes."""
    path = tmp_path_factory.mktemp("read") / "page.html"
    read.main(["--out", str(path)])
    return path


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_what_method_md_names(name, page):
    html = page.read_text(encoding="utf-8")
    caption, code = html.split(f'<figure id="{name}">')[1].split("</figure>")[0].split("<div", 1)
    shown = re.findall("(?m)^ *([0-9]+) ?(.*)$", unescape(re.sub("<.*?>", "", f"<div{code}")))
    path = page.parent / re.search('href="(.*?)"', caption)[1]
    lines = path.read_text(encoding="utf-8").splitlines()
    assert all(lines[int(number) - 1].strip() == line.strip() for number, line in shown)
    assert any(re.match(rf"(def|class) {name.split('.')[-1]}\b", line) for _, line in shown)


@pytest.mark.parametrize("name", ["attacks.magic", "models.Collaboration.magic", "magic.pgd"])
def test_a_name_that_the_code_lacks_is_refused(name, tmp_path, monkeypatch, refused):
    monkeypatch.setattr(read, "METHOD", tmp_path / "METHOD.md")
    read.METHOD.write_text(f"Not `attacks.pgd` but `{name}`.")
    assert name in refused(read, "--out", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_every_formula_and_every_box_is_drawn(page):
    html = page.read_text(encoding="utf-8")
    inline, blocks = re.findall(r"\$`", TEXT), re.findall(r"(?s)```math(.*?)```", TEXT)
    parts = sum(1 + block.count(r"\qquad") for block in blocks)
    formulas = re.findall("(?s)<math.*?</math>", html)
    assert len(formulas) == len(inline) + parts
    assert not any("\\" in formula for formula in formulas)  # a command that was not understood
    picture = re.sub("<.*?>", "", re.search("(?s)<svg.*?</svg>", html)[0])
    labels = re.findall('"(.*?)"', re.search("(?s)```mermaid(.*?)```", TEXT)[1])
    assert all(label.replace("_", "") in picture for label in labels)


def test_links_lead_to_files_or_to_the_page_itself(page):
    html = page.read_text(encoding="utf-8")
    for link in re.findall('(?:href|src)="(?!https:)(.*?)"', html):
        own = link.startswith("#") and f'id="{link[1:]}"' in html
        assert own or (page.parent / link.split("#")[0]).is_file(), link


def test_the_page_replaces_itself_and_no_other_file(page, tmp_path, capsys, refused):
    read.main(["--out", str(page)])
    other = tmp_path / "other.html"
    other.write_text("<p>mine")
    assert "is there already" in refused(read, "--out", other) and other.read_text() == "<p>mine"
    assert "ending in .html" in refused(read, "--out", tmp_path / "page.txt")
    assert not list(Path(tmp_path).glob(".*lock"))


@pytest.mark.parametrize("width", [1366, 1920])
def test_a_laptop_shows_text_beside_code_without_a_network(width, page, tmp_path, browser):
    copy = tmp_path / "copy.html"
    copy.write_text(page.read_text(encoding="utf-8") + MEASURE, encoding="utf-8")
    shown = browser(copy.as_uri(), f"--window-size={width},768", "--dump-dom")
    measured = json.loads(unescape(re.search("<title>measured (.*)</title>", shown)[1]))
    assert measured == {"wide": [], "beside": True, "asked": 0}
