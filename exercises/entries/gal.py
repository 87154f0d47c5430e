"""GAL by SGD: members whose gradients do not align. Without its leaky ReLUs."""

from argparse import Namespace

from baselines.gal import gal_loss

COMBINE = "vote"


def loss(model, x, y, settings):
    how = {"noise": 0.045, "coherence": 0.5, "optimizer": "sgd"}
    return gal_loss(model, x, y, Namespace(**vars(settings) | how))
