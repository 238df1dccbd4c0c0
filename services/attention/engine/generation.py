"""One request as an attention replica sees it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

from services.attention.constraint.restrictions import Follower
from services.attention.engine.drafts import ContextDrafts
from services.attention.layers.blocks import Offer
from services.attention.sampling.on_host import History, SampledToken, SamplingParams
from services.attention.sampling.prompt_scores import PromptScores
from services.checkpoint.block_names import BlockNames
from services.runtime.errors import MoonshardError


class FinishReason(Enum):
    """Why a generation ended by itself."""

    STOP = 1
    LENGTH = 2


class Phase(Enum):
    """Where a generation is. The roster alone changes it; the values are labels of a metric."""

    OUTSIDE = "outside"  # not in a roster yet, or over
    WAITING = "waiting"  # without blocks
    FETCHING = "fetching"  # the store fills its blocks
    RUNNING = "running"  # takes part in steps
    LEAVING = "leaving"  # computed; its blocks are being published
    HELD = "held"  # handed over; another replica may take its blocks
    ABANDONED = "abandoned"  # over for its caller, but the store still reads or writes its blocks


@dataclass
class Milestones:
    """Times of time.monotonic at which a generation first reached a phase; 0: not yet."""

    arrived_s: float = field(default_factory=time.monotonic)
    admitted_s: float = 0.0  # it got blocks
    started_s: float = 0.0  # its blocks in the store were fetched
    first_token_s: float = 0.0
    published_s: float = 0.0  # all its latent KV was in the store


@dataclass(frozen=True)
class Tokens:
    """New tokens, and why the generation ends if they are the last."""

    choices: Sequence[SampledToken]
    finish_reason: FinishReason | None
    num_cached: int
    milestones: Milestones | None = None  # with the first token
    prompt_scores: Sequence[SampledToken] = ()  # with the first token, if they were asked for


@dataclass(frozen=True)
class FirstToken:
    """The token after a prompt that is handed over, and the finish if it is also the last."""

    choice: SampledToken
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class HandedOver:
    """A prompt is computed and its latent KV published; another replica goes on."""

    first: FirstToken
    num_cached: int
    block_names: Sequence[bytes]
    tail_name: str
    offer: str
    num_tokens: int
    milestones: Milestones


@dataclass(frozen=True)
class Failed:
    """The generation is over; the caller may repeat it elsewhere if the error says so."""

    error: MoonshardError


Event = Tokens | HandedOver | Failed


@dataclass(eq=False)
class Generation:
    """Token ids, what is computed of them, and the blocks that hold it. Owned by the engine thread.

    `token_ids` is the prompt, then everything generated; tokens [0, num_computed) have their latent KV in `block_ids`.
    """

    request_id: str
    token_ids: list[int]
    num_prompt: int
    sampling: SamplingParams
    max_tokens: int  # length of token_ids at which it ends
    names: BlockNames
    sink: Callable[[Event], None]
    hand_over: bool = False  # role prefill: one token, then publish everything
    tail_name: str = ""  # in the store or offered: the latent KV of the last, partly filled block
    tail_tokens: int = 0  # num_computed once the tail is fetched
    offer: Offer | None = None  # of the replica that computed the prompt, where the store does not hold all of it
    tenant: str = ""  # shares the steps with other tenants; empty: all such requests are one tenant
    phase: Phase = Phase.OUTSIDE
    arrival: int = 0  # a count of the roster's generations
    due: float = 0.0  # its place in the order of prompts, in tokens of work (turns.py)
    weight: int = 0  # of a token of its work in that order
    block_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_publishable: int | None = None  # of its leading blocks, as decided before they were computed; None: all
    features: Mapping[int, Tensor] = field(default_factory=dict)  # of media to compute, by their first token's place
    num_cached: int | None = None  # prompt tokens that were not computed here, at first admission
    history: History | None = field(init=False)
    constraint: Follower | None = None
    drafts: ContextDrafts | None = None  # once it is a stream, where tokens are drafted
    prompt_scores: PromptScores | None = None  # if they were asked for
    milestones: Milestones = field(default_factory=Milestones)
    trace_parent: str = ""  # of the call that it serves

    def __post_init__(self) -> None:
        needed = self.sampling.needs_history
        self.history = History(self.token_ids, self.num_prompt) if needed else None

    @property
    def num_remaining(self) -> int:
        """Known tokens whose latent KV is still to be computed; the logits after the last give the next token."""
        return len(self.token_ids) - self.num_computed

    @property
    def is_past_prompt(self) -> bool:
        """Whether the next token to compute is a generated one."""
        return self.num_computed >= self.num_prompt

    @property
    def is_stream(self) -> bool:
        """Whether a step computes its newest token and gives it the next one."""
        return self.is_past_prompt and self.num_remaining == 1

    @property
    def num_next(self) -> int:
        """The most tokens that the next step may compute: those up to the end of the prompt, or the generated ones."""
        return self.num_remaining if self.is_past_prompt else self.num_prompt - self.num_computed

    @property
    def num_new(self) -> int:
        return len(self.token_ids) - self.num_prompt

    def append(self, token_id: int) -> FinishReason | None:
        """Add a sampled token; return why the generation ends with it, if it does."""
        self.token_ids.append(token_id)
        # One that comes too early ends a constrained answer that is complete; the sampler bans all others.
        if token_id in self.sampling.stop_token_ids:
            return FinishReason.STOP
        if len(self.token_ids) >= self.max_tokens:
            return FinishReason.LENGTH
        return None
