"""Commands to the parser of an answer, and its answers."""

from protos import tokenizer_pb2 as pb

TOOL = pb.DeclaredTool(name="f", properties=["a"])


def tokens(*token_ids) -> pb.AnswerCommand:
    return pb.AnswerCommand(token_ids=token_ids)


def start(**options) -> pb.AnswerCommand:
    return pb.AnswerCommand(start=pb.ParseStart(**{"state": pb.REASONING, "tools": [TOOL]} | options))


def end(*, truncated=False) -> pb.AnswerCommand:
    return pb.AnswerCommand(end=pb.ParseEnd(truncated=truncated))


async def exchange(lane, command) -> pb.AnswerParts:
    lane.command().MergeFrom(command)
    (answer,) = await lane.receive(10)
    answer.ClearField("lane")
    return answer
