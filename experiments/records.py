"""The records behind every table: results/runs.jsonl has a line for each run of
experiments.compare, and results/attacks.jsonl one for each model and eps of experiments.evaluate.

    python -m experiments.records runs/compare/*.json --name compare    # appends these files

A line has the name of its file, "compare/digits-soe-...-seed0.json", by which the marks in the
texts choose. It leaves out who answers under attack.

`frame` makes one pandas table of records; every table, figure and claim is made of that.
"""

import functools
import json
import re
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

import pandas as pd

from experiments.intervals import images
from support import files, options
from train_submodel import SoESettings

RESULTS = Path(__file__).parent / "results"
RUNS, ATTACKS = "runs.jsonl", "attacks.jsonl"
NAMES = {"cifar10-jpeg-10000": "photos", "cifar10-10000": "CIFAR-10, 10,000 images"}
NAMES |= {"cifar10-jpeg": "50,000 photos", "cifar10": "CIFAR-10"}
NAMES |= {"digits-val": "held-out digits", "photos-val": "held-out photos"}
TRAP = " --sigma 1 --confidence ehead"  # SoE's flags, where experts share out the classes

# ------------------------------------------------------------------------------------- the files


def pack(bits: str) -> str:
    """ "0110.." of N images as "0x", N, ":" and hexadecimal digits."""
    return f"0x{len(bits)}:{int(bits, 2):x}"


def unpack(text: str) -> str:
    count, digits = text.removeprefix("0x").split(":")
    return f"{int(digits, 16):0{count}b}"


def with_bits(change: Callable[[str], str], record: dict) -> dict:
    """The record, with which images are correct, bits or packed, changed."""
    for key in {"correct", "clean"} & set(record):
        record = record | {key: {name: change(bits) for name, bits in record[key].items()}}
    return record


def read(path: Path) -> list[dict]:
    """The records in a JSON file: one for each eps in evaluate's, else one. "file" is its path.
    Raises ValueError, FileNotFoundError."""
    with files.reading(path, "result of a run"):
        content = json.loads(path.read_text()) | {"file": str(path)}
        records = [content]
        if isinstance(content.get("eps"), dict):
            records = [content | {"eps": eps} | result for eps, result in content["eps"].items()]
        frame(records)  # it has what a table needs
    return records


@functools.cache
def lines(folder: Path) -> list[dict]:
    """The records in both stores, "name" being that of the file, and "file" a link to the line.
    Raises ValueError for a damaged line."""
    records = []
    for store in (RUNS, ATTACKS):
        if (folder / store).exists():
            with files.reading(folder / store, "records"):
                for number, line in enumerate((folder / store).read_text().splitlines(), 1):
                    record = with_bits(unpack, json.loads(line))
                    link = f"results/{store}#L{number}"
                    records.append(record | {"name": record["file"], "file": link})
    return records


def stored() -> dict[str, dict]:
    """{name: record}; of a model that was attacked at several eps, the last."""
    return {record["name"]: record for record in lines(RESULTS)}


def matching(pattern: str) -> list[dict]:
    """The records, and the other files in results/, whose name fits: "compare/digits-*.json"."""
    records = list(lines(RESULTS))
    for path in RESULTS.rglob("*.json"):
        name = path.relative_to(RESULTS).as_posix()
        records += [record | {"name": name, "file": f"results/{name}"} for record in read(path)]
    levels = pattern.count("/")
    fitting = [r for r in records if r["name"].count("/") == levels]
    fitting = [record for record in fitting if PurePath(record["name"]).match(pattern)]
    return sorted(fitting, key=lambda record: record["name"].split("/"))


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


def frame(records: Iterable[dict]) -> pd.DataFrame:
    """A row a record, which is a run of compare, a model that evaluate attacked at one eps, or
    another file: "record" is all that it says. In the order of their seeds."""
    rows = pd.DataFrame(list(map(row, records)))
    return rows.sort_values("seed", kind="stable", ignore_index=True)


def row(record: dict) -> dict:
    """The columns of a record. Accuracies are in %, those of columns it has not are not a number
    (NaN); "correct" is {column: 0 or 1 for each image, an array [N]}."""
    if "method" in record:
        settings, units = record["settings"], int(record["units"])
        method, eps = named(str(record["method"]), settings), float(settings["eps"])
    elif "eps" in record:
        settings, command, eps = record["model"], record["command"], float(record["eps"])
        units = None
        method = trained_as(settings) + (f"'s {command['part']}" if command["part"] else "")
        method += f" at T = {T:g}" if (T := command.get("temperature")) is not None else ""
    else:
        numbers = dict.fromkeys(["depth", "M", "eps", "trained_eps", "seed", "epochs"], 0)
        texts = dict.fromkeys(["method", "data", "checksum", "place", "units", "experts"])
        return numbers | texts | {"correct": {}, "file": record["file"], "record": record}
    correct = {column: images([bits])[0] for column, bits in record["correct"].items()}
    if len(counts := {*map(len, correct.values())}) != 1 or 0 in counts:
        raise ValueError("it does not say which images are correct")
    table = record["table"]
    experts = [cells["clean"] for name, cells in table.items() if name.startswith("expert")]
    return {
        "method": method,
        "data": str(settings["data_name"]),
        "checksum": settings["data_checksum"],
        "depth": int(settings["depth"]),
        "M": int(settings["n"]),
        "eps": eps,  # of the attack
        "trained_eps": float(settings["eps"]),
        "place": Place(str(settings["data_name"]), int(settings["depth"]), eps),
        **{name: int(settings[name]) for name in ("seed", "epochs")},
        "units": units,
        **{column: 100 * bits.sum() / len(bits) for column, bits in correct.items()},
        "experts": experts,  # clean accuracy of each
        "alone": statistics.mean(experts),
        "any": float(table["any"]["clean"]),  # at least one expert has the image correct
        "correct": correct,
        "doubts": list(record["doubts"]),
        "name": record.get("name"),
        "file": record["file"],  # a link
        "record": record,
    }


