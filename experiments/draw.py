"""A page to draw a digit on, to see what each expert says of it and how an attack changes that.

    python -m experiments.draw RUN    # then open http://127.0.0.1:8000 in a browser; Ctrl-C ends it

The page is served to this machine alone, and to no other site's page. The model must be one of grey
images, as the digits are.
"""

import json
import math
from functools import partial
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from torch import Tensor, nn

import infer
from attacks import attacks_at, routes
from models import ask_experts
from support import checkpoints, options

PAGE = Path(__file__).with_suffix(".html")


def says(model: nn.Module, x: Tensor, classes: list[str]) -> dict:
    """What each expert says of one image [1, C, H, W], which expert answers, and the answer."""
    logits, score = ask_experts(model, x)  # [M, 1, K], [M, 1]
    alone = model.row == "collaboration"  # one expert answers, and its confidence counts
    labels, confidences = logits.argmax(-1)[:, 0].tolist(), score.sigmoid()[:, 0].tolist()
    return {
        "experts": [
            {"label": classes[k], "confidence": confidence if alone else None}
            for k, confidence in zip(labels, confidences)
        ],
        "answers": int(score.argmax(0)) if alone else None,
        "label": classes[int(model.combine(logits, score).argmax(1))],
    }


def ask(model: nn.Module, settings: dict, request: dict) -> dict:
    """{"clean" and "attacked": what `says` returns, the latter with its pixels}. The attack leads
    away from the clean answer. Raises KeyError, TypeError or ValueError for a wrong request."""
    x = torch.tensor(request["pixels"], dtype=torch.float)
    eps, classes = float(request["eps"]), settings["class_names"]
    if not (x.isfinite().all() and math.isfinite(eps)):
        raise ValueError("numbers must be finite")
    x = x.clamp(0, 1).view(1, *settings["image_shape"]).to(next(model.parameters()).device)
    eps = min(1.0, max(0.0, eps))
    x_adv = x
    if eps:
        torch.manual_seed(0)
        y = model.combine(*ask_experts(model, x)).argmax(1)
        x_adv = attacks_at(eps)[request["attack"]](model, x, y)
    attacked = says(model, x_adv, classes) | {"pixels": x_adv.flatten().tolist()}
    return {"clean": says(model, x, classes), "attacked": attacked}


class Handler(BaseHTTPRequestHandler):
    """GET / is the page, POST /ask what the experts say of an image."""

    timeout = 10  # seconds without a byte

    def __init__(self, model: nn.Module, settings: dict, *args):
        self.model, self.settings = model, settings
        super().__init__(*args)

    def asks_for(self, path: str) -> bool:
        """Is it the page itself that asks for this path? If not, the answer is an error. A page of
        another site, whatever address its name was given, has another Host or Origin."""
        host, origin = self.headers["Host"] or "", self.headers["Origin"]
        own = host.split(":")[0] in ("127.0.0.1", "localhost")  # the port may be a tunnel's
        if not own or origin not in (None, f"http://{host}"):
            self.send_error(403)
        elif self.path != path:
            self.send_error(404)
        else:
            return True
        return False

    def do_GET(self) -> None:
        if self.asks_for("/"):
            attacks = ["pgd", "adaptive"] if routes(self.model) else ["pgd"]
            page = PAGE.read_text().replace("SHAPE", json.dumps(self.settings["image_shape"]))
            self.reply(page.replace("of ATTACKS", f"of {json.dumps(attacks)}"), "text/html")

    def do_POST(self) -> None:
        if not self.asks_for("/ask"):
            return
        try:
            size = int(self.headers["Content-Length"])
            if not 0 < size <= 10**6:
                raise ValueError("too long, or no length")
            answer = ask(self.model, self.settings, json.loads(self.rfile.read(size)))
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError):
            self.send_error(400)
            return
        self.reply(json.dumps(answer), "application/json")

    def reply(self, text: str, kind: str) -> None:
        content = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args) -> None:
        """Prints nothing, where the base class prints each request."""


def server(run: str, port: int, device_name: str | None) -> ThreadingHTTPServer:
    """Serves the page of a trained model on 127.0.0.1. Raises ValueError, OSError."""
    settings = checkpoints.load(run)["settings"]
    if settings["image_shape"][0] != 1:
        raise ValueError(f"{run} was trained on colour images: the page draws in grey")
    names = settings.get("class_names") or map(str, range(settings["num_classes"]))
    settings["class_names"] = [*map(escape, names)]
    model = infer.load(run, options.pick_device(device_name))
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, model, settings))


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(__doc__, prog="-m experiments.draw")
    add = parser.add_argument
    add("checkpoint", metavar="RUN", help="a run's folder, or its model.pt")
    port = partial(options.count, most=65535)
    add("--port", type=port, default=8000, help="of the page's address")
    options.add_device(parser)
    args = parser.parse_args(argv)
    with parser.errors_in_one_line():
        with server(args.checkpoint, args.port, args.device) as serving:
            print(f"Open http://127.0.0.1:{args.port} in a browser; Ctrl-C ends it.", flush=True)
            serving.serve_forever()


if __name__ == "__main__":
    main()
