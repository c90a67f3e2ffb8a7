"""A word-piece tokenizer made from the captions at hand, kept in the run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vlkd_cli.distributed import collectives, runtime
from vlkd_cli.errors import RecipeError

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def trained_tokenizer(
    tower: str,
    *,
    vocabulary_size: int,
    captions: Callable[[], Iterable[str]] | None,
    run_folder: Path | None,
) -> Any:
    """A transformers tokenizer of at most `vocabulary_size` lower-case word pieces.

    It is read from `RUN/tokenizers/TOWER.json` where that exists; else trained on the captions by
    the first process, given to the others, and written there.

    Raises:
        RecipeError: there is neither a file nor captions.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    file = None if run_folder is None else run_folder / "tokenizers" / f"{tower}.json"
    content: str | None = None
    problem: str | None = None
    if runtime.is_main():
        if file is not None and file.is_file():
            content = file.read_text(encoding="utf-8")
        elif captions is None:
            problem = (
                f"tower '{tower}': `tokenizer: trained` needs captions to learn from, and none are"
                " at hand. Train with data, load the tower by `run`, or use `tokenizer: clip`."
            )
        else:
            content = _train(captions(), vocabulary_size)
            if file is not None:
                _write(file, content)
    content, problem = collectives.broadcast_object((content, problem))
    if content is None:
        raise RecipeError(problem or f"tower '{tower}': no tokenizer.")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(content), **SPECIAL)


def _train(captions: Iterable[str], vocabulary_size: int) -> str:
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size, special_tokens=list(SPECIAL.values()), show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    start, end = (SPECIAL[key] for key in ("cls_token", "sep_token"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, tokenizer.token_to_id(start)), (end, tokenizer.token_to_id(end))],
    )
    return tokenizer.to_str()


def _write(file: Path, content: str) -> None:
    """Whole or not at all: a run that is killed here must not find half a tokenizer when it
    resumes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(content, encoding="utf-8")
    os.replace(partial, file)
