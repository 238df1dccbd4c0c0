"""Metrics of the tokenizer."""

from prometheus_client import Counter

from services.tokenizer.parser import Dropped

TOKENS = Counter("moonshard_tokenizer_tokens_total", "Tokens of prompts, of encoded texts and of answers.", ["of"])
CALLS_DROPPED = Counter(
    "moonshard_tokenizer_calls_dropped_total",
    "Tool calls that the model began and that were not returned, by reason.",
    ["reason"],
)
NAMES_REPAIRED = Counter(
    "moonshard_tokenizer_names_repaired_total", "Tool calls whose id did not have the trained form."
)
ARGUMENTS_INVALID = Counter(
    "moonshard_tokenizer_arguments_invalid_total",
    "Tool calls whose arguments are no JSON, those cut by the budget excluded.",
)
TEXT_DROPPED = Counter(
    "moonshard_tokenizer_text_dropped_total", "Pieces of text between the calls of a tool section, where none belongs."
)


class ParserMetrics:
    """Counts repairs and losses of a parser."""

    def call_dropped(self, reason: Dropped) -> None:
        """Count a call that is not returned."""
        CALLS_DROPPED.labels(reason.value).inc()

    def name_repaired(self) -> None:
        """Count a call that is returned under another name than the model wrote."""
        NAMES_REPAIRED.inc()

    def arguments_invalid(self) -> None:
        """Count a call that is returned with a text that is no JSON."""
        ARGUMENTS_INVALID.inc()

    def text_dropped(self) -> None:
        """Count text between calls, which is not returned."""
        TEXT_DROPPED.inc()
