"""Stage 1, sub-model training (the paper's Algorithm 1), and the training loop of every method.

Every expert is attacked alone; each adversarial image is learned by whichever expert handles it
best, through a smooth minimum of the experts' losses (Eq. 7). The E heads learn how probable the
true label is under their expert, so that the most confident expert is the best one (Eq. 8).

    python train_submodel.py --eps 0.03 --n 3    # stage 1 alone, all epochs: Figure 2's ablation

Its checkpoint, RUN/model.pt, is what `train_collab.py --submodels` goes on from.
"""

import json
import math
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
from attacks import expert_losses, pgd
from models import Ensemble
from support import files, graphs, options, pictures, ranks

TrainingLoss = Callable[[Tensor, Tensor], Tensor]  # x [B, C, H, W] in [0, 1], y [B] -> scalar

# ------------------------------------------------------------------------ the method: stage 1


def training_attack(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, settings: Namespace
) -> Tensor:
    """PGD as every method trains on it: x [B, C, H, W], y [B] -> x_adv [B, C, H, W]."""
    eps, alpha, steps = settings.eps, settings.alpha, settings.steps
    return pgd(model, x, y, eps, alpha, steps, random_start=settings.random_start)


def attack_each_expert(model: nn.Module, x: Tensor, y: Tensor, settings: Namespace) -> Tensor:
    """x~_i = PGD against expert i alone, for every i: x [B, C, H, W] -> [M * B, C, H, W]."""
    alone = map(infer.first_output, model.experts)
    return torch.cat([training_attack(expert, x, y, settings) for expert in alone])


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
    losses = expert_losses(logits, y)  # [M, B]
    p_y = torch.exp(-losses)
    return best_expert_loss(losses, settings.sigma) + settings.lambda_ * confidence_loss(score, p_y)


def stage1_loss(model: nn.Module, settings: Namespace) -> TrainingLoss:
    """The loss of sub-model training: x [B, C, H, W], y [B] -> scalar."""
    M = settings.n

    def loss(x: Tensor, y: Tensor) -> Tensor:
        model.eval().requires_grad_(False)  # the attack needs gradients for the input alone
        x_adv = attack_each_expert(model, x, y, settings)  # [M * B, C, H, W]
        model.train().requires_grad_(True)
        clean = sample_loss(model, x, y, settings).mean()
        adversarial = sample_loss(model, x_adv, y.repeat(M), settings).mean()
        # M: the weights of Eq. 7 sum to 1 over experts, so without it each expert would move 1/M
        # as far as a member of an ordinary ensemble does at the same learning rate.
        return M * (clean + adversarial)

    return loss


# ------------------------------------------------------------------- the loop of every method


