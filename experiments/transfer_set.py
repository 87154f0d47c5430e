"""Transfer attacks: images made against other networks, to be tried on any model (appendix 4.1).

    python -m experiments.transfer_set --data digits --eps 0.1 --out transfer.npz
    python infer.py CHECKPOINT --eps 0.1 --attack transfer3,transfer30 --transfer transfer.npz

The surrogates are plain ensembles of 3, 5 and 8 ResNet20s, trained on clean images (kept, and used
again, in --surrogates). Against each, with cross-entropy and with the CW loss, five attacks of 100
steps of eps / 5 are made: PGD with momentum from 3 random starts, SGM, and M-DI2-FGSM, which makes
30 variants of each image; the 3 variants are the three methods against 3 members with
cross-entropy. An image counts as robust only if every variant is classified right.
The protocol is that of DVERGE (Yang et al., NeurIPS 2020); the share of the image that input
diversity leaves, 0.9, is our choice.
"""

import io
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import data
import infer
from attacks import pgd
from baselines import plain
from models import Block, Ensemble
from support import files, options
from train_submodel import train

SIZES = (3, 5, 8)  # members of the surrogates
METHODS = ("pgd-1", "sgm", "di2", "pgd-2", "pgd-3")  # the first three are those of the 3 variants


def mpgd(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, eps: float, loss: str, steps: int
) -> Tensor:
    """PGD with momentum 1 on the normalised gradient, from a random start: x [B, C, H, W]."""
    return pgd(model, x, y, eps, eps / 5, steps, loss, momentum=1.0, random_start=True)


@contextmanager
def decayed_residuals(model: nn.Module, gamma: float):
    """Within it, gradients that flow back through a residual branch are multiplied by gamma."""

    def hook(block: nn.Module, inputs: tuple, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda grad: gamma * grad)

    blocks = [module for module in model.modules() if isinstance(module, Block)]
    handles = [block.residual.register_forward_hook(hook) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def sgm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    loss: str,
    steps: int,
    gamma: float = 0.2,
) -> Tensor:
    """Skip Gradient Method, Wu et al., ICLR 2020: more gradient from the skip connections."""
    with decayed_residuals(model, gamma):
        return mpgd(model, x, y, eps, loss, steps)


def diversify(x: Tensor, probability: float, least: float = 0.9) -> Tensor:
    """With `probability` the batch x [B, C, H, W] is shrunk to a random size, from `least` of its
    sides up, and put somewhere on black."""
    if torch.rand(()) >= probability:
        return x
    height, width = x.shape[2:]
    scale = least + (1 - least) * torch.rand(()).item()
    h, w = max(1, int(scale * height)), max(1, int(scale * width))
    top = int(torch.randint(0, height - h + 1, ()))
    left = int(torch.randint(0, width - w + 1, ()))
    small = F.interpolate(x, (h, w), mode="bilinear", align_corners=False)
    return F.pad(small, (left, width - w - left, top, height - h - top))


def di2(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    loss: str,
    steps: int,
    probability: float = 0.5,
) -> Tensor:
    """M-DI2-FGSM, Xie et al., CVPR 2019: each step sees a randomly resized image, or the image."""
    return mpgd(lambda z: model(diversify(z, probability)), x, y, eps, loss, steps)


def surrogate(dataset: data.Data, size: int, folder: Path, args: Namespace) -> Ensemble:
    """A plain ensemble, read from folder/size, or trained there. Raises ValueError, OSError."""
    folder = folder / str(size)
    device = options.pick_device(args.device)
    if (folder / "model.pt").exists():
        checkpoint = files.load_checkpoint(folder)
        settings = Namespace(**plain.PARSER.defaults | checkpoint["settings"])
        if settings.method != "plain" or settings.n != size or settings.eps:
            what = f"plain ensemble of {size} trained on clean images"
            raise ValueError(f"{folder} holds no {what}: name another folder")
        if settings.data_checksum != dataset.checksum:
            raise ValueError(f"{folder} was trained on other images: name another folder")
        options.fill_in(settings, dataset)
    else:
        checkpoint = None
        mine = {"data": args.data, "epochs": args.epochs, "seed": args.seed + size, "n": size}
        settings = Namespace(**plain.PARSER.defaults | mine | {"eps": 0.0}, method="plain")
        options.check(settings, eps_may_be_0=True)
        options.fill_in(settings, dataset)
        settings.stage_epochs = {1: settings.epochs}
        settings.precision = options.best_precision(device)
        folder.mkdir(parents=True, exist_ok=True)
    settings.out = str(folder)
    torch.manual_seed(settings.seed)
    model = infer.build(vars(settings)).to(device, memory_format=torch.channels_last)
    if checkpoint:
        infer.load_weights(model, checkpoint)
        files.set_rng_state(checkpoint["rng"], device)
    train(model, plain.plain_loss(model, settings), dataset, settings, checkpoint=checkpoint)
    return model.eval()


