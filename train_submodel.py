"""Stage 1, sub-model training (the paper's Algorithm 1), and the training loop of every method.

Every expert is attacked alone; each adversarial image is learned by whichever expert handles it
best, through a smooth minimum of the experts' losses (Eq. 7). The E heads learn how probable the
true label is under their expert, so that the most confident expert is the best one (Eq. 8).

    python train_submodel.py --eps 0.03 --n 3    # stage 1 alone, all epochs: Figure 2's ablation

Its checkpoint, RUN/model.pt, is what `train_collab.py --submodels` goes on from.
"""

import argparse
import io
import itertools
import json
import math
import os
import platform
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import data
import infer
from attacks import pgd
from models import CONFIDENCES

OPTIONS = {  # name: (default, type or choices, what it is); None: it depends, as the text says
    "data": ("digits", str, "digits, cifar10, or the path of a FILE.npz"),
    "eps": (0.03, float, "epsilon, the attack's radius: l-infinity, pixels in [0, 1]"),
    "n": (3, int, "M, the number of experts"),
    "depth": (20, int, "depth of each ResNet, 6n + 2"),
    "epochs": (None, int, "epochs of all stages together (default: 16 on digits, else 100)"),
    "sigma": (1.0, float, "sigma, the smoothness of the minimum in Eq. 7"),
    "lambda_": (1.0, float, "lambda, the weight of the confidence loss"),
    "confidence": ("ehead", CONFIDENCES, "the score: g, or max_k f_k * g as in the authors' code"),
    "weights": ("best", ("best", "confidence"), "stage 2: Eq. 7, or the authors' code's weights"),
    "steps": (10, int, "steps of the training attack, PGD"),
    "alpha": (None, float, "size of such a step (default: eps / 3)"),
    "batch_size": (128, int, "training images a step"),
    "lr": (0.1, float, "learning rate of SGD, divided by 10 at half and 3/4 of each stage"),
    "augment": (None, bool, "random crop and flip (default: for 32 x 32 colour images)"),
    "seed": (0, int, "seed of the weights, the order of images, and all else that is random"),
    "out": (None, str, "folder of the run (default: runs/DATA-epsE-nN-seedS)"),
    "submodels": (None, str, "checkpoint of stage 1; all epochs are then stage 2's"),
    "device": (None, str, "cuda, mps or cpu (default: the first that is there)"),
    "precision": (None, ("bfloat16", "float32"), "default: bfloat16 where the hardware has it"),
}
MOVABLE = {"data", "device", "precision"}  # may stand beside --resume


class TrainingStopped(Exception):
    """Training cannot go on; the message says why, and what would help."""


# ------------------------------------------------------------------------ the method: stage 1


def attack_each_expert(model: nn.Module, x: Tensor, y: Tensor, settings: Namespace) -> Tensor:
    """x~_i = PGD against expert i alone, for every i: x [B, C, H, W] -> [M * B, C, H, W]."""
    eps, alpha, steps = settings.eps, settings.alpha, settings.steps
    return torch.cat([pgd(infer.first_output(e), x, y, eps, alpha, steps) for e in model.experts])


def best_expert_loss(losses: Tensor, sigma: float) -> Tensor:
    """Eq. 7's smooth minimum l^_m over the experts' losses: [M, B] -> [B].

    It lies between min_j l_j - sigma ln M and min_j l_j; its gradient weighs expert j by
    softmax_j(-l_j / sigma).
    """
    return -sigma * torch.logsumexp(-losses / sigma, 0)


def confidence_loss(score: Tensor, p_y: Tensor) -> Tensor:
    """mean_j BCE(g_j, p_y^j), no gradient through the target p_y: [M, B], [M, B] -> [B].

    `score` is the confidence's logit. The confidence then rises with p_y (Proposition 2).
    """
    return F.binary_cross_entropy_with_logits(score, p_y.detach(), reduction="none").mean(0)


def sample_loss(model: nn.Module, x: Tensor, y: Tensor, settings: Namespace) -> Tensor:
    """l^_m + lambda * mean_j BCE_j of each image: x [B, C, H, W], y [B] -> [B]."""
    logits, score = model.all_experts(x, y)  # [M, B, K], [M, B]
    losses = infer.expert_losses(logits, y)  # [M, B]
    p_y = torch.exp(-losses)
    return best_expert_loss(losses, settings.sigma) + settings.lambda_ * confidence_loss(score, p_y)


