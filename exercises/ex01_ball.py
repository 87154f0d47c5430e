"""Exercise 1: the ball
10 minutes; appendix 4.2: the attacks' eps

Attacks search the l-infinity ball of radius eps around an image x, cut to [0, 1]: every pixel may
change by eps at most, and must remain a pixel. `ball` returns the projection onto it. Then the same
for the l2 ball: the change as a whole may have length eps at most.

In words: in l-infinity it does not matter whether one cuts to the ball or to [0, 1] first. Why does
it matter in l2, and is the result of either order the nearest point of both sets?
"""

import torch
from torch import Tensor

from exercises import constant, rand

TASKS = """
ball | attacks | The projection onto the l-infinity ball of radius eps around x, cut to [0, 1]: a
    function from points like x to points like x. eps is in units of a pixel's range, [0, 1].
l2_ball | (x: Tensor, z: Tensor, eps: float) -> Tensor | z [B, C, H, W], moved straight onto the l2
    ball of radius eps around x, then cut to [0, 1]. Each image has a ball of its own. Inside it z
    stays as it is.
"""
EPS = constant(0.1)
X, Z = rand(8, 3, 5, 5), 2 * rand(8, 3, 5, 5, seed=1) - 0.5
GREY, EDGE, FAR, OUT, IN, DARK = torch.tensor(
    [[0.5, 0.5, 0.5], [0.02, 0.98, 0.5], [0.45, 0.9, -0.3], [-0.2, 1.2, 0.7], [0.5, 0.53, 0.54]]
    + [[-0.1, 0.98, 0.5]]
).double()[:, None, None, None]  # images of three pixels

PROPERTIES = {
    ("ball", 1, "around a grey image each pixel goes to the nearest one within eps"): {
        f"x = (.5, .5, .5), z = (.45, .9, -.3), eps {EPS}": lambda own: own.ball(GREY, EPS)(FAR)
    },
    ("ball", 1, "near black and white, and on random images, too"): {
        f"x = (.02, .98, .5), z = (-.2, 1.2, .7), eps {EPS}": lambda own: own.ball(EDGE, EPS)(OUT),
        "eight random images": lambda own: own.ball(X, EPS)(Z),
    },
    ("l2_ball", 1, "in l2 a point inside stays, one outside moves straight to x"): {
        "l2: z = x": lambda own: own.l2_ball(GREY, GREY.clone(), EPS),
        "l2: z inside": lambda own: own.l2_ball(GREY, IN, EPS),
        "l2: z outside": lambda own: own.l2_ball(GREY, FAR.clamp(0, 1), EPS),
    },
    ("l2_ball", 1, "each image has an l2 ball of its own, cut to [0, 1]"): {
        "l2: near black": lambda own: own.l2_ball(EDGE, DARK, EPS),
        "l2: eight random images": lambda own: own.l2_ball(X, 3 * Z - 1, 5 * EPS),
    },
}

# -------------------------------------------------------------------------- for the judge alone


def l2_ball(x: Tensor, z: Tensor, eps: float) -> Tensor:
    change = z - x
    length = change.flatten(1).norm(dim=1)[:, None, None, None]
    return (x + change * (eps / length.clamp(min=1e-12)).clamp(max=1)).clamp(0, 1)
