"""The fast path computes what the plain one does, and what it needs from the losses holds.

No test here but one needs a GPU: graphs and streams have stand-ins, which take steps again.
"""

import json
from argparse import Namespace
from collections import Counter
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from itertools import count

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import models
from attacks import cross_entropy, expert_losses
from baselines import dverge
from baselines.methods import METHODS
from baselines.models import build
from experiments import bench_step
from experiments.fixtures import SMALL
from support import options, runs, speed

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TOY = {"n": 3, "depth": 8, "image_shape": [3, 8, 8], "eps": 0.1, "alpha": 0.03, "steps": 2}
TOY |= {"precision": "float32", "steps_per_epoch": 2}
LOSSES = {  # (method, loss)
    f"{name} stage {stage}" if len(method.losses) > 1 else name: (method, loss)
    for name, method in METHODS.items()
    for stage, loss in enumerate(method.losses, 1)
    if (name, stage) not in (("soe-stage1", 1), ("dverge", 1))  # which are soe's, and plain
}
COMPILABLE = [name for name in LOSSES if name not in ("gal", "dverge stage 2")]


def a_model(name, device="cpu", **changed):
    method, loss = LOSSES[name]
    settings = bench_step.settings_of(method, **TOY | changed)
    torch.manual_seed(0)
    model = build(vars(settings)).to(device, memory_format=torch.channels_last)
    return model, loss, settings


