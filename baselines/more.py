"""MoRE, a mixture of robust experts: a gate weighs the experts, and all of it is trained together.

After Cheng et al., *Mixture of Robust Experts (MoRE)*, 2021, but not as published: there experts
are first trained each against one kind of perturbation, then a gate and the last layers. As in the
SoE authors' comparison there is one kind here, l-infinity, and the M experts and a linear gate on
their features learn jointly from clean images and PGD against the mixture.

    python -m baselines.more --eps 0.03 --n 3
"""

if not __package__:
    import __init__  # noqa: F401, says how to start it

import torch.nn.functional as F
from torch import Tensor, nn

import infer
from support import options, runs
from train_submodel import Settings, clean_and_attacked, train


def more_loss(model: nn.Module, x: Tensor, y: Tensor, settings: Settings) -> Tensor:
    """CE of sum_j softmax(gate)_j * logits_j, on clean images and on PGD against it.

    Without the factor M of stage1_loss: at M times the rate the gate, linear on all features, gives
    everything to one untrained expert in its first steps. Even so it comes to favour one, as
    the expert that answers most learns most; the published method guards against that only by
    training the experts first.
    """
    batches = clean_and_attacked(model, x, y, settings)
    return sum(F.cross_entropy(model(batch), y) for batch in batches)


def main(argv: list[str] | None = None) -> None:
    parser = options.training_parser(Settings, __doc__, "-m baselines.more")
    with runs.start(parser, argv, "more", model="mixture") as run:
        train(run, 1, more_loss)
        run.finish(infer.pgd_report)


if __name__ == "__main__":
    main()
