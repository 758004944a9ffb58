"""Where a source's address may lead: public addresses, redirects, tokens, and what only the configuration file widens."""

import ipaddress
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError

from autonomous.sources.batch import SourceProblem
from autonomous.sources.config import refuse_trusted_fields, shown
from autonomous.sources.cursors import CursorStore
from autonomous.sources.http_address import checked_address, is_public, permit_all
from autonomous.sources.http_fetch import FetchBounds, Fetcher
from tests.http_site import LIMIT, Site, reader
from tests.streams import source


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.9.9", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:7f00:1::",
    ],
)  # fmt: skip
def test_no_address_of_this_machine_a_private_network_or_a_link_is_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_public_network_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_a_host_with_one_private_address_among_public_ones_is_refused() -> None:
    with pytest.raises(SourceProblem, match=r"is 10.0.0.1.*allow_private = true.*in the configuration file"):
        checked_address("x.test", 80, resolve=lambda *_: ["8.8.8.8", "10.0.0.1"], permits=is_public)


def test_a_private_address_is_refused_before_anything_is_sent(site: Site, cursors: CursorStore) -> None:
    site.page("/feed", [])
    with pytest.raises(SourceProblem, match=r"is 127.0.0.1, an address of this machine"):
        reader(site, "/feed", cursors, allow_private=False).read({}, LIMIT)
    assert site.asked == []


def only_first(address: Any) -> bool:
    return str(address) == "127.0.0.1"


def test_a_redirect_to_a_private_address_is_refused_and_not_connected_to(site: Site) -> None:
    port = urlsplit(site.url).port
    site.page("/secret", "metadata")
    site.redirect("/a", f"http://127.0.0.2:{port}/secret")
    fetcher = Fetcher(FetchBounds(1000, 5.0), origin=site.url, permits=only_first)
    with pytest.raises(SourceProblem, match=r"127.0.0.2"):
        fetcher.fetch(f"{site.url}/a")
    assert [path for path, _ in site.asked] == ["/a"]
    for bad in ("file:///etc/passwd", "gopher://x/", "http://user:pass@127.0.0.1/", "http://[::1"):
        site.redirect("/a", bad)
        with pytest.raises(SourceProblem):
            fetcher.fetch(f"{site.url}/a")


def test_redirects_are_followed_a_few_times_and_no_more(site: Site) -> None:
    site.page("/end", "here")
    site.redirect("/a", "/end")
    site.redirect("/loop", "/loop")
    fetcher = Fetcher(FetchBounds(1000, 5.0), origin=site.url, permits=permit_all)
    assert fetcher.fetch(f"{site.url}/a").body == b"here"
    with pytest.raises(SourceProblem, match="redirects more than 5 times"):
        fetcher.fetch(f"{site.url}/loop")


def test_the_connection_goes_to_the_address_that_was_checked(site: Site) -> None:
    """The name is resolved once: what it leads to afterwards (DNS rebinding) does not matter."""
    asked: list[str] = []

    def resolve(host: str, _: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    site.page("/x", "here")
    port = urlsplit(site.url).port
    fetcher = Fetcher(FetchBounds(1000, 5.0), origin="http://rebind.test", resolve=resolve, permits=only_first)
    assert fetcher.fetch(f"http://rebind.test:{port}/x").body == b"here"
    assert (asked, site.asked[0][1]["Host"]) == (["rebind.test"], f"rebind.test:{port}")


def test_a_token_goes_to_the_host_of_the_source_alone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEED_TOKEN", "SECRET")
    site.page("/end", "here")
    site.redirect("/a", f"http://other.test:{urlsplit(site.url).port}/end")
    fetcher = Fetcher(
        FetchBounds(1000, 5.0), origin=site.url, token_env="FEED_TOKEN", permits=permit_all,
        resolve=lambda *_: ["127.0.0.1"],
    )  # fmt: skip
    fetcher.fetch(f"{site.url}/a")
    assert [headers.get("Authorization") for _, headers in site.asked] == ["Bearer SECRET", None]
    monkeypatch.delenv("FEED_TOKEN")
    with pytest.raises(SourceProblem, match="no such variable"):
        fetcher.fetch(f"{site.url}/a")


def test_no_key_of_a_query_is_in_an_error_a_log_or_the_status(
    site: Site, cursors: CursorStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    said = []
    for path in ("/gone?key=SECRET", "/cut?key=SECRET"):
        site.answers["/cut"] = lambda request: request.wfile.write(b"garbage\r\n\r\n") and None
        with pytest.raises(SourceProblem) as error:
            reader(site, path, cursors).read({}, LIMIT)
        said.append(str(error.value))
    config = source(kind="http", url="https://example.org/x?key=SECRET&b=2")
    assert "SECRET" not in " ".join(said) + caplog.text + json.dumps(shown(config))
    assert shown(config)["url"] == "https://example.org/x?key=...&b=..."


@pytest.mark.parametrize(
    "url", ["ftp://x.org/", "file:///etc/passwd", "https://", "http://a:b@x.org/", "http://x:99999/"]
)
def test_what_is_no_web_address_is_refused_in_the_configuration(url: str) -> None:
    with pytest.raises(ValidationError):
        source(kind="http", url=url)


def test_what_widens_the_reach_is_set_in_the_configuration_file_alone() -> None:
    for fields in (
        {"kind": "http", "url": "http://x.org/", "allow_private": True},
        {"kind": "http", "url": "http://x.org/", "token_env": "HOME"},
        {"kind": "git", "repository": "https://x.org/a.git", "allow_remote": True},
    ):
        with pytest.raises(ValueError, match="can only be set in the configuration file"):
            refuse_trusted_fields(source(**fields))
    for place in ("https://x.org/a.git", "git@x.org:a.git", "ssh://x.org/a", "ext::sh -c id", "x.org:a"):
        with pytest.raises(ValidationError, match=r"allow_remote = true|an address of https or ssh"):
            source(kind="git", repository=place)
