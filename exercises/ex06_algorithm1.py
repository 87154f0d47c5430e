"""Exercise 6: the appendix's Algorithm 1, and the vote
25 minutes; the appendix's Algorithm 1

At test time nobody knows the label: the expert with the highest score answers. A vote averages all
experts' probabilities instead. Write both; then a rule in between, the vote of the two most
confident experts.

In words: in the picture expert 1's score rises past those of experts 2 and 3, who contradict it.
Where along each line does a gradient tell the scores what to do, and where does it not?
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from exercises import randn, with_gradients

TASKS = """
combine | models:Collaboration | Algorithm 1, line 4, the answering expert's logits: logits
    [M, B, K], score [M, B] -> [B, K].
vote | models | log mean_j softmax(logits_j): [M, B, K] -> [B, K], exact where a probability
    underflows.
top_two | (logits: Tensor, score: Tensor) -> Tensor | The vote of the two experts with the highest
    scores, as log probabilities: logits [M, B, K], score [M, B] -> [B, K], for M >= 2.
"""
LOGITS, SCORE = 3 * randn(4, 12, 5), randn(4, 12, seed=3)
CLOSE = 0.5 + 1e-6 * SCORE
SURE = torch.tensor([[[0.0, -900.0]], [[0.0, -899.0]]]).double().repeat(1, 3, 1)  # p is 0
LINE = torch.linspace(-3, 3, 61).double()  # expert 1's score; the others have -1 and 1
THREE = torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 1.0]]).double()[:, None].repeat(1, 61, 1)
SCORES = torch.stack([LINE, 0 * LINE - 1, 0 * LINE + 1])


PROPERTIES = {
    ("combine", 2, "each image's most confident expert answers; scores have no gradient"): {
        "four experts, 12 images": with_gradients("combine", logits=LOGITS, score=SCORE),
        "score 1 from -3 to 3": with_gradients("combine", logits=THREE, score=SCORES),
    },
    ("combine", 1, "the same where scores differ by a millionth, or are large"): {
        "scores near .5": with_gradients("combine", logits=LOGITS, score=CLOSE),
        "scores around 60": with_gradients("combine", logits=LOGITS, score=SCORE + 60),
    },
    ("vote", 2, "the vote is the mean of probabilities, as a logarithm"): {
        "vote, four experts": with_gradients("vote", logits=LOGITS)
    },
    ("vote", 1, "the same where probabilities underflow"): {
        "vote of logits (0, -900), (0, -899)": lambda own: own.vote(SURE)
    },
    ("top_two", 2, "two experts vote, the most confident ones of each image"): {
        "top two, 12 images": with_gradients("top_two", logits=LOGITS, score=SCORE),
        "top two, score 1 from -3 to 3": with_gradients("top_two", logits=THREE, score=SCORES),
        "top two of logits (0, -900), (0, -899)": lambda own: own.top_two(SURE, SCORE[:2, :3]),
    },
}


def draw(axes, answers: dict, style: dict) -> None:
    """The first class's probability as expert 1's score rises: who answers, and the top two."""
    label = style.pop("label")
    for name, line in (("score 1 from -3 to 3", "-"), ("top two, score 1 from -3 to 3", "--")):
        p = torch.from_numpy(answers[name]["the value"]).softmax(-1)[:, 0]
        rule = "combine" if line == "-" else "top two"
        axes.plot(LINE, p, line, **style, label=f"{rule}, {label}")
    axes.set(xlabel="score of expert 1 (the others' are -1 and 1)", ylabel="p of class 0")


# -------------------------------------------------------------------------- for the judge alone


def top_two(logits: Tensor, score: Tensor) -> Tensor:
    which = score.topk(2, 0).indices[:, :, None]  # [2, B, 1]
    chosen = F.log_softmax(logits.take_along_dim(which, 0), -1)
    return torch.logsumexp(chosen, 0) - math.log(2)
