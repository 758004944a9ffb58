"""TokenBatch: inputs, labels, documents and positions of packed rows are what the model takes."""

from pydoc_data import topics

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.batch import IGNORE, PADDING, TokenBatch, TokenRows, build_batch
from train.model import loss
from train.model.presets import preset
from train.model.transformer import MoETransformer

END = 256
Row = list[int]


def _build(rows: list[Row], *, num_valid: list[int] | None = None, **options: bool) -> TokenBatch:
    array = np.array(rows, np.uint16)
    valid = [array.shape[1]] * len(rows) if num_valid is None else num_valid
    return build_batch(TokenRows.of(array, np.array(valid)), end_of_document_id=END, **options)


def _by_hand(
    row: Row, *, num_valid: int, mask_documents: bool, predict_across_documents: bool
) -> tuple[Row, Row, Row, Row]:
    """One token after another, as the docstrings say it."""
    labels, documents, positions = [], [], []
    document = position = 0
    for i, token in enumerate(row[:-1]):
        is_fill = i >= num_valid or (token == END and i > 0 and row[i - 1] == END)
        has_label = i + 1 < num_valid and not is_fill
        if token == END:
            has_label &= predict_across_documents and row[i + 1] != END
        labels.append(row[i + 1] if has_label else IGNORE)
        if mask_documents:
            documents.append(PADDING if is_fill else document)
            positions.append(0 if is_fill else position)
        else:
            documents.append(PADDING if is_fill else 0)
            positions.append(0 if is_fill else i)
        position += 1
        if token == END:
            document, position = document + (not is_fill), 0
    return row[:-1], labels, documents, positions


@pytest.mark.slow
@given(st.data(), st.integers(1, 300), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=200)
def test_a_batch_is_what_a_loop_over_its_tokens_makes(
    data: st.DataObject, length: int, mask_documents: bool, predict_across: bool
) -> None:
    token = st.sampled_from([1, 2, 3, END])
    row = data.draw(st.lists(token, min_size=length + 1, max_size=length + 1))
    num_valid = data.draw(st.integers(0, length + 1))
    options = {"mask_documents": mask_documents, "predict_across_documents": predict_across}
    batch = _build([row], num_valid=[num_valid], **options)
    found = (batch.input_ids, batch.labels, batch.document_ids, batch.position_ids)
    assert tuple(array[0].tolist() for array in found) == _by_hand(row, num_valid=num_valid, **options)
    assert batch.num_loss_tokens == np.count_nonzero(batch.labels != IGNORE)


def test_the_masks_of_a_row_read_as_documented() -> None:
    batch = _build([[10, 11, END, 20, END, END, END, 30, 31]])
    assert batch.labels.tolist() == [[11, END, IGNORE, END, IGNORE, IGNORE, IGNORE, 31]]
    assert batch.document_ids.tolist() == [[0, 0, 0, 1, 1, PADDING, PADDING, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 0, 0]]


def test_labels_are_those_that_the_model_derives_from_the_documents() -> None:
    assert loss.IGNORE == IGNORE
    rows = _rows_of_text(length=256)
    batch = build_batch(TokenRows.of(rows, np.full(len(rows), 257)), end_of_document_id=END)
    derived = loss.next_token_labels(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.document_ids))
    assert np.array_equal(batch.labels[:, :-1], derived.numpy()[:, :-1])
    assert len(np.unique(batch.document_ids)) > 2


def _rows_of_text(*, length: int) -> npt.NDArray[np.uint16]:
    """Paragraphs of the Python reference as bytes, one after another."""
    texts = [part.encode() for text in topics.topics.values() for part in text.split("\n\n")[:3] if part]
    tokens = [*(token for text in texts for token in (*text, END))]
    count = (len(tokens) - 1) // length
    return np.stack([np.array(tokens[i * length : (i + 1) * length + 1], np.uint16) for i in range(count)])


def test_the_model_has_the_same_loss_on_packed_rows_as_on_their_documents_alone() -> None:
    torch.manual_seed(0)
    model = MoETransformer(preset("tiny").model_copy(update={"initializer_range": 0.2})).eval()
    rows = _rows_of_text(length=192)[:4]
    num_valid = np.array([193, 193, 193, 100])
    batch = build_batch(TokenRows.of(rows, num_valid), end_of_document_id=END)
    with torch.inference_mode():
        packed = model(**batch.to_torch())
        loss_sum, num_tokens = 0.0, 0
        for row, valid in zip(rows.astype(np.int64), num_valid, strict=True):
            for document in np.split(row[:valid], np.flatnonzero(row[:valid] == END) + 1):
                if len(document) > 1:
                    inputs, labels = (torch.from_numpy(part).unsqueeze(0) for part in (document[:-1], document[1:]))
                    alone = model(inputs, labels=labels)
                    loss_sum, num_tokens = loss_sum + float(alone.loss_sum), num_tokens + labels.numel()
    assert int(packed.num_loss_tokens) == num_tokens == batch.num_loss_tokens
    assert float(packed.loss_sum) == pytest.approx(loss_sum, rel=1e-5)
    unmasked = build_batch(TokenRows.of(rows, num_valid), end_of_document_id=END, mask_documents=False)
    with torch.inference_mode():
        assert float(model(**unmasked.to_torch()).loss_sum) != pytest.approx(loss_sum, rel=1e-3)


def test_tensors_share_the_memory_of_the_batch() -> None:
    batch = _build([[1, 2, END, 4]])
    tensors = batch.to_torch()
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "input_ids": torch.int64, "labels": torch.int64, "document_ids": torch.int32, "position_ids": torch.int64
    }  # fmt: skip
    tensors["labels"][0, 0] = 7
    assert batch.labels[0, 0] == 7
    assert batch.to_torch("cpu")["input_ids"].tolist() == [[1, 2, END]]
