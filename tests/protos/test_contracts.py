"""Rules of every file in protos/, so that processes of different versions understand each other."""

import importlib
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto

ROOT = Path(__file__).resolve().parents[2]
THEIRS = {"externalscaler"}  # contracts of other projects have their own rules
SOURCES = sorted({path.stem for path in (ROOT / "protos").glob("*.proto")} - THEIRS)
NEED_A_UNIT = ("timeout", "ttl", "duration", "delay", "deadline")  # ttl_s, not ttl


def file_of(source: str) -> FileDescriptor:
    return importlib.import_module(f"protos.{source}_pb2").DESCRIPTOR


def messages(file: FileDescriptor) -> list[Descriptor]:
    found = list(file.message_types_by_name.values())
    for message in found:
        found.extend(message.nested_types)
    return found


def fields(file: FileDescriptor) -> list[FieldDescriptor]:
    return [field for message in messages(file) for field in message.fields]


every_source = pytest.mark.parametrize("source", SOURCES)


def test_there_are_contracts():
    assert {"attention", "expert", "media", "tokenizer"} <= set(SOURCES)


@every_source
def test_modules_import_and_share_one_package(source):
    importlib.import_module(f"protos.{source}_pb2_grpc")
    assert file_of(source).package == "moonshard.v1"
    assert file_of(source).name == f"protos/{source}.proto"


@every_source
def test_field_numbers_are_used_once(source):
    for message in messages(file_of(source)):
        numbers = [field.number for field in message.fields]
        assert len(set(numbers)) == len(numbers), message.full_name
        proto = DescriptorProto()
        message.CopyToProto(proto)
        reserved = {number for gap in proto.reserved_range for number in range(gap.start, gap.end)}
        # A hole is a number that was used before: it must be reserved, or it will be used again.
        assert set(range(1, max(numbers, default=0) + 1)) <= {*numbers, *reserved}, message.full_name
        assert reserved.isdisjoint(numbers), message.full_name


@every_source
def test_the_zero_of_an_enum_means_unspecified(source):
    for enum in file_of(source).enum_types_by_name.values():
        assert enum.values_by_number[0].name.endswith("_UNSPECIFIED"), enum.full_name
        assert sorted(enum.values_by_number) == list(range(len(enum.values))), enum.full_name


@every_source
def test_names_are_those_of_the_house(source):
    for field in fields(file_of(source)):
        assert field.name == field.name.lower(), field.full_name
        assert field.name.rpartition("_")[2] not in NEED_A_UNIT, f"{field.full_name} has no unit"
    for service in file_of(source).services_by_name.values():
        assert service.name.endswith("Service"), service.full_name


@every_source
def test_every_method_has_messages_of_its_own(source):
    used = [
        message.name
        for service in file_of(source).services_by_name.values()
        for method in service.methods
        for message in {method.input_type, method.output_type}
    ]
    assert len(set(used)) == len(used)
    for service in file_of(source).services_by_name.values():
        for method in service.methods:
            if method.input_type != method.output_type:  # raw frames are the exception
                assert method.input_type.name.endswith("Request"), method.full_name
                assert method.output_type.name.endswith("Response"), method.full_name
