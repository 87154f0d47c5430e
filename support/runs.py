"""The run around the training loop: settings, folder, resuming, and the end of each epoch.

with runs.start(parser, argv, method="soe", model="collaboration", stages=(1, 2)) as run:
    train(run, 1, stage1_loss)
    train(run, 2, stage2_loss)
    run.finish(infer.pgd_report)
"""

import contextlib
import json
import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

import attacks
import data
import models
from attacks import expert_losses
from baselines.models import build
from data import images
from support import checkpoints, files, options, pictures, printing, ranks, report, speed
from support.options import RunSettings


def start(
    parser: options.Parser,
    argv: list[str] | None,
    method: str,
    model: str,
    stages: tuple[int, ...] = (1,),
    check: Callable[[RunSettings], None] = lambda settings: None,
) -> "Run":
    """A new run, or the one to resume: makes its folder and prints its plan.

    `method` and `model` are kept in its settings; `baselines.models.build` makes the model. `check`
    raises ValueError for settings that the method cannot work with. Bad input ends with one line
    and status 2 before anything is written.
    """
    settings, given = parser.parse_given(argv)
    if sys.stdout is sys.__stdout__ and hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends a run without a traceback
    with parser.errors_in_one_line(alone=False):
        ranks.start(settings.device)
        ranks.agree(vars(settings))
        settings.method, settings.model = method, model
        checkpoint = None
        if settings.resume is None:
            dataset = data.load(settings.data, settings.size, settings.test_share)
        else:
            checkpoint = checkpoints.to_resume(settings, given, stages)
            dataset = data.load_as_trained(checkpoint["settings"], settings.data)
            if dataset.checksum != settings.data_checksum:
                raise ValueError(f"{settings.data} holds other images than those of the run")
        fill_in(settings, dataset)
        if (batch := min(settings.batch_size, len(dataset.x_train))) % ranks.count():
            raise ValueError(f"{ranks.count()} ranks cannot share a batch of {batch} images")
        if checkpoint is None:
            settings.stage_epochs = divide_epochs(settings, stages)
        check(settings)
        device = options.pick_device(settings.device)
        settings.precision = settings.precision or options.best_precision(device)
        torch.manual_seed(settings.seed)
        network = build(vars(settings)).to(device, memory_format=torch.channels_last)
        if checkpoint is not None:
            with files.reading(checkpoints.in_folder(settings.out), "checkpoint"):
                checkpoints.load_weights(network, checkpoint)
                checkpoints.set_rng_state(checkpoint["rng"], device)
        else:
            if getattr(settings, "submodels", None) is not None:
                checkpoints.load_weights(network, checkpoints.end_of_stage1(settings))
            settings.out = ranks.from_rank_0(None if ranks.rank() else make_folder(settings))
        run = Run(parser, settings, dataset, network, checkpoint)
        run.announce()
    return run