def train(
    model: nn.Module,
    loss: TrainingLoss,
    dataset: data.Data,
    settings: Namespace,
    stage: int = 1,
    checkpoint: dict | None = None,
) -> dict:
    """Trains `model` for settings.stage_epochs[stage] epochs, and returns its checkpoint.

    loss(x [B, C, H, W] in [0, 1], y [B]) -> scalar is all that a method is. `checkpoint` is where
    to go on: within this stage, or at the end of the one before, whose history is kept. After
    every epoch the state is saved to settings.out / "model.pt". Raises FloatingPointError when the
    loss is no longer finite, OSError when the checkpoint cannot be written.
    """
    device = next(model.parameters()).device
    x_train, y_train = dataset.x_train.to(device), dataset.y_train.to(device)
    epochs = settings.stage_epochs[stage]
    if settings.optimizer == "adam":  # eps as ADP and GAL have it
        adam = {"eps": 1e-7, "weight_decay": 1e-4}
        optimizer = torch.optim.Adam(model.parameters(), settings.lr, **adam)
    else:
        sgd = {"momentum": 0.9, "weight_decay": 1e-4}
        optimizer = torch.optim.SGD(model.parameters(), settings.lr, **sgd)
    milestones = [math.ceil(epochs * part) for part in (0.5, 0.75)]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    history = list(checkpoint["history"]) if checkpoint else []
    done = sum(entry["stage"] == stage for entry in history)
    if done == epochs:
        return checkpoint
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
            "rng": files.rng_state(device),
        }
        path = Path(settings.out) / "model.pt"
        ranks.from_rank_0(lambda: files.save_checkpoint(path, state))
        return state

    if not done:
        checkpoint = save()
    step = forward_and_backward(model, loss, settings)
    steps, name = settings.steps_per_epoch, f"stage {stage}"
    quiet = not sys.stderr.isatty() or ranks.rank() > 0
    bar = tqdm(total=epochs * steps, initial=done * steps, disable=quiet)
    with bar:
        for epoch in range(done + 1, epochs + 1):
            start, total = time.perf_counter(), torch.zeros((), device=device)
            bar.set_description(f"{name}, epoch {epoch}/{epochs}")
            for number, (x, y) in enumerate(shuffled_batches(x_train, y_train, settings)):
                optimizer.zero_grad()
                batch_loss = step(x, y)
                ranks.average_gradients(model)
                optimizer.step()
                total += batch_loss
                if number % 20 == 0:  # reading it makes the device wait
                    bar.set_postfix(loss=f"{batch_loss.item():.3f}")
                bar.update()
            ranks.average_statistics(model)  # batch norm's: once an epoch, not once a step
            ranks.average([total])
            lr = scheduler.get_last_lr()[0]
            scheduler.step()
            mean_loss = total.item() / steps  # is it finite? Asked once an epoch: asking waits
            if not math.isfinite(mean_loss) or not all_finite(model):
                raise FloatingPointError(
                    f"the loss or a weight became NaN or infinite in epoch {epoch} of {name}; the "
                    f"checkpoint of the epoch before is kept; lower --lr (it is {settings.lr:g})"
                )
            entry = {"stage": stage, "epoch": len(history) + 1, "loss": mean_loss, "lr": lr}
            entry |= shares(model, x_train, y_train) | {"seconds": time.perf_counter() - start}
            history.append(entry)
            checkpoint = save()
            if bar.disable or not sys.stdout.isatty():
                print(
                    f"{name}, epoch {epoch}/{epochs}: loss {mean_loss:.3f}, "
                    f"clean training accuracy {entry['accuracy']:.1f} %, {entry['seconds']:.1f} s",
                    flush=True,
                )
    return checkpoint


def forward_and_backward(
    model: nn.Module, loss: TrainingLoss, settings: Namespace
) -> Callable[[Tensor, Tensor], Tensor]:
    """A step without its update: (x, y) -> the loss, detached; it fills every .grad, None before.

    With settings.compile the networks' element-wise work is fused, and on a GPU the whole step is
    launched at once, unless the loss says that it is not `compilable`.
    """
    device = next(model.parameters()).device
    # No cache of bfloat16 weights: in some versions one filled without gradients cuts them off.
    low = settings.precision == "bfloat16"
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=low, cache_enabled=False)
    fast = options.compile_pays(device) if settings.compile is None else settings.compile
    fast = fast and getattr(loss, "compilable", True)

    def step(x: Tensor, y: Tensor) -> Tensor:
        with autocast:
            batch_loss = loss(x, y)
        batch_loss.backward()
        return batch_loss.detach()

    if not fast:
        return step
    for expert in model.experts:
        expert.backbone.compile(dynamic=False)
    torch._dynamo.config.recompile_limit = 64  # several depths, each in train and eval mode
    torch.compiler.set_stance("force_eager")  # outside of the step, evaluation above all

    def compiled_step(x: Tensor, y: Tensor) -> Tensor:
        with torch.compiler.set_stance("default"):
            return step(x, y)

    return graphs.replayed(compiled_step, model) if device.type == "cuda" else compiled_step


