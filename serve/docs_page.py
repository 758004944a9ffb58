"""The page /docs: the OpenAPI document as one self-contained HTML page, so that it works without a network."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

Json = Mapping[str, Any]

_STYLE = """
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem}
h2{margin-top:2rem}details{border:1px solid #8886;border-radius:.5rem;margin:.5rem 0;padding:.5rem .75rem}
summary{cursor:pointer}code{font-size:.9em}table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.25rem .5rem;border-top:1px solid #8884}td{overflow-wrap:anywhere}
"""


def render_docs(document: Json) -> str:
    """In: an OpenAPI 3.1 document. Out: HTML, all text escaped."""
    schemas = document.get("components", {}).get("schemas", {})
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = operation.get("tags", ["Other"])[0]
            by_tag.setdefault(tag, []).append(_operation(method, path, operation, schemas))
    sections = "".join(f"<h2>{escape(tag)}</h2>{''.join(operations)}" for tag, operations in by_tag.items())
    title = escape(document["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: API</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head><body><main>'
        f"<h1>{title}: API</h1><p>{escape(document['info'].get('summary', ''))}</p>"
        f'<p><a href="/openapi.json">OpenAPI document</a> · <a href="/">console</a></p>{sections}</main></body></html>'
    )


def _operation(method: str, path: str, operation: Json, schemas: Json) -> str:
    rows = [
        _row(p["name"], p.get("schema", {}), p.get("description", ""), is_required=p.get("required", False))
        for p in operation.get("parameters", [])
    ]
    tables = [_table(f"Parameters ({method.upper()} {path})", rows)] if rows else []
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    tables += [_fields("Body", name, schemas) for name in _references(body)]
    for status, response in operation["responses"].items():
        schema = response.get("content", {}).get("application/json", {}).get("schema")
        if status.startswith("2"):
            tables += [_fields(f"Response {status}", name, schemas) for name in _references(schema)]
    return (
        f"<details><summary><code><b>{method.upper()}</b> {escape(path)}</code> "
        f"{escape(operation.get('description', ''))}</summary>{''.join(tables)}</details>"
    )


def _fields(caption: str, name: str, schemas: Json, *, depth: int = 0) -> str:
    """A schema's fields, then those of the schemas that it names."""
    schema = schemas[name]
    required = schema.get("required", [])
    fields = schema.get("properties", {})
    rows = [_row(field, s, s.get("description", ""), is_required=field in required) for field, s in fields.items()]
    nested = [inner for s in fields.values() for inner in _references(s)] if depth < 2 else []
    tables = [_fields(inner, inner, schemas, depth=depth + 1) for inner in dict.fromkeys(nested)]
    return _table(f"{caption}: {schema.get('description', name)}", rows) + "".join(tables)


def _table(caption: str, rows: list[str]) -> str:
    head = "<tr><th>Name</th><th>Type</th><th>Meaning</th></tr>"
    return f"<h4>{escape(caption)}</h4><table>{head}{''.join(rows)}</table>" if rows else ""


def _row(name: str, schema: Json, description: str, *, is_required: bool) -> str:
    label = f"<code>{escape(name)}</code>{' *' if is_required else ''}"
    return f"<tr><td>{label}</td><td>{escape(_type(schema))}</td><td>{escape(description)}</td></tr>"


def _type(schema: Json) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _references(schema: Json | None) -> Iterator[str]:
    """Names of the schemas that this one points to."""
    if not schema:
        return
    if "$ref" in schema:
        yield str(schema["$ref"]).rsplit("/", 1)[-1]
    for option in schema.get("anyOf", []):
        yield from _references(option)
    yield from _references(schema.get("items"))
