"""The vote's cross-entropy, under attacks on the vote: what SoE's loss is at sigma = 1."""

from baselines.plain import jointly_loss as loss  # noqa: F401

COMBINE = "vote"
