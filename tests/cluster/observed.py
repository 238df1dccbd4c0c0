"""A cluster with mutual TLS, keys, traces of every request and debug logs, and the requests that it served."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import redis
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.harness import Cluster, small_topology
from tests.cluster.pictures import data_url, noise, png
from tests.services.runtime.certificates import Authority
from tests.services.runtime.collector import Collector

KEY = "sk-a-key-that-nobody-may-see"
PASSWORD = "open-sesame-of-redis"
SECRET_WORDS = "the purple elephant's name is Wilhelmina"
MODEL = "kimi-k2.6"
CHAT = "/v1/chat/completions"
REST_S = 60.0
TOPOLOGY = {"experts": 1, "attention_shards": 2, "visions": 1}


def long_text() -> str:
    return f"{SECRET_WORDS}. Tell me about it. " * 4


def body(**fields: Any) -> dict[str, Any]:
    """A chat request that publishes and fetches blocks."""
    message = {"role": "user", "content": long_text()}
    return {"model": MODEL, "max_tokens": 6, "temperature": 0, "messages": [message], **fields}


@dataclass(frozen=True)
class Sample:
    """One line of a scrape."""

    name: str
    labels: dict[str, str]
    value: float


class Scrape:
    """The metrics of all processes, by process."""

    def __init__(self, cluster: Cluster) -> None:
        self.texts = {name: cluster.metrics(name) for name in cluster.names if not name.startswith("redis-")}
        self._samples = {
            name: [
                Sample(sample.name, sample.labels, sample.value)
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            ]
            for name, text in self.texts.items()
        }

    def samples(self, process: str, name: str, **labels: str) -> list[Sample]:
        """Return the samples that have these labels."""
        return [s for s in self._samples[process] if s.name == name and labels.items() <= s.labels.items()]

    def total(self, process: str, name: str, **labels: str) -> float:
        """Their sum."""
        found = self.samples(process, name, **labels)
        assert found, f"{process} has no {name} with {labels}"
        return sum(sample.value for sample in found)

    def names(self, process: str) -> set[str]:
        return {sample.name for sample in self._samples[process]}

    def counted(self) -> list[tuple[str, Sample]]:
        """Counts that change only while requests are served. The gateway polls the load of engines all the time."""
        return [
            (process, sample)
            for process, samples in self._samples.items()
            for sample in samples
            if sample.name.startswith("moonshard_") and not sample.name.startswith("moonshard_rpc_")
        ]

    def num_series(self) -> int:
        return sum(map(len, self._samples.values()))


def scrape_at_rest(cluster: Cluster) -> Scrape:
    """Scrape when no count changes any more: some are made after the client has its answer."""
    scrape, end_s = Scrape(cluster), time.monotonic() + REST_S
    while time.monotonic() < end_s:
        time.sleep(0.2)
        before, scrape = scrape, Scrape(cluster)
        if scrape.counted() == before.counted():
            return scrape
    raise AssertionError(f"the cluster was still counting after {REST_S:g} s")


class ObservedCluster(Cluster):
    """The cluster and the traces that it sent."""

    collector: Collector


@contextmanager
def observed_cluster(model: Path, folder: Path) -> Iterator[ObservedCluster]:
    """Mutual TLS over TCP, an API key, a password before Redis, debug logs, every request and every step traced."""
    tls, keys, password = folder / "tls", folder / "keys", folder / "password"
    Authority().write(tls)
    keys.write_text(f"{hashlib.sha256(KEY.encode()).hexdigest()} a test\n")
    password.write_text(PASSWORD)
    with Collector() as collector:
        everybody = {
            "LOG_LEVEL": "debug",
            "TLS_NAME": "moonshard",
            "STORE_PASSWORD_FILE": str(password),
            "TRACE_ENDPOINT": collector.url,
        }
        settings = {
            "all": everybody,
            "gateway": {"KEYS_FILE": str(keys), "TRACE_SAMPLE_RATIO": "1"},
            "attention": {"TRACE_LAYER_RATIO": "1"},
        }
        topology = small_topology(model, tls=tls, settings=settings, **TOPOLOGY)
        with ObservedCluster(topology, folder / "cluster.log") as cluster:
            cluster.collector = collector
            cluster.wait_ready()
            # From here on Redis requires the password.
            with redis.Redis(unix_socket_path=cluster.store_urls[0].removeprefix("unix://")) as store:
                store.config_set("requirepass", PASSWORD)
            yield cluster


def client(cluster: Cluster) -> httpx.Client:
    """A client of the gateway with the API key."""
    headers = {"Authorization": f"Bearer {KEY}"}
    return httpx.Client(base_url=cluster.url, headers=headers, timeout=120, trust_env=False)


def serve_some(cluster: Cluster) -> None:
    """Send requests of every sort: twice the same prompt, a stream, an image, an answer in JSON."""
    picture = {"type": "image_url", "image_url": {"url": data_url(png(noise(3)))}}
    with client(cluster) as http:
        for fields in ({}, {}, {"messages": [{"role": "user", "content": [picture]}]}):
            http.post(CHAT, json=body(**fields)).raise_for_status()
        answer = http.post(CHAT, json=body(max_tokens=40, response_format={"type": "json_object"}, thinking=OFF))
        assert isinstance(json.loads(answer.raise_for_status().json()["choices"][0]["message"]["content"]), dict)
        with http.stream("POST", CHAT, json=body(stream=True)) as stream:
            assert list(stream.iter_lines())[-2] == "data: [DONE]"


OFF = {"type": "disabled"}
