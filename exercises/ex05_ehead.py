"""Exercise 5: the E head

The E head says how sure to be of its expert: it learns the probability that the P head gives to
the true label, so that later, without labels, the most confident expert is the best one
(Proposition 2). Write the head, its logit, and its loss; then the score of the authors' code, which
joins both heads.

In words: Proposition 2 needs one and the same rising function of p_y in all experts. Make up two
experts whose confidences both rise with their p_y, and an image on which the worse one answers.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exercises import Property

MINUTES, PAPER = 30, "Proposition 2, Eq. 8, appendix 5"
IMPORTS = "import torch\nimport torch.nn.functional as F\nfrom torch import Tensor, nn"
REBUILD = {
    "confidence_loss": (
        "train_submodel",
        "mean_j BCE(g_j, p_y^j), score being the logit of g: [M, B], [M, B] -> [B]. The E heads "
        "learn p_y; p_y learns nothing from it.",
    ),
    "rectified_score": (
        "models",
        "The logit of max_k f_k * g: logits [..., B, K], g_logit [..., B] -> [..., B], finite "
        "where the product is nearly 1, and different for different products. With labels y [B], "
        "as in training, no gradient flows by "
        "way of max_k f_k where the prediction is correct; g goes on learning.",
    ),
}
TWIST = {
    "e_head": "The E head on that many features: a one-layer MLP of 128 parameters for 64 of them, "
    "two outputs e_0 and e_1, without bias and without activation.",
    "g_logit": "The logit of the confidence, g being the second of the two outputs' softmax: "
    "e [B, 2] -> [B].",
}


def e_head(features: int) -> nn.Module:
    return nn.Linear(features, 2, bias=False)


def g_logit(e: Tensor) -> Tensor:
    return e[:, 1] - e[:, 0]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


LOGITS, SCORE, Y = 2 * numbers(3, 4, 5), numbers(3, 4, seed=1), torch.tensor([0, 1, 2, 3])
P_Y = LOGITS.softmax(-1)[:, torch.arange(4), Y]


def gradients(own: object) -> list[Tensor]:
    """To the score, and to p_y (0 where there is none)."""
    score, p_y = SCORE.clone().requires_grad_(), P_Y.clone().requires_grad_()
    total = own.confidence_loss(score, p_y).sum()
    found = torch.autograd.grad(total, (score, p_y), allow_unused=True)
    return [torch.zeros_like(score) if grad is None else grad for grad in found]


def rectified_gradient(own: object) -> list[Tensor]:
    """To the logits, and to g's logit."""
    inputs = LOGITS.clone().requires_grad_(), SCORE.clone().requires_grad_()
    found = torch.autograd.grad(own.rectified_score(*inputs, Y).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(z) if grad is None else grad for z, grad in zip(inputs, found)]


def outputs(own: object) -> list[Tensor]:
    """Of heads for 64 and 32 features whose weights are all -1/2."""
    found = []
    for features in (64, 32):
        head = own.e_head(features)
        for weight in head.parameters():
            weight.data.fill_(-0.5)
        found.append(head(torch.ones(7, features)))
    return found


PROBES = {
    "parameters for 64 features": lambda own: sum(p.numel() for p in own.e_head(64).parameters()),
    "outputs for 64 and 32 features, weights -1/2": outputs,
    "e = (1, 3), (0, 0), (2, -1)": lambda own: own.g_logit(
        torch.tensor([[1.0, 3.0], [0.0, 0.0], [2.0, -1.0]]).double()
    ),
    "e = (-100, 100)": lambda own: own.g_logit(torch.tensor([[-100.0, 100.0]]).double()),
    "one expert, score 0, p_y .25": lambda own: own.confidence_loss(
        torch.zeros(1, 1).double(), torch.full((1, 1), 0.25).double()
    ),
    "three experts, four images": lambda own: own.confidence_loss(SCORE, P_Y),
    "score 60: no overflow": lambda own: own.confidence_loss(
        torch.full((1, 1), 60.0).double(), torch.full((1, 1), 0.5).double()
    ),
    "gradients to the score and to p_y": gradients,
    "rectified": lambda own: own.rectified_score(LOGITS, SCORE),
    "rectified, gradients to the logits and to g's": rectified_gradient,
    "rectified where the product is nearly 1: scores 14, 15": lambda own: own.rectified_score(
        torch.tensor([[60.0, 0.0]] * 2).double(), torch.tensor([14.0, 15.0]).double()
    ),
    "1 where the rectified score of logits 60, score 60 is finite": lambda own: float(
        own.rectified_score(torch.tensor([[60.0, 0.0]]), torch.tensor([60.0])).isfinite().all()
    ),
}
NAMES = list(PROBES)
PROPERTIES = [
    Property("the head has 128 parameters and two outputs", 1, NAMES[:2]),
    Property("its confidence is a two-way softmax", 1, NAMES[2:4]),
    Property("the loss is the mean over the experts, of each image", 2, NAMES[4:7]),
    Property("g learns p_y, and p_y does not learn g", 2, NAMES[7:8]),
    Property("the rectified score is the logit of the product", 1, [NAMES[8], *NAMES[10:]]),
    Property("and stops the gradient where the prediction is correct", 1, NAMES[9:10]),
]
MISTAKES = {
    "gradient through the target": "p_y must be detached, or the P head makes itself easy to "
    "predict.",
    "the sigmoid twice": "binary_cross_entropy_with_logits takes the sigmoid itself.",
    "correct or wrong as the target": "The target is the probability of the true label, not "
    "whether it is above one half.",
    "a sum over the experts": "The loss is their mean: lambda would else mean M times as much.",
    "the sigmoid before the logarithm": "binary_cross_entropy of sigmoid(score) is cut off where "
    "the sigmoid is 0 or 1: the version with_logits is exact.",
    "a mean over the images": "The loss is that of each image, [B]: the mean runs over experts.",
    "the mean of all": "The loss is that of each image, [B].",
    "g detached": "The score must get a gradient: it is what learns.",
    "a squared error": "BCE is a cross-entropy: -p ln g - (1 - p) ln(1 - g).",
    "the stop turned round": "Stopped is the gradient where the prediction is correct, not where "
    "it is wrong.",
    "always stopped": "Where the prediction is wrong the gradient flows.",
    "the whole product stopped": "Only max_k f_k is held fixed where the prediction is correct: g "
    "goes on learning.",
    "softmax over the images": "The softmax runs over the classes, the last axis.",
    "the product itself": "That is max f * g: the score is its logit.",
    "an activation": "The head's outputs are logits: nothing comes behind the linear layer.",
    "features fixed at 64": "The head is for `features` features.",
    "g for its logit": "That is g: its logit is asked for, e_1 - e_0.",
    "a logit of the softmax": "torch.logit of a softmax is infinite where that is rounded to 1.",
    "e_0 less e_1": "The confidence is the second of the two.",
    "a bias": "With a bias the head has 130 parameters, and the paper says 128.",
    "no stop": "Where the prediction is correct, no gradient may reach the P head by max_k f_k.",
    "the product's logarithm": "That is ln(max f * g): the score is its logit, ln(p / (1 - p)).",
    "a plain logit": "torch.logit(p) is infinite where p is rounded to 1: stay in logarithms, and "
    "keep ln p below 0.",
}


