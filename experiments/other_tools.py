"""Our attacks beside other people's, on the same model and images.

    python -m pip install foolbox adversarial-robustness-toolbox
    python -m pip install --no-deps torchattacks    # AutoAttack; it asks for old versions of others
    python -m experiments.other_tools RUN --eps 0.1 --out tools.json

Prints for each attack the accuracy that it leaves, how many images it takes of those that our worst
of experiments/evaluate.py leaves, and its time, on at most 500 test images.
"""

import json
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import data
import infer
from attacks import pgd, square
from experiments.autopgd import apgd
from experiments.evaluate import DECIDE, attacks_at, measure
from models import ask_experts
from support import checkpoints, files, options
from support.printing import percent

QUERIES = 500  # of Square


def foolbox_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """Foolbox's LinfPGD, random start, steps of eps / 5."""
    import foolbox

    attack = foolbox.attacks.LinfPGD(rel_stepsize=1 / 5, steps=steps)
    wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=x.device)
    _, x_adv, _ = attack(wrapped, x, y, epsilons=eps)
    return x_adv


def art_classifier(model: nn.Module, x: Tensor, num_classes: int):
    """The model as ART sees one."""
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model.eval(),
        nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=num_classes,
        clip_values=(0.0, 1.0),
        device_type="cpu" if x.device.type == "cpu" else "gpu",
    )


def art_attack(classifier, name: str, x: Tensor, y: Tensor, eps: float, **more) -> Tensor:
    """ART's attack of this name: x [N, C, H, W] -> x_adv."""
    from art.attacks import evasion

    if name == "AutoProjectedGradientDescent":
        more |= {"eps_step": 2 * eps, "loss_type": "cross_entropy", "nb_random_init": 1}
    else:
        more |= {"nb_restarts": 1}
    attack = getattr(evasion, name)(classifier, eps=eps, norm=np.inf, verbose=False, **more)
    return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x.device)


def auto_attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, num_classes: int) -> Tensor:
    """torchattacks' AutoAttack, the standard four: AutoPGD twice, FAB and Square."""
    import torchattacks

    return torchattacks.AutoAttack(model, eps=eps, n_classes=num_classes, seed=0)(x, y)


def compare(model: nn.Module, x: Tensor, y: Tensor, attacks: dict, left: Tensor) -> dict:
    """Prints and returns {name: {"correct": % that an attack leaves, "of ours": how many it takes
    of the images `left` [N], "seconds"}}; attacks is {name: fn() -> x_adv}."""
    rows = {}
    for name, attack in attacks.items():
        torch.manual_seed(0)
        np.random.seed(0)
        start = time.perf_counter()
        x_adv = attack()
        seconds = time.perf_counter() - start
        correct = model.combine(*ask_experts(model, x_adv)).argmax(-1) == y
        taken, farthest = int((left & ~correct).sum()), (x_adv - x).abs().max().item()
        rows[name] = {"correct": percent(correct), "of ours": taken, "seconds": seconds}
        line = f"{name:34} {percent(correct):6.1f} % correct  takes {taken} of our"
        print(f"{line} {int(left.sum())}  {seconds:7.1f} s  farthest {farthest:.4f}", flush=True)
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.other_tools")
    add = parser.add_argument
    add("checkpoint", metavar="RUN", help="a run's folder, or its model.pt")
    add("--eps", type=options.radius, default=0.1, help="attack radius")
    add("--data", help="the data set, where its file has moved")
    add("--out", metavar="FILE", help="also write the figures to this .json file")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        run(args)


def run(args: Namespace) -> None:
    """What `main` does, once the arguments are parsed. Raises ValueError or OSError."""
    try:
        import art  # noqa: F401
        import foolbox  # noqa: F401
        import torchattacks  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error}: --help says what to install") from None
    if args.out:
        files.check_new(Path(args.out), ".json", "--out")
    model = infer.load(args.checkpoint)
    settings = checkpoints.load(args.checkpoint)["settings"]
    dataset = data.load_as_trained(settings, args.data)
    x, y = dataset.test_images("cpu", dataset.choose_test_images(500))
    eps, K = args.eps, dataset.num_classes
    classifier = art_classifier(model, x, K)

    def from_art(name: str, **more):
        return lambda: art_attack(classifier, name, x, y, eps, **more)

    attacks = {
        "PGD-20, ours": lambda: pgd(
            model, x, y, eps, eps / 5, steps=20, random_start=True, keep_best=True
        ),
        "LinfPGD-20, Foolbox": lambda: foolbox_pgd(model, x, y, eps, steps=20),
        "AutoPGD-100, cross-entropy, ours": lambda: apgd(model, x, y, eps, steps=100),
        "AutoPGD-100, cross-entropy, ART": from_art(
            "AutoProjectedGradientDescent", max_iter=100, batch_size=250
        ),
        "AutoAttack, torchattacks": lambda: auto_attack(model, x, y, eps, K),
        # ART rescales the schedule of square sizes
        "Square, ours": lambda: square(model, x, y, eps, QUERIES, rescale=True, batch_size=200),
        "Square, ours, not rescaled": lambda: square(model, x, y, eps, QUERIES, batch_size=200),
        "Square, ART": from_art("SquareAttack", max_iter=QUERIES, batch_size=200),
    }
    worst = measure(model, x, y, attacks_at(DECIDE, model, eps))["correct"]["worst"]
    left = torch.tensor([letter == "1" for letter in worst])
    print(f"our worst leaves {percent(left):.1f} %")
    rows = compare(model, x, y, attacks, left)
    if args.out:
        content = {
            "command": vars(args),
            "model": settings,
            "versions": options.versions(),
            "device": options.device_name(x.device),
            "our worst": {"left": int(left.sum()), "images": len(left)},
            "rows": rows,
        }
        files.write(Path(args.out), json.dumps(content).encode())


if __name__ == "__main__":
    main()
