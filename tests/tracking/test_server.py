from __future__ import annotations

import base64
import io
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
import uvicorn
from conftest import photographs, rgb_config

from simtrail.downstream.fitting import fit_head
from simtrail.downstream.service import Service
from simtrail.errors import InputError
from simtrail.model.encoder import Encoder
from simtrail.tracking.server import app, serve

LIMIT = 200_000


@pytest.fixture(scope="module")
def encoder():
    return Encoder(rgb_config({"pretrain.encoder.model": "test_resnet"})).eval()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    photographs(folder, each=4)
    return sorted(folder.rglob("*.png"))


@pytest.fixture(scope="module")
def url(encoder):
    """The server, which runs in a thread on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app(Service(encoder, None).answer, LIMIT), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/invocations"
    server.should_exit = True
    thread.join()


def encoded(path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_files_and_arrays_get_the_features_of_the_encoder(url, encoder, photos):
    expected = encoder.embed(photos[:3]).to_numpy()
    found = requests.post(url, json={"inputs": [encoded(path) for path in photos[:3]]}, timeout=30)
    assert found.status_code == 200, found.text
    np.testing.assert_allclose(found.json()["predictions"], expected, rtol=1e-4, atol=1e-5)
    import simtrail

    images = np.stack([simtrail.read_image(path) for path in photos[:3]])
    found = requests.post(url, json={"inputs": images.tolist()}, timeout=30)
    np.testing.assert_allclose(found.json()["predictions"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"{", 400, "valid JSON"),
        (b"\xff\xfe", 400, "valid JSON"),
        (b"[" * 100_000, 400, "can't be read: RecursionError"),
        (b"{}", 400, "inputs"),
        (b'{"inputs": []}', 400, "must be a list of base64 strings"),
        (b'{"inputs": [1, 2]}', 400, "must be a list of base64 strings"),
        (b'{"inputs": [[1], [1, 2]]}', 400, ""),
        (b'{"inputs": ["!"]}', 400, "input 0: no base64"),
        (b'{"inputs": ["aGVsbG8="]}', 400, "input 0: "),
        (b'{"inputs": ["iUhERg=="]}', 400, "input 0: HDF5 (also MATLAB 7.3 and NetCDF 4) is not served"),
        (b'{"inputs": [[[[300]], [[1]], [[1]]]]}', 400, "integers of the range of uint8"),
        (b'{"inputs": [[[[0.5]], [[1]], [[1]]]]}', 400, "integers of the range of uint8"),
        (
            b'{"inputs": [[[[1]], [[1]]]]}',
            400,
            "input 0: image of shape (2, 1, 1): must be (bands, height, width) with 3 bands",
        ),
        (b'{"messages": [{"role": "user", "content": "x"}]}', 400, "must be a list of base64 strings"),
        (b'{"inputs": "' + b"a" * LIMIT + b'"}', 413, "at most 200000 bytes"),
    ],
)
def test_a_bad_request_is_answered_with_its_reason(url, body, status, reason):
    found = requests.post(url, data=body, headers={"Content-Type": "application/json"}, timeout=30)
    assert found.status_code == status, found.text[:500]
    assert reason in found.text


def test_requests_without_a_type_or_length_are_refused_too(url):
    host, port = url.split("/")[2].split(":")
    json, chunks = b"Content-Type: application/json\r\n", b"10000\r\n%s\r\n" % (b"a" * 2**16) * 5
    for head, status in (
        (b"Content-Length: 2\r\n\r\n{}", b"415"),
        (json + b"Transfer-Encoding: chunked\r\n\r\n" + chunks, b"413"),
        (b"Content-Type: image/png\r\nContent-Length: 2\r\n\r\n{}", b"415"),
    ):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\n" + head)
            assert b" " + status + b" " in connection.recv(200)


def test_a_client_that_stops_sending_holds_no_slot(url, monkeypatch, photos):
    monkeypatch.setattr("simtrail.tracking.server.SECONDS", 0.3)
    host, port = url.split("/")[2].split(":")
    slow = [socket.create_connection((host, int(port)), timeout=30) for _ in range(6)]
    for connection in slow:
        connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 100\r\n\r\n{")
    assert requests.post(url, json={"inputs": [encoded(photos[0])]}, timeout=30).status_code == 200
    assert b" 408 " in slow[0].recv(200)
    for connection in slow:
        connection.close()


@pytest.mark.slow
def test_two_hundred_requests_in_parallel_all_get_their_answer(url, encoder, photos):
    expected = encoder.embed(photos).to_numpy()

    def ask(i: int) -> tuple[int, object]:
        good = i % 4 > 0
        text = encoded(photos[i % len(photos)]) if good else "aGVsbG8="
        return good, requests.post(url, json={"inputs": [text]}, timeout=60)

    with ThreadPoolExecutor(200) as pool:
        found = list(pool.map(ask, range(200)))
    for i, (good, response) in enumerate(found):
        assert response.status_code == (200 if good else 400)
        if good:
            answer = response.json()["predictions"][0]
            np.testing.assert_allclose(answer, expected[i % len(photos)], rtol=1e-4, atol=1e-5)


def test_arrays_in_files_are_answered_too(encoder, photos):
    import simtrail

    image = simtrail.read_image(photos[0])
    texts = []
    for save in (np.save, np.savez):
        file = io.BytesIO()
        save(file, np.moveaxis(image, 0, -1))
        texts.append(base64.b64encode(file.getvalue()).decode())
    found = Service(encoder, None).answer([*texts, f"data:image/png;base64,{encoded(photos[0])}"])
    np.testing.assert_allclose(found, np.repeat(encoder.embed(photos[:1]).to_numpy(), 3, 0), atol=1e-5)


def test_a_head_answers_with_a_row_of_predictions(encoder, photos):
    features = encoder.embed(photos).to_numpy()
    labels = np.array([path.parent.name for path in photos])
    head = fit_head(features, labels, np.arange(len(photos)), 0.3, ("knn",)).head
    table = Service(encoder, head).answer([encoded(path) for path in photos])
    assert (table["predicted"] == labels).mean() > 0.9


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"--port \d+: Address already in use; choose another"):
            serve(lambda inputs: inputs, taken.getsockname()[1], LIMIT)
