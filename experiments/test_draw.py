"""The page for drawing: what it asks and shows, in a real browser where there is one."""

import json
import math
import re
import socket
import threading
import urllib.error
import urllib.request

import pytest

import data
from experiments import draw
from experiments.fixtures import change_checkpoint

STROKE = """<script>
const box = find("clean").getBoundingClientRect();
const at = (kind, y) => find("clean").dispatchEvent(new PointerEvent(kind,
  {bubbles: true, clientX: box.left + box.width / 2, clientY: box.top + y * box.height}));
at("pointerdown", 0.1);
for (let y = 0.1; y < 0.9; y += 0.05) at("pointermove", y);
window.dispatchEvent(new PointerEvent("pointerup"));
setTimeout(() => document.title = "drawn " + pixels.map(v => v.toFixed(1)).join(" "), 1000);
</script>"""


@pytest.fixture
def address(whole):
    with draw.server(str(whole), 0, "cpu") as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def post(address, content, path="/ask", **headers):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    request = urllib.request.Request(f"{address}{path}", content, headers)
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())


def test_the_page_says_what_the_model_says(address):
    digit = (data.load("digits").x_test[0].float() / 255).flatten()
    answer = post(address, {"pixels": digit.tolist(), "eps": 0.3, "attack": "adaptive"})
    for said in answer["clean"], answer["attacked"]:
        confidences = [expert["confidence"] for expert in said["experts"]]
        assert said["answers"] == confidences.index(max(confidences))
        assert said["label"] == said["experts"][said["answers"]]["label"]
    change = [abs(a - b) for a, b in zip(answer["attacked"]["pixels"], digit.tolist())]
    assert 0.2 < max(change) <= 0.3 + 1e-6
    same = post(address, {"pixels": digit.tolist(), "eps": 0, "attack": "pgd"})
    assert same["attacked"]["label"] == same["clean"]["label"]
    assert same["attacked"]["pixels"] == pytest.approx(digit.tolist())


BLACK = {"pixels": [0.0] * 64, "eps": 0.1, "attack": "pgd"}
WRONG = [b"no json", b"", {}, [], *(BLACK | {"pixels": [v] * 64} for v in (math.nan, 10**400))]
WRONG += [BLACK | {"pixels": [0.0] * 3}, BLACK | {"eps": "x"}, BLACK | {"attack": "magic"}]
WRONG += [BLACK | {"eps": eps} for eps in (math.nan, math.inf, "nan")]
CASES = [(400, content, {}) for content in WRONG]
CASES += [(400, BLACK, {"Content-Length": length}) for length in ("-1", "x", "10000000")]
CASES += [(404, BLACK, {"path": "/"}), (403, BLACK, {"Host": "elsewhere.org:8000"})]
CASES += [(403, BLACK, {"Origin": origin}) for origin in ("null", "http://elsewhere.org")]


@pytest.mark.parametrize("status, content, headers", CASES)
def test_a_wrong_request_is_refused(status, content, headers, address, capsys):
    with pytest.raises(urllib.error.HTTPError) as error:
        post(address, content, **headers)
    assert error.value.code == status and not capsys.readouterr().err
    assert post(address, BLACK, Origin=address)["clean"]


def test_half_a_request_does_not_hold_the_page_for_ever(address, monkeypatch):
    assert draw.Handler.timeout == 10
    monkeypatch.setattr(draw.Handler, "timeout", 0.2)
    host, port = address.removeprefix("http://").split(":")
    for half in ("GET", f"POST /ask HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 9\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(half.encode())
            assert connection.recv(1) == b""


def test_colour_images_and_wrong_ports_are_refused(whole, tmp_path, refused):
    change_checkpoint(whole, tmp_path / "model.pt", {"image_shape": [3, 8, 8]})
    assert "colour images" in refused(draw, tmp_path)
    assert "at most 65,535" in refused(draw, whole, "--port", "70000")


def test_one_can_draw_in_a_browser(address, tmp_path, monkeypatch, browser):
    """A stroke down the middle comes to lie there, and the experts say what it is."""
    page = tmp_path / "page.html"
    page.write_text(draw.PAGE.read_text() + STROKE)
    monkeypatch.setattr(draw, "PAGE", page)
    shown = browser(address, "--virtual-time-budget=10000", "--dump-dom")
    title = re.search("<title>drawn (.*)</title>", shown)
    pixels = [float(v) for v in title[1].split()]
    columns = [sum(pixels[k::8]) for k in range(8)]
    assert min(columns[3:5]) > 4 and columns[0] == columns[7] == 0
    assert len(re.findall("Answer: <b>[0-9]</b>", shown)) == 2
    assert len(re.findall('<tr class="answers">', shown)) == 2
