"""The chart in a real cluster: installed by Helm's engine, reached through the API server, hurt by deleting pods."""

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import helm_python
import httpx
from kubernetes import client

from tests.helm.rendering import CHART, merged, overlay

RELEASE = "moonshard"
INSTALL_S = 600
# A cold start in a small cluster: pods are scheduled, processes import torch and load.
COLD_S = 300.0


@dataclass
class Answer:
    """A stream as its client saw it."""

    text: str = ""
    finish_reason: str | None = None
    is_done: bool = False


class Installed:
    """A release in a namespace of its own. Made by `installed`, and gone after it."""

    def __init__(self, helm: helm_python.Config, namespace: str, url: str, values: Mapping[str, Any]) -> None:
        self.namespace = namespace
        self.proxy = url.partition("/api/")[0]
        self.http = httpx.Client(base_url=url, timeout=COLD_S, trust_env=False)
        self._helm = helm
        self._values = dict(values)
        self._core, self._apps = client.CoreV1Api(), client.AppsV1Api()

    @property
    def model(self) -> str:
        return self._values["model"]["name"]

    @property
    def expert_shards(self) -> int:
        """Pods of one replica of the experts."""
        return int(self._values["expert"]["shards"])

    def upgrade(self, values: Mapping[str, Any]) -> None:
        """Changes values and returns when everything has been replaced."""
        self._values = merged(self._values, values)
        self._helm.upgrade(
            CHART, RELEASE, self._values, namespace=self.namespace, wait="watcher", timeout=INSTALL_S, reset_values=True
        )

    def test(self) -> str:
        """`helm test`: what its pod printed."""
        return str(self._helm.test(RELEASE, timeout=INSTALL_S, logs=True)["logs"])

    def chat(self, content: Any, *, pod: str = "", **more: Any) -> Answer:
        """One streamed completion, read to its end, through the Service or through one gateway's pod."""
        answer = Answer()
        path = f"{self.pod_url(pod, 8000)}/v1/chat/completions" if pod else "/v1/chat/completions"
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "stream": True, **more}
        with self.http.stream("POST", path, json=body) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    answer.is_done = True
                elif line.startswith("data: "):
                    for choice in json.loads(line.removeprefix("data: "))["choices"]:
                        delta = choice["delta"]
                        answer.text += (delta.get("reasoning_content") or "") + (delta.get("content") or "")
                        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        return answer

    @contextmanager
    def streams(self, num_streams: int, **more: Any) -> Iterator[list[Answer]]:
        """Long answers that are being written inside; complete when it ends, or the first one's error is raised."""
        answers: list[Answer] = []
        failures: list[Exception] = []

        def run(number: int) -> None:
            try:
                answers.append(self.chat(f"Count from {number} on.", max_tokens=400, ignore_eos=True, **more))
            except (httpx.HTTPError, AssertionError, ValueError) as failure:
                failures.append(failure)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(num_streams)]
        for thread in threads:
            thread.start()
        try:
            self.wait(lambda: self.open_streams() >= num_streams, "all streams to begin")
            yield answers
        finally:
            for thread in threads:
                thread.join(COLD_S)
        if failures:
            raise failures[0]

    def pod_url(self, pod: str, port: int) -> str:
        """One port of a pod, through the API server."""
        return f"{self.proxy}/api/v1/namespaces/{self.namespace}/pods/{pod}:{port}/proxy"

    def add_secret(self, name: str, data: Mapping[str, str]) -> None:
        self._core.create_namespaced_secret(self.namespace, {"metadata": {"name": name}, "stringData": dict(data)})

    def run_in(self, pod: str, code: str) -> subprocess.CompletedProcess[str]:
        """Run Python in a pod, with all that its image has."""
        command = ["kubectl", "--namespace", self.namespace, "exec", pod, "--", "python", "-c", code]
        return subprocess.run(command, capture_output=True, text=True, timeout=COLD_S, check=False)

    def replicas(self, role: str) -> int:
        """Pods that a role has now."""
        read = self._apps.read_namespaced_deployment if role == "vision" else self._apps.read_namespaced_stateful_set
        found = read(f"{RELEASE}-{role}", self.namespace)
        return found.status.replicas or 0

    def cool_down(self, *roles: str) -> None:
        """Wait until the autoscaler has taken the last pods of these roles away."""
        self.wait(lambda: not any(self.replicas(role) for role in roles), f"{', '.join(roles)} to go to zero")

    def uids(self, component: str) -> dict[str, str]:
        """Pods of a component by name: a replaced one keeps its name in a StatefulSet, not its uid."""
        selector = f"app.kubernetes.io/component={component}"
        found = self._core.list_namespaced_pod(self.namespace, label_selector=selector)
        return {pod.metadata.name: pod.metadata.uid for pod in found.items}

    def evict(self, pod: str) -> None:
        """Ask for its end as `kubectl drain` does; ApiException 429 while the disruption budget forbids it."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.namespace}}
        self._core.create_namespaced_pod_eviction(pod, self.namespace, body)

    def kill(self, pod: str) -> None:
        """Delete a pod without SIGTERM and without grace."""
        self._core.delete_namespaced_pod(pod, self.namespace, grace_period_seconds=0)

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = COLD_S) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"waited {timeout_s:g} s for {what}"
            time.sleep(1)

    def open_streams(self) -> int:
        pages = (self.http.get(f"{self.pod_url(pod, 9090)}/metrics").text for pod in self.uids("gateway"))
        lines = (line for page in pages for line in page.splitlines())
        return sum(int(float(line.split()[1])) for line in lines if line.startswith("moonshard_gateway_open_streams "))


@contextmanager
def installed(namespace: str, values: Mapping[str, Any]) -> Iterator[Installed]:
    """Install helm/moonshard/values-nano.yaml, with these values over it, in a new namespace."""
    everything = merged(overlay("nano"), values)
    core = client.CoreV1Api()
    core.create_namespace({"metadata": {"name": namespace}})
    try:
        with helm_python.Config(namespace=namespace) as helm, api_proxy() as proxy:
            helm.install(CHART, RELEASE, everything, namespace=namespace, wait="watcher", timeout=INSTALL_S)
            service = f"{proxy}/api/v1/namespaces/{namespace}/services/{RELEASE}-gateway:http/proxy"
            release = Installed(helm, namespace, service, everything)
            with release.http:
                yield release
            helm.uninstall(RELEASE, timeout=INSTALL_S, wait="watcher")
    finally:
        core.delete_namespace(namespace)


@contextmanager
def api_proxy() -> Iterator[str]:
    """URL of the API server, without a word about certificates. A Service behind it outlives every pod."""
    command = ["kubectl", "proxy", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            yield f"http://{address}"
        finally:
            process.terminate()
