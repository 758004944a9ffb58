"""The routes of what runs by itself, over the real scheduler."""

from typing import Any

import httpx

from autonomous.retraining import Outcome

ASK = {"by": "ann", "reason": "before the release"}


async def test_schedules_are_listed_with_what_is_due(api: httpx.AsyncClient) -> None:
    listing = (await api.get("/v1/schedules")).json()
    assert [row["name"] for row in listing["schedules"]] == ["learn", "retrain", "evaluate", "drill", "consolidate"]
    drill = listing["schedules"][3]
    assert drill["schedule"] == "weekly on sunday at 04:00 UTC"
    assert drill["next_due"] % 86_400 == 4 * 3600
    assert listing["findings"] == []


async def test_a_run_is_asked_for_once_and_its_end_is_in_the_history(api: httpx.AsyncClient) -> None:
    asked = await api.post("/v1/schedules/drill/run", json={**ASK, "key": "release-7"})
    assert asked.status_code == 202
    assert asked.json()["state"] == "queued"
    again = await api.post("/v1/schedules/drill/run", json={**ASK, "key": "release-7"})
    assert again.json()["id"] == asked.json()["id"]
    (run,) = (await api.get("/v1/schedules/drill/runs")).json()["runs"]
    assert (run["state"], run["outcome"], run["detail"]) == ("ended", "done", "drilled")
    assert run["reasons"][0]["by"] == "ann"


async def test_a_failed_drill_is_a_finding(api: httpx.AsyncClient, parts: Any) -> None:
    parts.schedules.outcome = Outcome("failed", "bundle: a file was altered")
    await api.post("/v1/schedules/drill/run", json=ASK)
    await api.get("/v1/schedules/drill/runs")
    findings = (await api.get("/v1/schedules")).json()["findings"]
    assert findings == ["drill: its last run failed: bundle: a file was altered"]


async def test_an_unknown_job_an_unsigned_request_and_a_stop_are_refused(api: httpx.AsyncClient, parts: Any) -> None:
    for answer in (await api.get("/v1/schedules/nap/runs"), await api.post("/v1/schedules/nap/run", json=ASK)):
        assert answer.status_code == 404
        assert "there is no scheduled job 'nap'" in answer.json()["error"]["message"]
    assert (await api.post("/v1/schedules/drill/run", json={"by": "", "reason": "x"})).status_code == 400
    parts.latch.stop(reason="drill", by="ann", scope="learner")
    assert (await api.post("/v1/schedules/drill/run", json=ASK)).status_code == 423
