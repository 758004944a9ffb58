"""Fields of a source: what is refused, and with which words."""

from typing import Any

import pytest
from pydantic import ValidationError

from tests.source_items import source_of


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "a b"}, "name is 'a b': give 1 to 64 letters"),
        ({"include": ["../*.md"]}, "leads out of the source: give a glob that is relative"),
        ({"exclude": [""]}, "is empty or leads out"),
        ({"text_field": "body"}, "kind 'text', and text_field is a field of jsonl and parquet: remove text_field"),
        ({"kind": "jsonl", "document": "line"}, "document is a field of text"),
        ({"kind": "web", "repositories": "children"}, "repositories is a field of code"),
        ({"kind": "web", "max_document_bytes": 2000}, "max_document_bytes is a field of text and jsonl"),
        ({"weight": 0}, "greater than 0"),
        ({"document": "line", "oversize": "split"}, "but lines are not cut"),
        ({"language": "english"}, "String should match pattern"),
        ({"unit_bytes": 1}, "greater than or equal to 1024"),
        ({"colour": "red"}, "Extra inputs are not permitted"),
        ({"kind": "video"}, "Input should be 'web', 'code'"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_the_fix(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        source_of(**{"kind": "text", **fields})


@pytest.mark.parametrize("kind", ["web", "code", "text", "jsonl", "parquet", "book", "annotations"])
def test_a_saved_configuration_with_all_its_fields_is_the_same_one(kind: str) -> None:
    source = source_of(kind, exclude=["*.tmp"])
    assert type(source).model_validate(source.model_dump(mode="json")) == source
