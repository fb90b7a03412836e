"""Requests a second of the HTTP interface, with 1, 8 and 32 clients on this machine.

    python benchmarks/clients.py
    python benchmarks/clients.py --clients 1 2 --seconds 0.5 --rounds 1      # shows that it runs

Each client sends the same photograph with one box to the bundled model, and sends again once it has its answer. The
server runs in the same process, so clients and server share the processor.
"""

import argparse
import concurrent.futures
import http.client
import json
import socket
import statistics
import threading
import time

import fastapi
import uvicorn
from common import arguments, report
from speed_tables import clients_table

from vitpose_jax import PoseEstimator
from vitpose_jax.bundled import DEMO_IMAGE
from vitpose_jax.web.api import create_router
from vitpose_jax.web.models import Models

CLIENTS = [1, 8, 32]
SECONDS = 5.0
ROUNDS = 3
BOX = [15, 10, 345, 502]


def send(port: int, content: bytes, seconds: float) -> list[float]:
    """Send requests one after the other; how long each took."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    took, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        connection.request("POST", f"/v1/poses?boxes={json.dumps([BOX]).replace(' ', '')}", content)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(body.decode())
        took.append(time.perf_counter() - start)
    connection.close()
    return took


def measure(options: argparse.Namespace) -> list[dict]:
    """One row for each number of clients: the medians of the rounds, which take turns."""
    models = Models({"bundled": PoseEstimator.from_pretrained()})
    batcher = models.choose().batcher
    app = fastapi.FastAPI()
    app.include_router(create_router(models))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    port, content = listening.getsockname()[1], DEMO_IMAGE.read_bytes()
    results: dict[int, list[dict[str, float]]] = {clients: [] for clients in options.clients}
    try:
        for round_number in range(1 + options.rounds):  # the first round compiles, and does not count
            for clients, rounds in results.items():
                calls, start = batcher.calls, time.perf_counter()
                with concurrent.futures.ThreadPoolExecutor(clients) as pool:
                    each = pool.map(send, *zip(*[(port, content, options.seconds)] * clients, strict=True))
                    took = [seconds for client in each for seconds in client]
                elapsed = time.perf_counter() - start
                if round_number:
                    rounds.append(
                        {
                            "requests_per_second": len(took) / elapsed,
                            "ms": 1000 * statistics.median(took),
                            "images_per_call": len(took) / (batcher.calls - calls),
                        }
                    )
    finally:
        server.should_exit = True
        thread.join()
        models.close()
    return [
        {"clients": clients, **{name: statistics.median(one[name] for one in rounds) for name in rounds[0]}}
        for clients, rounds in results.items()
    ]


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = arguments(__doc__, rounds=ROUNDS)
    result.add_argument("--clients", nargs="+", type=int, default=CLIENTS, help="numbers of clients")
    result.add_argument("--seconds", type=float, default=SECONDS, help="how long clients send in a round")
    return result


def main() -> None:
    """Measure, and report the table of the rows."""
    options = parser().parse_args()
    rows = measure(options)
    report(clients_table(rows), rows, options)


if __name__ == "__main__":
    main()
