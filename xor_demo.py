"""XOR (the paper's appendix 3.1 and Figure 1): what a collaboration can do and a vote cannot.

Four Gaussian clouds, two classes, two linear sub-models f_1 and f_2. Their average is again linear,
so it stays under 75 % or so. The collaboration adds one linear module g_j to each: the f_j with the
highest g_j answers, so each f_j needs to be correct on two neighbouring clouds only.

    python xor_demo.py           # prints both accuracies, draws Figure 1 (a) and (b)
    python xor_demo.py --trap    # minimise the error of the best sub-model alone: see `trap_loss`
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from support import files, options, pictures

CENTRES = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]])
LABELS = torch.tensor([1.0, 1.0, -1.0, -1.0])
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
    """sum_j softmax_j(g) (f_j - y)^2: what g cannot route costs loss, so f and g learn together."""
    return (g.softmax(1) * (f - y[:, None]).square()).sum(1).mean()


def trap_loss(f: Tensor, g: Tensor, y: Tensor) -> Tensor:
    """min_j (f_j - y)^2, as the appendix words it, and a g that learns which j that is.

    Why it fails: f_1 = +1 and f_2 = -1 everywhere have no error at all, whereas the wanted solution
    keeps the clouds' own spread. All of XOR is then left to g, and a linear g cannot do it.
    """
    error = (f - y[:, None]).square()  # [B, 2]
    return error.min(1).values.mean() + nn.functional.cross_entropy(g, error.argmin(1))


def fit(loss: Loss, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Linear2, Linear2]:
    """f and g after 500 full-batch steps of Adam from a random start."""
    f, g = Linear2(generator), Linear2(generator)
    optimizer = torch.optim.Adam([*f.parameters(), *g.parameters()], lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        loss(f(x), g(x), y).backward()
        optimizer.step()
    return f, g


@torch.no_grad()
def answer(f: Linear2, g: Linear2, x: Tensor) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of the appendix: who answers [B], and the answer, the sign of that f_j [B]."""
    answering = g(x).argmax(1)
    return answering, f(x).gather(1, answering[:, None]).squeeze(1).sign()


def accuracies(seed: int, loss: Loss = collaboration_loss) -> tuple[float, float, list]:
    """Test accuracy, in percent, of the vote and of the collaboration; what Figure 1 needs."""
    generator = torch.Generator().manual_seed(seed)
    x, y = xor_samples(1000, generator)
    x_test, y_test = xor_samples(1000, generator)
    vote, _ = fit(vote_loss, x, y, generator)
    f, g = fit(loss, x, y, generator)
    with torch.no_grad():
        voted = vote(x_test).mean(1).sign()
    answering, answered = answer(f, g, x_test)
    percents = [100 * (sign == y_test).float().mean().item() for sign in (voted, answered)]
    return *percents, [x_test, y_test, vote, f, g, answering]


def figure_1(samples: list, titles: list[str]) -> bytes:
    """(a) the ensemble, samples coloured by label; (b) the collaboration, by who answers. A PNG."""
    x, y, vote, f, g, answering = samples
    of_label, of_expert = ["$y = -1$", "$y = +1$"], ["answered by $f_1$", "answered by $f_2$"]
    average = ("$f_1 + f_2 = 0$", "k-", vote.a.sum(0), vote.b.sum())
    experts = [(f"$f_{j + 1} = 0$", f"C{j}-", f.a[j], f.b[j]) for j in range(2)]
    border = ("$g_1 = g_2$", "k:", g.a[0] - g.a[1], g.b[0] - g.b[1])
    panels = [(y > 0, of_label, [average]), (answering, of_expert, [*experts, border])]
    figure, axes = pictures.plt.subplots(1, 2, figsize=(9, 4.8), layout="constrained")
    for axis, title, (group, names, lines) in zip(axes, titles, panels):
        for k, name in enumerate(names):
            for label, marker in ((1, "+"), (-1, "o")):
                part = x[(group == k) & (y == label)]
                style = {"color": f"C{k}", "marker": marker, "alpha": 0.5, "linewidths": 0.8}
                axis.scatter(*part.T, s=14, label=name, **style)
        for name, style, a, b in lines:
            # the line a . x + b = 0: its point nearest to the origin, and its direction
            foot, along = -b * a / a.square().sum(), torch.stack([-a[1], a[0]]) / a.norm()
            ends = torch.stack([foot - 6 * along, foot + 6 * along])
            axis.plot(*ends.detach().T, style, label=name)
        axis.set(title=title, xlim=(-2.5, 2.5), ylim=(-2.5, 2.8), aspect="equal")
        axis.set(xlabel="$x_1$", ylabel="$x_2$")
        handles = {name: handle for handle, name in zip(*axis.get_legend_handles_labels())}
        axis.legend(handles.values(), handles, fontsize=7, loc="upper center", ncols=3)
    return pictures.as_png(figure)


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="xor_demo.py")
    parser.add_argument("--trap", action="store_true", help="the best sub-model's error alone")
    what = "of samples and start (default: 0)"
    parser.add_argument("--seed", type=options.seed, default=0, help=what)
    parser.add_argument("--out", metavar="PNG", help="the picture (default: xor.png, xor-2.png ..)")
    args = parser.parse_args(argv)
    out = Path(args.out) if args.out else files.first_free(Path(), "xor", ".png")
    with parser.errors_in_one_line():
        files.check_new(out, ".png", "--out")
        loss = trap_loss if args.trap else collaboration_loss
        vote, collaboration, samples = accuracies(args.seed, loss)
        print(f"ensemble (average of two linear sub-models): {vote:.1f} % of 1000 test samples")
        print(f"collaboration (two linear f, linear g):      {collaboration:.1f} %")
        titles = [f"(a) ensemble: {vote:.1f} %", f"(b) collaboration: {collaboration:.1f} %"]
        files.write(out, figure_1(samples, titles))
        print(f"wrote {out}")


if __name__ == "__main__":
    main()
