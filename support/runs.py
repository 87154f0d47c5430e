"""The run around the training loop: settings, folder, resuming, and the end of each epoch.

with runs.start(parser, argv, method="soe", model="collaboration", stages=(1, 2)) as run:
    train(run, 1, stage1_loss)
    train(run, 2, stage2_loss)
    run.finish(infer.pgd_report)
"""

import json
import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def start(
    parser: options.Parser,
    argv: list[str] | None,
    method: str,
    model: str,
    stages: tuple[int, ...] = (1,),
    check: Callable[[RunSettings], None] = lambda settings: None,
) -> Iterator["Run"]:
    """A new run, or the one to resume: makes its folder and prints its plan.

    `method` and `model` are kept in its settings; `baselines.models.build` makes the model. `check`
    raises ValueError for settings that the method cannot work with. Bad input ends with one line
    and status 2 before anything is written. Afterwards Ctrl-C and a full disk end with one line
    that says how to resume; a loss that is NaN ends with one that says what to change.
    """
    settings, given = parser.parse_given(argv)
    if sys.stdout is sys.__stdout__ and hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends a run without a traceback
    threads = torch.get_num_threads()
    with parser.errors_in_one_line(alone=False):
        ranks.start(settings.device)
        ranks.agree(vars(settings))
        settings.method, settings.model = method, model
        run = Run(parser, settings, given, stages, check)
        run.announce()
    try:
        yield run
    except (FloatingPointError, files.FileError) as error:
        parser.error(error)
    except files.SaveError as error:
        parser.error(f"{error}; make room there; {run.advice()}")
    except KeyboardInterrupt:
        parser.exit(130, f"\nstopped; {run.advice()}\n")
    finally:
        run.bar.close()
        files.unlock(parser.held)
        torch.set_num_threads(threads)


