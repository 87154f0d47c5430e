"""Exercise 1: the ball

Attacks search the l-infinity ball of radius eps around an image x, cut to [0, 1]: every pixel may
change by eps at most, and must remain a pixel. `ball` returns the projection onto it. Then the same
for the l2 ball: the change as a whole may have length eps at most.

In words: in l-infinity it does not matter whether one cuts to the ball or to [0, 1] first. Why does
it matter in l2, and is the result of either order the nearest point of both sets?
"""

from collections.abc import Callable

import torch
from torch import Tensor

from exercises import Property

MINUTES, PAPER = 10, "appendix 4.2: the attacks' eps"
IMPORTS = "from collections.abc import Callable\n\nimport torch\nfrom torch import Tensor"
REBUILD = {
    "ball": (
        "attacks",
        "The projection onto the l-infinity ball of radius eps around x, cut to [0, 1]: a function "
        "from points like x to points like x. `eps` is in units of a pixel's range, [0, 1].",
    )
}
TWIST = {
    "l2_ball": "z [B, C, H, W], moved onto the l2 ball of radius eps around x, then cut to [0, 1]. "
    "Each image has a ball of its own. Inside it z stays as it is."
}


def l2_ball(x: Tensor, z: Tensor, eps: float) -> Tensor:
    change = z - x
    length = change.flatten(1).norm(dim=1)[:, None, None, None].clamp(min=1e-12)
    return (x + change * (eps / length).clamp(max=1)).clamp(0, 1)


def images(values: list[float]) -> Tensor:
    """One image, a row of pixels."""
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


def random_images(seed: int) -> Tensor:
    return torch.rand(
        4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def unchanged(of: Callable) -> Callable:
    """x and z after a function of both."""

    def probe(own: object) -> list[Tensor]:
        x, z = random_images(2), 2 * random_images(3) - 0.5
        of(own, x, z)
        return [x, z]

    return probe


GREY, FAR = images([0.5, 0.5, 0.5]), images([0.45, 0.9, -0.3])
EDGE = images([0.02, 0.98, 0.5])
PROBES = {
    "x = (.5, .5, .5), z = (.45, .9, -.3), eps .1": lambda own: own.ball(GREY, 0.1)(FAR),
    "x = (.02, .98, .5), z = x -+ .2, eps .1": lambda own: own.ball(EDGE, 0.1)(
        EDGE + images([-0.2, 0.2, 0.2])
    ),
    "twice from the same ball": lambda own: [
        (project := own.ball(GREY, 0.1))(FAR),
        project(images([0.65, 0.5, 0.2])),
    ],
    "random images": lambda own: own.ball(random_images(0), 0.1)(2 * random_images(1) - 0.5),
    "x and z afterwards": unchanged(lambda own, x, z: own.ball(x, 0.1)(z)),
    "l2: x and z afterwards": unchanged(lambda own, x, z: own.l2_ball(x, z, 0.1)),
    "l2: z = x": lambda own: own.l2_ball(GREY, GREY.clone(), 0.1),
    "l2: z inside": lambda own: own.l2_ball(GREY, images([0.5, 0.53, 0.54]), 0.1),
    "l2: z outside": lambda own: own.l2_ball(GREY, images([0.5, 0.8, 0.9]), 0.1),
    "l2: near the edge of [0, 1]": lambda own: own.l2_ball(EDGE, images([-0.1, 0.98, 0.5]), 0.1),
    "l2: random images": lambda own: own.l2_ball(random_images(0), 3 * random_images(1) - 1, 0.5),
}
RANDOM = ["random images", "twice from the same ball"]
PROPERTIES = [
    Property("no pixel is farther than eps from x's", 1, list(PROBES)[:1]),
    Property("every pixel stays in [0, 1]", 1, [list(PROBES)[1], *RANDOM, "x and z afterwards"]),
    Property(
        "in l2 a point inside stays where it is, one outside moves straight to x",
        1,
        ["l2: z = x", "l2: z inside", "l2: z outside"],
    ),
    Property(
        "each image has an l2 ball of its own, cut to [0, 1]",
        1,
        ["l2: near the edge of [0, 1]", "l2: random images", "l2: x and z afterwards"],
    ),
]
MISTAKES = {
    "not cut to [0, 1]": "The ball around a dark pixel reaches below 0, and no camera takes such.",
    "pixels in 0 .. 255": "eps is in units of [0, 1]: divided by 255 once more, it is nothing.",
    "a ball around the last point": "The ball must stay around x. Around the last point, each step "
    "of an attack may go on from where the one before it ended, as far as it likes.",
    "a length for the whole batch": "The norm was taken over all images together.",
    "always on the sphere": "Points inside the l2 ball were moved outwards, to its surface.",
    "cut first": "z was cut to [0, 1] before the ball: it then moves in another direction.",
    "a length for each channel": "The length is taken over all channels and pixels of an image.",
    "a length for each pixel": "The length is that of the whole image's change, not of a pixel's.",
    "each pixel by eps": "That is the l-infinity ball; in l2 the length of the change counts.",
}


def variant(wrong: frozenset[str]) -> dict[str, Callable]:
    def ball(x: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
        eps, centre = eps / 255 if "pixels in 0 .. 255" in wrong else eps, [x]

        def project(z: Tensor) -> Tensor:
            result = torch.minimum(torch.maximum(z, centre[0] - eps), centre[0] + eps)
            if "not cut to [0, 1]" not in wrong:
                result = result.clamp(0, 1)
            if "a ball around the last point" in wrong:
                centre[0] = result
            return result

        return project

    def l2_ball(x: Tensor, z: Tensor, eps: float) -> Tensor:
        change = z - x
        length = change.flatten(1).norm(dim=1)[:, None, None, None].clamp(min=1e-12)
        if "a length for the whole batch" in wrong:
            length = change.norm()
        share = eps / length
        if "always on the sphere" not in wrong:
            share = share.clamp(max=1)
        moved = change.clamp(-eps, eps) if "each pixel by eps" in wrong else change * share
        return x + moved if "not cut to [0, 1]" in wrong else (x + moved).clamp(0, 1)

    return {"ball": ball, "l2_ball": l2_ball}


def more() -> dict[str, dict[str, Callable]]:
    def by(length: Callable) -> dict[str, Callable]:
        def l2_ball(x, z, eps):
            share = (eps / length(z - x).clamp(min=1e-12)).clamp(max=1)
            return (x + (z - x) * share).clamp(0, 1)

        return {"l2_ball": l2_ball}

    return {
        "cut first": {"l2_ball": lambda x, z, eps: l2_ball(x, z.clamp(0, 1), eps)},
        "a length for each channel": by(lambda d: d.norm(dim=(2, 3), keepdim=True)),
        "a length for each pixel": by(lambda d: d.norm(dim=1, keepdim=True)),
    }