def stage1_loss(model: nn.Module, settings: Namespace) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of sub-model training: x [B, C, H, W], y [B] -> scalar."""
    M = settings.n

    def loss(x: Tensor, y: Tensor) -> Tensor:
        model.eval()
        x_adv = attack_each_expert(model, x, y, settings)  # [M * B, C, H, W]
        model.train()
        clean = sample_loss(model, x, y, settings).mean()
        adversarial = sample_loss(model, x_adv, y.repeat(M), settings).mean()
        # M: the weights of Eq. 7 sum to 1 over experts, so without it each expert would move 1/M
        # as far as a member of an ordinary ensemble does at the same learning rate.
        return M * (clean + adversarial)

    return loss


# ------------------------------------------------------------------- the loop of every method


def train(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    dataset: data.Data,
    settings: Namespace,
    stage: int = 1,
    checkpoint: dict | None = None,
) -> dict:
    """Trains `model` for settings.stage_epochs[stage] epochs of SGD, and returns its checkpoint.

    loss(x [B, C, H, W] in [0, 1], y [B]) -> scalar is all that a method is. `checkpoint` is where
    to go on: within this stage, or at the end of the one before, whose history is kept. After
    every epoch the state is saved to settings.out / "model.pt". Raises TrainingStopped when the
    loss is no longer finite or the checkpoint cannot be written.
    """
    device = next(model.parameters()).device
    model.to(memory_format=torch.channels_last)
    x_train, y_train = dataset.x_train.to(device), dataset.y_train.to(device)
    epochs = settings.stage_epochs[stage]
    optimizer = torch.optim.SGD(model.parameters(), settings.lr, momentum=0.9, weight_decay=1e-4)
    milestones = [math.ceil(epochs * part) for part in (0.5, 0.75)]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    history = list(checkpoint["history"]) if checkpoint else []
    done = sum(entry["stage"] == stage for entry in history)
    if done:
        optimizer.load_state_dict(checkpoint["optimizer"])
        scheduler.load_state_dict(checkpoint["scheduler"])

    def save() -> dict:
        state = {
            "method": settings.method,
            "settings": vars(settings),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "epoch": len(history),
            "history": history,
            "rng": rng_state(device),
        }
        write(Path(settings.out) / "model.pt", as_bytes(state))
        return state

    if not done:
        checkpoint = save()
    steps = max(1, len(x_train) // settings.batch_size)
    name = f"stage {stage}" if len(settings.stage_epochs) > 1 else "training"
    bar = tqdm(total=epochs * steps, initial=done * steps, disable=not sys.stderr.isatty())
    with bar:
        for epoch in range(done + 1, epochs + 1):
            start, total = time.perf_counter(), torch.zeros((), device=device)
            bar.set_description(f"{name}, epoch {epoch}/{epochs}")
            batches = enumerate(shuffled_batches(x_train, y_train, settings))
            for step, (x, y) in batches:
                # No cache of bfloat16 weights: one filled without gradients would cut them off.
                with torch.autocast(
                    device.type,
                    torch.bfloat16,
                    enabled=settings.precision == "bfloat16",
                    cache_enabled=False,
                ):
                    batch_loss = loss(x, y)
                optimizer.zero_grad()
                batch_loss.backward()
                optimizer.step()
                total += batch_loss.detach()
                if step % 20 == 0:  # reading it makes the device wait
                    bar.set_postfix(loss=f"{batch_loss.item():.3f}")
                bar.update()
            lr = scheduler.get_last_lr()[0]
            scheduler.step()
            mean_loss = total.item() / steps
            if not math.isfinite(mean_loss) or not all_finite(model):
                raise TrainingStopped(
                    f"the loss became {mean_loss} in epoch {epoch} of {name}: the checkpoint of the "
                    f"epoch before is kept in {settings.out}; lower --lr (it is {settings.lr:g})"
                )
            entry = {"stage": stage, "epoch": len(history) + 1, "loss": mean_loss, "lr": lr}
            entry |= shares(model, x_train, y_train) | {"seconds": time.perf_counter() - start}
            history.append(entry)
            checkpoint = save()
            if bar.disable or not sys.stdout.isatty():
                print(
                    f"{name}, epoch {epoch}/{epochs}: loss {mean_loss:.3f}, "
                    f"training accuracy {entry['accuracy']:.1f} %, {entry['seconds']:.1f} s",
                    flush=True,
                )
    return checkpoint


def shuffled_batches(
    x_train: Tensor, y_train: Tensor, settings: Namespace
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch's batches: float32 images in [0, 1] and labels, on the device of x_train.

    The last, partial batch is dropped. Random numbers are drawn on the CPU, for the whole epoch:
    the same on every device.
    """
    n, device = len(x_train), x_train.device
    order = torch.randperm(n).to(device)
    shifts = torch.randint(0, 9, (2, n)).to(device)
    flips = (torch.rand(n) < 0.5).to(device)
    for i in order.split(settings.batch_size)[: max(1, n // settings.batch_size)]:
        x = x_train[i]
        if settings.augment:
            x = crop_and_flip(x, *shifts[:, i], flips[i])
        yield x.float().div(255).contiguous(memory_format=torch.channels_last), y_train[i]


def crop_and_flip(x: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Crops x [B, C, H, W], padded by 4, at `top` and `left` in 0 .. 8; mirrors where `flip`; [B]."""
    height, width = x.shape[2:]
    rows = top[:, None] + torch.arange(height, device=x.device)  # [B, H]
    columns = left[:, None] + torch.arange(width, device=x.device)  # [B, W]
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    images = torch.arange(len(x), device=x.device)[:, None, None]
    padded = F.pad(x, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    return padded[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def shares(model: nn.Module, x_train: Tensor, y_train: Tensor) -> dict:
    """Of the first 1,000 training images, clean, in percent: how many the model has right, how many
    each expert answers, and on how many it is the best. No expert should starve (appendix 3.4)."""
    x, y = x_train[:1000].float() / 255, y_train[:1000]
    model.eval()
    logits, score = infer.ask_experts(model, x)
    best = infer.expert_losses(logits, y).argmin(0)
    experts = range(len(logits))
    return {
        "accuracy": infer.percent(model.combine(logits, score).argmax(-1) == y),
        "answered": [infer.percent(score.argmax(0) == j) for j in experts],
        "best": [infer.percent(best == j) for j in experts],
    }


def all_finite(model: nn.Module) -> bool:
    values = [v.sum() for v in model.state_dict().values() if v.is_floating_point()]
    return bool(torch.stack(values).isfinite().all())


def write(path: Path, content: bytes) -> None:
    """Puts a file in place whole or not at all. Raises TrainingStopped; the old file survives."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass
        raise TrainingStopped(
            f"cannot save {path} ({error.strerror}): what was saved before is kept; make room there, "
            "then --resume"
        ) from None


def as_bytes(checkpoint: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


def rng_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = getattr(torch, device.type).get_rng_state()
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        getattr(torch, device.type).set_rng_state(state[device.type])


# ---------------------------------------------------- a run: settings, folder, training, table


def make_parser(description: str, prog: str, leave_out: tuple[str, ...] = ()) -> infer.Parser:
    """The options of OPTIONS. What is not given is absent, to be filled in by `set_up`."""
    parser = infer.Parser(description, prog=prog, argument_default=argparse.SUPPRESS)
    for name, (default, kind, text) in OPTIONS.items():
        if name in leave_out:
            continue
        what = {"type": kind, "metavar": name.strip("_").upper()}
        if kind is bool:
            what = {"action": argparse.BooleanOptionalAction}
        elif isinstance(kind, tuple):
            what = {"choices": kind}
        text += "" if default is None else f" (default: {default})"
        parser.add_argument("--" + name.strip("_").replace("_", "-"), dest=name, help=text, **what)
    parser.add_argument("--resume", metavar="DIR", help="go on with the run in this folder")
    return parser


def run(
    parser: infer.Parser,
    argv: list[str] | None,
    method: str,
    losses: dict[int, Callable[[nn.Module, Namespace], Callable[[Tensor, Tensor], Tensor]]],
) -> int:
    """A whole run of a method: settings, each stage of `losses`, the table. Returns the exit status.

    losses is {stage: fn(model, settings) -> loss(x, y)}. Bad input ends with one line and status 2,
    Ctrl-C with the command that goes on, and status 130.
    """
    given = vars(parser.parse_args(argv))
    try:
        settings, dataset, model, checkpoint = set_up(given, method, list(losses))
    except (ValueError, OSError) as error:
        parser.error(error)
    except KeyboardInterrupt:
        print("stopped before training began", file=sys.stderr)
        return 130
    try:
        for stage in settings.stage_epochs:
            loss = losses[stage](model, settings)
            checkpoint = train(model, loss, dataset, settings, stage, checkpoint)
            if stage < max(settings.stage_epochs):
                write(Path(settings.out) / "submodels.pt", as_bytes(checkpoint))
        finish(model, dataset, settings, checkpoint["history"])
    except TrainingStopped as error:
        parser.error(error)
    except KeyboardInterrupt:
        command = f"python {parser.prog} --resume {shlex.quote(settings.out)}"
        print(f"\nstopped; to go on: {command}", file=sys.stderr)
        return 130
    return 0


def set_up(
    given: dict, method: str, stages: list[int]
) -> tuple[Namespace, data.Data, nn.Module, dict | None]:
    """Settings, data, model and, where it resumes, checkpoint of a run; makes its folder and says
    what it will do. Raises ValueError or OSError for bad input, before anything is written."""
    checkpoint, resume = None, given.pop("resume", None)
    if resume is not None:
        checkpoint = checkpoint_to_resume(resume, method, set(given) - MOVABLE)
        settings = Namespace(**(checkpoint["settings"] | given))
        settings.out = resume
        dataset = infer.load_data_of(checkpoint["settings"], settings.data)
    else:
        defaults = {name: default for name, (default, *_) in OPTIONS.items()}
        settings = Namespace(**(defaults | given))
        check(settings)
        dataset = data.load(settings.data)
        fill_in(settings, method, stages, dataset)
    device = infer.pick_device(settings.device)
    settings.precision = settings.precision or best_precision(device)
    torch.manual_seed(settings.seed)
    model = infer.build(vars(settings)).to(device)
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
        set_rng_state(checkpoint["rng"], device)
    elif settings.submodels:
        model.load_state_dict(stage1_weights(settings))
    if not checkpoint:
        settings.out = make_folder(settings)
    channels, height, width = dataset.image_shape
    print(
        f"{dataset.name}: {len(dataset.x_train)} training and {len(dataset.x_test)} test images, "
        f"{channels} x {height} x {width}; {device_name(device)}, {settings.precision}"
        + ("" if dataset.name == "cifar10" else " (the paper's setting: --data cifar10)")
    )
    plan = ", ".join(f"{epochs} epochs of stage {s}" for s, epochs in settings.stage_epochs.items())
    print(
        f"{method}: {settings.n} x ResNet{settings.depth}, eps {settings.eps:g}, {plan}; "
        f"run in {settings.out}",
        flush=True,
    )
    return settings, dataset, model, checkpoint


def check(settings: Namespace) -> None:
    """Raises ValueError for a number that makes no sense."""
    if not 0 < settings.eps <= 1:
        raise ValueError(f"--eps is {settings.eps}: it must lie in (0, 1], in pixels of [0, 1]")
    for name in ("sigma", "lr", "alpha"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name} is {value}: it must be positive")
    if not 0 <= settings.lambda_ < math.inf:
        raise ValueError(f"--lambda is {settings.lambda_}: it must be 0 or more")
    for name in ("n", "steps", "batch_size", "epochs"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}: it must be at least 1")
    if not 0 <= settings.seed < 2**63:
        raise ValueError(f"--seed is {settings.seed}: it must lie between 0 and 2^63 - 1")


def fill_in(settings: Namespace, method: str, stages: list[int], dataset: data.Data) -> None:
    """Settings that depend on the data or on each other. Raises ValueError for too few epochs."""
    settings.method, settings.data_name = method, dataset.name
    settings.image_shape, settings.num_classes = list(dataset.image_shape), dataset.num_classes
    if settings.alpha is None:
        settings.alpha = settings.eps / 3
    if settings.augment is None:
        settings.augment = dataset.image_shape == (3, 32, 32)
    if settings.epochs is None:
        settings.epochs = 16 if settings.data == "digits" else 100
    if settings.submodels:
        stages = stages[1:]
    if settings.epochs < len(stages):
        raise ValueError(
            f"--epochs is {settings.epochs}: {len(stages)} stages need at least {len(stages)}"
        )
    share, rest = divmod(settings.epochs, len(stages))
    settings.stage_epochs = {stage: share for stage in stages}
    settings.stage_epochs[stages[-1]] += rest


def checkpoint_to_resume(folder: str, method: str, given: set[str]) -> dict:
    """The checkpoint of an unfinished run of `method`. Raises ValueError, FileNotFoundError."""
    if given:
        flags = ", ".join("--" + name.strip("_").replace("_", "-") for name in sorted(given))
        raise ValueError(f"--resume takes its settings from the checkpoint: leave out {flags}")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"--resume is {folder}: there is no such folder")
    checkpoint = infer.load_checkpoint(folder)
    if checkpoint["method"] != method:
        raise ValueError(
            f"{folder} holds a run of {checkpoint['method']}: resume it by its own script"
        )
    if (Path(folder) / "metrics.json").exists():
        raise ValueError(f"the run in {folder} has finished: start another one, or see infer.py")
    return checkpoint


def stage1_weights(settings: Namespace) -> dict[str, Tensor]:
    """The weights in --submodels. Raises ValueError where n, depth, data or score differ."""
    checkpoint = infer.load_checkpoint(settings.submodels)
    theirs = checkpoint["settings"]
    for name in ("n", "depth", "data_name", "image_shape", "num_classes", "confidence"):
        if theirs.get(name) != getattr(settings, name):
            raise ValueError(
                f"--submodels {settings.submodels} was trained with {name} {theirs.get(name)}, "
                f"not {getattr(settings, name)}: give the same"
            )
    if any(entry["stage"] != 1 for entry in checkpoint["history"]):
        raise ValueError(
            f"--submodels {settings.submodels} has been through stage 2: name a submodels.pt"
        )
    infer.restore(checkpoint, torch.device("cpu"))  # raises where the weights do not fit
    return checkpoint["model"]


def make_folder(settings: Namespace) -> str:
    """A new folder for the run: --out, or the next free name. Raises ValueError, OSError."""
    if settings.out is not None:
        folder = Path(settings.out)
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ValueError(f"--out {folder} is taken: name a new or empty folder, or --resume it")
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)
    name = f"{settings.data_name}-eps{settings.eps:g}-n{settings.n}-seed{settings.seed}"
    for number in itertools.count(1):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return str(folder)
        except FileExistsError:
            continue


def best_precision(device: torch.device) -> str:
    """bfloat16 where the hardware multiplies it fast: CUDA from Ampere, CPUs with AMX or AVX512."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"
    queries = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    if device.type == "cpu" and any(getattr(torch.cpu, query, bool)() for query in queries):
        return "bfloat16"
    return "float32"


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu with {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)


def finish(model: nn.Module, dataset: data.Data, settings: Namespace, history: list[dict]) -> None:
    """Prints the table; writes curves.png and, last, metrics.json, which marks the run finished."""
    device = next(model.parameters()).device
    torch.manual_seed(settings.seed)
    x, y = infer.test_subset(dataset, device, infer.MAX_IMAGES)
    result = infer.report(model, x, y, infer.pgd_attack(settings.eps))
    infer.print_report(result, model, len(x), settings.eps)
    metrics = {
        "settings": vars(settings),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "device": device_name(device),
        "precision": settings.precision,
        "epochs": history,
        **result,
    }
    out = Path(settings.out)
    write(out / "curves.png", curves(history))
    write(out / "metrics.json", json.dumps(metrics, indent=1).encode())
    print(f"\nWrote {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def curves(history: list[dict]) -> bytes:
    """The history as a PNG: loss, accuracy, and what share of images each expert has."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    epochs = [entry["epoch"] for entry in history]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    left.plot(epochs, [entry["loss"] for entry in history], "k.-")
    left.set_title("training loss")
    middle.plot(epochs, [entry["accuracy"] for entry in history], "k.-")
    middle.set_title("accuracy on clean training images (%)")
    for j in range(len(history[0]["best"])):
        for key, line in (("answered", "-"), ("best", ":")):
            share = [entry[key][j] for entry in history]
            right.plot(epochs, share, line, color=f"C{j}", label=f"expert {j + 1}, {key}")
    right.set_title("share of images (%): answered, best at")
    right.set_ylim(0, 100)
    right.legend(fontsize=7, ncols=2)
    for axis in (left, middle, right):
        axis.set_xlabel("epoch")
        for before, after in zip(history, history[1:]):
            if before["stage"] != after["stage"]:
                axis.axvline(after["epoch"] - 0.5, color="gray", linewidth=0.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "train_submodel.py", leave_out=("weights", "submodels"))
    return run(parser, argv, "soe-stage1", {1: stage1_loss})


if __name__ == "__main__":
    sys.exit(main())
