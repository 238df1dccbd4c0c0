"""One log file has the lines of all processes, each with the name of its process."""

import json

import pytest

from services.local.cluster_log import MAX_LINE_BYTES, NUM_LAST_LINES, ClusterLog, LineSplitter, parse_line

OURS = b'{"ts": "2026-01-02T03:04:05.678Z", "level": "warning", "service": "expert", "msg": "slow", "step": 7}'


@pytest.mark.parametrize(
    "line, level, shown",
    [
        pytest.param(OURS, "WARNING", "slow  step=7", id="our-logger"),
        pytest.param(
            b'{"level": "error", "msg": "m", "stack": "Traceback\\n  x"}', "ERROR", "m\nTraceback\n  x", id="stack"
        ),
        pytest.param(b"* Ready to accept connections", "OUTPUT", "* Ready to accept connections", id="text"),
        pytest.param(b'{"no": "message"}', "OUTPUT", '{"no": "message"}', id="another-object"),
        pytest.param(b'["msg"]', "OUTPUT", '["msg"]', id="not-an-object"),
        pytest.param(b"\xff\xfe", "OUTPUT", "\ufffd\ufffd", id="not-utf-8"),
        pytest.param(b"tail \r", "OUTPUT", "tail", id="blank-at-the-end"),
    ],
)
def test_parse_line(line, level, shown):
    record = parse_line("expert-0-0", line, "now")
    assert (record.process, record.level, str(record)) == ("expert-0-0", level, shown)


def test_file_has_a_json_object_per_line(tmp_path):
    with ClusterLog(tmp_path / "deep" / "cluster.log") as log:
        log.write("expert-0-0", OURS)
        log.write("redis-0", b"# bye")
        # The lines can be read before the log is closed.
        lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert lines[0] == {
        "ts": "2026-01-02T03:04:05.678Z",
        "level": "WARNING",
        "process": "expert-0-0",
        "msg": "slow",
        "service": "expert",
        "step": 7,
    }
    assert (lines[1]["process"], lines[1]["level"], lines[1]["msg"]) == ("redis-0", "OUTPUT", "# bye")


def test_a_process_cannot_write_in_the_name_of_another(tmp_path):
    with ClusterLog(tmp_path / "cluster.log") as log:
        log.write("expert-0-0", b'{"msg": "m", "process": "gateway"}')
        assert json.loads(log.path.read_text())["process"] == "expert-0-0"


def test_last_lines_of_each_process(tmp_path):
    with ClusterLog(tmp_path / "cluster.log") as log:
        for number in range(NUM_LAST_LINES + 5):
            log.write("one", f"line {number}".encode())
        log.write("two", b"other")
        assert [str(record) for record in log.last("one")] == [f"line {n}" for n in range(5, NUM_LAST_LINES + 5)]
        assert [str(record) for record in log.last("two")] == ["other"]
        assert log.last("three") == []


def test_the_file_before_is_kept(tmp_path):
    path = tmp_path / "cluster.log"
    for run in ("first", "second"):
        with ClusterLog(path) as log:
            log.write("part", run.encode())
    assert "second" in path.read_text()
    assert "first" in path.with_name("cluster.log.1").read_text()


def test_file_does_not_grow_without_bound(tmp_path):
    with ClusterLog(tmp_path / "cluster.log", max_file_bytes=2000) as log:
        for number in range(100):
            log.write("part", f"line {number}".encode())
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 5000
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "chunks, lines",
    [
        pytest.param([b""], [], id="nothing"),
        pytest.param([b"a\nb\n", b""], [[b"a", b"b"], []], id="two-lines"),
        pytest.param([b"a", b"b\nc", b""], [[], [b"ab"], [b"c"]], id="split-anywhere-and-no-end"),
        pytest.param([b"\n\n a\n", b""], [[b" a"], []], id="empty-lines-are-dropped"),
    ],
)
def test_lines_of_a_stream(chunks, lines):
    splitter = LineSplitter()
    assert [splitter.feed(chunk) for chunk in chunks] == (lines or [[]])


def test_a_line_without_end_is_cut():
    splitter = LineSplitter()
    cut = [line for _ in range(4) for line in splitter.feed(b"x" * MAX_LINE_BYTES)]
    assert cut
    assert all(len(line) == MAX_LINE_BYTES for line in cut)
