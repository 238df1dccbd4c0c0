"""EBNF and structural tags in Lark: the same texts, by the library that the engines use."""

import pytest

from gateway.dialects.ebnf import MAX_CHARS, lark_of_ebnf
from gateway.dialects.structural_tags import lark_of_tags
from services.runtime.errors import InvalidRequest

llguidance = pytest.importorskip("llguidance")

CALCULATOR = """
root  ::= expr   # a comment
expr  ::= term ("+" term)*
term  ::= ident
  | num
ident ::= [a-z_] [a-z0-9_]*
num   ::= [0-9]{1,3}
"""
# (grammar, texts of it, texts that are not)
GRAMMARS = [
    (CALCULATOR, ["a+12+b_1", "1", "123"], ["1234", "a+", "A", ""]),
    ('root ::= [a-z]+ "x"', ["abx", "xx", "xxx"], ["ab", "x"]),
    ('root ::= "" | "a" root', ["", "aaa"], ["b"]),
    (r'root ::= "\"" [^"\\\x00-\x1f]* "\"" | "é\n" | [\u00e0-\u00ff]', ['"abc"', "é\n", "é", "à"], ['"a"b"', "n"]),
    ('root ::= ("yes" | "no") ws\nws ::= [ \\t\\n]*', ["yes", "no  \n"], ["yesno"]),
    ('root-a ::= "x"\nroot ::= root-a? Root_a\nRoot_a ::= "y"', ["xy", "y"], ["x"]),
    ('root ::= [-+]? [0-9]+ ("." [0-9]+)?', ["-1.5", "+2", "33"], ["--1", "1."]),
    ("root ::= .{2}", ["ab", "é\n"], ["a", "abc"]),
    ("root ::= [0-9]{2,}", ["12", "12345"], ["1"]),
    ('root ::= "a/b" | [/]', ["a/b", "/"], ["ab"]),
    (r"root ::= [a\-z\]^]", ["a", "-", "z", "]", "^"], ["b"]),
    ('root ::= (\n "a" |\n "b"\n)+\n', ["ab", "b"], ["c", ""]),
    (r'root ::= "\x41\u00e9\U0001F600"', ["Aé😀"], ["A"]),
]


def accepts(lark, text):
    """Whether a text is one of the grammar."""
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), llguidance.LLMatcher.grammar_from_lark(lark))
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize(("grammar", "texts", "others"), GRAMMARS, ids=[grammar[:30] for grammar, _, _ in GRAMMARS])
def test_the_language_stays_the_same(grammar, texts, others):
    lark = lark_of_ebnf(grammar, "ebnf")
    assert [text for text in texts if not accepts(lark, text)] == []
    assert [text for text in others if accepts(lark, text)] == []


@pytest.mark.parametrize(
    ("grammar", "complaint"),
    [
        ("root ::= foo", "line 1: there is no rule foo"),
        ('root ::= "a', "line 1: '\"' means nothing here"),
        ('rot ::= "a"', "there is no rule root"),
        ('root ::= ("a"', "expected a closing parenthesis"),
        ('root ::= "a"\nroot ::= "b"', "line 2: the rule root is there twice"),
        ('root = "a"', "'=' means nothing here"),
        ("root ::= []", "a class without characters"),
        (r"root ::= [\xg]", r"\x needs 2 hexadecimal digits"),
        ("root ::= <token>", "'<' means nothing here"),
        ('root ::= (?="a") "b"', "'=' means nothing here"),
        ("root ::= " + "(" * 200, "nested deeper"),
        ("x" * (MAX_CHARS + 1), "characters"),
    ],
)
def test_what_cannot_be_said_names_field_and_place(grammar, complaint):
    with pytest.raises(InvalidRequest) as caught:
        lark_of_ebnf(grammar, "ebnf")
    assert caught.value.field == "ebnf"
    assert complaint in caught.value.message


SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}
TAGS = [("<f=a>", SCHEMA, "</f>"), ("<f=b>", {"type": "integer"}, "")]


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [
        ("hello", True),
        ('hi <f=a>{"x": 3}</f> more', True),
        ('<f=b>12 and <f=a>{"x":4}</f>', True),
        ("a < b <f", True),
        ("hi <f=a>{}</f>", False),
        ("hi <f=c>", False),
        ('hi <f=a>{"x": 3}', False),
    ],
)
def test_structural_tags(text, is_valid):
    assert accepts(lark_of_tags(TAGS, ["<f="], "structural_tag"), text) is is_valid


@pytest.mark.parametrize(("triggers", "complaint"), [(["<g="], "structures.0.begin"), (["<f=", "<g"], "triggers.1")])
def test_tags_and_triggers_belong_together(triggers, complaint):
    with pytest.raises(InvalidRequest, match=complaint):
        lark_of_tags(TAGS, triggers, "structural_tag")
