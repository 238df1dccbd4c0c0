"""The constraint of one generation: which token may come next, such that the answer is complete within its budget.

The guarantee: as long as the answer owes something (a value that is open, a call that was demanded) a list of tokens
is known that completes it within the tokens that are left. A drawn token after which no such list is known is
replaced by the first token of the known list: the answer is cut. Every list was followed to its end by the grammar
itself, so it does not matter whether it is the shortest; a better list only means that less is replaced.

Looking for a list at every token would be wasted while there is plenty of room. One token makes the shortest ending
longer by at most `AnswerPlan.weight`, so a list of length n says for room - n > k * weight that the next k tokens are
safe.
"""

from collections.abc import Sequence

from services.attention.constraint.plan import AnswerPlan
from services.attention.constraint.recipes import MAX_VISITS
from services.attention.constraint.states import start
from services.attention.sampling.on_host import Rule
from services.runtime.errors import InvalidRequest, NumericError

# For a token that was drawn, while the batch waits.
FEW_VISITS = 400


class Constraint:
    """Follows a generation's list of tokens. Used by one thread at a time: a worker's, then the engine's.

    Its rules depend on the tokens alone: a constraint made later, on another replica, gives the same ones.
    """

    def __init__(
        self,
        plan: AnswerPlan,
        token_ids: Sequence[int],
        num_prompt: int,
        max_tokens: int,
        budget_field: str = "max_new_tokens",
    ) -> None:
        """InvalidRequest if the tokens generated so far break the plan, or no answer fits into the budget.

        budget_field  what the client calls the number of new tokens
        """
        self._plan = plan
        self._token_ids = token_ids
        self._max_tokens = max_tokens
        self._num_seen = num_prompt
        self._state = start(plan)
        ending = self._state.ending(MAX_VISITS)
        assert ending is not None, "grammars without an ending are not compiled"
        if len(ending) > self._room:
            raise InvalidRequest(
                f"{budget_field}: {self._room} tokens, and the shortest answer that is allowed has {len(ending)}",
                field=budget_field,
            )
        self._ending, self._ending_at = ending, num_prompt
        for token_id in token_ids[num_prompt:]:
            if not (self._settle(token_id) == token_id if self._is_tight() else self._consume(token_id)):
                raise InvalidRequest("the tokens so far are not as the constraint demands", field="prompt.token_ids")

    def rule(self) -> Rule:
        """For the next token. NumericError if a grammar gives up."""
        for token_id in self._token_ids[self._num_seen :]:
            if not self._consume(token_id):
                raise NumericError(f"token {token_id} is not as the constraint demands")
        return Rule(self._state.mask(), self._settle if self._is_tight() else None)

    @property
    def _room(self) -> int:
        """Tokens still to come."""
        return self._max_tokens - self._num_seen

    def _is_tight(self) -> bool:
        """Whether the next token must be settled, because not every one leaves room for an ending."""
        if self._is_safe():
            return False
        if self._ending_at != self._num_seen:
            ending = self._state.ending(MAX_VISITS)
            if ending is None or len(ending) > self._room:
                raise NumericError(f"the answer cannot be completed in {self._room} tokens")
            self._ending, self._ending_at = ending, self._num_seen
        return not self._is_safe()

    def _is_safe(self) -> bool:
        num_since = self._num_seen - self._ending_at
        return len(self._ending) + (num_since + 1) * self._plan.weight < self._room

    def _settle(self, token_id: int) -> int:
        """Take the token, or the next one of the known ending if the answer could not be completed after it."""
        if self._ending and token_id == self._ending[0]:
            return self._take_known(token_id)
        trial = self._state.copy().after(token_id)
        ending = trial.ending(FEW_VISITS) if trial is not None else None
        if trial is None or ending is None or len(ending) >= self._room:
            # Where nothing is owed, the turn ends.
            return self._take_known(self._ending[0] if self._ending else self._plan.markers.end)
        self._state, self._ending = trial, ending
        self._num_seen += 1
        self._ending_at = self._num_seen
        return token_id

    def _take_known(self, token_id: int) -> int:
        if not self._consume(token_id):
            raise NumericError(f"token {token_id} does not continue the answer")
        self._ending = self._ending[1:] or self._state.ending(MAX_VISITS) or []
        self._ending_at = self._num_seen
        return token_id

    def _consume(self, token_id: int) -> bool:
        after = self._state.after(token_id)
        self._num_seen += 1
        if after is not None:
            self._state = after
        return after is not None
