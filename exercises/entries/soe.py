"""Synergy of Experts at sigma = 1: half of the budget for stage 1, half for stage 2."""

from train_collab import stage2_loss
from train_submodel import stage1_loss

COMBINE = "collaboration"


def loss(model, x, y, settings):
    return (stage1_loss if settings.progress < 0.5 else stage2_loss)(model, x, y, settings)
