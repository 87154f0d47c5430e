"""Transfer attacks: images made against other networks, to be tried on any model (appendix 4.1).

    python -m experiments.transfer_set --eps 0.1 --out set.npz
    python -m experiments.evaluate RUN --eps 0.1 --attack transfer3 transfer30 --transfer set.npz

The surrogates are plain ensembles of 3, 5 and 8 ResNet20s, trained on clean images; --surrogates
keeps them for the next set. Each is attacked with cross-entropy and with the CW loss, by PGD with
momentum from 3 random starts, by SGM, and by M-DI2-FGSM, all in 100 steps of eps / 5: 30 variants
of each image. The 3 variants are one of each method, with cross-entropy, against 3 members. An
image counts as robust only if every variant is classified correctly (other rows of the table, an
expert's say, see the variant that is worst for the model). The protocol is that of DVERGE
(Yang et al., NeurIPS 2020); the size that input diversity leaves, 0.9 of each side, is our choice.
"""

import io
from argparse import Namespace
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import data
import infer
from attacks import Loss, cross_entropy, cw_loss, in_batches, pgd
from baselines import plain
from experiments import train_or_resume
from models import Block, ask_experts
from support import checkpoints, files, options
from support.printing import percent

SIZES = (3, 5, 8)  # members of the surrogates
LOSSES = {"ce": cross_entropy, "cw": cw_loss}
ARRAYS = ("images", "indices", "in_3")  # of the file
TRANSFER = ("transfer3", "transfer30")  # the columns of a table: 3 variants, and all of them
METHODS = ("pgd-1", "sgm", "di2", "pgd-2", "pgd-3")  # the first three are those of the 3 variants


def mpgd(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, eps: float, loss: Loss, steps: int
) -> Tensor:
    """PGD with momentum 1 on the normalised gradient, from a random start: x [B, C, H, W]."""
    return pgd(model, x, y, eps, eps / 5, steps, loss, momentum=1.0, random_start=True)


@contextmanager
def decayed_residuals(model: nn.Module, gamma: float):
    """Within it, every residual branch multiplies the gradients that flow back by gamma."""

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


def sgm(model: nn.Module, x: Tensor, y: Tensor, gamma: float = 0.2, **search) -> Tensor:
    """Skip Gradient Method, Wu et al., ICLR 2020: more gradient from the skip connections."""
    with decayed_residuals(model, gamma):
        return mpgd(model, x, y, **search)


def diversify(x: Tensor, probability: float, least: float = 0.9) -> Tensor:
    """Shrinks the batch x [B, C, H, W], with `probability`, to `least` of its sides or more, and
    puts it somewhere on black."""
    if torch.rand(()) >= probability:
        return x
    height, width = x.shape[2:]
    scale = least + (1 - least) * torch.rand(()).item()
    h, w = max(1, int(scale * height)), max(1, int(scale * width))
    top = int(torch.randint(0, height - h + 1, ()))
    left = int(torch.randint(0, width - w + 1, ()))
    small = F.interpolate(x, (h, w), mode="bilinear", align_corners=False)
    return F.pad(small, (left, width - w - left, top, height - h - top))


def di2(model: nn.Module, x: Tensor, y: Tensor, probability: float = 0.5, **search) -> Tensor:
    """M-DI2-FGSM, Xie et al., CVPR 2019: each step sees a randomly resized image, or the image."""
    return mpgd(lambda z: model(diversify(z, probability)), x, y, **search)


def surrogate(dataset: data.Data, size: int, args: Namespace) -> nn.Module:
    """A plain ensemble trained on clean images, in eval mode: read from its folder, or trained
    there. Raises ValueError, OSError; SystemExit where training ends with one."""
    folder = Path(args.surrogates or f"runs/{dataset.name}-surrogates") / str(size)
    flags = ["--eps=0", f"--n={size}", f"--seed={args.seed + size}"]
    flags += [f"--epochs={args.epochs}"] if args.epochs else []
    train_or_resume(plain.main, folder, args.data, args.device, flags)
    settings = checkpoints.load(folder)["settings"]
    wanted = {"method": "plain", "n": size, "eps": 0, "data_checksum": dataset.checksum}
    if any(settings[key] != value for key, value in wanted.items()):
        members = f"plain ensemble of {size} trained on these images, clean"
        raise ValueError(f"{folder} holds no {members}: name another folder")
    return infer.load(folder, options.pick_device(args.device))


