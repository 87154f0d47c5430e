"""Exercise 5: the E head
30 minutes; Proposition 2, Eq. 8, appendix 5

The E head says how sure to be of its expert: it learns the probability that the P head gives to
the true label, so that later, without labels, the most confident expert is the best one
(Proposition 2). Write its loss; then the score of the authors' code, which joins both heads; then
a case in which the proposition fails, though each confidence rises with its expert's p_y.

In words: which premise of Proposition 2 does your counterexample drop, and what in the training of
the E heads sees to it that the premise holds? Why is the gradient stopped at p_y?
"""

import numpy as np
import torch
from torch import Tensor

from exercises import Answers, randn, with_gradients

TASKS = """
confidence_loss | train_submodel | mean_j BCE(g_j, p_y^j), score being the logit of g: [M, B],
    [M, B] -> [B]. The E heads learn p_y; p_y learns nothing from it.
rectified_score | models | The logit of max_k f_k * g: logits [..., B, K], g_logit [..., B] ->
    [..., B], finite where the product is nearly 1, and different for different products. With
    labels y [B], as in training, no gradient flows by way of max_k f_k where the prediction is
    correct; g goes on learning.
counterexample | () -> tuple[Tensor, Tensor] | (p_y, g), both [2, B], of two experts on B >= 3
    images: each expert's g rises with its p_y, over all images that it sees, and yet there is an
    image on which the more confident expert is the worse one. All numbers lie in (0, 1).
"""
LOGITS, SCORE, Y = 2 * randn(3, 12, 5), randn(3, 12, seed=1), torch.arange(12) % 5
P_Y = LOGITS.softmax(-1)[:, torch.arange(12), Y]
SURE = torch.tensor([[60.0, 0.0]] * 3).double(), torch.tensor([14.0, 15.0, 40.0]).double()


def holds_after_all(mine: Answers, right: Answers) -> str | None:
    p_y, g = (mine["your two experts"][part] for part in ("p_y", "g"))
    if p_y.shape != g.shape or p_y.ndim != 2 or len(p_y) != 2 or p_y.shape[1] < 3:
        return f"p_y has shape {list(p_y.shape)}, g {list(g.shape)}: both should be [2, B], B >= 3"
    if not (0 < np.array([p_y, g]).min() and np.array([p_y, g]).max() < 1):
        return "all numbers should lie between 0 and 1"
    for j, order in enumerate(p_y.argsort(1)):
        if not (np.diff([p_y[j, order], g[j, order]]) > 0).all():
            return f"expert {j + 1}: sorted by p_y, its p_y or g does not always rise"
    if not ((p_y[0] - p_y[1]) * (g[0] - g[1]) < 0).any():
        return "on every image the more confident expert is the better one, as it promises"
    return None


PROPERTIES = {
    ("confidence_loss", 2, "each image's loss, the mean over experts; g learns, not p_y"): {
        "three experts, 12 images": with_gradients("confidence_loss", score=SCORE, p_y=P_Y)
    },
    ("confidence_loss", 1, "it stays exact where g is sure"): {
        "scores of 60 and -60": lambda own: own.confidence_loss(
            torch.tensor([[60.0, -60.0]]).double(), torch.tensor([[0.5, 0.5]]).double()
        )
    },
    ("rectified_score", 2, "the rectified score is the logit of the product, also near 1"): {
        "without labels": with_gradients("rectified_score", logits=LOGITS, g_logit=SCORE),
        "logits (60, 0), g_logit 14, 15, 40": lambda own: own.rectified_score(*SURE),
    },
    ("rectified_score", 1, "with labels it stops the gradient where the prediction is correct"): {
        "with labels": with_gradients("rectified_score", Y, logits=LOGITS, g_logit=SCORE)
    },
    ("counterexample", 2, "two experts for whom Proposition 2 fails", holds_after_all): {
        "your two experts": lambda own: dict(zip(("p_y", "g"), own.counterexample()))
    },
}

# -------------------------------------------------------------------------- for the judge alone


def counterexample() -> tuple[Tensor, Tensor]:
    p_y = torch.tensor([[0.9, 0.6, 0.3], [0.6, 0.8, 0.4]])
    return p_y, p_y * torch.tensor([[0.5], [1.0]])
