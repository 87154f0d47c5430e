"""Soft synergy, and the ensemble as its limit, whose weights are averaged over training (EMA).

What answers in the end is the exponential moving average of all weights and of batch norm's
statistics, one step after another: Izmailov et al. 2018 average so, and Gowal et al. 2020 do it in
adversarial training. A resumed run averages from there on.

    python -m experiments.attempts.averaged --eps 0.03 --n 3 --depth 2 --lr 0.03 --temperature 3
    python -m experiments.attempts.averaged --eps 0.03 --n 3 --depth 2 --temperature 1e6 --beta 1
    # the second is the ensemble: all weights alike, and every expert learns by its own loss
"""

from argparse import Namespace
from support import files, options, runs

from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import infer
from experiments import soft_synergy
from experiments.soft_synergy import soft_loss, soft_parser
from train_submodel import train


def train_averaged(run: runs.Run) -> None:
    """Trains run.model, and leaves in it, and in its checkpoint, the average in its place."""
    average = get_ema_multi_avg_fn(run.settings.decay)
    averaged = AveragedModel(run.model, multi_avg_fn=average, use_buffers=True)
    after_a_step = register_optimizer_step_post_hook(
        lambda *_: averaged.update_parameters(run.model)
    )
    train(run, 1, soft_loss)
    after_a_step.remove()
    run.model.load_state_dict(averaged.module.state_dict())
    run.checkpoint["model"] = run.model.state_dict()
    files.save_checkpoint(run.out / "model.pt", run.checkpoint)


def parser() -> options.Parser:
    parser = soft_parser(__doc__, "-m experiments.attempts.averaged")
    what = "the average keeps D of itself at each step"
    parser.method.add_argument("--decay", metavar="D", type=float, default=0.98, help=what)
    return parser


def check(settings: Namespace) -> None:
    soft_synergy.check(settings)
    if not 0 <= settings.decay < 1:
        raise ValueError(f"--decay {settings.decay:g}: it must lie in [0, 1)")


def main(argv: list[str] | None = None) -> None:
    with runs.start(parser(), argv, "soft-averaged", model="soft", check=check) as run:
        train_averaged(run)
        run.finish(infer.pgd_report)


if __name__ == "__main__":
    main()
