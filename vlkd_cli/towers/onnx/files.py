"""What belongs to an ONNX file: the tokenizer next to it, metadata inside it, and an int8 copy."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from vlkd_cli.builders.huggingface.save import save_tokenizer
from vlkd_cli.builders.sbert.word_vectors import StaticTokenizer, WhitespaceWords, WordTokenizer
from vlkd_cli.builders.tokenizers import ClipTokenizer, PaddedTokenizer
from vlkd_cli.builders.weight_files import first_line
from vlkd_cli.errors import UserError

MODEL = "model.onnx"
INT8 = "model.int8.onnx"


def save_text_input(tokenizer: object, folder: Path, length: int | None) -> str:
    """Write what makes token ids of texts; returns a line on how to use it.

    Args:
        length: of every text in tokens, where it is fixed; None: padded to the longest of a batch.
    """
    if isinstance(tokenizer, WordTokenizer):
        # Of a word that a vocabulary has twice the last row is read; the other's line is empty.
        lines = [""] * (max(tokenizer.rows.values()) + 1)
        for word, row in tokenizer.rows.items():
            lines[row] = word
        content = "".join(f"{line}\n" for line in lines)
        (folder / "words.txt").write_text(content, encoding="utf-8")
        return (
            "words.txt: the id of a word is its line, from 0; words are runs of letters and digits,"
            " looked up as written, else lower-cased; others are left out"
        )
    if isinstance(tokenizer, StaticTokenizer):
        (folder / "tokenizer.json").write_text(tokenizer.content, encoding="utf-8")
        return "tokenizer.json, by tokenizers.Tokenizer.from_file, without special tokens"
    if isinstance(tokenizer, WhitespaceWords):
        tokenizer.tokenizer.save(str(folder))
        return "sentence_transformers' tokenizer of word embeddings"
    if isinstance(tokenizer, PaddedTokenizer):
        tokenizer.tokenizer.tokenizer.save_pretrained(folder)
    else:
        save_tokenizer(tokenizer, folder)
    if isinstance(tokenizer, ClipTokenizer) and length is not None:
        return (
            "transformers.AutoTokenizer.from_pretrained(FOLDER)(texts, truncation=True), the ids of"
            f" each text filled up with {tokenizer.pad} to {length}"
        )
    padding = "True" if length is None else f"'max_length', max_length={length}"
    repairs = isinstance(tokenizer, ClipTokenizer | PaddedTokenizer)
    cleaned = "; HTML entities and broken Unicode are not repaired first" if repairs else ""
    return (
        f"transformers.AutoTokenizer.from_pretrained(FOLDER)(texts, padding={padding},"
        f" truncation=True){cleaned}"
    )


def add_metadata(path: Path, facts: Mapping[str, str]) -> None:
    """Write facts into an ONNX file, as `metadata_props`."""
    import onnx

    # Weights beyond 2 GB are in files of their own and stay there.
    model = onnx.load(str(path), load_external_data=False)
    onnx.helper.set_model_props(model, dict(facts))
    model.producer_name, model.producer_version = "vlkd", facts["vlkd_version"]
    onnx.save(model, str(path))


def read_metadata(path: Path) -> dict[str, str]:
    """The facts that `add_metadata` wrote."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return {each.key: each.value for each in model.metadata_props}


def quantize(path: Path, target: Path, what: str) -> None:
    """Write a copy with 8-bit weights, whose activations are quantized as they come (dynamic
    quantization).

    Raises:
        UserError: onnxruntime cannot quantize it.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The library recommends its own preprocessing on every call.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        # Unsigned weights: onnxruntime has no convolution of signed ones on CPUs.
        quantize_dynamic(
            str(path),
            str(target),
            weight_type=QuantType.QUInt8,
            extra_options={"DefaultTensorType": 1},
        )
    # The library raises exceptions of many kinds on graphs that it does not know.
    except Exception as error:
        target.unlink(missing_ok=True)
        raise UserError(
            f"{what}: onnxruntime cannot quantize it: {first_line(error)}. Leave out --int8."
        ) from error
    finally:
        root.setLevel(level)