class Run:
    """One run, from its settings to its report."""

    def __init__(
        self,
        parser: options.Parser,
        settings: RunSettings,
        given: set[str],
        stages: tuple[int, ...],
        check: Callable[[RunSettings], None],
    ):
        """Reads the data and the checkpoint, and completes the settings. Raises ValueError, OSError
        before it makes a folder."""
        self.parser, self.settings = parser, settings
        self.checkpoint = submodels = None
        if settings.resume is None:
            self.dataset = data.load(settings.data, settings.size, settings.test_share)
        else:
            self.checkpoint = checkpoints.to_resume(settings, given, stages)
            self.dataset = data.load_as_trained(vars(settings), settings.data)
            if self.dataset.checksum != settings.data_checksum:
                raise ValueError(f"{settings.data} holds other images than those of the run")
        fill_in(settings, self.dataset)
        if (batch := min(settings.batch_size, len(self.dataset.x_train))) % ranks.count():
            raise ValueError(f"{ranks.count()} ranks cannot share a batch of {batch} images")
        if self.checkpoint is None:
            settings.stage_epochs = divide_epochs(settings, stages)
            if getattr(settings, "submodels", None) is not None:
                submodels = checkpoints.end_of_stage1(settings)
        check(settings)
        self.device = options.pick_device(settings.device)
        settings.precision = settings.precision or options.best_precision(self.device)
        torch.manual_seed(settings.seed)
        self.model = build(vars(settings)).to(self.device, memory_format=torch.channels_last)
        if self.checkpoint is not None:
            with files.reading(checkpoints.in_folder(settings.out), "checkpoint"):
                checkpoints.load_weights(self.model, self.checkpoint)
                checkpoints.set_rng_state(self.checkpoint["rng"], self.device)
            self.history = list(self.checkpoint["history"])
        else:
            if submodels is not None:
                checkpoints.load_weights(self.model, submodels)
            settings.out = ranks.from_rank_0(None if ranks.rank() else make_folder(settings))
            self.history = []
        self.out = Path(settings.out)
        torch.set_num_threads(settings.threads)  # they decide the last bits
        self.x_train = self.dataset.x_train.to(self.device)  # uint8 [N, C, H, W]
        self.y_train = self.dataset.y_train.to(self.device)
        self.bar = tqdm(disable=True)

    def announce(self) -> None:
        """Prints the data, the device and the plan."""
        settings, N = self.settings, len(self.dataset.x_test)
        shape = " x ".join(map(str, settings.image_shape))
        images = f"{len(self.x_train)} training and {N} test images, {shape}"
        why = options.why_precision(self.device, settings.precision)
        device = f"{options.device_name(self.device)}, {settings.precision}, {why}"
        hint = "" if settings.data == "cifar10" else "; the paper's setting is --data cifar10"
        print(f"{settings.data_name}: {images}; {device}{hint}")
        stages = settings.stage_epochs.items()
        plan = ", ".join(f"stage {stage}: {e} epoch{'s' * (e > 1)}" for stage, e in stages)
        method = "" if settings.method == "soe" else f"{settings.method}: "
        experts = f"{method}{settings.n} x ResNet{settings.depth}"
        print(f"{experts}, eps {settings.eps:g}; {plan}; into {self.out}", flush=True)
        if N < 100:
            error = 50 / math.sqrt(N)
            print(f"Few test images: a standard error of {error:.0f} points where 50 % are correct")

    def advice(self) -> str:
        """How to resume."""
        if not (self.out / "model.pt").exists():
            return "nothing was trained yet"
        folder = shlex.quote(str(self.out))
        return f"to resume: {self.parser.typed} --resume {'./' * folder.startswith('-')}{folder}"

    def begin(self, stage: int, optimizer: Optimizer, scheduler: LRScheduler) -> None:
        """Saves the start of a stage, or gives optimizer and scheduler the state of a stopped one.

        Raises SaveError, FileError.
        """
        self.stage, self.optimizer, self.scheduler = stage, optimizer, scheduler
        self.total = self.settings.stage_epochs.get(stage, 0)  # --submodels leaves stage 1 none
        self.done = sum(entry["stage"] == stage for entry in self.history)
        if 0 < self.done < self.total:
            with files.reading(self.out / "model.pt", "checkpoint"):
                checkpoints.load_optimizer(optimizer, self.checkpoint)
            for _ in range(self.done):  # the rate follows from the settings
                optimizer.step()  # without gradients nothing moves
                scheduler.step()
        elif self.total and not self.done:
            self.save("model.pt")
        quiet = True if ranks.rank() else None  # None: where stderr is no terminal
        steps = self.settings.steps_per_epoch
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
        """Averages what differs between ranks, checks the loss, measures, saves, prints a line.

        Raises FloatingPointError when the loss is no longer finite, SaveError.
        """
        settings, model = self.settings, self.model
        ranks.average_statistics(model)  # once an epoch, not once a step
        ranks.average([self.loss])
        loss = self.loss.item() / self.steps  # checked once an epoch, as .item() synchronises
        weights = model.state_dict().values()
        if not math.isfinite(loss) or not all(value.isfinite().all() for value in weights):
            raise FloatingPointError(
                f"the loss or a weight became NaN or infinite in epoch {epoch} of stage "
                f"{self.stage}; start anew with a lower --lr (it is {settings.lr:g}); the "
                "checkpoint of the epoch before is kept"
            )
        entry = {"stage": self.stage, "epoch": len(self.history) + 1, "loss": loss}
        entry |= by_expert(model, self.x_train, self.y_train)
        if settings.eps:
            entry["robust"] = robust(model, self.x_train, self.y_train, settings)
        seconds = time.perf_counter() - self.begun
        entry |= {"lr": self.lr, "seconds": seconds, "device": options.device_name(self.device)}
        self.history.append(entry)
        if epoch == self.total and self.stage < max(settings.stage_epochs):
            self.save("submodels.pt")
        self.save("model.pt")
        if self.bar.disable or not sys.stdout.isatty():
            attacked = f", {entry['robust']:.1f} % attacked" if "robust" in entry else ""
            accuracy = f"training accuracy {entry['accuracy']:.1f} % clean{attacked}"
            line = f"stage {self.stage}, epoch {epoch}/{self.total}: loss {loss:.3f}, {accuracy}"
            print(f"{line}, {seconds:.1f} s", flush=True)

    def save(self, name: str) -> None:
        """A checkpoint in the run's folder. Raises SaveError."""
        if ranks.rank():
            return
        checkpoint = {
            "method": self.settings.method,
            "settings": vars(self.settings),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "epoch": len(self.history),
            "history": self.history,
            "rng": checkpoints.rng_state(self.device),
        }
        checkpoints.save(self.out / name, checkpoint)

    def finish(self, evaluate: Callable[[nn.Module, Tensor, Tensor, float], dict]) -> None:
        """Prints the table, evaluate(model, x, y, eps), and writes curves.png, report.html, and
        last metrics.json, which marks the run as finished."""
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
        page = report.html(settings, metrics, self.model, x, y, curves)
        files.write(self.out / "report.html", page)
        files.write(self.out / "metrics.json", json.dumps(metrics, indent=1).encode())
        names = sorted(path.name for path in self.out.glob("[!.]*"))
        print(f"\nWrote {self.out}: {', '.join(names)}")


