"""The estimate of a run: every stage is fed what it is fed in a run, and the total is the sum of the stages."""

import pytest

from train.data.estimate import Estimate, Rates, estimate_run

RATES = Rates(
    extract=10e6, language=500e6, quality=25e6, sign=150e6, join=1e6, verify=2000.0, tokenize=100e6, store=200e6,
    text_bytes_per_token=4.0, stored_share=0.25, backend="tokenizers",
)  # fmt: skip
TOKENS = 3.6e12


def values_of(estimate: Estimate) -> dict[str, float]:
    return {line.name: line.value for line in estimate.lines}


def estimated(*, passed_share: float, unique_share: float) -> dict[str, float]:
    return values_of(
        estimate_run(
            RATES,
            tokens=TOKENS,
            cores=1000,
            usd_per_core_hour=0.05,
            passed_share=passed_share,
            unique_share=unique_share,
        )
    )


def test_stages_before_a_removal_are_fed_what_it_removes() -> None:
    found = estimated(passed_share=0.25, unique_share=0.5)
    text = 4 * TOKENS
    assert found["language"] == pytest.approx(8 * text / 500e6 / 3600)
    assert found["quality"] == pytest.approx(8 * text / 25e6 / 3600)
    assert found["signatures"] == pytest.approx(2 * text / 150e6 / 3600)
    assert found["tokenize"] == pytest.approx(text / 100e6 / 3600)
    assert found["store"] == pytest.approx(16 * text / 200e6 / 3600)
    assert found["stored audit"] == pytest.approx(7 * text / 4)


def test_joining_and_verifying_cost_what_their_documents_and_pairs_do() -> None:
    found = estimated(passed_share=0.25, unique_share=0.5)
    documents = TOKENS / 1000
    assert found["join the bands"] == pytest.approx(2 * documents * 17 / 1e6 / 3600)
    assert found["verify the pairs"] == pytest.approx(documents / 2000 / 3600)
    assert found["shuffle of the band join"] == pytest.approx(2 * documents * 16 * 24)
    assert estimated(passed_share=0.25, unique_share=1.0)["verify the pairs"] == 0


def test_the_total_is_the_sum_of_the_stages() -> None:
    estimate = estimate_run(RATES, tokens=TOKENS, cores=1000, usd_per_core_hour=0.05)
    hours = [line.value for line in estimate.lines if line.text.endswith("core-hours") and line.name != "all stages"]
    found = values_of(estimate)
    assert len(hours) == 8
    assert found["all stages"] == pytest.approx(sum(hours))
    assert found["price"] == pytest.approx(sum(hours) * 0.05)
