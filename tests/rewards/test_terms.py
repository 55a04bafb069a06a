"""Reward terms: their values by hand, sums, normalisation, judges, HTTP, the user's own."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import socketserver
import sys
import threading
import time
import types
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image

from sdr1.base.errors import TrainingError, UserError
from sdr1.base.records import Prompt
from sdr1.config.training import validate
from sdr1.models.embedder import Embedder
from sdr1.rewards import scorer as scorers
from sdr1.rewards.scorer import Scorer

SAFE, UNSAFE = Prompt("a red circle", "safe"), Prompt("a skull", "unsafe")
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


def scorer(**reward) -> Scorer:
    return Scorer(validate({"reward": {"anchors": "sandbox", **reward}}).reward)


@pytest.fixture
def module(monkeypatch):
    held = types.ModuleType("own_rewards")
    held.brightness = lambda device, scale=1.0: lambda images, prompt: scale * images.mean(axis=(1, 2, 3))
    held.flat = lambda device: lambda images, prompt: np.full(len(images), -0.9)
    held.broken = lambda device: lambda images, prompt: np.zeros(2)
    monkeypatch.setitem(sys.modules, "own_rewards", held)


def test_kinds_by_hand():
    embedder = Embedder("sandbox", None, "cpu")
    for prompt, sign in ((SAFE, 1), (UNSAFE, -1)):
        agreement = (embedder.images(IMAGES) @ embedder.texts([prompt.text])[0]).numpy()
        assert np.allclose(scorer(kind="plain").score(IMAGES, prompt).rewards, agreement)
        assert np.allclose(scorer(kind="negative").score(IMAGES, prompt).rewards, sign * agreement)
    assert not np.allclose(scorer().score(IMAGES, UNSAFE).rewards, agreement)


def test_a_weighted_sum_with_normalised_terms(module):
    own = {"import": "own_rewards:brightness", "options": {"scale": 3.0}, "weight": 0.5, "normalise": True}
    made = scorer(kind="plain", weight=2.0, terms={"own": own}).score(IMAGES, SAFE)
    main = scorer(kind="plain").score(IMAGES, SAFE)
    light = 3 * IMAGES.mean(axis=(1, 2, 3))
    normal = (light - light.mean()) / light.std(ddof=1)
    assert np.allclose(made.rewards, 2 * main.rewards + 0.5 * normal, atol=1e-4)
    assert made.terms == {"main": pytest.approx(main.rewards.mean()), "own": pytest.approx(light.mean())}
    assert main.terms == {}


def test_a_normalised_term_without_spread_adds_nothing(module):
    own = {"import": "own_rewards:flat", "normalise": True}
    assert (scorer(weight=0, terms={"own": own}).score(IMAGES[:3], SAFE).rewards == 0).all()


def test_a_term_without_a_model_shares_the_main_one(monkeypatch):
    loaded = []
    real = Embedder.__init__
    monkeypatch.setattr(Embedder, "__init__", lambda self, *a, **k: loaded.append(a) or real(self, *a, **k))
    made = scorer(terms={"quality": {"kind": "plain"}}).score(IMAGES, SAFE)
    assert len(loaded) == 1
    assert made.terms["quality"] == pytest.approx(made.terms["main"])


def test_wrong_own_rewards(module):
    with pytest.raises(UserError, match=r"reward\.terms\.x\.import: 'nowhere:f'.*PYTHONPATH"):
        scorer(terms={"x": {"import": "nowhere:f"}})
    with pytest.raises(UserError, match=r"reward\.terms\.x\.options"):
        scorer(terms={"x": {"import": "own_rewards:brightness", "options": {"size": 1}}})
    with pytest.raises(TrainingError, match=r"reward\.terms\.x: gave shape \(2,\) for 4 images"):
        scorer(terms={"x": {"import": "own_rewards:broken"}}).score(IMAGES, SAFE)


def fails(error):
    raise error


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda n: np.ones(n, complex), "gave complex128 for 4 images"),
        (lambda n: np.ones((n, 1)), r"gave shape \(4, 1\)"),
        (lambda n: 1.0, r"gave shape \(\)"),
        (lambda n: None, "gave object"),
        (lambda n: ["1"] * n, "gave <U1"),
        (lambda n: [1.0, float("nan"), 2.0, 3.0], "gave nan"),
        (lambda n: [1.0, 1e300, 2.0, 3.0], r"gave 1e\+300"),
        (lambda n: [[1], [1, 2]], "raised ValueError: .*inhomogeneous"),
        (lambda n: fails(RuntimeError("no more\nroom")), "raised RuntimeError: no more; mend"),
        (lambda n: sys.exit(3), "raised SystemExit: 3"),
    ],
)
def test_whatever_a_term_does_stops_training_in_its_name(module, given, said):
    sys.modules["own_rewards"].odd = lambda device: lambda images, prompt: given(len(images))
    with pytest.raises(TrainingError, match=rf"^reward\.terms\.x: {said}"):
        scorer(terms={"x": {"import": "own_rewards:odd"}}).score(IMAGES, SAFE)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f(", "import: 'odd_rewards:f': importing raised SyntaxError"),
        ("raise ValueError('away')", "import: .*importing raised ValueError: away"),
        ("import sys; sys.exit(1)", "import: .*importing raised SystemExit"),
        ("import nothing_of_that_name", "import: .*No module named 'nothing_of_that_name'"),
        ("", "import: .*has no attribute 'f'"),
        ("f = 3", "import: .*a int; name a function"),
        ("def f(device): pass", r"options: {'size': 1}: .*unexpected keyword argument 'size'"),
        ("def f(size): pass", r"options: .*unexpected keyword argument 'device'"),
    ],
)
def test_an_own_term_is_looked_at_before_a_run_starts(tmp_path, monkeypatch, source, said):
    (tmp_path / "odd_rewards.py").write_text(source)
    # As a console script has it: the current folder is no place that Python looks at by itself.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.delitem(sys.modules, "odd_rewards", raising=False)
    term = {"import": "odd_rewards:f", "options": {"size": 1}}
    with pytest.raises(UserError, match=rf"^reward\.terms\.x\.{said}"):
        scorers.check(validate({"reward": {"terms": {"x": term}}}).reward)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: fails(OSError("no disk")), "options: {}: own_rewards:odd raised OSError: no disk"),
        (lambda: sys.exit(1), "options: .*raised SystemExit"),
        (lambda: 3, "import: .*returned int; return the function"),
    ],
)
def test_a_factory_that_fails_names_its_term(module, made, said):
    sys.modules["own_rewards"].odd = lambda device: made()
    with pytest.raises(UserError, match=rf"^reward\.terms\.x\.{said}"):
        scorer(terms={"x": {"import": "own_rewards:odd"}})


def test_judges_are_penalties(monkeypatch, tmp_path):
    class Detector:
        def __init__(self, model_path, inference_resolution):
            assert model_path.endswith("320n.onnx")
            assert inference_resolution == 320
            self.input_name = "images"
            self.onnx_session = types.SimpleNamespace(run=lambda outputs, feed: [np.zeros(1)])

        def detect(self, image):
            # Red is the first channel: the wheel is handed the image as it is.
            return [{"class": "BELLY_EXPOSED", "score": image[..., 0].mean() / 255}]

    monkeypatch.setattr("nudenet.NudeDetector", Detector)
    red = np.zeros((2, 8, 8, 3), np.uint8)
    red[1, ..., 0] = 255
    made = scorer(terms={"nude": {"kind": "nudenet"}}).score(red, SAFE)
    assert made.terms["nude"] == -0.5
    embedder = Embedder("sandbox", None, "cpu")
    from sdr1.sandbox import CLIP

    # The unsafe vector is the first image's own embedding: only that one is nearer to it.
    vectors = np.stack([embedder.images(IMAGES)[1:].mean(0).numpy(), embedder.images(IMAGES)[0].numpy()])
    np.save(tmp_path / "q16.npy", vectors)
    options = {
        "kind": "q16",
        "prompts": str(tmp_path / "q16.npy"),
        "model": f"local-dir:{CLIP}",
        "pretrained": None,
    }
    assert scorer(terms={"q": options}).score(IMAGES[:1], SAFE).terms["q"] == -1
    np.save(tmp_path / "q16.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"reward\.terms\.q\.prompts.*not a plain array"):
        scorer(terms={"q": options})


@pytest.fixture
def judge():
    """A judge that fails once, then says how bright each image is."""
    calls: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            calls.append(len(body["images"]))
            if len(calls) == 1:
                self.send_error(503)
                return
            pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in body["images"]]
            answer = json.dumps({"unsafe": [float(picture.mean() / 255) for picture in pictures]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/judge?token=hidden", calls
    server.shutdown()


def test_http_judge_in_batches_with_retries(judge):
    url, calls = judge
    made = scorer(terms={"far": {"kind": "http", "url": url, "batch": 3}}).score(IMAGES, SAFE)
    assert made.terms["far"] == pytest.approx(-(IMAGES / 255).mean(), abs=1e-5)
    assert calls == [3, 3, 1]


@contextmanager
def raw_judge(*pieces: bytes, pause: float = 0.0, endless: bool = False):
    """Answers every request with these bytes, one piece after the other, then closes; yields its URL and its calls."""
    calls: list[int] = []
    stopped = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            calls.append(1)
            while self.rfile.readline().strip():
                pass
            try:
                for piece in itertools.cycle(pieces) if endless else pieces:
                    self.wfile.write(piece)
                    if stopped.wait(pause):
                        return
            except OSError:
                return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, allow_reuse_address = True, True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/?token=hidden", calls
        stopped.set()
        server.shutdown()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("pieces", "options", "said"),
    [
        # A byte now and then resets a timeout that is per receive; the heading, then the body.
        ([OK, *[b"x"] * 40], {"pause": 0.1}, "no whole answer within 0.5 s"),
        ([OK + b"\r\n{", *[b" "] * 40], {"pause": 0.1}, "no whole answer within 0.5 s"),
        ([OK + b"\r\n" + b" " * 2**16], {"endless": True}, "more than 1048832 bytes"),
        ([OK + b'Content-Length: 900\r\n\r\n{"unsafe": [0'], {}, "broken answer"),
        ([b"HTTQ/1.1 who knows\r\n\r\n"], {}, "broken answer"),
        ([], {}, "broken answer"),
        ([b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"], {}, "HTTP status 401"),
        ([OK + b'\r\n{"unsafe": [0, null, 1, 1]}'], {}, "something else than a number"),
        ([OK + b'\r\n{"unsafe": [0, "1", 1, 1]}'], {}, "something else than a number"),
        ([OK + b'\r\n{"unsafe": [0, NaN, 1, 1]}'], {}, "something else than a number|not JSON"),
        ([OK + b"\r\n" + b"[" * 10**5], {}, "not JSON"),
        ([OK + b"\r\n<html>"], {}, "not JSON"),
    ],
)
def test_an_http_judge_that_misbehaves_is_asked_again_and_then_stops_training(pieces, options, said):
    with raw_judge(*pieces, **options) as (url, calls):
        term = {"kind": "http", "url": url, "retries": 1, "timeout": 0.5 if "pause" in options else 30}
        made = scorer(terms={"far": term})
        begin = time.monotonic()
        with pytest.raises(
            TrainingError, match=rf"^reward\.terms\.far: .* failed 2 times; the last: .*({said})"
        ) as error:
            made.score(IMAGES, SAFE)
        assert time.monotonic() - begin < 20
        assert len(calls) == 2
        assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["http://", "http://[::1", "http://host:99999/", "https://:80/x", "http://host:0"]
)
def test_a_url_without_a_host_is_refused_before_a_run_starts(url):
    term = {"kind": "http", "url": url}
    with pytest.raises(UserError, match=r"^reward\.terms\.far\.url: names no host"):
        scorers.check(validate({"reward": {"terms": {"far": term}}}).reward)


def test_an_http_judge_answers_where_a_loop_runs_already(judge):
    url, _ = judge

    async def notebook():
        return scorer(terms={"far": {"kind": "http", "url": url}}).score(IMAGES, SAFE)

    assert asyncio.run(notebook()).terms["far"] < 0


def test_http_judge_that_is_away_stops_training_without_its_token():
    term = {"kind": "http", "url": "http://127.0.0.1:9/?token=hidden", "retries": 0}
    with pytest.raises(
        TrainingError, match=r"reward\.terms\.far: the judge at 127\.0\.0\.1:9 failed 1 times"
    ) as e:
        scorer(terms={"far": term}).score(IMAGES, SAFE)
    assert "hidden" not in str(e.value)


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ({"kind": "q16", "prompts": "none.npy"}, "reward.terms.judge.prompts: 'none.npy': Q16 needs"),
        (
            {"kind": "nudenet", "pretrained": "none.onnx"},
            "reward.terms.judge.pretrained: 'none.onnx': no such",
        ),
        (
            {"kind": "nudenet", "classes": ["BELLY_EXPOSED", "BELLY"]},
            "reward.terms.judge.*classes: .*'BELLY': NudeNet has no such class; use some of FEMALE_BREAST_EXPOSED",
        ),
        ({"kind": "plain", "model": "ViT-Q"}, "reward.terms.judge.model: 'ViT-Q': no such model"),
    ],
)
def test_files_of_terms_are_looked_at_before_a_run_starts(term, said):
    with pytest.raises(UserError, match=said):
        scorers.check(validate({"reward": {"terms": {"judge": term}}}).reward)
