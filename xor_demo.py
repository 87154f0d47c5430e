"""XOR (the paper's appendix 3.1 and Figure 1): what a collaboration can do and a vote cannot.

Four Gaussian clouds, two classes, two linear sub-models f_1 and f_2. Their average is again linear:
no line can do better than about 75 %, and the least squares reach 50. The collaboration adds one
linear module g_j to each: the f_j with the highest g_j answers, so each f_j needs to be correct on
two neighbouring clouds only.

    python xor_demo.py           # prints both accuracies, draws Figure 1 (a) and (b)
    python xor_demo.py --trap    # minimise the error of the better sub-model alone: see `trap_loss`
    python xor_demo.py --trap --animate trap.gif    # how the trap closes
"""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from support import files, options, pictures

CENTRES = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]])
LABELS = torch.tensor([1.0, 1.0, -1.0, -1.0])
TRAPPED = "f_1 says one label everywhere, f_2 the other: only g decides, as linear as (a)."
VARIANCE = 0.1  # the clouds' covariance is 0.1 * I


def xor_samples(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n points [n, 2], a quarter around each centre, and their labels -1 or +1 [n]."""
    cloud = torch.arange(n) % 4
    x = CENTRES[cloud] + VARIANCE**0.5 * torch.randn(n, 2, generator=generator)
    return x, LABELS[cloud]


class Linear2(nn.Module):
    """Two linear functions of a point, f_j(x) = a_j . x + b_j: [B, 2] -> [B, 2]."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.a = nn.Parameter(torch.randn(2, 2, generator=generator))
        self.b = nn.Parameter(torch.randn(2, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.a.T + self.b


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # f [B, 2], g [B, 2], y [B] -> scalar


def vote_loss(f: Tensor, g: Tensor, y: Tensor) -> Tensor:
    """The ensemble: mean square error of (f_1 + f_2) / 2."""
    return (f.mean(1) - y).square().mean()


def collaboration_loss(f: Tensor, g: Tensor, y: Tensor) -> Tensor:
    """sum_j softmax_j(g) (f_j - y)^2: what g cannot route costs loss, so f and g learn together.

    Ours: the appendix gives no loss for f and g together.
    """
    return (g.softmax(1) * (f - y[:, None]).square()).sum(1).mean()


def trap_loss(f: Tensor, g: Tensor, y: Tensor) -> Tensor:
    """min_j (f_j - y)^2, as the appendix words it, and a g that learns which j that is.

    Why it often fails: f_1 = +1 and f_2 = -1 everywhere have no error at all, whereas the intended
    solution has one of 0.09, the clouds' spread; and the loss of g, which is high there, does not
    reach f. All of XOR is then left to g, and a linear g cannot do it.
    """
    error = (f - y[:, None]).square()  # [B, 2]
    return error.min(1).values.mean() + nn.functional.cross_entropy(g, error.argmin(1))


def fit(
    loss: Loss, x: Tensor, y: Tensor, generator: torch.Generator, frames: list | None = None
) -> tuple[Linear2, Linear2]:
    """f and g after 500 full-batch steps of Adam from a random start; `frames` collects some of
    (step, f, g) on the way."""
    f, g = Linear2(generator), Linear2(generator)
    optimizer = torch.optim.Adam([*f.parameters(), *g.parameters()], lr=0.05)
    for step in range(500):
        if frames is not None and step % 20 == 0:
            frames.append((step, deepcopy(f), deepcopy(g)))
        optimizer.zero_grad()
        loss(f(x), g(x), y).backward()
        optimizer.step()
    if frames is not None:
        frames.append((500, f, g))
    return f, g


@torch.no_grad()
def answer(f: Linear2, g: Linear2, x: Tensor) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of the appendix: who answers [B], and the answer, the sign of that f_j [B]."""
    answering = g(x).argmax(1)
    return answering, f(x).gather(1, answering[:, None]).squeeze(1).sign()


def accuracies(
    seed: int, loss: Loss = collaboration_loss, frames: list | None = None
) -> tuple[float, float, tuple]:
    """Test accuracy, in percent, of the vote and of the collaboration; what Figure 1 needs: the
    test samples x, y, the vote's function, f and g."""
    generator = torch.Generator().manual_seed(seed)
    x, y = xor_samples(1000, generator)
    x_test, y_test = xor_samples(1000, generator)
    vote, _ = fit(vote_loss, x, y, generator)
    f, g = fit(loss, x, y, generator, frames)
    voted = vote(x_test).mean(1).sign()
    _, answered = answer(f, g, x_test)
    percents = [100 * (sign == y_test).float().mean().item() for sign in (voted, answered)]
    return *percents, (x_test, y_test, vote, f, g)


@torch.no_grad()
def trapped(f: Linear2, x: Tensor) -> bool:
    """Do f_1 and f_2 say +1 and -1 (nearly) everywhere, so that g alone decides?"""
    mean = f(x).sign().mean(0)  # [2]
    return bool(mean.abs().min() > 0.9 and mean.prod() < 0)


@torch.no_grad()
def figure_1(
    x: Tensor, y: Tensor, vote: Linear2, f: Linear2, g: Linear2, titles: list[str]
) -> pictures.Figure:
    """(a) the ensemble, (b) the collaboration: the samples, what is answered where, and by whom."""
    vote_lines = [("$f_1 + f_2 = 0$", "k-.", vote.a.sum(0), vote.b.sum())]
    lines = [(f"$f_{j + 1} = 0$", style, f.a[j], f.b[j]) for j, style in enumerate(("k-", "k--"))]
    lines += [("$g_1 = g_2$: who answers", "k:", g.a[0] - g.a[1], g.b[0] - g.b[1])]
    panels = [
        (titles[0], lambda z: (vote(z).mean(1).sign(), None), vote_lines),
        (titles[1], lambda z: answer(f, g, z)[::-1], lines),
    ]
    return pictures.plane(x, y, panels, TRAPPED if trapped(f, x) else " ")


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="xor_demo.py")
    parser.add_argument("--trap", action="store_true", help="the better sub-model's error alone")
    parser.add_argument("--seed", type=options.seed, default=0, help="of samples and start")
    parser.add_argument("--out", metavar="PNG", help="the picture (default: xor.png, xor-2.png ..)")
    parser.add_argument("--animate", metavar="GIF", help="also draw the training of f and g")
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        out = Path(args.out or files.new(Path(), "xor", ".png"))
        if args.out:
            files.check_new(out, ".png", "--out")
        if args.animate:
            files.check_new(Path(args.animate), ".gif", "--animate")
        loss, frames = trap_loss if args.trap else collaboration_loss, []
        voted, answered, (x, y, vote, f, g) = accuracies(args.seed, loss, frames)
        print(f"ensemble (average of two linear sub-models): {voted:.1f} % of 1000 test samples")
        print(f"collaboration (two linear f, linear g):      {answered:.1f} %")
        titles = [f"(a) ensemble: {voted:.1f} %", f"(b) collaboration: {answered:.1f} %"]
        if trapped(f, x):
            print(TRAPPED)
        files.write(out, pictures.as_png(figure_1(x, y, vote, f, g, titles)))
        print(f"wrote {out}")
        if args.animate:
            drawn = (
                figure_1(x, y, vote, f, g, [titles[0], f"(b) collaboration, step {step}"])
                for step, f, g in frames
            )
            files.write(Path(args.animate), pictures.as_gif(drawn))
            print(f"wrote {args.animate}")


if __name__ == "__main__":
    main()
