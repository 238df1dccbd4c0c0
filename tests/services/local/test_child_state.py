"""States and transitions of a supervised process."""

from services.local.child_state import RUNNING, TRANSITIONS, ChildState, Event


def after(*events, state=ChildState.STOPPED):
    for event in events:
        state = TRANSITIONS[state, event]
    return state


def test_an_end_that_was_ordered_is_no_crash():
    assert after(Event.START, Event.SERVE, Event.EXIT) is ChildState.RESTARTING
    assert after(Event.START, Event.EXIT) is ChildState.RESTARTING
    assert after(Event.START, Event.SERVE, Event.TERMINATE, Event.EXIT) is ChildState.ASLEEP


def test_no_second_signal_and_no_readiness_while_it_ends():
    ending = after(Event.START, Event.TERMINATE)
    assert (ending, Event.TERMINATE) not in TRANSITIONS
    assert (ending, Event.SERVE) not in TRANSITIONS


def test_only_what_does_not_run_is_started():
    assert {state for state, event in TRANSITIONS if event is Event.START} == set(ChildState) - RUNNING


def test_only_what_runs_exits():
    assert {state for state, event in TRANSITIONS if event is Event.EXIT} == RUNNING


def test_every_state_can_be_reached_and_stopped():
    assert {*TRANSITIONS.values()} == set(ChildState)
    assert all(after(Event.STOP, state=state) is ChildState.STOPPED for state in ChildState)
