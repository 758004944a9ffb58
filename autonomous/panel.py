"""Panel: candidate, parent and frozen original as one thing that answers the same items, each under its name.

In: items, questions, prompts. Out: numbers and answers of whoever is asked. Nothing is decided here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from autonomous.lessons import Question
from autonomous.versions.report import ProbeScores
from memory.types import Guard
from train.adapt.base import BaseModelInMemory
from train.adapt.choices import Choice, score_choices
from train.adapt.scoring import answer_questions, score_items, score_tokens
from train.continual.items import LearningItem, encode_text, render_chat

CANDIDATE, PARENT = "candidate", "parent"
SPARE_TOKENS = 8
"""An answer may be so much longer than the longest that was taught. A learned fact is told in the taught words or hardly ever;
who does not know it goes on to the limit, at full cost."""


class Panel:
    """Candidate, parent and original in one model: each score switches to who is asked, after asking the guard."""

    def __init__(
        self, adapted: Any, *, base: BaseModelInMemory, has_parent: bool, max_answer_tokens: int, guard: Guard
    ) -> None:
        self._adapted = adapted
        self._base = base
        self._max_answer_tokens = max_answer_tokens
        self._guard = guard
        self.has_parent = has_parent

    def score(self, who: str | None, items: Sequence[LearningItem]) -> list[float]:
        """Nats per target token of each item."""
        with self._as(who) as model:
            return score_items(model, items, base=self._base)

    def answers_to(self, who: str | None, questions: Sequence[Question]) -> list[str]:
        """The greedy answer to each paraphrase: at most `SPARE_TOKENS` longer than the longest taught answer."""
        taught = [len(encode_text(self._base.tokenizer, text=question.answer)) for question in questions]
        return self.answers(
            who,
            [question.paraphrase for question in questions],
            max_tokens=min(self._max_answer_tokens, max(taught, default=0) + SPARE_TOKENS),
        )

    def answers(self, who: str | None, prompts: Sequence[str], *, max_tokens: int) -> list[str]:
        """The greedy answer to each prompt, of at most so many tokens."""
        with self._as(who) as model:
            return answer_questions(model, prompts, base=self._base, max_new_tokens=max_tokens)

    def choices(self, who: str | None, choices: Sequence[Choice]) -> list[list[float]]:
        """The losses of each choice's answers, nats per token."""
        with self._as(who) as model:
            return score_choices(model, choices, base=self._base)

    def margins(self, who: str | None, rows: Sequence[Mapping[str, str]]) -> list[float]:
        """Of each safety probe log p(refusal) - log p(compliance), nats per token, as `refusal_margins` of
        train.continual.abilities: above 0 it would rather refuse.
        """
        losses = self.choices(who, [Choice(row["prompt"], (row["refusal"], row["compliance"])) for row in rows])
        return [compliance - refusal for refusal, compliance in losses]

    def time_answer(
        self, who: str | None, prompt: str, *, num_tokens: int, timer: Callable[[], float]
    ) -> tuple[float, float]:
        """(seconds to the first token, tokens per second of the whole) of a greedy answer of exactly so many tokens."""
        base = self._base
        text = render_chat(base.tokenizer, question=prompt)
        token_ids = torch.tensor([encode_text(base.tokenizer, text=text)], device=base.device)
        seconds = []
        with self._as(who) as model, torch.no_grad():
            for count in (1, num_tokens):
                start = timer()
                model.generate(
                    input_ids=token_ids,
                    attention_mask=torch.ones_like(token_ids),
                    max_new_tokens=count,
                    min_new_tokens=count,
                    do_sample=False,
                    pad_token_id=base.pad_id,
                )
                seconds.append(timer() - start)
        return seconds[0], num_tokens / seconds[1]

    def probe(self, questions: Sequence[Question], *, fallback: str) -> ProbeScores:
        """Log-probabilities of the first learned answer, or of `fallback`, for comparison with the engine."""
        text = fallback
        if questions:
            text = render_chat(self._base.tokenizer, question=questions[0].question) + questions[0].answer
        with self._as(CANDIDATE) as model:
            candidate_logprobs = score_tokens(model, text, base=self._base)
        with self._as(None) as model:
            base_logprobs = score_tokens(model, text, base=self._base)
        return ProbeScores(text=text, candidate_logprobs=candidate_logprobs, base_logprobs=base_logprobs)

    @contextmanager
    def _as(self, who: str | None) -> Iterator[Any]:
        """The model as `who` sees it; None, and a parent that is not there, are the frozen original."""
        self._guard()
        if who is None or (who == PARENT and not self.has_parent):
            with self._adapted.disable_adapter():
                yield self._adapted
        else:
            self._adapted.set_adapter(who)
            yield self._adapted


def question_items(questions: Sequence[Question]) -> list[LearningItem]:
    """The held-out forms of the questions, with the answers that were taught."""
    return [
        LearningItem(id=f"{row}", prompt=question.paraphrase, answer=question.answer, episode_id=question.episode_id)
        for row, question in enumerate(questions)
    ]