def variant(wrong: frozenset[str]) -> dict[str, Callable]:
    def confidence_loss(score, p_y):
        target = p_y if "gradient through the target" in wrong else p_y.detach()
        if "correct or wrong as the target" in wrong:
            target = (target > 0.5).to(score.dtype)
        score = score.sigmoid() if "the sigmoid twice" in wrong else score
        each = F.binary_cross_entropy_with_logits(score, target, reduction="none")
        return each.sum(0) if "a sum over the experts" in wrong else each.mean(0)

    def rectified_score(logits, g_logit, y=None):
        log_p_max, prediction = F.log_softmax(logits, -1).max(-1)
        if y is not None and "no stop" not in wrong:
            log_p_max = torch.where(prediction == y, log_p_max.detach(), log_p_max)
        log_score = (log_p_max + F.logsigmoid(g_logit)).clamp(max=-1e-7)
        if "the product's logarithm" in wrong:
            return log_score
        if "a plain logit" in wrong:
            return torch.logit(log_p_max.exp() * g_logit.sigmoid())
        return log_score - torch.log(-torch.expm1(log_score))

    def g_logit(e):
        return e[:, 0] - e[:, 1] if "e_0 less e_1" in wrong else e[:, 1] - e[:, 0]

    own = {"confidence_loss": confidence_loss, "rectified_score": rectified_score}
    own["e_head"] = lambda features: nn.Linear(features, 2, bias="a bias" in wrong)
    return own | {"g_logit": g_logit}


def more() -> dict[str, dict[str, Callable]]:
    def right(score, p_y):
        return F.binary_cross_entropy_with_logits(score, p_y.detach(), reduction="none")

    def late(score, p_y):
        return F.binary_cross_entropy(score.sigmoid(), p_y.detach(), reduction="none").mean(0)

    def rectified(held: Callable, axis: int = -1) -> dict[str, Callable]:
        def rectified_score(logits, g_logit, y=None):
            log_p_max, prediction = F.log_softmax(logits, axis).max(-1)
            correct = torch.zeros_like(log_p_max).bool() if y is None else prediction == y
            log_p_max, log_g = held(log_p_max, F.logsigmoid(g_logit), correct, y is not None)
            log_score = (log_p_max + log_g).clamp(max=-1e-7)
            return log_score - torch.log(-torch.expm1(log_score))

        return {"rectified_score": rectified_score}

    def stop(z, where):
        return torch.where(where, z.detach(), z)

    def head(*behind: nn.Module) -> dict[str, Callable]:
        return {
            "e_head": lambda features: nn.Sequential(nn.Linear(features, 2, bias=False), *behind)
        }

    return {
        "the sigmoid before the logarithm": {"confidence_loss": late},
        "a mean over the images": {"confidence_loss": lambda s, p: right(s, p).mean(1)},
        "the mean of all": {"confidence_loss": lambda s, p: right(s, p).mean()},
        "g detached": {"confidence_loss": lambda s, p: right(s.detach(), p).mean(0) + 0 * s.sum()},
        "a squared error": {
            "confidence_loss": lambda s, p: (s.sigmoid() - p.detach()).square().mean(0)
        },
        "the stop turned round": rectified(lambda f, g, c, train: (stop(f, ~c & train), g)),
        "always stopped": rectified(lambda f, g, c, train: (f.detach(), g)),
        "the whole product stopped": rectified(lambda f, g, c, train: (stop(f, c), stop(g, c))),
        "softmax over the images": rectified(lambda f, g, c, train: (stop(f, c), g), axis=-2),
        "the product itself": {
            "rectified_score": lambda z, g, y=None: z.softmax(-1).max(-1).values * g.sigmoid()
        },
        "an activation": head(nn.ReLU()),
        "features fixed at 64": {"e_head": lambda features: nn.Linear(64, 2, bias=False)},
        "g for its logit": {"g_logit": lambda e: e.softmax(1)[:, 1]},
        "a logit of the softmax": {"g_logit": lambda e: torch.logit(e.softmax(1)[:, 1])},
    }
