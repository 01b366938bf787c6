"""MkDocs hooks: generate the page of HTTP routes from the app, and add pages that ``nav`` does not list."""

from __future__ import annotations

from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

Row = tuple[str, str, dict[str, Any], bool]
MORE = "More"
"""Menu section of pages that ``nav`` does not list."""
HTTP_PAGE = "reference/http.md"
INTRO = """# HTTP routes

Generated from the server's OpenAPI document, which a running server returns at `/openapi.json`.
Errors have OpenAI's format: `{"error": {"message", "type", "param", "code"}}`.
Below `/v1/messages` they have Anthropic's, see [the Messages API](messages.md#errors).
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, HTTP_PAGE, content=http_page(_openapi())))
    named = set(_pages(config.nav))
    rest = sorted(file.src_uri for file in files.documentation_pages() if file.src_uri not in named)
    if rest and config.nav is not None:
        config.nav.append({MORE: rest})
    return files


def _pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav or []
    return [page for part in parts for page in _pages(part)]


def _openapi() -> dict[str, Any]:
    from service.server.app import create_app_from
    from service.server.settings import Settings

    # Only the routes are needed: no engine is started.
    return create_app_from(None, Settings(sandbox="in-process")).openapi()  # type: ignore[arg-type]


def http_page(document: dict[str, Any]) -> str:
    """Return an OpenAPI document as Markdown: a section per route, with a table of its fields."""
    parts = [INTRO]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(f"## {method.upper()} `{path}`\n\n{operation.get('description', '').strip()}\n")
            rows: list[Row] = [
                (item["name"], item["in"], item["schema"], item.get("required", False))
                for item in operation.get("parameters", ())
            ]
            body = (
                operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            )
            if body:
                rows += _fields(_resolved(body, document), document)
            if rows:
                lines = ["| field | in | type | |", "| --- | --- | --- | --- |"]
                for name, where, field, needed in rows:
                    words = field.get("description", "").replace("\n", " ").replace("|", "\\|")
                    meaning = f"required. {words}" if needed else words
                    lines.append(f"| `{name}` | {where} | {_type(field, document)} | {meaning} |")
                parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _fields(schema: dict[str, Any], document: dict[str, Any], inside: str = "") -> list[Row]:
    """Return the fields of an object; a field that is an object is followed by its own fields."""
    rows: list[Row] = []
    for name, field in schema.get("properties", {}).items():
        rows.append((inside + name, "body", field, name in schema.get("required", ())))
        inner = _resolved(field, document)
        if not inside and inner is not field and "properties" in inner:
            rows += _fields(inner, document, f"{name}.")
    return rows


def _resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    found: dict[str, Any] = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return found


def _type(field: dict[str, Any], document: dict[str, Any]) -> str:
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in field:
            kinds = [_type(part, document) for part in field[choice]]
            return " or ".join(dict.fromkeys(kind for kind in kinds if kind != "null"))
    if "$ref" in field:
        inner = _resolved(field, document)
        names = ", ".join(f"`{name}`" for name in inner.get("properties", {}))
        return f"object: {names}" if names else _type(inner, document)
    if "const" in field or "enum" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}), document)}"
    return str(field.get("type", "any"))
