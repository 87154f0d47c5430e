"""The ensemble that is attacked as a whole: what every entry has to be better than."""

from baselines.plain import together_loss as loss  # noqa: F401

COMBINE = "vote"
