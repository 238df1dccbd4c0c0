"""The span of one expert shard's answer."""

from services.runtime.tracing import Tracer
from services.wire.frames import CallName


def record_answer(
    name: CallName, shard: int, num_tokens: int, tracer: Tracer, parent: str, began_s: float, ended_s: float
) -> None:
    """Record the time from the dispatch of a call to its answer under the span `parent`."""
    attributes = {
        "moonshard.layer": name.layer,
        "moonshard.micro_batch": name.micro_batch,
        "moonshard.expert_shard": shard,
        "moonshard.num_tokens": num_tokens,
    }
    tracer.record("dispatch", parent, began_s, ended_s, attributes)
