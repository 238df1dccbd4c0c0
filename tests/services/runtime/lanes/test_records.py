"""What the call in a lane leaves behind."""

import logging

from prometheus_client import REGISTRY

from services.runtime.errors import KvMissing
from tests.services.runtime.lanes.ends import begin

METHOD = "/moonshard.v1.AttentionService/Generate"


async def test_each_lane_leaves_a_line_and_a_figure(stream, service, caplog):
    caplog.set_level(logging.INFO, logger="server")

    def count(code):
        return REGISTRY.get_sample_value("moonshard_rpc_seconds_count", {"method": METHOD, "code": code}) or 0

    before = count("FAILED_PRECONDITION")
    _, handler = await begin(stream, service, request_id="r-7", traceparent=f"00-{'a' * 32}-{'b' * 16}-00")
    known = handler.record.fail(KvMissing("gone"))
    assert isinstance(known, KvMissing)
    (line,) = [record for record in caplog.records if record.name == "server"]
    assert (line.request_id, line.trace_id, line.code, line.method) == ("r-7", "a" * 32, "FAILED_PRECONDITION", METHOD)
    assert count("FAILED_PRECONDITION") == before + 1


async def test_an_error_of_ours_is_logged_and_not_shown(stream, service, caplog):
    _, handler = await begin(stream, service, request_id="r-8")
    assert handler.record.fail(ZeroDivisionError("secret")).message == "internal error"
    (line,) = [record for record in caplog.records if record.exc_info]
    assert (line.request_id, line.levelname) == ("r-8", "ERROR")
