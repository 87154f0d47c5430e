"""Our attacks beside other people's, on the same model and images.

    python -m pip install foolbox adversarial-robustness-toolbox
    python -m pip install --no-deps torchattacks    # AutoAttack; it asks for old versions of others
    python -m experiments.other_tools RUN --eps 0.1 --out tools.json

Prints the accuracy that each leaves, how many images it takes of those that our worst of
experiments/evaluate.py leaves, and the time. With --speed it times Square instead: 200 random
images of 3 x 32 x 32, 500 queries, three untrained ResNet20s whose own answers are the labels.
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
from models import Collaboration, ResNet, ask_experts
from support import checkpoints, files, options
from support.printing import percent


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


def art_attack(classifier, name: str, x: Tensor, y: Tensor, eps: float, **how) -> Tensor:
    """ART's attack of this name: x [N, C, H, W] -> x_adv."""
    from art.attacks import evasion

    if name == "AutoProjectedGradientDescent":
        how = {"eps_step": 2 * eps, "loss_type": "cross_entropy", "nb_random_init": 1} | how
    else:
        how = {"nb_restarts": 1} | how
    attack = getattr(evasion, name)(classifier, eps=eps, norm=np.inf, verbose=False, **how)
    return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x.device)


def auto_attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, num_classes: int) -> Tensor:
    """torchattacks' AutoAttack, the standard four: AutoPGD twice, FAB and Square."""
    import torchattacks

    return torchattacks.AutoAttack(model, eps=eps, n_classes=num_classes, seed=0)(x, y)


def compare(
    model: nn.Module, x: Tensor, y: Tensor, rows: dict, num_classes: int, left: Tensor
) -> dict[str, dict[str, float]]:
    """Prints and returns for each of rows' attacks, {name: fn(classifier) -> x_adv}, the accuracy
    that it leaves, how many of the images `left` [N] it takes, and seconds."""
    classifier, found = art_classifier(model, x, num_classes), {}
    for name, attack in rows.items():
        torch.manual_seed(0)
        np.random.seed(0)
        start = time.perf_counter()
        x_adv = attack(classifier)
        seconds = time.perf_counter() - start
        correct = model.combine(*ask_experts(model, x_adv)).argmax(-1) == y
        taken, farthest = int((left & ~correct).sum()), (x_adv - x).abs().max().item()
        found[name] = {"correct": percent(correct), "of ours": taken, "seconds": seconds}
        print(
            f"{name:34} {percent(correct):6.1f} % correct  takes {taken} of our {int(left.sum())}  "
            f"{seconds:7.1f} s  {len(x) / seconds:7.2f} images/s  farthest {farthest:.4f}",
            flush=True,
        )
    return found


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.other_tools")
    add = parser.add_argument
    add("checkpoint", nargs="?", metavar="RUN", help="a run's folder, or its model.pt")
    add("--eps", type=options.radius, default=0.1, help="attack radius")
    add("--queries", type=options.count, default=500, help="of Square")
    add("--images", type=options.count, default=500, help="at most so many test images")
    add("--data", help="the data set, where its file has moved")
    add("--speed", action="store_true", help="time Square at 32 x 32")
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
    if args.speed == (args.checkpoint is not None):
        raise ValueError("give a RUN, or --speed")
    if args.out:
        files.check_new(Path(args.out), ".json", "--out")
    eps, alpha, queries = args.eps, args.eps / 5, args.queries
    squares = {  # ART rescales the schedule of square sizes
        "Square, ours": lambda _: square(model, x, y, eps, queries, rescale=True, batch_size=200),
        "Square, ours, not rescaled": lambda _: square(model, x, y, eps, queries, batch_size=200),
        "Square, ART": lambda classifier: art_attack(
            classifier, "SquareAttack", x, y, eps, max_iter=queries, batch_size=200
        ),
    }
    if args.speed:
        torch.manual_seed(0)
        model = Collaboration([ResNet(20) for _ in range(3)]).eval()
        x = torch.rand(200, 3, 32, 32)
        y = model(x).argmax(1)
        compare(model, x, y, squares, 10, left=torch.ones_like(y, dtype=torch.bool))
        return
    model = infer.load(args.checkpoint)
    settings = checkpoints.load(args.checkpoint)["settings"]
    dataset = data.load_as_trained(settings, args.data)
    x, y = dataset.test_images("cpu", dataset.choose_test_images(args.images))
    ours = measure(model, x, y, attacks_at(DECIDE, model, eps))["correct"]["worst"]
    left = torch.tensor([letter == "1" for letter in ours])
    print(f"our worst leaves {percent(left):.1f} %")
    how = {"max_iter": 100, "batch_size": 250}
    rows = {
        "PGD-20, ours": lambda _: pgd(
            model, x, y, eps, alpha, 20, random_start=True, keep_best=True
        ),
        "LinfPGD-20, Foolbox": lambda _: foolbox_pgd(model, x, y, eps, 20),
        "AutoPGD-100, cross-entropy, ours": lambda _: apgd(model, x, y, eps, 100),
        "AutoPGD-100, cross-entropy, ART": lambda classifier: art_attack(
            classifier, "AutoProjectedGradientDescent", x, y, eps, **how
        ),
    }
    rows["AutoAttack, torchattacks"] = lambda _: auto_attack(model, x, y, eps, dataset.num_classes)
    found = compare(model, x, y, rows | squares, dataset.num_classes, left)
    if args.out:
        content = {
            "command": vars(args),
            "model": settings,
            "versions": options.versions(),
            "device": options.device_name(x.device),
            "our worst": {"left": int(left.sum()), "images": len(left)},
            "rows": found,
        }
        files.write(Path(args.out), json.dumps(content).encode())


if __name__ == "__main__":
    main()