def shuffled_batches(
    x_train: Tensor, y_train: Tensor, settings: Namespace
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch's batches, this rank's share of each: float32 images in [0, 1] and labels, on the
    device of x_train.

    The last, partial batch is dropped. Random numbers are drawn on the CPU, for the whole epoch:
    the same on every device.
    """
    n, device = len(x_train), x_train.device
    order = torch.randperm(n).to(device)
    shifts = torch.randint(0, 9, (2, n)).to(device)
    flips = (torch.rand(n) < 0.5).to(device)
    for i in order.split(settings.batch_size)[: max(1, n // settings.batch_size)]:
        i = ranks.share(i)
        x = x_train[i]
        if settings.augment:
            x = crop_and_flip(x, *shifts[:, i], flips[i])
        yield x.float().div(255).contiguous(memory_format=torch.channels_last), y_train[i]


def crop_and_flip(x: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Crops x [B, C, H, W], padded by 4, at `top`, `left` in 0 .. 8 [B]; mirrors where `flip`."""
    height, width = x.shape[2:]
    rows = top[:, None] + torch.arange(height, device=x.device)  # [B, H]
    columns = left[:, None] + torch.arange(width, device=x.device)  # [B, W]
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    images = torch.arange(len(x), device=x.device)[:, None, None]
    padded = F.pad(x, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    return padded[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def shares(model: nn.Module, x_train: Tensor, y_train: Tensor) -> dict:
    """Of 1,000 training images, clean, in percent: how many the model has right, how many each
    expert answers, and on how many it is the best. No expert should starve (appendix 3.4). In a
    vote nobody answers alone."""
    chosen = torch.randperm(len(x_train), generator=torch.Generator().manual_seed(0))[:1000]
    x, y = x_train[chosen].float() / 255, y_train[chosen]
    model.eval()
    logits, score = infer.ask_experts(model, x)
    best = expert_losses(logits, y).argmin(0)
    experts = range(len(logits))
    result = {"accuracy": infer.percent(model.combine(logits, score).argmax(-1) == y)}
    if not isinstance(model, Ensemble):
        result["answered"] = [infer.percent(score.argmax(0) == j) for j in experts]
    return result | {"best": [infer.percent(best == j) for j in experts]}


def all_finite(model: nn.Module) -> bool:
    values = [v.sum() for v in model.state_dict().values() if v.is_floating_point()]
    return bool(torch.stack(values).isfinite().all())


# ------------------------------------------------------------------- a run: stages, then table


def run(
    parser: options.Parser,
    argv: list[str] | None,
    method: str,
    stages: dict[int, Callable[[nn.Module, Namespace], TrainingLoss]],
) -> int:
    """A whole run of a method: settings, each stage, the table; the exit status.

    stages is {stage: fn(model, settings) -> loss(x, y)}; fn raises ValueError for settings that the
    method cannot work with. Bad input ends with one line and status 2, Ctrl-C with the command that
    goes on, and status 130.
    """
    given = vars(parser.parse_args(argv))
    try:
        ranks.start(given.get("device"))
        with ranks.dying_together():
            settings, dataset, model, checkpoint, losses = set_up(parser, given, method, stages)
    except (ValueError, OSError) as error:
        parser.error(error)
    except KeyboardInterrupt:
        print("stopped before training began", file=sys.stderr)
        return 130
    try:
        with ranks.dying_together():
            train_stages(model, losses, dataset, settings, checkpoint)
    except FloatingPointError as error:
        parser.error(error)
    except files.SaveError as error:
        parser.error(f"{error}; make room there; {how_to_go_on(parser.prog, settings.out)}")
    except KeyboardInterrupt:
        if ranks.rank() == 0:
            print(f"\nstopped; {how_to_go_on(parser.prog, settings.out)}", file=sys.stderr)
        return 130
    return 0


def train_stages(
    model: nn.Module,
    losses: dict[int, TrainingLoss],
    dataset: data.Data,
    settings: Namespace,
    checkpoint: dict | None,
) -> None:
    """Every stage from the checkpoint on, and the table."""
    for stage, loss in losses.items():
        checkpoint = train(model, loss, dataset, settings, stage, checkpoint)
        stage_has_ended = checkpoint["history"][-1]["stage"] == stage  # not one long since
        if stage_has_ended and stage < max(settings.stage_epochs):
            path, state = Path(settings.out) / "submodels.pt", checkpoint
            ranks.from_rank_0(lambda path=path, state=state: files.save_checkpoint(path, state))
    finish(model, dataset, settings, checkpoint["history"])


def how_to_go_on(prog: str, out: str) -> str:
    if not (Path(out) / "model.pt").exists():
        return "nothing was trained yet"
    return f"to go on: {files.command(prog, '--resume', out)}"


def set_up(
    parser: options.Parser,
    given: dict,
    method: str,
    stages: dict[int, Callable[[nn.Module, Namespace], TrainingLoss]],
) -> tuple[Namespace, data.Data, nn.Module, dict | None, dict[int, TrainingLoss]]:
    """Settings, data, model, checkpoint (None in a new run) and each stage's loss; makes the run's
    folder and says what it will do. Raises ValueError or OSError for bad input, before anything is
    written."""
    checkpoint = None
    resume = given.pop("resume", None)
    if resume is not None:
        checkpoint = ranks.from_rank_0(
            lambda: files.checkpoint_to_resume(resume, method, set(given))
        )
        of_run = parser.defaults | checkpoint["settings"] | given
        settings = Namespace(**of_run | {"out": resume})
        dataset = ranks.from_rank_0(
            lambda: infer.load_data_of(checkpoint["settings"], settings.data)
        )
        if dataset.checksum != settings.data_checksum:
            raise ValueError(
                f"{settings.data} holds other images than those of the run in {resume}"
            )
    else:
        settings = Namespace(**parser.defaults | given, method=method)
        options.check(settings, parser.eps_may_be_0)
        dataset = ranks.from_rank_0(lambda: data.load(settings.data))
    options.fill_in(settings, dataset)
    batch_size = min(settings.batch_size, len(dataset.x_train))
    if batch_size % ranks.count():
        raise ValueError(f"a batch has {batch_size} images: {ranks.count()} ranks cannot share it")
    if not checkpoint:
        settings.stage_epochs = share_epochs(settings, list(stages))
    device = options.pick_device(settings.device)
    settings.precision = settings.precision or options.best_precision(device)
    torch.manual_seed(settings.seed)
    model = infer.build(vars(settings)).to(device, memory_format=torch.channels_last)
    losses = {stage: stages[stage](model, settings) for stage in settings.stage_epochs}
    if checkpoint:
        infer.load_weights(model, checkpoint)
        files.set_rng_state(checkpoint["rng"], device)
    else:
        if getattr(settings, "submodels", None) is not None:
            stage1 = ranks.from_rank_0(lambda: files.stage1_checkpoint(settings))
            infer.load_weights(model, stage1)
        settings.out = ranks.from_rank_0(lambda: files.make_folder(settings))
    ranks.last_words = f"to go on: {files.command(parser.prog, '--resume', settings.out)}"
    channels, height, width = dataset.image_shape
    hint = "" if settings.data == "cifar10" else "; the paper's setting is --data cifar10"
    print(
        f"{dataset.name}: {len(dataset.x_train)} training and {len(dataset.x_test)} test images, "
        f"{channels} x {height} x {width}; "
        f"{options.device_name(device)}, {settings.precision}{hint}"
    )
    plan = ", ".join(f"stage {stage}: {e} epochs" for stage, e in settings.stage_epochs.items())
    name = "" if method.startswith("soe") else f"{method}: "
    experts = f"{name}{settings.n} x ResNet{settings.depth}"
    print(f"{experts}, eps {settings.eps:g}; {plan}; into {settings.out}", flush=True)
    return settings, dataset, model, checkpoint, losses


def share_epochs(settings: Namespace, stages: list[int]) -> dict[int, int]:
    """{stage: epochs}, in equal parts. Raises ValueError where there are too few."""
    if getattr(settings, "submodels", None) is not None:
        stages = stages[1:]
    share, rest = divmod(settings.epochs, len(stages))
    if share == 0:
        least = len(stages)
        raise ValueError(f"--epochs is {settings.epochs}: {least} stages need at least {least}")
    return dict.fromkeys(stages, share) | {stages[-1]: share + rest}


def finish(model: nn.Module, dataset: data.Data, settings: Namespace, history: list[dict]) -> None:
    """Prints the table; writes curves.png and, last, metrics.json, which marks the run finished."""
    device = next(model.parameters()).device
    torch.manual_seed(settings.seed)
    x, y = infer.test_images(dataset, device)
    attacks = infer.standard_pgd(settings.eps) if settings.eps else {}
    result = infer.report(model, x, y, attacks)
    infer.print_report(result, infer.row_of(model), len(x), settings.eps)
    metrics = {
        "settings": vars(settings),
        "versions": options.versions(),
        "device": options.device_name(device),
        "precision": settings.precision,
        "epochs": history,
        **result,
    }
    out = Path(settings.out)
    if ranks.rank():
        return
    files.write(out / "curves.png", pictures.curves(history))
    files.write(out / "metrics.json", json.dumps(metrics, indent=1).encode())
    print(f"\nWrote {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def main(argv: list[str] | None = None) -> int:
    leave_out = ("weights", "submodels")
    parser = options.training_parser(__doc__, "train_submodel.py", leave_out)
    return run(parser, argv, "soe-stage1", {1: stage1_loss})


if __name__ == "__main__":
    sys.exit(main())
