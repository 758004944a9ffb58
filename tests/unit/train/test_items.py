"""Learning items as tokens: what costs, what is cut, and that padding changes no score."""

import pytest
import torch

from tests.tiny_model import write_tiny_llama
from train.adapt.base import BaseModelInMemory, load_base_model
from train.adapt.scoring import answer_questions, score_items, score_tokens
from train.continual.items import (
    EncodedItem,
    LearningItem,
    build_batch,
    encode_item,
    encode_text,
    render_chat,
    text_item,
    token_losses,
)

CHAT = LearningItem(
    id="1", prompt="Which bird lays its eggs in the nests of others?", answer="The cuckoo.", episode_id="e"
)
PLAIN = LearningItem(id="2", prompt=None, answer="A lighthouse stands on the northern cape.", episode_id="e")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModelInMemory:
    folder = write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny")
    return load_base_model(folder, dtype="float32", device=torch.device("cpu"))


def test_a_chat_item_costs_on_its_answer_and_on_the_end_of_it(base: BaseModelInMemory) -> None:
    item = encode_item(CHAT, tokenizer=base.tokenizer, max_tokens=300)
    targets = base.tokenizer.decode(item.token_ids[item.num_prompt :])
    assert targets == CHAT.answer + base.tokenizer.eos_token
    assert item.token_ids.count(base.tokenizer.bos_token_id) == 1


def test_a_plain_item_costs_on_all_but_its_first_token(base: BaseModelInMemory) -> None:
    item = encode_item(PLAIN, tokenizer=base.tokenizer, max_tokens=300)
    assert item.num_prompt == 1
    assert list(item.token_ids) == base.tokenizer(PLAIN.answer)["input_ids"]


def test_a_long_item_is_cut_to_the_limit_and_keeps_an_answer(base: BaseModelInMemory) -> None:
    for prompt, answer in [
        ("short", "long " * 100),
        ("long " * 100, "short"),
        ("long " * 100, "long " * 100),
        (None, "x " * 99),
    ]:
        item = LearningItem(id="3", prompt=prompt, answer=answer, episode_id="e")
        encoded = encode_item(item, tokenizer=base.tokenizer, max_tokens=40)
        assert len(encoded.token_ids) == 40
        assert encoded.num_targets >= 2


def test_an_empty_answer_is_refused_by_name(base: BaseModelInMemory) -> None:
    item = LearningItem(id="item-7", prompt="q", answer="  ", episode_id="e")
    with pytest.raises(ValueError, match="learning item item-7"):
        encode_item(item, tokenizer=base.tokenizer, max_tokens=40)


def test_padding_and_company_change_no_loss(base: BaseModelInMemory) -> None:
    encoded = [encode_item(item, tokenizer=base.tokenizer, max_tokens=300) for item in (CHAT, PLAIN)]
    with torch.no_grad():
        together = token_losses(base.model, build_batch(encoded, pad_id=base.pad_id, device=base.device))
        for row, item in enumerate(encoded):
            alone = token_losses(base.model, build_batch([item], pad_id=base.pad_id, device=base.device))[0]
            torch.testing.assert_close(together[row, -item.num_targets :], alone, atol=1e-4, rtol=1e-5)
            assert float(together[row, : -item.num_targets].abs().sum()) == 0


def test_losses_are_the_log_probabilities_that_a_plain_forward_pass_gives(base: BaseModelInMemory) -> None:
    item = encode_item(CHAT, tokenizer=base.tokenizer, max_tokens=300)
    losses = token_losses(base.model, build_batch([item], pad_id=base.pad_id, device=base.device))[0]
    text = render_chat(base.tokenizer, question=str(CHAT.prompt)) + CHAT.answer + base.tokenizer.eos_token
    expected = score_tokens(base.model, text, base=base)[-item.num_targets :]
    torch.testing.assert_close(-losses, torch.tensor(expected), atol=1e-4, rtol=1e-5)


def test_scores_come_in_the_order_of_the_items(base: BaseModelInMemory) -> None:
    items = [PLAIN, CHAT] * 6
    scores = score_items(base.model, items, base=base)
    alone = [score_items(base.model, [item], base=base)[0] for item in (PLAIN, CHAT)]
    assert scores == pytest.approx(alone * 6, abs=1e-4)


def test_greedy_answers_do_not_depend_on_who_else_is_asked(base: BaseModelInMemory) -> None:
    questions = ["Paris?", "Which bird lays its eggs in the nests of others?", "Adapters"]
    together = answer_questions(base.model, questions, base=base, max_new_tokens=8)
    alone = [answer_questions(base.model, [question], base=base, max_new_tokens=8)[0] for question in questions]
    assert together == alone


def test_special_tokens_are_added_once(base: BaseModelInMemory) -> None:
    bos = base.tokenizer.bos_token_id
    for text in ("Paris", base.tokenizer.bos_token + "Paris"):
        assert encode_text(base.tokenizer, text=text).count(bos) == 1


def test_a_text_with_a_blank_line_is_a_question_and_its_answer() -> None:
    assert text_item("Why?\n\nBecause.\n\nReally.", item_id="t").prompt == "Why?"
    assert text_item("Why?\n\nBecause.\n\nReally.", item_id="t").answer == "Because.\n\nReally."
    assert text_item("Just a text.", item_id="t").prompt is None


def test_targets_lie_at_the_end_of_left_padded_rows() -> None:
    batch = build_batch(
        [EncodedItem((5, 6, 7, 8), num_prompt=2), EncodedItem((9, 10), num_prompt=1)],
        pad_id=0,
        device=torch.device("cpu"),
    )
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [0, 0, 9, 10]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    assert batch.targets.tolist() == [[7, 8], [9, 10]]
    assert batch.is_target.tolist() == [[True, True], [False, True]]
    assert (batch.num_tokens, batch.num_targets) == (6, 3)
