"""How many tokens a step verifies: as many as are expected to pay, by measured times and the acceptance seen."""

from collections.abc import Sequence
from dataclasses import dataclass, field

# A draft must be expected to gain this much more than it costs, because both are estimates.
MARGIN = 1.1
# A row costs this share of a step until it is measured.
ASSUMED_ROW = 0.3
# Weight of the newest step in what is known; steps without drafts are rare where drafts pay.
LEARNING = 0.1
LEARNING_PLAIN = 0.25
# One step in so many does the opposite of what seems best, so that neither estimate grows old.
PROBE_EVERY = 64


@dataclass
class _Cost:
    """Seconds of a step for a number of streams: without drafts, and for each drafted token."""

    base_s: float
    row_s: float

    def after(self, num_drafted: int) -> float:
        return self.base_s + num_drafted * self.row_s


@dataclass
class DraftLengths:
    """Learns what steps cost and chooses drafts by it.

    A step's time is taken as a whole: exchanges with the experts, distinct experts, attention and sampling all show in
    it. It is learnt for each number of streams, so it follows contexts as they grow.
    """

    _costs: dict[int, _Cost] = field(default_factory=dict)
    _num_steps: int = 0

    def choose(self, num_streams: int, drafts: Sequence[tuple[float, int]]) -> list[int]:
        """Return how many tokens of each draft to verify.

        drafts  probability that the next token is right if those before it are, and the number of tokens
        """
        lengths = [0] * len(drafts)
        cost = self._costs.get(num_streams)
        if cost is None or not any(most for _, most in drafts):
            return lengths
        self._num_steps += 1
        best = self._longest_that_pay(num_streams, drafts, cost)
        if self._num_steps % PROBE_EVERY:
            return best
        if not any(best):
            likeliest = max(range(len(drafts)), key=lambda place: drafts[place][0] * bool(drafts[place][1]))
            lengths[likeliest] = 1
        return lengths

    def learn(self, num_streams: int, num_drafted: int, seconds: float) -> float:
        """Take a step's time into account. Return what the step would have cost without drafts, in seconds."""
        cost = self._costs.get(num_streams)
        if cost is None:
            cost = self._costs[num_streams] = _Cost(seconds, ASSUMED_ROW * seconds)
        expected = cost.after(num_drafted)
        # One slow step, for another process's sake, says little.
        seconds = min(max(seconds, 0.5 * expected), 1.5 * expected)
        if num_drafted:
            row_s = max(0.0, (seconds - cost.base_s) / num_drafted)
            cost.row_s += LEARNING * (row_s - cost.row_s)
        else:
            cost.base_s += LEARNING_PLAIN * (seconds - cost.base_s)
        return cost.base_s

    @staticmethod
    def _longest_that_pay(num_streams: int, drafts: Sequence[tuple[float, int]], cost: _Cost) -> list[int]:
        """Return lengths at which the next token, of any draft, would gain less than it costs."""
        lengths = [0] * len(drafts)
        gains = [probability if most else 0.0 for probability, most in drafts]
        tokens, num_drafted = float(num_streams), 0
        while gains:
            place = max(range(len(gains)), key=gains.__getitem__)
            gain = gains[place]
            if gain * cost.after(num_drafted) <= MARGIN * tokens * cost.row_s or not gain:
                break
            tokens, num_drafted = tokens + gain, num_drafted + 1
            lengths[place] += 1
            probability, most = drafts[place]
            gains[place] = gain * probability if lengths[place] < most else 0.0
        return lengths