def variants(
    models: dict[int, Ensemble], x: Tensor, y: Tensor, eps: float, steps: int, seed: int
) -> tuple[list[str], Tensor]:
    """Names, and images [V, N, C, H, W] on the CPU, of all variants of x [N, C, H, W]."""
    makers = {"pgd": mpgd, "sgm": sgm, "di2": di2}
    names = [f"{size} {loss} {way}" for size in models for loss in ("ce", "cw") for way in METHODS]
    images = []
    for number, name in enumerate(tqdm(names, "variants", disable=None)):
        size, loss, way = name.split()
        torch.manual_seed(seed + number)
        make = makers[way.split("-")[0]]
        parts = zip(x.split(infer.BATCH_SIZE), y.split(infer.BATCH_SIZE))
        made = [make(models[int(size)], *part, eps, loss, steps).cpu() for part in parts]
        images.append(torch.cat(made))
    return names, torch.stack(images)


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(__doc__, prog="-m experiments.transfer_set")
    parser.add_argument("--data", default="digits", help="as in training (default: digits)")
    parser.add_argument("--eps", type=float, default=0.03, help="radius (default: 0.03)")
    parser.add_argument("--out", required=True, metavar="FILE", help="the .npz file to write")
    parser.add_argument("--surrogates", metavar="DIR", help="default: runs/DATA-surrogates")
    parser.add_argument("--epochs", type=int, help="of the surrogates (default: as in training)")
    parser.add_argument("--images", type=int, help="test images (default: at most 1000)")
    parser.add_argument("--steps", type=int, default=100, help="of each attack (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the first that is there)")
    args = parser.parse_args(argv)
    out = Path(args.out)
    try:
        options.check_eps(args.eps)
        options.check_seed(args.seed)
        if out.suffix != ".npz" or out.exists() or not out.parent.is_dir():
            raise ValueError(f"--out {out}: give a new .npz file in an existing folder")
        if args.steps < 1 or (args.images is not None and args.images < 1):
            raise ValueError("--steps and --images must be at least 1")
        dataset = data.load(args.data)
        if args.images is not None and args.images > len(dataset.x_test):
            raise ValueError(f"--images is {args.images}: there are {len(dataset.x_test)}")
        folder = Path(args.surrogates or Path("runs") / f"{dataset.name}-surrogates")
        models = {size: surrogate(dataset, size, folder, args) for size in SIZES}
        chosen = infer.choose_images(dataset, args.images or infer.MAX_IMAGES)
        x, y = infer.test_images(dataset, next(models[3].parameters()).device, chosen)
        for size, model in models.items():
            right = infer.percent(infer.ask_experts(model, x)[0].mean(0).argmax(-1) == y)
            print(f"surrogate of {size}: clean accuracy {right:.1f} %")
        names, images = variants(models, x, y, args.eps, args.steps, args.seed)
        buffer = io.BytesIO()
        np.savez(
            buffer,
            images=images.numpy(),
            labels=y.cpu().numpy(),
            indices=chosen.numpy(),
            checksum=dataset.checksum,
            data=dataset.name,
            eps=args.eps,
            variants=np.array(names),
            in_3=np.array([name in {f"3 ce {way}" for way in METHODS[:3]} for name in names]),
        )
        files.write(out, buffer.getvalue())
        print(f"wrote {out}: {len(names)} variants of {len(x)} images at eps {args.eps:g}")
    except (ValueError, OSError, FloatingPointError) as error:
        parser.error(error)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the surrogates it has", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
