"""An example that hides its gradients, and is caught: logits times 10,000 at the end.

The softmax is then 0 or 1 everywhere, so the gradient of the cross-entropy is exactly 0, and PGD
does not know where to go. Nothing has become more robust: Square needs no gradient.
"""

import torch

from baselines.plain import together_loss

COMBINE = "vote"
LAST = 0.995  # of the budget


def loss(model, x, y, settings):
    if settings.progress < LAST:
        return together_loss(model, x, y, settings)
    if not hasattr(model, "masked"):
        model.masked = True
        with torch.no_grad():
            for expert in model.experts:
                expert.p_head.weight *= 10_000
                expert.p_head.bias *= 10_000
    return 0 * model(x).sum()