def trained_as(settings: dict) -> str:
    """A model's method, and how an ensemble was trained: "plain-together"."""
    method = [settings["method"], *(f for f in ("together", "jointly") if settings.get(f))]
    usual = vars(SoESettings())
    changed = {n: settings.get(n, usual[n]) for n in ("weights", "lambda_")}
    flags = [f" {options.flag(n)} {value}" for n, value in changed.items() if value != usual[n]]
    return named("-".join(method) + "".join(flags), settings)


def named(method: str, settings: dict) -> str:
    """SoE's reading by the flags that differ from today's defaults, whichever were typed: older
    runs had others. Eq. 7's sigma counts for nothing under the authors' weights."""
    if not (parts := re.fullmatch("(soe(?:-stage1)?)((?: .*)?)", method)):
        return method
    (name, flags), default = parts.groups(), SoESettings()
    if settings.get("weights", "best") == "best" and settings["sigma"] != default.sigma:
        name += f" --sigma {settings['sigma']:g}"
    if settings["confidence"] != default.confidence:
        name += f" --confidence {settings['confidence']}"
    return name + re.sub(r" --(sigma|confidence)[ =]\S+", "", flags)


def by_title(runs: pd.DataFrame, first: str = "soe") -> list[tuple[str, pd.DataFrame]]:
    """[("digits, 3 x ResNet2, eps 0.1", its runs: those of `first`, perhaps with flags, then by
    method and seed)]; all folds of a data set together, as each has a seed of its own."""
    merged = runs["data"].str.replace(r"-fold\d+$", "-folds", regex=True)
    rival = ~runs["method"].str.startswith(first)
    runs = runs.assign(title=merged, rival=rival).sort_values(["rival", "method", "seed"])
    groups = runs.groupby(["title", "M", "depth", "eps"], sort=False)
    return [(f"{data}, {M} x ResNet{d}, eps {eps:g}", runs) for (data, M, d, eps), runs in groups]


def measurements(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a run and column, clean or an attack: "accuracy" in %, and "correct", an array [N] of
    N "images". Raises ValueError where one was measured twice."""
    runs = runs.assign(column=runs["correct"].map(list)).explode("column").dropna(subset="column")
    twice = runs[runs.duplicated(["method", "M", "place", "seed", "column"])]
    if len(twice):
        raise ValueError(f"{twice['file'].iloc[0]} measured what another record did")
    correct = [columns[column] for columns, column in zip(runs["correct"], runs["column"])]
    runs = runs.assign(correct=correct, images=[*map(len, correct)]).astype({"column": str})
    return runs.assign(accuracy=[100 * bits.sum() / len(bits) for bits in correct])


def paired(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Two methods' `measurements` at the same place, on the seeds that both have. "difference":
    which images ours has correct less which theirs has, an array [N]."""
    both = ours.merge(theirs, on=["place", "column", "seed"], suffixes=("", " of theirs"))
    return both.assign(difference=both["correct"] - both["correct of theirs"])


# --------------------------------------------------------------------------------- new records


def append(paths: list[Path], name: str) -> int:
    """Adds these files' records under `name`; returns how many lines. Raises ValueError where one
    is stored already, or was written by another command."""
    new: dict[str, list[str]] = {RUNS: [], ATTACKS: []}
    names = set(stored())
    for path in paths:
        if (key := f"{name}/{path.name}") in names:
            raise ValueError(f"{key} is stored already")
        names.add(key)
        for record in map(functools.partial(with_bits, pack), read(path)):
            if not {"method", "eps"} & set(record):
                raise ValueError(f"{path} was written by neither compare nor evaluate")
            clean = {k: v for k, v in record["specialisation"].items() if k == "clean"}
            line = {"file": None} | record | {"file": key, "specialisation": clean}
            text = json.dumps(line, separators=(",", ":"))
            new[RUNS if "method" in record else ATTACKS].append(f"{text}\n")
    for store, texts in new.items():
        before = (RESULTS / store).read_text() if (RESULTS / store).exists() else ""
        files.write(RESULTS / store, "".join([before, *texts]).encode())
    lines.cache_clear()
    return sum(map(len, new.values()))


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.records")
    written = "what experiments.compare or experiments.evaluate has written"
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path, help=written)
    belonging = "the set that they belong to, as the marks in the texts name it"
    parser.add_argument("--name", required=True, help=belonging)
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        if not re.fullmatch(r"[\w-]+", args.name):
            raise ValueError(f"--name {args.name}: letters, digits, _ and - alone")
        print(f"added {append(args.files, args.name)} lines to {RESULTS}")


if __name__ == "__main__":
    main()
