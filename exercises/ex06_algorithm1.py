"""Exercise 6: the appendix's Algorithm 1, and the vote

At test time nobody knows the label: the expert with the highest score answers. A vote averages all
experts' probabilities instead. Write both; then a rule in between, the vote of the two most
confident experts.

In words: where did the gradient to the E heads go, and what does an attacker make of that?
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from exercises import Property

MINUTES, PAPER = 25, "the appendix's Algorithm 1"
IMPORTS = "import torch\nimport torch.nn.functional as F\nfrom torch import Tensor"
REBUILD = {
    "combine": (
        "models:Collaboration",
        "Algorithm 1, line 4, the answering expert's logits: logits [M, B, K], score [M, B] -> [B, "
        "K].",
    ),
    "vote": (
        "models",
        "log mean_j softmax(logits_j): [M, B, K] -> [B, K], exact where a probability underflows.",
    ),
}
TWIST = {
    "top_two": "The vote of the two experts with the highest scores, as log probabilities: logits "
    "[M, B, K], score [M, B] -> [B, K], for M >= 2."
}


def top_two(logits: Tensor, score: Tensor) -> Tensor:
    which = score.topk(2, 0).indices[:, :, None]  # [2, B, 1]
    chosen = F.log_softmax(logits.take_along_dim(which, 0), -1)
    return torch.logsumexp(chosen, 0) - math.log(2)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


LOGITS, SCORE = 3 * numbers(3, 4, 5), numbers(3, 4, seed=3)
SURE = torch.tensor([[[0.0, -900.0]], [[0.0, -899.0]]], dtype=torch.float64)  # p is 0 in float64
SURE = SURE.repeat(1, 3, 1)  # three images
BY_HAND = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]], [[0.0, 3.0]]], dtype=torch.float64)


def gradient_to_scores(own: object) -> Tensor:
    score = SCORE.clone().requires_grad_()
    logits = LOGITS.clone().requires_grad_()
    total = own.combine(logits, score).square().sum()
    (found,) = torch.autograd.grad(total, (score,), allow_unused=True)
    return torch.zeros_like(score) if found is None else found


PROBES = {
    "logits (2, 0), (0, 1), (0, 3); scores .1, .9, .5": lambda own: own.combine(
        BY_HAND, torch.tensor([[0.1], [0.9], [0.5]]).double()
    ),
    "three experts, four images": lambda own: own.combine(LOGITS, SCORE),
    "the same logits; scores that differ by a millionth": lambda own: own.combine(
        BY_HAND, 0.5 + torch.tensor([[0.0], [2e-6], [1e-6]]).double()
    ),
    "gradient to the scores": gradient_to_scores,
    "vote of (2, 0), (0, 1), (0, 3)": lambda own: own.vote(BY_HAND),
    "vote of three experts, four images": lambda own: own.vote(LOGITS),
    "vote of logits (0, -900), (0, -899)": lambda own: own.vote(SURE),
    "top two of three, scores .1, .9, .5": lambda own: own.top_two(
        BY_HAND, torch.tensor([[0.1], [0.9], [0.5]]).double()
    ),
    "top two, four images": lambda own: own.top_two(LOGITS, SCORE),
    "top two of logits (0, -900), (0, -899)": lambda own: own.top_two(SURE, SCORE[:2, :3]),
}
NAMES = list(PROBES)
PROPERTIES = [
    Property("the most confident expert answers, for each image", 2, NAMES[:3]),
    Property("no gradient reaches the scores", 1, NAMES[3:4]),
    Property("the vote is the mean of probabilities, as a logarithm", 2, NAMES[4:6]),
    Property("it is exact where probabilities underflow", 1, NAMES[6:7]),
    Property("two experts vote, the most confident ones of each image", 2, NAMES[7:]),
]
MISTAKES = {
    "a softmax for the argmax": "That mixes all experts: Algorithm 1 lets one answer.",
    "the least confident": "argmin.",
    "one expert for the whole batch": "Who answers is decided for each image, not by a mean.",
    "an expert for each pair of images": "logits[score.argmax(0)] takes B whole experts, "
    "[B, B, K]: of the b-th only image b is wanted.",
    "a mean of logits": "The vote averages probabilities: logits of an expert that is very sure "
    "would drown the others.",
    "a mean of log probabilities": "The mean is taken of probabilities, then the logarithm.",
    "logits for log probabilities": "exp(logit) is no probability: log_softmax comes first.",
    "ln M forgotten": "That is the sum of the experts' probabilities, not their mean.",
    "a majority": "The vote averages probabilities, not the experts' labels.",
    "the logarithm of a clamp": "log(clamp(mean, 1e-12)), like log(mean + 1e-12), is constant "
    "where the mean is smaller: no gradient, and a wrong loss.",
    "not a logarithm": "The vote returns log probabilities.",
    "over the classes": "The mean was taken over the classes' axis.",
    "the plain logarithm": "softmax(..).mean(0).log() is -infinity where a probability is rounded "
    "to 0: log_softmax and logsumexp keep it.",
    "softmax over the experts": "The softmax of an expert's logits runs over the classes.",
    "ln B for ln M": "The mean runs over the M experts: len(logits) of [M, B, K].",
    "the likeliest class decides": "Who answers is decided by the E heads' scores, not by the P "
    "heads.",
    "probabilities": "The answering expert's logits are asked for.",
    "log probabilities": "The answering expert's logits are asked for, not their log_softmax.",
    "all vote": "Only the two most confident experts vote.",
    "ln M for ln 2": "Two experts vote: their mean is half of the sum.",
    "weighed votes": "Both votes weigh the same.",
    "the first two": "The two experts with the highest scores, not the first two of the list.",
}


def variant(wrong: frozenset[str]) -> dict[str, Callable]:
    def combine(logits, score):
        if "a softmax for the argmax" in wrong:
            return (score.softmax(0)[:, :, None] * logits).sum(0)
        if "one expert for the whole batch" in wrong:
            score = score.mean(1, keepdim=True).expand_as(score)
        score = -score if "the least confident" in wrong else score
        if "an expert for each pair of images" in wrong:
            return logits[score.argmax(0)]
        return logits.take_along_dim(score.argmax(0)[None, :, None], 0).squeeze(0)

    def vote(logits):
        if "a mean of logits" in wrong:
            return F.log_softmax(logits.mean(0), -1)
        p = logits.softmax(-1)
        if "a majority" in wrong:
            p = F.one_hot(logits.argmax(-1), logits.shape[-1]).double()
            return p.mean(0).clamp(min=1e-12).log()
        if "over the classes" in wrong:
            return p.mean(-1).log()
        if "not a logarithm" in wrong:
            return p.mean(0)
        if "the logarithm of a clamp" in wrong:
            return p.mean(0).clamp(min=1e-12).log()
        log_p = F.log_softmax(logits, -1)
        if "a mean of log probabilities" in wrong:
            return log_p.mean(0)
        log_p = logits if "logits for log probabilities" in wrong else log_p
        return torch.logsumexp(log_p, 0) - math.log(1 if "ln M forgotten" in wrong else len(logits))

    def top_two(logits, score):
        score = -score if "the least confident" in wrong else score
        which = score.topk(2, 0).indices[:, :, None]
        return vote(logits[:2] if "the first two" in wrong else logits.take_along_dim(which, 0))

    return {"combine": combine, "vote": vote, "top_two": top_two}


def more() -> dict[str, dict[str, Callable]]:
    right = variant(frozenset())
    combine, vote = right["combine"], right["vote"]

    def chosen(logits, score):
        values, which = score.topk(2, 0)
        return F.log_softmax(logits.take_along_dim(which[:, :, None], 0), -1), values

    def plain(logits):
        return logits.softmax(-1).mean(0).log()

    def plain_two(logits, score):
        return plain(logits.take_along_dim(score.topk(2, 0).indices[:, :, None], 0))

    def likeliest(logits, score):
        return combine(logits, logits.softmax(-1).max(-1).values)

    def weighed(logits, score):
        log_p, values = chosen(logits, score)
        return torch.logsumexp(log_p + F.log_softmax(values, 0)[:, :, None], 0)

    return {
        "the plain logarithm": {"vote": plain, "top_two": plain_two},
        "softmax over the experts": {"vote": lambda z: z.softmax(0).mean(0).log()},
        "ln B for ln M": {"vote": lambda z: vote(z) + math.log(len(z)) - math.log(z.shape[1])},
        "the likeliest class decides": {"combine": likeliest},
        "probabilities": {"combine": lambda z, s: combine(z, s).softmax(-1)},
        "log probabilities": {"combine": lambda z, s: combine(z, s).log_softmax(-1)},
        "all vote": {"top_two": lambda z, s: vote(z)},
        "ln M for ln 2": {"top_two": lambda z, s: top_two(z, s) + math.log(2 / len(z))},
        "weighed votes": {"top_two": weighed},
    }
