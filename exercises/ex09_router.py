"""Exercise 9: attack the router

Algorithm 1's argmax shows a gradient nothing of the E heads. Two losses do: one replaces the argmax
by a softmax, one drives a wrong expert to answer. Write them; then an attack of your own on a small
trained SoE, in as many passes as ours, which takes as many images (within 2 points).

In words: the measured results (experiments/results.md) give Square and the adaptive attack for
such models. Which of the two is their robustness, and what does the paper's Table 3 tell?
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attacks
import data
import infer
from attacks import expert_losses, margin_loss
from exercises import HERE, Answers, Property, shaped

MINUTES, PAPER = 70, "appendix 4.2"
IMPORTS = """import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import ball, expert_losses, margin_loss, pgd"""
REBUILD = {
    "soft_routing_loss": (
        "attacks",
        "The margin of error of ln sum_j softmax_j(score / T) f_j, exact where probabilities "
        "underflow: output is (logits [M, B, K], score [M, B]), y [B] -> [B].",
    ),
    "misroute_loss": (
        "attacks",
        "The lesser of expert j's margin of error and `scale` times its lead in score over the "
        "best other expert: above 0 where j is wrong and answers. output as above, y [B] -> [B].",
    ),
}
TWIST = {
    "my_attack": "x_adv [B, C, H, W] within eps of x and in [0, 1], at which the model, a "
    "Collaboration, is wrong as often as possible. The gradient may be taken at most `passes` "
    "times for the whole batch, by all experts; asking without a gradient costs nothing, "
    "but all of it has 20 s. x, y and the model stay as they are."
}


def my_attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, passes: int) -> Tensor:
    steps = passes // (2 + len(model.experts))
    how = {"alpha": eps / 5, "steps": steps, "random_start": True, "keep_best": True}
    return attacks.adaptive(model, x, y, partial(attacks.pgd, eps=eps, **how))


EPS, PASSES, ALLOWED = 0.1, 100, 2.0  # points
LOGITS = 2 * torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
SCORE = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).double()
Y = torch.tensor([0, 1, 2, 3])
FAR = torch.tensor([[[-900.0, 0.0]], [[-800.0, 0.0]]], dtype=torch.float64)


def with_gradients(name: str, **how) -> Callable:
    """The loss, and its gradients to logits and scores (0 where there is none)."""

    def probe(own: object) -> list[Tensor]:
        output = LOGITS.clone().requires_grad_(), SCORE.clone().requires_grad_()
        values = shaped(getattr(own, name)(output, Y, **how), len(Y))
        found = torch.autograd.grad(values.sum(), output, allow_unused=True)
        zeros = map(torch.zeros_like, output)
        return [values, *(z if grad is None else grad for z, grad in zip(zeros, found))]

    return probe


def test_set() -> tuple[Tensor, Tensor]:
    dataset = data.load("digits")
    return dataset.test_images("cpu", dataset.choose_test_images(180))


def attacked(own: object) -> list[Tensor]:
    """Gradient passes of the batch; what the attack has made of it."""
    model, (x, y), asked = infer.load(HERE / "model.pt"), test_set(), []

    def count(_, inputs: tuple[Tensor]) -> None:
        asked.append(len(inputs[0]) if torch.is_grad_enabled() and inputs[0].requires_grad else 0)

    for expert in model.experts:
        expert.backbone.register_forward_pre_hook(count)
    torch.manual_seed(0)
    x_adv = shaped(own.my_attack(model, x.clone(), y.clone(), EPS, PASSES).detach(), *x.shape)
    return [torch.tensor(sum(asked) / len(x) / len(model.experts)), x_adv]


def left_correct(x_adv: Tensor) -> float:
    """% that the shipped model has correct."""
    with torch.no_grad():
        correct = infer.load(HERE / "model.pt")(x_adv).argmax(1) == test_set()[1]
    return 100 * correct.double().mean().item()


PROBES = {
    "soft routing, T 1": with_gradients("soft_routing_loss", T=1.0),
    "soft routing, T .3": with_gradients("soft_routing_loss", T=0.3),
    "soft routing, probabilities of 1e-350": lambda own: own.soft_routing_loss(
        (FAR, torch.zeros(2, 1).double()), torch.tensor([0]), 1.0
    ),
    "misroute to expert 1": with_gradients("misroute_loss", j=0, scale=1.0),
    "misroute to expert 3, scale 2": with_gradients("misroute_loss", j=2, scale=2.0),
    "misroute to expert 2, scale .2": with_gradients("misroute_loss", j=1, scale=0.2),
    "misroute to expert 1, scale 5": with_gradients("misroute_loss", j=0, scale=5.0),
    "your attack: passes, x_adv": attacked,
}
NAMES = list(PROBES)
SLOW = NAMES[7:]


def weaker(mine: Answers, right: Answers) -> str | None:
    x, _ = test_set()
    passes, *pixels = mine[NAMES[7]]
    x_adv, theirs = (torch.from_numpy(of[NAMES[7]][1:]).float().view_as(x) for of in (mine, right))
    if not np.isfinite(pixels).all():
        return "some pixels are NaN or infinite"
    outside = max((x_adv - x).abs().max().item() - EPS, -x_adv.min().item(), x_adv.max().item() - 1)
    if outside > 1e-6:
        return f"some pixel is {outside:.3g} outside the ball or [0, 1]"
    if passes > PASSES:
        return f"{passes:g} gradient passes: {PASSES} are allowed"
    left, ours = left_correct(x_adv), left_correct(theirs)
    if left > ours + ALLOWED:
        return f"your attack leaves {left:.1f} %, ours {ours:.1f} % (PGD alone more than 20 %)"
    return None


PROPERTIES = [
    Property("soft routing is the margin of the softmax-weighted mixture", 3, NAMES[:2]),
    Property("it is exact where probabilities underflow", 1, NAMES[2:3]),
    Property("misrouting wants expert j wrong, and answering", 3, NAMES[3:7]),
    Property("your attack takes as many images as ours", 5, NAMES[7:], weaker),
]
MISTAKES = {
    "the argmax kept": "With an argmax the scores get no gradient: that is what hides them.",
    "scores ignored": "All experts weigh the same: that attacks their vote.",
    "scores detached": "The scores must get a gradient: they are what is attacked.",
    "the sign lost": "The attack raises its loss, so it must be large where the answer is wrong.",
    "T multiplied": "score * T instead of score / T.",
    "a softmax of sigmoids": "The scores are logits already: sigmoids lie in (0, 1), so that the "
    "softmax is nearly uniform.",
    "probabilities before the logarithm": "ln sum_j w_j f_j is infinite where all f_j are "
    "rounded to 0: add logarithms, then logsumexp.",
    "logarithms weighed": "The mixture is one of probabilities, ln sum_j w_j f_j: not of their "
    "logarithms, nor of logits.",
    "scale times both": "The scale belongs to the lead alone: it makes it as large as the margin.",
    "cross-entropy of the mixture": "The margin is asked for: -ln p_y is nearly flat where the "
    "mixture is sure of the true label.",
    "T forgotten": "The softmax is of score / T.",
    "softmax over the images": "The softmax runs over the experts, axis 0.",
    "a constant added to the sum": "ln(sum + 1e-12) is wrong where the sum is smaller: logsumexp.",
    "the larger of the two": "Both must be above 0: that is their minimum.",
    "no scale": "The lead is taken `scale` times.",
    "the margin alone": "Expert j is to be wrong, and to answer, too.",
    "the lead alone": "Expert j is to answer, and to be wrong, too.",
    "a lead over the mean": "j answers if it leads over the best other expert, not their mean.",
    "the lead turned round": "The lead is s_j less the others' best.",
    "scale on the margin": "The lead is taken `scale` times, not the margin.",
    "cross-entropy for the margin": "The margin of error is above 0 exactly where j is wrong: "
    "margin_loss.",
    "its own lead counted": "Expert j leads over the best *other* expert.",
    "a sum for the lesser": "Both must be above 0: the sum of the two can be, where one is not.",
}


def variant(wrong: frozenset[str]) -> dict[str, Callable]:
    def soft_routing_loss(output, y, T):
        logits, score = output
        score = score.detach() if "scores detached" in wrong else score
        score = torch.zeros_like(score) if "scores ignored" in wrong else score
        score = score.sigmoid() if "a softmax of sigmoids" in wrong else score
        log_f = F.log_softmax(logits, -1)
        if "the argmax kept" in wrong:
            log_mixture = log_f.take_along_dim(score.argmax(0)[None, :, None], 0).squeeze(0)
        else:
            log_w = F.log_softmax(score * T if "T multiplied" in wrong else score / T, 0)[..., None]
            log_mixture = torch.logsumexp(log_w + log_f, 0)
            if "probabilities before the logarithm" in wrong:
                log_mixture = (log_w.exp() * log_f.exp()).sum(0).log()
            if "logarithms weighed" in wrong:
                log_mixture = (log_w.exp() * log_f).sum(0)
        result = margin_loss(log_mixture, y)
        return -result if "the sign lost" in wrong else result

    def misroute_loss(output, y, j, scale):
        logits, score = output
        score = score.detach() if "scores detached" in wrong else score
        others = torch.cat([score[:j], score[j + 1 :]])
        best = score if "its own lead counted" in wrong else others
        lead = scale * (score[j] - best.max(0).values)
        margin = margin_loss(logits[j], y) * (scale if "scale times both" in wrong else 1)
        both = margin + lead if "a sum for the lesser" in wrong else torch.minimum(margin, lead)
        return -both if "the sign lost" in wrong else both

    own = {"soft_routing_loss": soft_routing_loss, "misroute_loss": misroute_loss}
    return own | {"my_attack": my_attack}


def more() -> dict[str, dict[str, Callable]]:
    def soft(log_w: Callable, join: Callable | None = None) -> dict[str, Callable]:
        def loss(output, y, T):
            log_wf = log_w(output[1], T)[..., None] + F.log_softmax(output[0], -1)
            return margin_loss(join(log_wf) if join else torch.logsumexp(log_wf, 0), y)

        return {"soft_routing_loss": loss}

    def entropy(output, y, T):
        losses = expert_losses(output[0], y)
        return -torch.logsumexp(F.log_softmax(output[1] / T, 0) - losses, 0)

    def misroute(both: Callable) -> dict[str, Callable]:
        def loss(output, y, j, scale):
            logits, score = output
            others = torch.cat([score[:j], score[j + 1 :]])
            return both(margin_loss(logits[j], y), score[j], others, scale, logits[j], y)

        return {"misroute_loss": loss}

    def lead(s, others):
        return s - others.max(0).values

    def log_w(s, T):
        return F.log_softmax(s / T, 0)

    return {
        "cross-entropy of the mixture": {"soft_routing_loss": entropy},
        "T forgotten": soft(lambda s, T: F.log_softmax(s, 0)),
        "softmax over the images": soft(lambda s, T: F.log_softmax(s / T, 1)),
        "a constant added to the sum": soft(log_w, lambda z: (z.exp().sum(0) + 1e-12).log()),
        "the larger of the two": misroute(lambda m, s, o, c, *_: torch.maximum(m, c * lead(s, o))),
        "no scale": misroute(lambda m, s, o, c, *_: torch.minimum(m, lead(s, o))),
        "the margin alone": misroute(lambda m, *_: m),
        "the lead alone": misroute(lambda m, s, o, c, *_: c * lead(s, o)),
        "a lead over the mean": misroute(
            lambda m, s, o, c, *_: torch.minimum(m, c * (s - o.mean(0)))
        ),
        "the lead turned round": misroute(lambda m, s, o, c, *_: torch.minimum(m, -c * lead(s, o))),
        "scale on the margin": misroute(lambda m, s, o, c, *_: torch.minimum(c * m, lead(s, o))),
        "cross-entropy for the margin": misroute(
            lambda m, s, o, c, z, y: torch.minimum(
                F.cross_entropy(z, y, reduction="none"), c * lead(s, o)
            )
        ),
    }
