"""The records behind every table: results/runs.jsonl has a line for each run of
experiments.compare, and results/attacks.jsonl one for each model and eps of experiments.evaluate.

    python -m experiments.records runs/compare/*.json --name compare    # appends these files

A line has the name of its file, "compare/digits-soe-...-seed0.json", by which the marks in the
texts choose. It leaves out who answers under attack, and which images were chosen.
"""

import functools
import json
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path, PurePath

from support import files, options

RESULTS = Path(__file__).parent / "results"
RUNS, ATTACKS = "runs.jsonl", "attacks.jsonl"


def each_text(change: Callable[[str], str], value: object) -> object:
    """The same value, every text in its lists and dictionaries changed."""
    if isinstance(value, dict):
        return {key: each_text(change, item) for key, item in value.items()}
    if isinstance(value, list):
        return [each_text(change, item) for item in value]
    return change(value) if isinstance(value, str) else value


def to_hex(text: str) -> str:
    """Bits "0110.." of eight images or more as "0x", their number, ":" and hexadecimal digits."""
    return f"0x{len(text)}:{int(text, 2):x}" if re.fullmatch("[01]{8,}", text) else text


def to_bits(text: str) -> str:
    if not (packed := re.fullmatch("0x([0-9]+):([0-9a-f]+)", text)):
        return text
    return f"{int(packed[2], 16):0{packed[1]}b}"


def encode(name: str, content: dict) -> list[dict]:
    """The lines of one file's content: one of compare's, one for each eps of evaluate's."""
    if "method" in content:
        records = [dict(content)]
    else:
        common = {key: value for key, value in content.items() if key not in ("eps", "images")}
        records = [common | {"eps": eps} | result for eps, result in content["eps"].items()]
    for record in records:
        columns = record.pop("specialisation")
        record["specialisation"] = {key: columns[key] for key in columns if key == "clean"}
    return [{"file": name, **each_text(to_hex, record)} for record in records]


def decode(lines: list[dict]) -> dict:
    """What `encode` has kept of a file, whose lines these are."""
    first, *_ = lines = [each_text(to_bits, line) for line in lines]
    if "method" in first:
        return {key: value for key, value in first.items() if key != "file"}
    common = {key: first[key] for key in ("command", "row", "model", "versions", "device")}
    leave = {"file", "eps", *common}
    return common | {
        "eps": {line["eps"]: {k: v for k, v in line.items() if k not in leave} for line in lines}
    }


@functools.cache
def stored(folder: Path = RESULTS) -> dict[str, dict]:
    """{name: a file's content}, with its "name", and "file", a link to its first line.

    Raises ValueError for a damaged line.
    """
    contents = {}
    for store in (RUNS, ATTACKS):
        if not (folder / store).exists():
            continue
        lines, links = {}, {}
        with files.reading(folder / store, "records"):
            for number, text in enumerate((folder / store).read_text().splitlines(), 1):
                line = json.loads(text)
                lines.setdefault(line["file"], []).append(line)
                links.setdefault(line["file"], f"results/{store}#L{number}")
            for name in lines:
                contents[name] = decode(lines[name]) | {"name": name, "file": links[name]}
    return contents


def matching(pattern: str) -> list[dict]:
    """The records, and the other files in results/, whose name fits: "compare/digits-*.json"."""
    paths = {path.relative_to(RESULTS).as_posix(): path for path in RESULTS.rglob("*.json")}
    records = stored(RESULTS)
    names = [n for n in paths | records if n.count("/") == pattern.count("/")]
    matches = sorted((n for n in names if PurePath(n).match(pattern)), key=lambda n: n.split("/"))
    return [dict(records[n]) if n in records else read(paths[n], f"results/{n}") for n in matches]


def read(path: Path, link: str | None = None) -> dict:
    """What one JSON file says, and "file": where it is."""
    with files.reading(path, "result of a run"):
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it is no dictionary")
        if "method" in content and not {"settings", "table"} <= set(content):
            raise ValueError("settings and table are missing")
    return content | {"file": link or str(path)}


def append(paths: list[Path], name: str) -> int:
    """Adds these files' records under `name`; returns how many lines. Raises ValueError where one
    is stored already, or was written by another command."""
    lines: dict[str, list[dict]] = {RUNS: [], ATTACKS: []}
    names = set(stored(RESULTS))
    for path in paths:
        content, key = read(path), f"{name}/{path.name}"
        del content["file"]
        if key in names:
            raise ValueError(f"{key} is stored already")
        names.add(key)
        if "method" not in content and not isinstance(content.get("eps"), dict):
            raise ValueError(f"{path} was written by neither compare nor evaluate")
        lines[RUNS if "method" in content else ATTACKS] += encode(key, content)
    for store, new in lines.items():
        before = (RESULTS / store).read_bytes() if (RESULTS / store).exists() else b""
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in new)
        files.write(RESULTS / store, before + text.encode())
    stored.cache_clear()
    return sum(map(len, lines.values()))


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.records")
    written = "what experiments.compare or experiments.evaluate has written"
    parser.add_argument("files", nargs="+", metavar="FILE", help=written)
    belonging = "the set that they belong to, as the marks in the texts name it"
    parser.add_argument("--name", required=True, help=belonging)
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        run(args)


def run(args: Namespace) -> None:
    """What `main` does, once the arguments are parsed. Raises ValueError or OSError."""
    if not re.fullmatch(r"[\w-]+", args.name):
        raise ValueError(f"--name {args.name}: letters, digits, _ and - alone")
    count = append(list(map(Path, args.files)), args.name)
    print(f"added {count} lines to {RESULTS}")


if __name__ == "__main__":
    main()
