"""Versions' reports over HTTP: JSON for programs, a page for browsers, one benchmark at a time."""

import httpx
import pytest


async def test_a_program_is_given_json_and_a_browser_the_page(api: httpx.AsyncClient) -> None:
    path = "/v1/versions/ver-new/report"
    plain = await api.get(path)
    assert (plain.status_code, plain.json()["version"]) == (200, "ver-new")
    browser = await api.get(path, headers={"Accept": "text/html,application/xhtml+xml"})
    assert browser.headers["content-type"].startswith("text/html")
    assert "script-src" not in browser.headers["content-security-policy"]  # nothing runs on the page
    assert "default-src 'none'" in browser.headers["content-security-policy"]
    assert "Version ver-new" in browser.text
    asked = await api.get(path, params={"format": "json"}, headers={"Accept": "text/html"})
    assert asked.json() == plain.json()
    assert (await api.get(path, params={"format": "html"})).text == browser.text


@pytest.mark.parametrize("kind", ["json", "html"])
async def test_a_version_that_does_not_exist_is_not_found(api: httpx.AsyncClient, kind: str) -> None:
    answer = await api.get("/v1/versions/ver-other/report", params={"format": kind})
    assert (answer.status_code, "does not exist" in answer.json()["error"]["message"]) == (404, True)


async def test_a_benchmark_starts_once_and_its_report_says_that_it_runs(api: httpx.AsyncClient) -> None:
    started = await api.post("/v1/benchmark", json={"version": "ver-new"})
    assert (started.status_code, started.json()) == (202, {"version": "ver-new"})
    assert (await api.get("/v1/versions/ver-new/report")).json()["is_running"]
    again = await api.post("/v1/benchmark", json={"version": "ver-base"})
    assert (again.status_code, "is being benchmarked" in again.json()["error"]["message"]) == (409, True)
    wrong = await api.post("/v1/benchmark", json={"version": ""})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "version")
