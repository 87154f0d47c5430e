"""Soft synergy grown from an ensemble: experts that can all classify before they compete.

For half of the epochs every expert learns alone from images attacked against their mixture
(`baselines.plain.together_loss`; the E heads stay untrained), for the other half as in soft
synergy.

    python -m experiments.attempts.grown --eps 0.03 --n 3 --depth 2
"""

from support import runs

import infer
from baselines.plain import together_loss
from experiments.soft_synergy import check, soft_loss, soft_parser
from train_submodel import train


def main(argv: list[str] | None = None) -> None:
    parser = soft_parser(__doc__, "-m experiments.attempts.grown")
    with runs.start(parser, argv, "soft-grown", "soft", stages=(1, 2), check=check) as run:
        train(run, 1, together_loss)
        train(run, 2, soft_loss)
        run.finish(infer.pgd_report)


if __name__ == "__main__":
    main()
