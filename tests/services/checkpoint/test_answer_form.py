"""The form of an answer: transitions are unambiguous, and the model's own reach every place and the end."""

from services.checkpoint.answer_form import REPAIRED, TEXT_IN_CALLS, TRAINED, Place, canonical_id
from services.checkpoint.markers import Marker


def test_every_step_is_defined_once():
    as_text = {(place, marker) for place, markers in TEXT_IN_CALLS.items() for marker in markers}
    assert not TRAINED.keys() & REPAIRED.keys()
    assert not (TRAINED.keys() | REPAIRED.keys()) & as_text


def test_the_trained_steps_lead_through_a_call_to_every_place_of_a_chat():
    place, seen = Place.REASONING, [Place.REASONING]
    for marker in (
        *(Marker.THINK_END, Marker.SECTION_BEGIN, Marker.CALL_BEGIN, Marker.CALL_ARGUMENTS),
        *(Marker.CALL_END, Marker.SECTION_END),
    ):
        place = TRAINED[place, marker]
        seen.append(place)
    assert place is Place.CONTENT
    assert set(seen) == set(Place) - {Place.OVER, Place.RAW}


def test_the_id_of_a_call():
    assert canonical_id("get_weather", 3) == canonical_id("get_weather", "3") == "functions.get_weather:3"