def robust(model: nn.Module, x_train: Tensor, y_train: Tensor, settings: RunSettings) -> float:
    """The percentage correct of 200 training images, attacked as in training but without random
    start. No test image is looked at before the end."""
    chosen = data.choose(len(x_train), 200)
    x, y = x_train[chosen].float() / 255, y_train[chosen]
    fast = speed.for_attack(model.eval())
    x_adv = attacks.pgd(fast, x, y, settings.eps, settings.alpha, settings.steps)
    return printing.percent(model.combine(*models.ask_experts(model, x_adv)).argmax(1) == y)


@torch.no_grad()
def by_expert(model: nn.Module, x_train: Tensor, y_train: Tensor) -> dict:
    """Percentages of 1,000 clean training images: those that the model has correct, those that each
    expert answers, and those on which it is best. No expert should starve (appendix 3.4). In a vote
    nobody answers alone."""
    chosen = data.choose(len(x_train), 1000)
    x, y = x_train[chosen].float() / 255, y_train[chosen]
    logits, score = models.ask_experts(model.eval(), x)
    result = {"accuracy": printing.percent(model.combine(logits, score).argmax(-1) == y)}
    firsts = {"answered": score.argmax(0), "best": expert_losses(logits, y).argmin(0)}  # [N]
    for name, first in firsts.items():
        result[name] = [printing.percent(first == j) for j in range(len(logits))]
    if model.row == "vote":
        del result["answered"]
    return result


# ----------------------------------------------------------------- settings, and where a run starts


def fill_in(settings: RunSettings, dataset: data.Data) -> None:
    """Sets what depends on the data or on other settings."""
    settings.steps_per_epoch = max(1, len(dataset.x_train) // settings.batch_size)
    settings.data_name, settings.num_classes = dataset.name, dataset.num_classes
    settings.image_shape, settings.data_checksum = list(dataset.image_shape), dataset.checksum
    settings.class_names = dataset.class_names
    settings.ground = images.border(dataset.x_train) / 255
    defaults = {
        "threads": torch.get_num_threads(),
        "alpha": settings.eps / 3,  # the authors' 0.01 at eps 0.03
        "lr": {"sgd": 0.1, "adam": 1e-3}[settings.optimizer],
        "augment": dataset.image_shape == (3, 32, 32),
        "epochs": options.default_epochs(settings.data),
    }
    for name, default in defaults.items():
        if getattr(settings, name) is None:
            setattr(settings, name, default)


def divide_epochs(settings: RunSettings, stages: tuple[int, ...]) -> dict[int, int]:
    """{stage: epochs}, in equal parts unless --stage1-epochs says otherwise. Raises ValueError
    where there are too few."""
    total, first = settings.epochs, getattr(settings, "stage1_epochs", None)
    if getattr(settings, "submodels", None) is not None:
        if first is not None:
            raise ValueError("--stage1-epochs: with --submodels stage 1 is over")
        first = 0
    elif first is None and total < len(stages):
        raise ValueError(f"--epochs is {total}: 2 stages need at least 2")
    elif first is None:
        first = total // len(stages)
    elif first > total:
        raise ValueError(f"--stage1-epochs is {first} of {total} --epochs")
    return {stage: epochs for stage, epochs in {1: first, 2: total - first}.items() if epochs}


def make_folder(settings: RunSettings) -> str:
    """A folder for a new run, locked: --out, or the next free name. Raises ValueError, OSError."""
    method = "" if settings.method == "soe" else f"-{settings.method}"
    name = f"{settings.data_name}{method}-eps{settings.eps:g}-n{settings.n}-seed{settings.seed}"
    folder = files.new(Path("runs"), name) if settings.out is None else Path(settings.out)
    taken = ValueError(f"--out {folder} is taken: name a new or empty folder, or --resume it")
    if folder.exists() and not folder.is_dir():
        raise taken
    folder.mkdir(parents=True, exist_ok=True)
    files.lock(folder)
    halves = files.half_written(folder)
    if set(folder.iterdir()) - halves - {folder / ".lock"}:
        raise taken
    for path in halves:
        path.unlink()
    return str(folder)
