"""The page at ``/docs``: Swagger UI from files of this package, so that it works without internet."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.types import ASGIApp

from service.playground.files import HEADERS, StaticPages, read_file

FOLDER: Final = Path(__file__).parent / "swagger_ui"
# Swagger UI makes markup from text and styles elements one by one. It shows this server's own document alone.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES: Final = ("initializer.js", "swagger-ui-bundle.js", "swagger-ui.css")


class ApiDocs(StaticPages):
    """Serves ``/docs`` and the files that it names. They hold no secret, so no key is asked for."""

    def __init__(self, app: ASGIApp) -> None:
        files = {f"/docs/{name}": read_file(FOLDER / name) for name in _FILES}
        files["/docs"] = read_file(FOLDER / "index.html")
        super().__init__(app, files, {**HEADERS, "Content-Security-Policy": POLICY})