@dataclass
class Run:
    """One run, from its settings to its report.

    Within `with`, Ctrl-C and a full disk end with one line that says how to resume; a loss that is
    NaN ends with one that says what to change.
    """

    parser: options.Parser
    settings: RunSettings
    dataset: data.Data
    model: nn.Module
    checkpoint: dict | None  # of the run to resume

    def __post_init__(self) -> None:
        self.device, self.out = next(self.model.parameters()).device, Path(self.settings.out)
        self.lock = None if ranks.rank() else files.lock(self.out)
        self.history = list(self.checkpoint["history"]) if self.checkpoint else []
        self.threads_before = torch.get_num_threads()
        torch.set_num_threads(self.settings.threads)  # they decide the last bits
        self.x_train = self.dataset.x_train.to(self.device)  # uint8 [N, C, H, W]
        self.y_train = self.dataset.y_train.to(self.device)
        self.bar = None

    def announce(self) -> None:
        """Prints the data, the device and the plan."""
        settings, dataset, N = self.settings, self.dataset, len(self.dataset.x_test)
        shape = " x ".join(map(str, dataset.image_shape))
        images = f"{len(dataset.x_train)} training and {N} test images, {shape}"
        device = f"{options.device_name(self.device)}, {settings.precision}"
        why = options.why_precision(self.device, settings.precision)
        hint = "" if settings.data == "cifar10" else "; the paper's setting is --data cifar10"
        print(f"{dataset.name}: {images}; {device}, {why}{hint}")
        stages = settings.stage_epochs.items()
        plan = ", ".join(f"stage {stage}: {e} epoch{'s' * (e > 1)}" for stage, e in stages)
        method = "" if settings.method == "soe" else f"{settings.method}: "
        experts = f"{method}{settings.n} x ResNet{settings.depth}"
        print(f"{experts}, eps {settings.eps:g}; {plan}; into {self.out}", flush=True)
        if N < 100:
            error = 50 / math.sqrt(N)
            print(f"Few test images: a standard error of {error:.0f} points where 50 % are correct")

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.lock is not None:
            with contextlib.suppress(OSError):  # as on Windows, where it is open
                Path(self.lock.lock_file).unlink()
            self.lock.release()
        torch.set_num_threads(self.threads_before)
        advice = "nothing was trained yet"
        if (self.out / "model.pt").exists():
            folder = shlex.quote(str(self.out))
            folder = f"./{folder}" if folder.startswith("-") else folder
            advice = f"to resume: {self.parser.typed} --resume {folder}"
        if isinstance(error, FloatingPointError | files.FileError):
            self.parser.error(error)
        if isinstance(error, files.SaveError):
            self.parser.error(f"{error}; make room there; {advice}")
        if isinstance(error, KeyboardInterrupt):
            self.parser.exit(130, f"\nstopped; {advice}\n")

    def begin(self, stage: int, optimizer: Optimizer, scheduler: LRScheduler) -> None:
        """Saves the start of a stage, or gives optimizer and scheduler the state of a stopped one.

        Raises SaveError, FileError.
        """
        self.stage, self.optimizer, self.scheduler = stage, optimizer, scheduler
        self.total = self.settings.stage_epochs.get(stage, 0)  # --submodels leaves stage 1 none
        self.done = sum(entry["stage"] == stage for entry in self.history)
        if 0 < self.done < self.total:
            with files.reading(self.out / "model.pt", "checkpoint"):
                optimizer.load_state_dict(self.checkpoint["optimizer"])
                if self.checkpoint["scheduler"]["last_epoch"] != self.done:
                    raise ValueError("its learning rate is that of another epoch")
                scheduler.load_state_dict(self.checkpoint["scheduler"])
        elif self.total and not self.done:
            self.save("model.pt")
        steps = self.settings.steps_per_epoch
        quiet = not sys.stderr.isatty() or ranks.rank() > 0
        self.bar = tqdm(total=self.total * steps, initial=self.done * steps, disable=quiet)

    def epochs(self, stage: int) -> Iterator[int]:
        """The epochs that are left of this stage, counted from 1."""
        for epoch in range(self.done + 1, self.total + 1):
            self.bar.set_description(f"stage {stage}, epoch {epoch}/{self.total}")
            self.steps, self.loss = 0, torch.zeros((), device=self.device)
            self.lr, self.begun = self.scheduler.get_last_lr()[0], time.perf_counter()
            yield epoch
        self.bar.close()

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch's batches, this rank's part of each: x [B, C, H, W] in [0, 1], y [B]."""
        size, augment = self.settings.batch_size, self.settings.augment
        return data.batches(self.x_train, self.y_train, size, augment, ranks.part())

    def count(self, batch_loss: Tensor) -> None:
        """Adds a step's loss to the epoch's, and moves the bar."""
        self.loss += batch_loss
        if self.steps % 20 == 0:  # reading the loss makes the device wait
            self.bar.set_postfix(loss=f"{batch_loss.item():.3f}")
        self.steps += 1
        self.bar.update()

    def end_epoch(self, epoch: int) -> None:
        """Averages what differs between ranks, checks the loss, saves, and prints a line.

        Raises FloatingPointError when the loss is no longer finite, SaveError.
        """
        ranks.average_statistics(self.model)  # once an epoch, not once a step
        ranks.average([self.loss])
        loss = self.loss.item() / self.steps  # checked once an epoch, as .item() synchronises
        weights = self.model.state_dict().values()
        if not math.isfinite(loss) or not all(value.isfinite().all() for value in weights):
            raise FloatingPointError(
                f"the loss or a weight became NaN or infinite in epoch {epoch} of stage "
                f"{self.stage}; start anew with a lower --lr (it is {self.settings.lr:g}); the "
                "checkpoint of the epoch before is kept"
            )
        entry = {"stage": self.stage, "epoch": len(self.history) + 1, "loss": loss}
        entry |= by_expert(self.model, self.x_train, self.y_train)
        if self.settings.eps:
            entry["robust"] = robust(self.model, self.x_train, self.y_train, self.settings)
        seconds = time.perf_counter() - self.begun
        entry |= {"lr": self.lr, "seconds": seconds, "device": options.device_name(self.device)}
        self.history.append(entry)
        if epoch == self.total and self.stage < max(self.settings.stage_epochs):
            self.save("submodels.pt")
        self.save("model.pt")
        if self.bar.disable or not sys.stdout.isatty():
            accuracy = f"{entry['accuracy']:.1f} % clean"
            accuracy += f", {entry['robust']:.1f} % attacked" if "robust" in entry else ""
            line = f"stage {self.stage}, epoch {epoch}/{self.total}: loss {loss:.3f}, "
            print(f"{line}training accuracy {accuracy}, {seconds:.1f} s", flush=True)

    def save(self, name: str) -> None:
        """A checkpoint in the run's folder. Raises SaveError."""
        self.checkpoint = {
            "method": self.settings.method,
            "settings": vars(self.settings),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "epoch": len(self.history),
            "history": self.history,
            "rng": checkpoints.rng_state(self.device),
        }
        if ranks.rank() == 0:
            checkpoints.save(self.out / name, self.checkpoint)

    def finish(self, evaluate: Callable[[nn.Module, Tensor, Tensor, float], dict]) -> None:
        """Prints the table, evaluate(model, x, y, eps), and writes curves.png, metrics.json, which
        marks the run as finished, and report.html."""
        if ranks.rank():
            return
        settings, dataset = self.settings, self.dataset
        speed.release(self.model)
        torch.manual_seed(settings.seed)
        x, y = dataset.test_images(self.device)
        result = evaluate(self.model, x, y, settings.eps)
        printing.print_report(result, self.model.row, len(x), settings.eps, dataset.class_names)
        metrics = {
            "command": " ".join([self.parser.prog, *self.parser.words]),
            "settings": vars(settings),
            "versions": options.versions(),
            "device": options.device_name(self.device),
            "precision": settings.precision,
            "images": len(x),
            "epochs": self.history,
        } | result
        curves = pictures.curves(self.history)
        files.write(self.out / "curves.png", curves)
        files.write(self.out / "metrics.json", json.dumps(metrics, indent=1).encode())
        page = report.html(settings, metrics, self.model, x, y, curves)
        files.write(self.out / "report.html", page)
        names = sorted(path.name for path in self.out.glob("[!.]*"))
        print(f"\nWrote {self.out}: {', '.join(names)}")