def make_variants(
    models: dict[int, nn.Module], x: Tensor, y: Tensor, eps: float, steps: int, seed: int
) -> tuple[list[str], Tensor]:
    """Names, and images [V, N, C, H, W] on the CPU, of all variants of x [N, C, H, W]."""
    attacks = {"pgd": mpgd, "sgm": sgm, "di2": di2}
    names = [f"{size} {loss} {method}" for size in models for loss in LOSSES for method in METHODS]
    images = []
    for number, name in enumerate(tqdm(names, "variants", disable=None)):
        size, loss, method = name.split()
        torch.manual_seed(seed + number)
        attack = partial(attacks[method[:3]], eps=eps, loss=LOSSES[loss], steps=steps)
        images.append(in_batches(attack)(models[int(size)], x, y).cpu())
    return names, torch.stack(images)


def load_transfer(
    path: str, dataset: data.Data, radii: list[float], count: int | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """A file that this script wrote: numbers of test images [N], and {"transfer3" and "transfer30":
    [V, N, C, H, W]}, cut to `count` images.

    Raises FileNotFoundError; ValueError where it is damaged, or of other data or eps.
    """
    with files.reading(path, "file of experiments/transfer_set.py"):
        files.check_archive(path)
        with np.load(path, allow_pickle=False) as file:
            images, indices, in_3 = (torch.from_numpy(file[k]) for k in ARRAYS)
            checksum, data_name, eps = (file[key].item() for key in ("checksum", "data", "eps"))
        if checksum == dataset.checksum:
            if (indices < 0).any() or len(indices.unique()) < len(indices):
                raise ValueError("its indices are not those of test images")
            x = dataset.x_test[indices].float() / 255
            if not ((images - x).abs() <= eps + 1e-6).all() or images.min() < 0 or images.max() > 1:
                raise ValueError("images lie outside the ball, or are NaN")
    if checksum != dataset.checksum:
        raise ValueError(f"{path} was made for {data_name}, not for {dataset.name}: make another")
    if any(abs(radius - eps) > 1e-9 for radius in radii):
        raise ValueError(f"{path} was made at eps {eps:g}: give --eps {eps:g}")
    if count is not None and count > len(indices):
        raise ValueError(f"--images is {count}: {path} has {len(indices)} images")
    images = images[:, :count]
    return indices[:count], dict(zip(TRANSFER, (images[in_3], images)))


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.transfer_set")
    add, count = parser.add_argument, options.count
    add("--data", default="digits", help="as in training")
    add("--eps", type=options.radius, default=0.03, help="attack radius")
    add("--out", required=True, metavar="FILE", help="the .npz file to write")
    add("--surrogates", metavar="DIR", help="their runs (default: runs/DATA-surrogates)")
    add("--epochs", type=count, help="of the surrogates (default: as in training)")
    add("--images", type=count, help="at most so many test images (default: 1000)")
    add("--steps", type=count, default=100, help="of each attack")
    add("--seed", type=options.seed, default=0, help="of surrogates and attacks")
    options.add_device(parser)
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        out = Path(args.out)
        files.check_new(out, ".npz", "--out")
        dataset = data.load(args.data)
        chosen = dataset.choose_test_images(args.images or data.MAX_IMAGES)
        x, y = dataset.test_images(options.pick_device(args.device), chosen)
        models = {size: surrogate(dataset, size, args) for size in SIZES}
        for size, model in models.items():
            correct = model.combine(*ask_experts(model, x)).argmax(-1) == y
            print(f"surrogate of {size}: clean accuracy {percent(correct):.1f} %")
        names, images = make_variants(models, x, y, args.eps, args.steps, args.seed)
        in_3 = [name in {f"3 ce {method}" for method in METHODS[:3]} for name in names]
        content = {"images": images.numpy(), "indices": chosen.numpy(), "in_3": np.array(in_3)}
        content |= {"checksum": dataset.checksum, "data": dataset.name, "eps": args.eps}
        buffer = io.BytesIO()
        np.savez(buffer, **content, variants=np.array(names))
        files.write(out, buffer.getvalue())
        print(f"wrote {out}: {len(names)} variants of {len(x)} images at eps {args.eps:g}")


if __name__ == "__main__":
    main()
