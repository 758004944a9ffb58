"""The client against the real HTTP application on a real port."""

import socket

import httpx
import pytest

from cluster.client import Client
from cluster.client_errors import ApiError, ClientError, LearningIsStopped, ServerUnreachable, TryLater, error_of

TEXT = "Brindle is a weather station in Oslo. Brindle requires a valid permit of the harbour office."


def test_an_answer_names_its_version_its_sources_and_its_times(client: Client) -> None:
    client.add_documents([{"text": TEXT, "title": "Brindle", "id": "brindle"}])
    answer = client.ask("What does Brindle require?")
    assert answer.version == "ver-base"
    assert [source["document_id"] for source in answer.sources] == ["brindle"]
    assert set(answer.timings) >= {"retrieval_s", "first_token_s", "total_s"}
    assert answer.usage["completion_tokens"] > 0
    assert answer.seconds > 0


def test_a_stream_gives_the_same_answer_as_a_whole_one_in_pieces(client: Client) -> None:
    client.add_documents([{"text": TEXT, "title": "Brindle", "id": "brindle"}])
    pieces: list[str] = []
    streamed = client.stream("What does Brindle require?", on_text=pieces.append)
    whole = client.ask("What does Brindle require?")
    assert "".join(pieces) == streamed.text == whole.text
    assert streamed.version == whole.version
    assert [source["document_id"] for source in streamed.sources] == ["brindle"]
    assert streamed.usage["completion_tokens"] == whole.usage["completion_tokens"]


def test_a_refusal_carries_the_servers_own_sentence_and_the_field(client: Client) -> None:
    with pytest.raises(ApiError, match="v9") as refusal:
        client.ask("hello", model="v9")
    assert refusal.value.status == 404
    assert refusal.value.param == "model"


def test_a_refused_stream_raises_before_any_text(client: Client) -> None:
    with pytest.raises(ApiError, match="v9"):
        client.stream("hello", on_text=pytest.fail, model="v9")


def test_after_a_stop_learning_and_writing_raise_their_own_error_and_answers_go_on(client: Client) -> None:
    assert client.stop(by="alice", reason="test")["mode"] == "stopped"
    with pytest.raises(LearningIsStopped):
        client.learn()
    with pytest.raises(LearningIsStopped):
        client.add_documents([{"text": TEXT}])
    assert client.ask("hello").text
    assert client.reset(by="alice", reason="test over")["mode"] == "armed"


def test_following_a_run_reports_each_step_and_ends_with_the_gates(client: Client) -> None:
    client.add_documents([{"text": TEXT, "title": "Brindle"}])
    seen = []
    status = client.follow(client.learn(), on_status=seen.append, poll_s=0.001)
    assert [one["step"] for one in seen if one["phase"] == "training"] == [1, 2, 3]
    assert status["state"] == "PRODUCTION"
    assert status["gates"]


def test_following_gives_up_with_a_sentence_and_leaves_the_run_alone(client: Client) -> None:
    client.add_documents([{"text": TEXT, "title": "Brindle"}])
    with pytest.raises(ClientError, match="it goes on"):
        client.follow(client.learn(), on_status=lambda _: None, poll_s=0.001, timeout_s=0.0)


def test_a_deleted_document_is_no_longer_found_even_if_its_id_needs_quoting(client: Client) -> None:
    client.add_documents([{"text": TEXT, "title": "Brindle", "id": "notes/a b?.txt"}])
    assert client.search("Brindle permit")["hits"]
    client.delete_document("notes/a b?.txt")
    assert client.search("Brindle permit")["hits"] == []


def test_nobody_at_the_address_is_one_sentence_with_the_fix() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as nobody, pytest.raises(ServerUnreachable, match="autonomous up"):
        nobody.status()


def test_an_error_that_is_not_ours_still_reads_as_a_sentence() -> None:
    error = error_of(httpx.Response(502, text="<html>Bad Gateway</html>"))
    assert error.status == 502
    assert "502 Bad Gateway" in str(error)


def test_backpressure_says_when_to_come_back() -> None:
    body = {"error": {"message": "full", "type": "rate_limit_error", "param": None, "code": "overloaded"}}
    error = error_of(httpx.Response(429, json=body, headers={"retry-after": "3"}))
    assert isinstance(error, TryLater)
    assert error.retry_after_s == 3