def some(x_train: Tensor, y_train: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same random training images each time, [count, C, H, W] in [0, 1], and labels [count]."""
    chosen = data.choose(len(x_train), count)
    return x_train[chosen].float() / 255, y_train[chosen]


def robust(model: nn.Module, x_train: Tensor, y_train: Tensor, settings: RunSettings) -> float:
    """The percentage correct of 200 training images, attacked as in training but without random
    start. No test image is looked at before the end."""
    x, y = some(x_train, y_train, 200)
    fast = speed.for_attack(model.eval())
    x_adv = attacks.pgd(fast, x, y, settings.eps, settings.alpha, settings.steps)
    return printing.percent(model.combine(*models.ask_experts(model, x_adv)).argmax(1) == y)


@torch.no_grad()
def by_expert(model: nn.Module, x_train: Tensor, y_train: Tensor) -> dict:
    """Percentages of 1,000 clean training images: those that the model has correct, those that each
    expert answers, and those on which it is best. No expert should starve (appendix 3.4). In a vote
    nobody answers alone."""
    x, y = some(x_train, y_train, 1000)
    model.eval()
    logits, score = models.ask_experts(model, x)
    best = expert_losses(logits, y).argmin(0)
    experts = range(len(logits))
    result = {"accuracy": printing.percent(model.combine(logits, score).argmax(-1) == y)}
    if model.row != "vote":
        result["answered"] = [printing.percent(score.argmax(0) == j) for j in experts]
    return result | {"best": [printing.percent(best == j) for j in experts]}


# ----------------------------------------------------------------- settings, and where a run starts


def fill_in(settings: RunSettings, dataset: data.Data) -> None:
    """Sets what depends on the data or on other settings."""
    settings.steps_per_epoch = max(1, len(dataset.x_train) // settings.batch_size)
    settings.data_name, settings.num_classes = dataset.name, dataset.num_classes
    settings.image_shape, settings.data_checksum = list(dataset.image_shape), dataset.checksum
    settings.class_names = dataset.class_names
    settings.threads = settings.threads or torch.get_num_threads()
    settings.ground = images.border(dataset.x_train) / 255
    if settings.alpha is None:
        settings.alpha = settings.eps / 3  # the authors' 0.01 at eps 0.03
    if settings.lr is None:
        settings.lr = {"sgd": 0.1, "adam": 1e-3}[settings.optimizer]
    if settings.augment is None:
        settings.augment = dataset.image_shape == (3, 32, 32)
    if settings.epochs is None:
        settings.epochs = options.default_epochs(settings.data)


def divide_epochs(settings: RunSettings, stages: tuple[int, ...]) -> dict[int, int]:
    """{stage: epochs}, in equal parts unless --stage1-epochs says otherwise. Raises ValueError
    where there are too few."""
    total, first = settings.epochs, getattr(settings, "stage1_epochs", None)
    after_stage1 = getattr(settings, "submodels", None) is not None
    if first is not None:
        if after_stage1:
            raise ValueError("--stage1-epochs: with --submodels stage 1 is over")
        if first > total:
            raise ValueError(f"--stage1-epochs is {first} of {total} --epochs")
        both = {1: first, 2: total - first}
        return {stage: epochs for stage, epochs in both.items() if epochs}
    stages = stages[1:] if after_stage1 else stages
    each, rest = divmod(total, len(stages))
    if each == 0:
        raise ValueError(f"--epochs is {total}: {len(stages)} stages need at least {len(stages)}")
    return dict.fromkeys(stages, each) | {stages[-1]: each + rest}


def make_folder(settings: RunSettings) -> str:
    """A new folder for the run: --out, or the next free name. Raises ValueError, OSError."""
    if settings.out is None:
        method = "" if settings.method == "soe" else f"-{settings.method}"
        name = f"{settings.data_name}{method}-eps{settings.eps:g}-n{settings.n}-seed{settings.seed}"
        return str(files.new(Path("runs"), name))
    folder = Path(settings.out)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"--out {folder} is taken: name a new or empty folder, or --resume it")
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)
