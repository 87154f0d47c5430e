"""Stage 1, sub-model training (the main paper's Algorithm 1), and the training loop of all methods.

Every expert is attacked alone; each adversarial image is learned by whichever expert handles it
best, through a smooth minimum of the experts' losses (Eq. 7). The confidences learn the probability
that their expert gives to the true label, so that at test time, without labels, the most confident
expert should be the best one (Eq. 8; where it is not, METHOD.md says why).

    python train_submodel.py --eps 0.03 --n 3    # stage 1 alone, all epochs: Figure 2's ablation

Its checkpoint, RUN/model.pt, is where `train_collab.py --submodels` starts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infer
from attacks import expert_losses, pgd
from models import CONFIDENCES
from support import options, ranks, runs, speed
from support.options import option


@dataclass
class Settings(options.RunSettings):
    """the networks, the attack in training, and learning"""

    # The paper's appendix: three ResNet20s, 100 epochs, eps from 0.01 to 0.07.
    n: int = option(3, options.experts, "M, the number of experts")
    depth: int = option(20, options.depth, "depth of each ResNet: 2, 8, 14, 20 ..")
    eps: float = option(
        0.03, options.radius_or_0, "epsilon, l-infinity, pixels in [0, 1]; or 8/255"
    )
    epochs: int = option(None, options.count, "of all stages (default: 8 on digits, else 100)")
    # The authors' code.
    steps: int = option(10, options.count, "S, the steps of PGD")
    random_start: bool = option(False, bool, "PGD starts at a random point of the ball")
    batch_size: int = option(128, options.count, "B, training images a step")
    optimizer: str = option("sgd", ("sgd", "adam"), "SGD with momentum 0.9, or Adam")
    lr: float = option(
        None, options.positive, "falls tenfold at 1/2 and 3/4 of a stage (default: 0.1; Adam: 1e-3)"
    )
    augment: bool = option(None, bool, "random crop and flip (default: for 32 x 32 colour images)")
    # Ours: there a step is 0.01 at every eps.
    alpha: float = option(None, options.positive, "alpha, the size of a step (default: eps / 3)")


@dataclass
class SoESettings(Settings):
    """the loss of SoE"""

    # Eq. 7. The paper gives no value: 10 is among those that agree best with its tables. At 1 small
    # experts share out the classes (METHOD.md, "What sigma means").
    sigma: float = option(10.0, options.positive_or_inf, "sigma of Eq. 7; inf: the mean of losses")
    # The authors' code.
    confidence: str = option(
        "rectified", CONFIDENCES, "who answers: by max_k f_k * g, or by g alone as in the paper"
    )
    lambda_: float = option(1.0, options.not_negative, "lambda, the weight of the confidence loss")
    weights: str = option(
        "best", ("best", "confidence"), "who learns: Eq. 7, or softmax(q) as in the authors' code"
    )


# loss(model, x [B, C, H, W] in [0, 1], y [B], settings) -> scalar: all that a method is
TrainingLoss = Callable[[nn.Module, Tensor, Tensor, Settings], Tensor]


def training_attack(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, settings: Settings
) -> Tensor:
    """PGD as every method trains on it: x [B, C, H, W], y [B] -> x_adv [B, C, H, W]."""
    eps, alpha, steps = settings.eps, settings.alpha, settings.steps
    random_start = settings.random_start
    return pgd(model, x, y, eps, alpha, steps, random_start=random_start, trusted=True)


def clean_and_attacked(model: nn.Module, x: Tensor, y: Tensor, settings: Settings) -> list[Tensor]:
    """[x, x~], x~ = PGD against the whole model; [x] where eps is 0. Ends in train mode."""
    batches = [x]
    if settings.eps:
        model.eval().requires_grad_(False)  # the attack needs gradients for the input alone
        batches.append(training_attack(speed.for_attack(model), x, y, settings))
    model.train().requires_grad_(True)
    return batches


def attack_each_expert(model: nn.Module, x: Tensor, y: Tensor, settings: Settings) -> Tensor:
    """x~_i = PGD against expert i alone, for every i: x [B, C, H, W] -> [M * B, C, H, W]."""
    experts = speed.for_attack(model).experts.side_by_side()
    return torch.cat([training_attack(e.logits, x, y, settings) for e in experts])


def best_expert_loss(losses: Tensor, sigma: float) -> Tensor:
    """Eq. 7's smooth minimum l^_m over the experts' losses: [M, B] -> [B].

    It lies between min_j l_j - sigma ln M and min_j l_j; its gradient weighs expert j by
    softmax_j(-l_j / sigma). At sigma = inf: the mean of the losses, which is where
    l^_m + sigma ln M tends to.
    """
    if math.isinf(sigma):
        return losses.mean(0)
    return -sigma * torch.logsumexp(-losses / sigma, 0)


def confidence_weighted_loss(losses: Tensor, score: Tensor) -> Tensor:
    """sum_j softmax_j(q) l_j, in the authors' code where Eq. 7 stands in the paper: [M, B], [M, B]
    -> [B]; no gradient flows through the weights.

    They differ by less than a factor e, as every confidence q = sigmoid(score) lies in (0, 1).
    """
    return (torch.softmax(score.sigmoid().detach(), 0) * losses).sum(0)


def confidence_loss(score: Tensor, p_y: Tensor) -> Tensor:
    """mean_j BCE(q_j, p_y^j), no gradient through the target p_y: [M, B], [M, B] -> [B].

    `score` is the logit of the confidence q. The loss is least where q_j = p_y^j; if that held for
    every expert, the most confident one would be the best (Proposition 2, Eq. 8).
    """
    return F.binary_cross_entropy_with_logits(score, p_y.detach(), reduction="none").mean(0)


def sample_loss(model: nn.Module, x: Tensor, y: Tensor, settings: SoESettings) -> Tensor:
    """l^_m + sigma ln M, or the authors' weighted sum, + lambda * mean_j BCE_j: x [B, C, H, W],
    y [B] -> [B]. The constant sigma ln M makes it 0 where every expert has learned all."""
    logits, score = model.all_experts(x, y)  # [M, B, K], [M, B]
    losses = expert_losses(logits, y)  # l_j, [M, B]
    if settings.weights == "best":
        label_loss = best_expert_loss(losses, settings.sigma)
        if settings.sigma < math.inf:
            label_loss = label_loss + settings.sigma * math.log(len(losses))
    else:
        label_loss = confidence_weighted_loss(losses, score)
    p_y = torch.exp(-losses)
    return label_loss + settings.lambda_ * confidence_loss(score, p_y)


def stage1_loss(model: nn.Module, x: Tensor, y: Tensor, settings: SoESettings) -> Tensor:
    """The loss of sub-model training: x [B, C, H, W] in [0, 1], y [B] -> scalar."""
    M = settings.n
    if settings.eps == 0:  # no attack: so we read Table 4
        return M * sample_loss(model.train(), x, y, settings).mean()
    model.eval().requires_grad_(False)
    x_adv = attack_each_expert(model, x, y, settings)  # [M * B, C, H, W]
    model.train().requires_grad_(True)
    clean = sample_loss(model, x, y, settings).mean()
    adversarial = sample_loss(model, x_adv, y.repeat(M), settings).mean()
    # M: the weights of Eq. 7 sum to 1 over experts, so without it each expert would move 1/M as far
    # as a member of an ordinary ensemble does at the same learning rate.
    return M * (clean + adversarial)


# ------------------------------------------------------------------------ the loop of every method


def train(run: runs.Run, stage: int, loss: TrainingLoss, **how) -> None:
    """Trains run.model by `loss` for the epochs that are left of this stage.

    `how` tells `speed.accelerate` of a loss that torch.compile cannot take, or that has a state.
    Raises FloatingPointError when the loss is no longer finite, OSError when the checkpoint cannot
    be written.
    """
    model, settings = run.model, run.settings
    optimizer, scheduler = optimizer_and_schedule(model, settings, stage)

    def forward_and_backward(x: Tensor, y: Tensor) -> Tensor:
        with speed.autocast(run.device, settings):
            batch_loss = loss(model, x, y, settings)
        batch_loss.backward()
        return batch_loss.detach()

    step = speed.accelerate(forward_and_backward, model, settings, **how)
    run.begin(stage, optimizer, scheduler)  # or goes back to where the stage was interrupted
    for epoch in run.epochs(stage):
        for x, y in run.batches():
            optimizer.zero_grad()
            batch_loss = step(x, y)
            ranks.average_gradients(model)
            optimizer.step()
            run.count(batch_loss)
        scheduler.step()
        run.end_epoch(epoch)  # averages statistics, checks, measures, saves and prints


def optimizer_and_schedule(
    model: nn.Module, settings: Settings, stage: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """SGD, or Adam as ADP and GAL have it; the rate falls tenfold at 1/2 and 3/4 of the stage."""
    if settings.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), settings.lr, eps=1e-7, weight_decay=1e-4)
    else:
        optimizer = torch.optim.SGD(model.parameters(), settings.lr, 0.9, weight_decay=1e-4)
    epochs = settings.stage_epochs.get(stage, 0)
    milestones = [math.ceil(epochs * part) for part in (0.5, 0.75)]
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)


def main(argv: list[str] | None = None) -> None:
    parser = options.training_parser(SoESettings, __doc__, "train_submodel.py")
    with runs.start(parser, argv, method="soe-stage1", model="collaboration") as run:
        train(run, 1, stage1_loss)
        run.finish(infer.pgd_report)


if __name__ == "__main__":
    main()
