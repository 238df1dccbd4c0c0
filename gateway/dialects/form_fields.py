"""The fields that give an answer's text a form: OpenAI's, vLLM's, SGLang's and llama.cpp's names for the same."""

from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.http.body import Body

Schema = dict[str, Any] | str
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class TextFormat(Body):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object, or as llama.cpp has it one after a schema. `schema` is its field name on the wire."""

    type: Literal["json_object"]
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class JsonSchema(Body):
    """A JSON schema for the answer. `schema` is its field name on the wire."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Body):
    """JSON after a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class TagStructure(Body):
    """A text that may come anywhere: `begin`, JSON after the schema, `end`."""

    begin: Annotated[str, Field(min_length=1)]
    schema_: dict[str, Any] = Field(alias="schema")
    end: str


class StructuralTag(Body):
    """Free text in which every trigger begins one of the structures."""

    type: Literal["structural_tag"] | None = None
    structures: Annotated[list[TagStructure], Field(min_length=1, max_length=64)]
    triggers: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=64)]


class StructuralTagFormat(StructuralTag):
    """The same as a response format."""

    type: Literal["structural_tag"]


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | StructuralTagFormat, Field(discriminator="type")
]


class StructuredOutputs(Body):
    """vLLM's way to give the visible text a form: one of these."""

    json_: Schema | None = Field(None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None


class FormFields(Body):
    """All of them. At most one may be given."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = Field(None, description="vLLM's older name of `structured_outputs.json`.")
    guided_regex: str | None = Field(None, description="vLLM's older name of `structured_outputs.regex`.")
    guided_choice: Choices | None = Field(None, description="vLLM's older name of `structured_outputs.choice`.")
    guided_grammar: str | None = Field(None, description="vLLM's older name of `structured_outputs.grammar`.")
    json_schema: Schema | None = Field(None, description="SGLang's and llama.cpp's name of a schema.")
    regex: str | None = Field(None, description="SGLang's name of a regular expression.")
    ebnf: str | None = Field(None, description="SGLang's name of a grammar in EBNF.")
    grammar: str | None = Field(None, description="llama.cpp's name of a grammar in GBNF; Lark is read, too.")
    structural_tag: str | None = Field(None, description="SGLang's structural tag, as JSON text.")
