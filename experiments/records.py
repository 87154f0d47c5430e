"""The records behind every table: results/runs.jsonl has a line for each run of
experiments.compare, and results/attacks.jsonl one for each model and eps of experiments.evaluate.

    python -m experiments.records runs/compare/*.json --name compare    # appends these files

A line has the name of its file, "compare/digits-soe-...-seed0.json", by which the marks in the
texts choose. It leaves out who answers under attack, and which images were chosen.

`frame` makes one pandas table of records; every table, figure and claim is made of that.
"""

import functools
import json
import re
import statistics
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

import pandas as pd

from experiments.intervals import images
from support import files, options

RESULTS = Path(__file__).parent / "results"
RUNS, ATTACKS = "runs.jsonl", "attacks.jsonl"
NAMES = {"cifar10-jpeg-10000": "photos", "cifar10-10000": "CIFAR-10, 10,000 images"}
NAMES |= {"cifar10-jpeg": "50,000 photos", "cifar10": "CIFAR-10"}
NAMES |= {"digits-val": "held-out digits", "photos-val": "held-out photos"}


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


# ------------------------------------------------------------------------------------- the frame


@dataclass(frozen=True, order=True)
class Place:
    """Where something was measured."""

    data: str
    depth: int
    eps: float  # of the attack

    def __str__(self) -> str:
        eps = f"eps {self.eps:g}" if self.eps else "without attacks"
        return f"{NAMES.get(self.data, self.data)}, ResNet{self.depth}, {eps}"


def frame(results: Iterable[dict]) -> pd.DataFrame:
    """A row a run of compare, a model that evaluate attacked at one eps, or another file: `record`
    is all that it says. In the order of their seeds."""
    rows = []
    for result in results:
        if "method" in result:
            settings = result["settings"]
            rows.append(row(result, settings, result["method"], settings["eps"]))
        elif isinstance(result.get("eps"), dict):
            command, method = result["command"], trained_as(result["model"])
            method += f"'s {command['part']}" if command["part"] else ""
            method += f" at T = {T:g}" if (T := command.get("temperature")) is not None else ""
            for eps, of_eps in result["eps"].items():
                rows.append(row(result | of_eps, result["model"], method, float(eps)))
        else:
            none = dict.fromkeys(["method", "data", "place", "units", "experts", "alone", "any"])
            none |= dict.fromkeys(["depth", "M", "eps", "trained_eps", "seed", "epochs"], 0)
            rows.append(none | {"correct": {}, "file": result.get("file"), "record": result})
    return pd.DataFrame(rows).sort_values("seed", kind="stable", ignore_index=True)


def row(record: dict, settings: dict, method: str, eps: float) -> dict:
    """The columns of one run or attacked model. Accuracies are in %, those of columns it has not
    are not a number (NaN); "correct" is {column: 0 or 1 for each image, an array [N]}."""
    correct = {column: images([bits])[0] for column, bits in record["correct"].items()}
    table = record["table"]
    experts = [cells["clean"] for name, cells in table.items() if name.startswith("expert")]
    return {
        "method": method,
        "data": settings["data_name"],
        "depth": settings["depth"],
        "M": settings["n"],
        "eps": eps,  # of the attack
        "trained_eps": settings["eps"],
        "place": Place(settings["data_name"], settings["depth"], eps),
        **{name: settings[name] for name in ("seed", "epochs")},
        "units": record.get("units"),
        **{column: 100 * bits.sum() / len(bits) for column, bits in correct.items()},
        "experts": experts,  # clean accuracy of each
        "alone": statistics.mean(experts),
        "any": table["any"]["clean"],  # of clean images, at least one expert has them correct
        "correct": correct,
        "name": record.get("name"),
        "file": record["file"],  # a link
        "record": record,
    }


def trained_as(settings: dict) -> str:
    """A model's method, and how an ensemble was trained: "plain-together"."""
    return "-".join([settings["method"], *(f for f in ("together", "jointly") if settings.get(f))])


def by_title(runs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """[("digits, 3 x ResNet2, eps 0.1", its runs: SoE's first, then by method and seed)]; all folds
    of a data set together, as each has a seed of its own."""
    merged = runs["data"].str.replace(r"-fold\d+$", "-folds", regex=True)
    titles = []
    for (data, M, depth, eps), of_title in runs.groupby([merged, "M", "depth", "eps"], sort=False):
        first = of_title["method"].str.startswith("soe")
        of_title = of_title.assign(rival=~first).sort_values(["rival", "method", "seed"])
        titles.append((f"{data}, {M} x ResNet{depth}, eps {eps:g}", of_title))
    return titles


def measurements(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a run and column, clean or an attack: "accuracy" in %, and "correct", an array [N].
    Raises ValueError where one was measured twice."""
    runs = runs.assign(column=runs["correct"].map(list)).explode("column").dropna(subset="column")
    twice = runs[runs.duplicated(["method", "M", "place", "seed", "column"])]
    if len(twice):
        raise ValueError(f"{twice['file'].iloc[0]} measured what another record did")
    correct = [columns[column] for columns, column in zip(runs["correct"], runs["column"])]
    accuracy = [100 * bits.sum() / len(bits) for bits in correct]
    return runs.assign(correct=correct, accuracy=accuracy).astype({"column": str})


def paired(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Two methods' `measurements` at the same place, on the seeds that both have. "difference":
    which images ours has correct less which theirs has, an array [N]."""
    both = ours.merge(theirs, on=["place", "column", "seed"], suffixes=("", " of theirs"))
    return both.assign(difference=both["correct"] - both["correct of theirs"])


# --------------------------------------------------------------------------------- new records


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
