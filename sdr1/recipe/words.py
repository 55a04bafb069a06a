"""The sandbox's tokenizer: CLIP's byte-pair format, in which every word of the vocabulary is one token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from sdr1.base.files import disk_errors
from sdr1.sandbox.captions import VOCABULARY

LENGTH = 16
START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(work: Path, folder: Path) -> CLIPTokenizer:
    """The tokenizer, 16 tokens long, padded with the end token, with its files in `folder`.

    Words of equal frequency get their numbers in an order that changes from run to run. So it is made once, in `work`.
    """
    made = work / "tokenizer"
    if not (made / "tokenizer.json").exists():
        _make(made)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return CLIPTokenizer.from_pretrained(folder)


def _make(folder: Path) -> None:
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=letters,
        show_progress=False,
    )
    model.train_from_iterator([word for word in VOCABULARY for _ in range(2)], trainer)
    learned = json.loads(model.to_str())["model"]
    tokens = list(dict.fromkeys([*letters, *(letter + "</w>" for letter in letters), *learned["vocab"]]))
    vocabulary = {token: index for index, token in enumerate([*tokens, START, END])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [" ".join(pair) for pair in learned["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=LENGTH,
        pad_token=END,
        unk_token=END,
    )
    with disk_errors(folder):
        tokenizer.save_pretrained(folder)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids int64 (N, 16), as the pipeline makes them."""
    return tokenizer(
        texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
