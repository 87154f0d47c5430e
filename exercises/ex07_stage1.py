"""Exercise 7: the loss of stage 1

Every expert is attacked alone; all experts learn from all of these images, and from the clean ones,
each image mostly by whichever expert handles it best. `attack_each_expert` and `sample_loss` of
train_submodel.py are there. Mind the modes: an attack must neither see nor move batch statistics.
Then an attack that gives every image an eps of its own.

In words: derive that a batch costs M S + M + M^2 forward passes of one expert, S being PGD's steps.
"""

from argparse import Namespace
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import cross_entropy
from exercises import Property, shaped
from models import Collaboration, ResNet
from train_submodel import attack_each_expert, sample_loss, training_attack

MINUTES, PAPER = 50, "the main paper's Algorithm 1"
TOLERANCE = 1e-4
IMPORTS = """from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks import cross_entropy
from train_submodel import SoESettings, attack_each_expert, sample_loss"""
REBUILD = {
    "stage1_loss": (
        "train_submodel",
        "M times the sum of two means of sample_loss: over the clean batch x [B, C, H, W], y [B], "
        "and over the M * B images that attack_each_expert makes of it, expert after expert. First "
        "comes the attack, in eval mode; then, in train mode, the clean batch, and last the "
        "adversarial one, each one batch for batch norm. Ends in train mode. settings.n is M; eps "
        "is above 0.",
    )
}
TWIST = {
    "attack_by_eps": "PGD, from x itself, with a radius for each image: eps [B], steps of eps / 3 "
    "times the gradient's sign. The caller has set the mode; no gradient may be left behind. "
    "x [B, C, H, W] in [0, 1] -> x_adv like x, detached."
}


def attack_by_eps(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, eps: Tensor, steps: int
) -> Tensor:
    eps = eps[:, None, None, None]
    lower, upper = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    x_adv = x.clone()
    for _ in range(steps):
        x_adv.requires_grad_()
        (grad,) = torch.autograd.grad(cross_entropy(model(x_adv), y).sum(), x_adv)
        moved = x_adv.detach() + eps / 3 * grad.sign()
        x_adv = torch.minimum(torch.maximum(moved, lower), upper)
    return x_adv


HOW = {"eps": 0.1, "alpha": 0.05, "steps": 4, "random_start": False}
SETTINGS = Namespace(n=3, weights="best", sigma=0.5, lambda_=0.7, **HOW)


