"""Our attacks beside other people's, on the same model and images.

    python -m pip install foolbox adversarial-robustness-toolbox
    python -m pip install --no-deps torchattacks    # AutoAttack; it asks for old versions of others
    python -m experiments.other_tools RUN --eps 0.1 --out tools.json

Prints for each attack the accuracy that it leaves, how many images it takes of those that our worst
of experiments/evaluate.py leaves, and its time, on at most 500 test images.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import data
import infer
from attacks import pgd, square
from experiments import machine
from experiments.autopgd import apgd
from experiments.evaluate import DECIDE, attacks_at, measure
from models import ask_experts
from support import checkpoints, files, options
from support.printing import percent


def foolbox_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """Foolbox's LinfPGD, random start, steps of eps / 5."""
    import foolbox

    attack = foolbox.attacks.LinfPGD(rel_stepsize=1 / 5, steps=steps)
    wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=x.device)
    return attack(wrapped, x, y, epsilons=eps)[1]


def art_attack(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, K: int, name: str, **more
) -> Tensor:
    """ART's attack of this name on a model of K classes: x [N, C, H, W] -> x_adv."""
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    shapes = {"input_shape": tuple(x.shape[1:]), "nb_classes": K, "clip_values": (0.0, 1.0)}
    device = {"device_type": "cpu" if x.is_cpu else "gpu"}
    classifier = PyTorchClassifier(model.eval(), nn.CrossEntropyLoss(), **shapes, **device)
    if name == "AutoProjectedGradientDescent":
        more |= {"eps_step": 2 * eps, "loss_type": "cross_entropy", "nb_random_init": 1}
    else:
        more |= {"nb_restarts": 1}
    attack = getattr(evasion, name)(classifier, eps=eps, norm=np.inf, verbose=False, **more)
    return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x.device)


def auto_attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, K: int) -> Tensor:
    """torchattacks' AutoAttack on a model of K classes: AutoPGD twice, FAB and Square."""
    import torchattacks

    return torchattacks.AutoAttack(model, eps=eps, n_classes=K, seed=0)(x, y)


def all_attacks(eps: float, K: int) -> dict[str, Callable]:
    """{name: fn(model, x, y) -> x_adv}. Square has 500 queries; ART rescales its schedule."""
    autopgd = {"name": "AutoProjectedGradientDescent", "max_iter": 100, "batch_size": 250}
    queries, ours = {"name": "SquareAttack", "max_iter": 500}, {"n_queries": 500}
    from_anywhere = {"random_start": True, "keep_best": True}
    attacks = {
        "PGD-20, ours": partial(pgd, alpha=eps / 5, steps=20, **from_anywhere),
        "LinfPGD-20, Foolbox": partial(foolbox_pgd, steps=20),
        "AutoPGD-100, cross-entropy, ours": partial(apgd, steps=100),
        "AutoPGD-100, cross-entropy, ART": partial(art_attack, K=K, **autopgd),
        "AutoAttack, torchattacks": partial(auto_attack, K=K),
        "Square, ours": partial(square, rescale=True, batch_size=200, **ours),
        "Square, ours, not rescaled": partial(square, batch_size=200, **ours),
        "Square, ART": partial(art_attack, K=K, batch_size=200, **queries),
    }
    return {name: partial(attack, eps=eps) for name, attack in attacks.items()}


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.other_tools")
    add = parser.add_argument
    add("checkpoint", metavar="RUN", help="a run's folder, or its model.pt")
    add("--eps", type=options.radius, default=0.1, help="attack radius")
    add("--data", help="the data set, where its file has moved")
    add("--out", metavar="FILE", help="also write the figures to this .json file")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        if missing := [name for name in ("art", "foolbox", "torchattacks") if not find_spec(name)]:
            raise ValueError(f"there is no {missing[0]}: --help says what to install")
        if args.out:
            files.check_new(Path(args.out), ".json", "--out")
        model, settings = infer.load(args.checkpoint), checkpoints.load(args.checkpoint)["settings"]
        dataset = data.load_as_trained(settings, args.data)
        x, y = dataset.test_images("cpu", dataset.choose_test_images(500))
        worst = measure(model, x, y, attacks_at(DECIDE, model, args.eps))["correct"]["worst"]
        left = torch.tensor([letter == "1" for letter in worst])
        print(f"our worst leaves {percent(left):.1f} %, {int(left.sum())} images")
        rows = {}
        for name, attack in all_attacks(args.eps, dataset.num_classes).items():
            torch.manual_seed(0)
            np.random.seed(0)
            start = time.perf_counter()
            x_adv = attack(model, x, y)
            seconds = time.perf_counter() - start
            correct = model.combine(*ask_experts(model, x_adv)).argmax(-1) == y
            taken, farthest = int((left & ~correct).sum()), (x_adv - x).abs().max().item()
            rows[name] = {"correct": percent(correct), "of ours": taken, "seconds": seconds}
            line = f"{name:34} {percent(correct):6.1f} % correct  takes {taken:3} of these"
            print(f"{line}  {seconds:7.1f} s  farthest {farthest:.4f}", flush=True)
        if args.out:
            content = {
                "command": vars(args),
                "model": settings,
                **machine(x.device),
                "our worst": {"left": int(left.sum()), "images": len(left)},
                "rows": rows,
            }
            files.write(Path(args.out), json.dumps(content).encode())


if __name__ == "__main__":
    main()
