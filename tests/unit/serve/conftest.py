"""An HTTP client of the API over in-process parts. Imports are inside: the engines' tests here need none of it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from tests.unit.serve.local_parts import LocalParts


@pytest.fixture
async def parts(tmp_path: Path) -> "AsyncIterator[LocalParts]":
    from tests.unit.serve.local_parts import LocalParts

    local = LocalParts(tmp_path)
    await local.engine.start()
    yield local
    local.close()


@pytest.fixture
async def api(parts: "LocalParts") -> AsyncIterator[httpx.AsyncClient]:
    from autonomous.safety.screen import SafetyScreen
    from serve.app import build_api
    from serve.config import HttpConfig, RAGConfig
    from tests.unit.serve.local_parts import MAX_MODEL_LEN

    screen = SafetyScreen("high")
    app = build_api(
        parts,
        http=HttpConfig(max_body_bytes=100_000, default_max_tokens=64),
        rag=RAGConfig(min_cosine=0.3, max_context_tokens=120),
        max_model_len=MAX_MODEL_LEN,
        mask=lambda text: screen.screen_answer(text).text,
    )
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