def batch(M: int = 3) -> tuple[nn.Module, Tensor, Tensor]:
    """M small experts, six images of 8 x 8 pixels, their labels: the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Collaboration([ResNet(2, 1, 4, 8) for _ in range(M)])
        return model, torch.rand(6, 1, 8, 8), torch.randint(4, (6,))


def loss(own: object) -> list[Tensor]:
    """Of three experts, and of two."""
    of = [own.stage1_loss(*batch(M), Namespace(**vars(SETTINGS) | {"n": M})) for M in (3, 2)]
    return [shaped(value) for value in of]


def gradients(own: object) -> list[Tensor]:
    model, x, y = batch()
    own.stage1_loss(model, x, y, SETTINGS).backward()
    return [w.grad if w.grad is not None else torch.zeros_like(w) for w in model.parameters()]


def seen_by_batch_norm(own: object) -> list[Tensor]:
    """How many batches every batch norm has seen, the mode after, and 100 times the means that it
    keeps, in which the last batch counts most."""
    model, x, y = batch()
    own.stage1_loss(model, x, y, SETTINGS)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    seen = torch.stack([norm.num_batches_tracked for norm in norms])
    return [seen, torch.tensor(model.training), *(100 * norm.running_mean for norm in norms)]


def by_eps(own: object) -> Tensor:
    model, x, y = batch()
    return shaped(own.attack_by_eps(model.eval(), x, y, torch.linspace(0, 0.2, 6), 5), *x.shape)


def left_behind(own: object) -> list[float]:
    """Is a gradient in the weights, does the result ask for one, is x changed?"""
    model, x, y = batch()
    x_adv = own.attack_by_eps(model.eval(), x, y, torch.linspace(0, 0.2, 6), 2)
    grads = [w.grad is not None for w in model.parameters()]
    return [float(any(grads)), float(x_adv.requires_grad), float(not torch.equal(x, batch()[1]))]


PROBES = {
    "the losses of three and of two experts on six images": loss,
    "its gradients for all weights": gradients,
    "batches each batch norm has seen; train mode after; 100 x the means kept": seen_by_batch_norm,
    "six images, eps 0 to .2, 5 steps": by_eps,
    "0 where no gradient is in the weights, none asked for, x not changed": left_behind,
}
NAMES = list(PROBES)
PROPERTIES = [
    Property("the loss is M (clean + adversarial)", 4, NAMES[:1]),
    Property("every expert learns what it should", 3, NAMES[1:2]),
    Property(
        "batch norm sees the clean batch and the adversarial one, and no attack", 3, NAMES[2:3]
    ),
    Property("each image has an eps of its own", 2, NAMES[3:]),
]
MISTAKES = {
    "the attack in train mode": "Batch norm then sees the attack's images, and keeps their mean.",
    "one joined batch": "Clean and adversarial images are two batches, each with its statistics.",
    "own attacks only": "Every expert is to learn from all experts' images, not its own alone.",
    "repeat_interleave": "The images come expert after expert: 1 2 3 1 2 3, so y.repeat(M); not 1 "
    "1 2 2 3 3.",
    "without M": "The weights of Eq. 7 sum to 1 over experts: without M each moves 1/M as far.",
    "M twice": "The factor is M: the means over images are not multiplied once more.",
    "a batch for each attack": "The M * B adversarial images are one batch for batch norm.",
    "a sum for a mean": "The losses' mean over the images is taken, not their sum.",
    "ends in eval mode": "It must end in train mode.",
    "the clean batch in eval mode": "Both batches are learned in train mode.",
    "the whole model attacked": "Stage 1 attacks every expert alone: attack_each_expert.",
    "M on the clean half alone": "M times both: the clean mean and the adversarial one.",
    "no adversarial half": "The images that the attack has made are learned as well.",
    "projection at the end alone": "Each step must come back into the ball: what is outside has "
    "other gradients.",
    "not detached": "The result asks for a gradient: its whole history stays in memory.",
    "a gradient left behind": "loss.backward() leaves gradients in the weights: "
    "torch.autograd.grad gives that of the images alone.",
    "the largest eps": "Each image has a radius of its own.",
    "the mean eps": "Each image has a radius of its own.",
    "the step of the largest eps": "An image's step is a third of its own eps.",
    "steps of eps / steps": "The step is eps / 3.",
    "the ball left": "After each step comes the projection onto the image's own ball.",
    "[0, 1] left": "After each step pixels are cut to [0, 1].",
    "no clean half": "The clean batch is learned as well.",
    "the adversarial batch first": "The clean batch comes first: in batch norm the last counts "
    "most.",
    "stays in eval mode": "After the attack comes model.train(): the batches are to move the "
    "statistics, and to be normalised by their own.",
    "eps of the first image": "Every image got the same eps.",
}


def variant(wrong: frozenset[str]) -> dict[str, Callable]:
    def stage1_loss(model, x, y, settings):
        M = settings.n
        model.train("the attack in train mode" in wrong).requires_grad_(False)
        x_adv = attack_each_expert(model, x, y, settings)
        model.train("stays in eval mode" not in wrong).requires_grad_(True)
        labels = y.repeat_interleave(M) if "repeat_interleave" in wrong else y.repeat(M)
        factor = 1 if "without M" in wrong else M**2 if "M twice" in wrong else M
        if "one joined batch" in wrong:
            losses = sample_loss(model, torch.cat([x, x_adv]), torch.cat([y, labels]), settings)
            clean, adversarial = losses[: len(x)].mean(), losses[len(x) :].mean()
        else:
            clean = sample_loss(model, x, y, settings).mean()
            if "own attacks only" in wrong:
                adversarial = 0
                for expert, images, targets in zip(model.experts, x_adv.chunk(M), labels.chunk(M)):
                    logits, score = expert(images)
                    l_i = cross_entropy(logits, targets)
                    p_y = torch.exp(-l_i).detach()
                    bce = F.binary_cross_entropy_with_logits(score, p_y)
                    adversarial = adversarial + (l_i.mean() + settings.lambda_ * bce) / M
            elif "a batch for each attack" in wrong:
                pairs = zip(x_adv.chunk(M), labels.chunk(M))
                adversarial = sum(sample_loss(model, *p, settings).mean() for p in pairs) / M
            else:
                adversarial = sample_loss(model, x_adv, labels, settings).mean()
        return factor * (adversarial if "no clean half" in wrong else clean + adversarial)

    def by_eps(model, x, y, eps, steps):
        eps = eps[:1].expand_as(eps) if "eps of the first image" in wrong else eps
        return attack_by_eps(model, x, y, eps, steps)

    return {"stage1_loss": stage1_loss, "attack_by_eps": by_eps}


def more() -> dict[str, dict[str, Callable]]:
    def staged(
        attack: Callable = attack_each_expert,
        mean: Callable = Tensor.mean,
        clean: Callable = nn.Module.train,
        end: Callable = nn.Module.train,
    ) -> dict[str, Callable]:
        def stage1_loss(model, x, y, settings):
            M = settings.n
            model.eval().requires_grad_(False)
            x_adv = attack(model, x, y, settings)
            clean(model.train().requires_grad_(True))
            first = mean(sample_loss(model, x, y, settings))
            second = sample_loss(model.train(), x_adv, y.repeat(len(x_adv) // len(y)), settings)
            end(model)
            return M * (first + mean(second))

        return {"stage1_loss": stage1_loss}

    def halves(clean: Callable, attacked: Callable, turned: bool = False) -> dict[str, Callable]:
        def stage1_loss(model, x, y, settings):
            M = settings.n
            model.eval()
            x_adv = attack_each_expert(model, x, y, settings)
            model.train()
            batches = [(x, y, clean(M)), (x_adv, y.repeat(M), attacked(M))]
            batches = batches[::-1] if turned else batches
            return sum(c * sample_loss(model, a, b, settings).mean() for a, b, c in batches if c)

        return {"stage1_loss": stage1_loss}

    def moved(radius: Callable, step: Callable, project: Callable) -> dict[str, Callable]:
        def attack_by_eps(model, x, y, eps, steps):
            eps, x_adv = eps[:, None, None, None], x.clone()
            for _ in range(steps):
                x_adv.requires_grad_()
                (grad,) = torch.autograd.grad(cross_entropy(model(x_adv), y).sum(), x_adv)
                x_adv = x_adv.detach() + step(eps, steps) * grad.sign()
                x_adv = project(x_adv, x - radius(eps), x + radius(eps))
            return x_adv

        return {"attack_by_eps": attack_by_eps}

    def late(model, x, y, eps, steps):
        free = moved(own, third, lambda z, low, high: z)["attack_by_eps"](model, x, y, eps, steps)
        eps = eps[:, None, None, None]
        return ball(free, x - eps, x + eps)

    def left(model, x, y, eps, steps):
        cross_entropy(model(x), y).sum().backward()
        return attack_by_eps(model, x, y, eps, steps)

    def ball(z, low, high):
        return z.clamp(low, high).clamp(0, 1)

    def own(value):
        return value

    def third(eps, steps):
        return eps / 3

    return {
        "a sum for a mean": staged(mean=Tensor.sum),
        "ends in eval mode": staged(end=nn.Module.eval),
        "the clean batch in eval mode": staged(clean=nn.Module.eval),
        "the adversarial batch first": halves(own, own, turned=True),
        "M on the clean half alone": halves(own, lambda M: 1),
        "no adversarial half": halves(own, lambda M: 0),
        "projection at the end alone": {"attack_by_eps": late},
        "not detached": {"attack_by_eps": lambda *of: attack_by_eps(*of).requires_grad_()},
        "the whole model attacked": staged(attack=training_attack),
        "a gradient left behind": {"attack_by_eps": left},
        "the largest eps": moved(lambda eps: eps.max(), lambda eps, _: eps.max() / 3, ball),
        "the mean eps": moved(lambda eps: eps.mean(), lambda eps, _: eps.mean() / 3, ball),
        "the step of the largest eps": moved(own, lambda eps, _: eps.max() / 3, ball),
        "steps of eps / steps": moved(own, lambda eps, steps: eps / steps, ball),
        "the ball left": moved(own, third, lambda z, low, high: z.clamp(0, 1)),
        "[0, 1] left": moved(own, third, lambda z, low, high: z.clamp(low, high)),
    }