def batches(number, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    for _ in range(number):
        x = torch.rand(16, 3, 8, 8, generator=generator)
        y = torch.randint(10, (16,), generator=generator)
        yield x.to(device, memory_format=torch.channels_last), y.to(device)


def after_steps(name, steps=1, device="cpu", **changed):
    """The model after some steps: weights, and batch norm's statistics."""
    model, loss, settings = a_model(name, device, **changed)
    step = bench_step.our_step(loss, model, settings, compilable=name in COMPILABLE)
    torch.manual_seed(2)
    for x, y in batches(steps, device):
        step(x, y)
    return {key: value.float() for key, value in model.state_dict().items()}


# ----------------------------------------------------------------------------- compiled networks


@pytest.mark.slow
@pytest.mark.parametrize("name", ["soe stage 1", "soe stage 2", "more"])
def test_a_compiled_step_is_the_plain_step(name):
    """Inductor's own code; at depth 2, where it is quick to make."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    plainly, fast = (after_steps(name, depth=2, compile=c) for c in (False, True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(fast, plainly, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILABLE)
def test_nothing_is_compiled_again_in_later_steps(name, monkeypatch):
    """Nor between two epochs, by an evaluation; and PyTorch's settings are as before. It is traced
    as for torch.compile, but no code is made."""
    tracing = partial(speed.compiled, backend="aot_eager", options=None)
    monkeypatch.setattr(speed, "compiled", tracing)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    limit, counts = torch._dynamo.config.recompile_limit, torch._dynamo.utils.counters["stats"]
    model, loss, settings = a_model(name, compile=True)
    step = bench_step.our_step(loss, model, settings)
    *first, fourth, fifth = batches(5)
    for batch in first:
        step(*batch)
    assert 0 < (made := counts["unique_graphs"]) <= 3
    with torch.compiler.set_stance("fail_on_recompile"):
        step(*fourth)
        runs.by_expert(model, (255 * fourth[0][:7]).byte(), fourth[1][:7])
        step(*fifth)
    assert counts["unique_graphs"] == made
    assert torch._dynamo.config.recompile_limit == limit
    assert not {"forward", "features"} & set(vars(model.experts[0]))
    torch.compiler.reset()


@pytest.mark.slow
def test_dverge_is_not_compiled_in_its_second_stage(tmp_path):
    """Its hooks would not be seen; the first stage, of plain members, is."""
    flags = ["--epochs", "12", "--steps", "1", "--compile", "--out", str(tmp_path / "run")]
    dverge.main([*SMALL, *flags])


class Waits(TorchDispatchMode):
    """Fails where the host has to wait for the device, which a graph cannot capture."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "equal.default", "is_nonzero")
        assert not any(name in str(function) for name in waits), str(function)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_makes_the_host_wait(name):
    model, loss, settings = a_model(name)
    x, y = next(batches(1))
    with Waits():
        loss(model, x, y, settings).backward()


# -------------------------------------------------------------------------------------- graphs


@pytest.fixture
def stand_ins(monkeypatch):
    """For CUDA's graphs and streams: a replay takes the captured step again, into the tensors that
    the capture made. Returns {"captures": how many, "waits": of which stream for which, "now": the
    current stream, "replayed": speed.replayed with these graphs}."""
    seen = {"captures": 0, "waits": [], "now": "main", "recording": None}

    class Stream:
        numbers = count()

        def __init__(self, name=None):
            self.name = name or f"side {next(self.numbers)}"

        def wait_stream(self, other):
            seen["waits"].append((self.name, other.name))

    @contextmanager
    def on(stream):
        before, seen["now"] = seen["now"], stream.name
        yield
        seen["now"] = before

    class Graph:
        def replay(self):
            x, y, step, loss, grads, parameters = self.captured
            for p in parameters:
                p.grad = None
            loss.copy_(step(x, y))
            for grad, p in zip(grads, parameters):
                if grad is not None:  # a vote's E heads have none
                    grad.copy_(p.grad)
                p.grad = None  # a graph knows of tensors, not of .grad

    @contextmanager
    def capturing(graph):
        seen["captures"] += 1
        seen["recording"] = graph
        before = [buffer.clone() for buffer in seen["model"].buffers()]
        yield
        for buffer, old in zip(seen["model"].buffers(), before):
            buffer.copy_(old)  # a capture computes nothing
        seen["recording"] = None

    def replayed(step, model, drawn):
        seen["model"] = model

        def recorded(x, y):
            random = torch.get_rng_state()
            loss = step(x, y)
            if graph := seen["recording"]:
                parameters = list(model.parameters())
                graph.captured = x, y, step, loss, [p.grad for p in parameters], parameters
                torch.set_rng_state(random)
            return loss

        return speed.replayed(recorded, model, drawn)

    seen["replayed"] = replayed
    cuda = {"CUDAGraph": Graph, "graph": capturing, "Stream": Stream, "stream": on}
    for name, stand_in in (cuda | {"current_stream": lambda: Stream("main")}).items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return seen


def after_steps_as_a_graph(name, steps, replayed):
    model, loss, settings = a_model(name)
    loss = dverge.DvergeLoss() if name == "dverge stage 2" else loss  # its state is new
    drawn, optimizer = {}, bench_step.sgd(model)

    def forward_and_backward(x, y):
        batch_loss = loss(model, x, y, settings)
        batch_loss.backward()
        return batch_loss.detach()

    step = replayed(forward_and_backward, model, drawn) if replayed else forward_and_backward
    torch.manual_seed(2)
    for x, y in batches(steps):
        optimizer.zero_grad()
        drawn["now"] = loss.draw(settings) if hasattr(loss, "draw") else None
        step(x, y)
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize(
    "name, steps, captures",
    [(name, 3, [1]) for name in ("soe stage 1", "soe stage 2", "gal", "more")]
    + [("dverge stage 2", 8, [2, 3, 4])],  # 2 an epoch, each of which draws a layer
)
def test_a_replayed_step_is_the_plain_step(name, steps, captures, stand_ins):
    """New images and new weights go through it, and the trial steps leave no trace."""
    plainly = after_steps_as_a_graph(name, steps, None)
    replayed = after_steps_as_a_graph(name, steps, stand_ins["replayed"])
    assert stand_ins["captures"] in captures
    torch.testing.assert_close(replayed, plainly, rtol=0, atol=0)


def test_a_second_graph_in_one_process_finds_no_gradients_of_the_first(stand_ins):
    model, loss, settings = a_model("soe stage 1")
    model.experts[0].p_head.bias.grad = torch.ones(10)
    speed.accelerate(lambda x, y: None, model, settings)
    assert all(p.grad is None for p in model.parameters())


def test_what_fails_is_done_plainly_and_one_line_says_so(stand_ins, capsys):
    """The trial steps that fail leave no trace."""
    model, loss, settings = a_model("soe stage 1")
    before, fails = torch.get_rng_state(), []
    statistics = [buffer.clone() for buffer in model.buffers()]

    def step(x, y):
        batch_loss = loss(model, x, y, settings) + torch.rand(())
        batch_loss.backward()
        fails.append(len(fails) == 1)  # the second trial step
        if fails[-1]:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        return batch_loss

    def plainly(x, y):
        assert torch.equal(torch.get_rng_state(), before)
        for buffer, old in zip(model.buffers(), statistics):
            torch.testing.assert_close(buffer, old, rtol=0, atol=0)
        assert all(p.grad is None for p in model.parameters())
        return "plainly"

    working = speed.or_plainly(stand_ins["replayed"](step, model, {}), plainly, model)
    assert working(*next(batches(1))) == "plainly"
    (line,) = capsys.readouterr().err.splitlines()
    assert "(operation not permitted when stream is capturing)" in line
    assert fails == [False, True]


def test_an_error_of_the_plain_step_is_not_hidden(capsys):
    def fails(x, y):
        raise RuntimeError("a mistake of the loss")

    model, *_ = a_model("plain")
    for fast in (fails, lambda x, y: fails(x, y)):
        with pytest.raises(RuntimeError, match="mistake of the loss"):
            speed.or_plainly(fast, fails, model)(None, None)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_compile_and_graph_are_two_switches(monkeypatch):
    """A loss that cannot be compiled still has its graph."""
    monkeypatch.setattr(speed, "or_plainly", lambda fast, plain, model: used.append(fast))
    monkeypatch.setattr(speed, "replayed", lambda step, *_: f"{step}, as a graph")
    monkeypatch.setattr(speed, "compiled", lambda step, *_: f"{step}, compiled")
    monkeypatch.setattr(speed, "release", lambda *_: None)
    parameters, used = [Namespace(device=CUDA)], []
    model = Namespace(parameters=lambda: iter(parameters))
    for compile_, graph, compilable in [(1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0)]:
        settings = Namespace(compile=bool(compile_), graph=bool(graph))
        speed.accelerate("a step", model, settings, bool(compilable))
    graph = "a step, as a graph"
    assert used == ["a step, compiled, as a graph", graph, "a step, compiled", graph]


def test_experts_on_streams_wait_for_what_was_before_and_are_waited_for(stand_ins):
    model, *_ = a_model("plain", depth=2)
    beside, before = speed.experts_on_streams(model), model.experts
    with beside():
        assert {stand_ins["now"] for _ in model.experts} == {"main"}  # a plain loop
        turns = [(stand_ins["now"], expert) for expert in model.experts.side_by_side()]
        assert list(model.state_dict()) == list(a_model("plain", depth=2)[0].state_dict())
    names, experts = zip(*turns)
    assert experts == tuple(before) and model.experts is before
    assert len(set(names)) == 3 and "main" not in names and stand_ins["now"] == "main"
    forks, joins = [(n, "main") for n in names], [("main", n) for n in names]
    assert stand_ins["waits"] == forks + joins


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_takes_from_two_experts_within_a_loop_over_them(name, stand_ins):
    """What an expert's stream computes may not need another's, which it does not wait for."""
    model, loss, settings = a_model(name)
    streams = {}  # id of a tensor: the stream that made it, and after how many joins

    def tensors(tree):
        return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]

    def joins():
        return sum(waiting == "main" for waiting, _ in stand_ins["waits"])

    class Within(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out, here = function(*args, **kwargs or {}), stand_ins["now"]
            for tensor in tensors(args):
                made, joined = streams.get(id(tensor), (here, 0))
                assert here in ("main", made) or made == "main" or joined < joins(), function
            for tensor in tensors(out):
                kept.append(tensor)  # so that no id is used twice
                streams[id(tensor)] = here, joins()
            return out

    x, y = next(batches(1))
    kept = [x, y]
    with speed.experts_on_streams(model)(), Within():
        loss(model, x, y, settings)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_replayed_cuda_graph_is_the_plain_step(name, streams, monkeypatch):
    monkeypatch.setitem(speed.SWITCHES, "streams", streams)
    plainly, fast = (
        after_steps(name, 3, "cuda", depth=2, compile=on, graph=on) for on in (False, True)
    )
    torch.testing.assert_close(fast, plainly, rtol=1e-3, atol=1e-4)


# -------------------------------------------------------------------------- devices, precision


def test_float32_is_float32_on_a_gpu_too():
    """cuDNN's convolutions would round their inputs to 10 bits."""
    torch.backends.cudnn.allow_tf32 = True
    options.pick_device("cpu")
    assert not torch.backends.cudnn.allow_tf32


# ------------------------------------------------------------------------- the attack, on a CPU


def trained(model, x, y):
    """A few steps, so that batch norms have statistics and weights of their own."""
    optimizer = torch.optim.SGD(model.train().parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        expert_losses(model.all_experts(x)[0], y).mean().backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("depth, size", [(2, 8), (8, 16)])
def test_a_network_with_folded_batch_norm_has_the_same_gradient(depth, size):
    """By its distance from float64; and nothing of the model changes."""
    torch.manual_seed(0)
    x, y = torch.rand(16, 3, size, size), torch.randint(10, (16,))
    model = trained(models.Collaboration([models.ResNet(depth, 3, 10, size)]), x, y)
    before = deepcopy(model.state_dict())
    twin, exact = speed.for_attack(model), deepcopy(model).double().experts[0]
    norms = [part for part in twin.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert not norms and twin.experts[0].p_head.weight is model.experts[0].p_head.weight

    def gradient(logits, x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(cross_entropy(logits(x), y).sum(), x)[0].double()

    def in_float64(x):
        return exact.p_head(exact.pool(exact.backbone((x - 0.5) / 0.25)).flatten(1))

    right = gradient(in_float64, x.double())
    torch.testing.assert_close(gradient(twin, x), right, rtol=0, atol=1e-5 * right.abs().max())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_model_in_train_mode_is_not_folded():
    model = models.Ensemble([models.ResNet(2, 1, 10, 8)])
    assert speed.for_attack(model) is model


def test_running_the_answering_expert_alone_changes_nothing():
    torch.manual_seed(0)
    model = models.Collaboration([models.ResNet(8, 3, 10, 32) for _ in range(3)]).eval()
    all_experts, x = model.all_experts, torch.rand(24, 3, 32, 32)

    def each_answers_some(x):
        logits, score = all_experts(x)
        return logits, score - score.mean(1, keepdim=True)

    model.all_experts = each_answers_some
    assert len(model.all_experts(x)[1].argmax(0).unique()) > 1
    batches = Counter()
    for j, expert in enumerate(model.experts):
        expert.backbone.register_forward_hook(lambda _, z, __, j=j: batches.update({j: len(z[0])}))
    alone, dense = x.clone().requires_grad_(), x.clone().requires_grad_()
    a = speed.for_attack(model)(alone)
    assert sum(batches.values()) == 3 * 24 + 24  # who answers, then the answers
    b = model.combine(*model.all_experts(dense))
    torch.testing.assert_close(a, b)
    (grad_a,) = torch.autograd.grad(a.square().sum(), alone)
    (grad_b,) = torch.autograd.grad(b.square().sum(), dense)
    torch.testing.assert_close(grad_a, grad_b)


def test_a_changed_rule_of_who_answers_is_not_gathered(monkeypatch):
    def least(self, logits, score):
        return logits.take_along_dim(score.argmin(0)[None, :, None], 0).squeeze(0)

    monkeypatch.setattr(models.Collaboration, "combine", least)
    torch.manual_seed(0)
    model = models.Collaboration([models.ResNet(8, 3, 10, 32) for _ in range(2)]).eval()
    x = torch.rand(4, 3, 32, 32, requires_grad=True)
    torch.testing.assert_close(speed.for_attack(model)(x), model(x))


# ----------------------------------------------------------------------------- times, scaling


@pytest.fixture
def small_steps(monkeypatch):
    """bench_step at a size of moments."""
    settings_of, small = bench_step.settings_of, TOY | {"batch_size": 16}
    monkeypatch.setattr(
        bench_step, "settings_of", lambda method, **more: settings_of(method, **small | more)
    )
    monkeypatch.setattr(METHODS["dverge"].losses[1], "layer", 1)  # which bench_step sets


def test_a_step_of_each_method_is_timed(small_steps, tmp_path):
    out = tmp_path / "steps.json"
    bench_step.main(["--repeats", "1", "--device", "cpu", "--out", str(out)])
    content = json.loads(out.read_text())
    stages = {name: list(times) for name, times in content["seconds"].items()}
    two = dict.fromkeys(("soe", "plain way", "dverge"), ["1", "2"])
    assert stages == two | dict.fromkeys(("plain", "adp", "gal", "more"), ["1"])
    assert all(time > 0 for times in content["seconds"].values() for time in times.values())


def test_every_speed_up_is_timed_by_itself(small_steps, tmp_path):
    """On a CPU; nothing stays switched on or off."""
    before, out = dict(speed.SWITCHES), tmp_path / "ways.json"
    bench_step.main(["--ablate", "--repeats", "1", "--device", "cpu", "--out", str(out)])
    ways = json.loads(out.read_text())["ways"]
    assert len(ways) == 4 and all(len(times) == 2 and min(times) > 0 for times in ways.values())
    assert speed.SWITCHES == before
    ways = [*bench_step.speed_ups(CPU).values(), *bench_step.speed_ups(CUDA).values()]
    assert {name for way in ways for name in way} == {*speed.SWITCHES, "graph", "compile"}


def test_a_convolution_with_a_bias_is_folded_too():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4, affine=False))
    layers(torch.rand(9, 1, 8, 8))
    x = torch.rand(3, 1, 8, 8)
    with torch.inference_mode():
        twin = speed.folded(layers.eval())
    assert len(list(twin.parameters())) == 2
    torch.testing.assert_close(twin(x), layers(x))


@pytest.mark.parametrize("capability, precision, why", [(7, "float32", "GPU"), (8, "bfloat16", "")])
def test_precision_is_what_the_gpu_multiplies(capability, precision, why, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 5))
    assert options.best_precision(CUDA) == precision
    assert why in options.why_precision(CUDA, precision)
    other = {"float32": "bfloat16", "bfloat16": "float32"}[precision]
    assert options.why_precision(CUDA, other) == "as asked"
