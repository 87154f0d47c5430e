"""An honest example: the vote's cross-entropy and each member's, half of both.

The first alone lets members rely on each other, the second makes them alike.
"""

from baselines.plain import jointly_loss, together_loss

COMBINE = "vote"


def loss(model, x, y, settings):
    return (jointly_loss(model, x, y, settings) + together_loss(model, x, y, settings)) / 2
