"""The sampler for logits that a GPU holds: the same tokens as `on_host.sample`, without moving the logits.

Token ids, largest logits and log-probabilities come to the host together; nothing before that waits for the device.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import kernels
from kernels import Edits, Shapes
from services.attention.sampling.on_host import History, Rule, SampledToken, SamplingParams, settled, stops_are_banned
from services.model.device import to_device
from services.runtime.errors import NumericError


def sample_on_device(
    logits: Tensor,
    params: Sequence[SamplingParams],
    positions: Sequence[int],
    histories: Sequence[History | None],
    rules: Sequence[Rule | NumericError | None],
) -> list[SampledToken | NumericError]:
    """Choose as `on_host.sample` does; logits [rows, vocab_size] f32 on any device."""
    assert logits.dtype == torch.float32
    _ban(logits, params)
    edits = edits_of(params, histories, rules)
    adjusted = logits if edits is None else kernels.adjust(logits, Edits(*(to_device(x, logits.device) for x in edits)))
    shapes = shapes_of(params, positions, logits.device)
    token_ids, largest = _draw(adjusted, shapes, rules)
    # A ban or a mask must not hide that a row is no numbers.
    raw_largest = largest if adjusted is logits and not any(rules) else logits.amax(-1)
    totals = tops = None
    most_tops = max((one.num_top_logprobs or 0 for one in params), default=0)
    if any(one.num_top_logprobs is not None for one in params):
        totals = kernels.log_totals(logits)
        tops = kernels.top_tokens(logits, most_tops)
    # From here on the host waits.
    drawn = token_ids.tolist()
    choices: list[SampledToken | NumericError] = []
    checked = torch.stack([largest, raw_largest]).T.tolist()
    for row, (rule, position) in enumerate(zip(rules, positions, strict=True)):
        choice = _settled(drawn[row], checked[row], position, rule)
        if (
            totals is not None
            and isinstance(choice, SampledToken)
            and (num_top := params[row].num_top_logprobs) is not None
        ):
            assert tops is not None
            choice = _with_logprobs(choice, logits[row], float(totals[row]), tops[row, :num_top])
        choices.append(choice)
    return choices


def _ban(logits: Tensor, params: Sequence[SamplingParams]) -> None:
    """Overwrite the logits of banned tokens, which no step after this knows."""
    banned = [(row, token_id) for row, one in enumerate(params) for token_id in one.banned_ids]
    if banned:
        rows, token_ids = to_device(torch.tensor(banned).T.contiguous(), logits.device)
        logits[rows, token_ids] = -torch.inf


def shapes_of(params: Sequence[SamplingParams], positions: Sequence[int], device: torch.device | str) -> Shapes:
    """Return the numbers that shape every row's distribution."""
    columns = (
        ([0.0 if one.is_greedy else one.temperature for one in params], np.float64),
        ([min(one.top_k, 2**31 - 1) for one in params], np.int32),
        ([one.top_p for one in params], np.float64),
        ([one.min_p for one in params], np.float64),
        ([one.seed for one in params], np.uint64),
        (list(positions), np.uint64),
    )
    arrays = [np.array(values, dtype=dtype) for values, dtype in columns]
    signed = [array.view(np.int64) if array.dtype == np.uint64 else array for array in arrays]
    return Shapes(*(to_device(torch.from_numpy(array), torch.device(device)) for array in signed))


def edits_of(
    params: Sequence[SamplingParams],
    histories: Sequence[History | None],
    rules: Sequence[Rule | NumericError | None],
) -> Edits | None:
    """Return penalties, bias and bans of all rows, on the CPU; None if there are none."""
    parts = [
        _row_edits(row, one, history, None if isinstance(rule, NumericError) else rule)
        for row, (one, history, rule) in enumerate(zip(params, histories, rules, strict=True))
        if one.needs_history or one.logit_bias
    ]
    return Edits(*(torch.cat(columns) for columns in zip(*parts, strict=True))) if parts else None


def _row_edits(row: int, params: SamplingParams, history: History | None, rule: Rule | None) -> Edits:
    seen = _ids(history.seen() if history is not None and params.repetition_penalty != 1.0 else ())
    counts = history.generated() if history is not None else {}
    bans = _ids(params.stop_token_ids if stops_are_banned(params, history, rule) else ())
    counted, biased = _ids(counts), _ids(params.logit_bias)
    ids = np.unique(np.concatenate([seen, counted, biased, bans]))
    repetition, penalty, bias = np.ones(len(ids), np.float32), *np.zeros((2, len(ids)), np.float32)
    repetition[ids.searchsorted(seen)] = params.repetition_penalty
    amounts = np.fromiter(counts.values(), dtype=np.float32)
    penalty[ids.searchsorted(counted)] = params.presence_penalty + params.frequency_penalty * amounts
    bias[ids.searchsorted(biased)] = np.fromiter(params.logit_bias.values(), dtype=np.float32)
    banned = np.isin(ids, bans)
    return Edits(torch.full((len(ids),), row), *map(torch.from_numpy, (ids, repetition, penalty, bias, banned)))


def _draw(logits: Tensor, shapes: Shapes, rules: Sequence[Rule | NumericError | None]) -> tuple[Tensor, Tensor]:
    """Draw for constrained rows apart, so that the others need no mask."""
    bound = [row for row, rule in enumerate(rules) if isinstance(rule, Rule)]
    if not bound:
        return kernels.draw(logits, shapes)
    masks = torch.from_numpy(np.stack([rule.mask for rule in rules if isinstance(rule, Rule)]))
    token_ids, largest = kernels.draw(logits, shapes)
    rows = to_device(torch.tensor(bound), logits.device)
    of_bound = Shapes(*(values[rows] for values in shapes))
    ids, tops = kernels.draw(logits[rows], of_bound, to_device(masks, logits.device))
    return token_ids.index_copy(0, rows, ids), largest.index_copy(0, rows, tops)


def _settled(
    token_id: int, largest: Sequence[float], position: int, rule: Rule | NumericError | None
) -> SampledToken | NumericError:
    if isinstance(rule, NumericError):
        return rule
    if rule is not None and not rule.mask.any():
        return NumericError(f"the constraint allows no token at position {position}")
    for value in largest:
        if not np.isfinite(value):
            return NumericError(f"no token can be chosen at position {position}: the largest logit is {value}")
    return settled(token_id, rule)


def _with_logprobs(token: SampledToken, logits: Tensor, total: float, top: Tensor) -> SampledToken:
    values = logits[torch.cat([torch.tensor([token.token_id], device=top.device), top])].tolist()
    alternatives = tuple((one, value - total) for one, value in zip(top.tolist(), values[1:], strict=True))
    return replace(token, logprob=values[0] - total, top_logprobs=alternatives)


def _ids(token_ids: Iterable[int]) -> NDArray[np.int64]:
    return np.fromiter(token_ids, dtype=np.int64)
