"""Counters in the text format of Prometheus (exposition format 0.0.4)."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..scheduler import Scheduler

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
COUNTED = ("/v1/chat/completions", "/v1/completions")  # other paths are one, for anybody can invent some
ENDINGS = ("finished", "failed", "cancelled", "late", "refused")


class Metrics:
    """What a server has answered, and how far its scheduler is."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._answered: Counter[tuple[str, int]] = Counter()
        self._within: Counter[float] = Counter()  # requests that took at most so many seconds and more than the bucket before
        self._seconds = 0.0

    def answered(self, path: str, status: int) -> None:
        self._answered[path if path in COUNTED else "other", status] += 1

    def took(self, path: str, seconds: float) -> None:
        if path in COUNTED:
            self._within[next((bucket for bucket in BUCKETS if seconds <= bucket), float("inf"))] += 1
            self._seconds += seconds

    def text(self) -> str:
        return "\n".join([*self._lines(), ""])

    def _lines(self) -> Iterator[str]:
        counts, scheduler = self.scheduler.counts, self.scheduler
        yield from _head("http_responses_total", "counter", "Responses by path and status.")
        for (path, status), number in sorted(self._answered.items()):
            yield f'llada_http_responses_total{{path="{path}",status="{status}"}} {number}'
        yield from _head("request_seconds", "histogram", "Seconds from a completion request to the end of its answer.")
        total = 0
        for bucket in (*BUCKETS, float("inf")):
            total += self._within[bucket]
            yield f'llada_request_seconds_bucket{{le="{"+Inf" if bucket == float("inf") else bucket:}"}} {total}'
        yield f"llada_request_seconds_sum {self._seconds:.6f}"
        yield f"llada_request_seconds_count {total}"
        yield from _head("requests_total", "counter", "Completion requests by how they ended.")
        for ending in ENDINGS:
            yield f'llada_requests_total{{ending="{ending}"}} {counts[ending]}'
        for name, text, number in (("forward_passes_total", "Forward passes.", counts["passes"]),
                                   ("rows_total", "Rows that went through the transformer.", counts["rows"]),
                                   ("generated_tokens_total", "Tokens of finished answers.", counts["tokens"])):
            yield from _head(name, "counter", text)
            yield f"llada_{name} {number}"
        for name, text, number in (("requests_running", "Requests in the batch.", scheduler.running),
                                   ("requests_waiting", "Requests in the queue.", scheduler.waiting)):
            yield from _head(name, "gauge", text)
            yield f"llada_{name} {number}"


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP llada_{name} {text}", f"# TYPE llada_{name} {kind}"]
