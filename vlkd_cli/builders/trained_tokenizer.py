"""A word-piece tokenizer made from the captions at hand. It travels in the run's checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vlkd_cli.builders.backbone import BuildContext
from vlkd_cli.builders.tokenizers import well_formed
from vlkd_cli.builders.weight_files import first_line
from vlkd_cli.builders.word_pieces import CONTINUES, MAX_LETTERS, learn_pieces
from vlkd_cli.distributed import collectives, runtime
from vlkd_cli.errors import CheckpointError, RecipeError, UserError
from vlkd_cli.whole_file import whole_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerFast

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
MAX_LETTERS_AT_ONCE = 10_000


def trained_tokenizer(
    context: BuildContext, *, vocabulary_size: int
) -> tuple[PreTrainedTokenizerFast, dict[str, bytes]]:
    """A transformers tokenizer of at most `vocabulary_size` lower-case word pieces, and the file
    that checkpoints must hold, by its path in the run folder.

    It is read from the files of the checkpoint whose weights the tower gets, or from
    `RUN/tokenizers/TOWER.json`; else trained on the captions by the first process, given to the
    others, and written there. The same captions give the same tokenizer.

    Raises:
        CheckpointError: the stored tokenizer is damaged, or missing where no captions are given.
        RecipeError: a vocabulary of this size has no room for the special tokens.
    """
    from transformers import PreTrainedTokenizerFast

    content: str | None = None
    problem: UserError | None = None
    if runtime.is_main():
        try:
            content = _content(context, vocabulary_size)
        except UserError as error:
            problem = error
    content, problem = collectives.broadcast_object((content, problem))
    if content is None:
        assert problem is not None
        raise problem
    words = PreTrainedTokenizerFast(tokenizer_object=_read(content), **SPECIAL)
    return words, {_file_name(context.tower): content.encode("utf-8")}


def _file_name(tower: str) -> str:
    return f"tokenizers/{tower}.json"


def _content(context: BuildContext, vocabulary_size: int) -> str:
    name = _file_name(context.tower)
    file = None if context.run_folder is None else context.run_folder / name
    if name in context.files:
        return _checked(context.files[name], f"{name} in the checkpoint", context.tower)
    if file is not None and file.is_file():
        return _checked(file.read_bytes(), str(file), context.tower)
    if context.captions is None:
        raise CheckpointError(
            f"tower '{context.tower}': `tokenizer: trained` has no captions to train on, and a"
            f" stored one is neither in the checkpoint nor in {file or name}. A new one would give"
            " other token ids: put the file of the run back, or train again."
        )
    least = len(SPECIAL) + 1
    if vocabulary_size < least:
        raise RecipeError(
            f"tower '{context.tower}': config.vocab_size: {vocabulary_size} has no room for the"
            f" {len(SPECIAL)} special tokens. Choose more than {least}."
        )
    content = _train(context.captions(), vocabulary_size)
    if not content:
        raise RecipeError(
            f"tower '{context.tower}': `tokenizer: trained` found no words in the captions. Train"
            " with data that has captions, or use `tokenizer: clip`."
        )
    if file is not None:
        _write(file, content)
    return content


def _checked(stored: bytes, where: str, tower: str) -> str:
    """The stored tokenizer, if it is one.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        content = stored.decode("utf-8")
        tokenizer = _read(content)
        missing = [word for word in SPECIAL.values() if tokenizer.token_to_id(word) is None]
        if missing:
            raise ValueError(f"it has no token {missing[0]}")
    # The library raises plain exceptions of its own.
    except Exception as error:
        raise CheckpointError(
            f"tower '{tower}': {where} is not a tokenizer ({first_line(error)}). Put the file of"
            " the run back, or train again."
        ) from error
    return content


def _read(content: str) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(content)


def _train(captions: Iterable[str], vocabulary_size: int) -> str:
    """The tokenizer as JSON; empty where the captions hold no words."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts = _count_words(captions, normalizer, splitter)
    if not counts:
        return ""
    specials = list(SPECIAL.values())
    pieces = [*specials, *learn_pieces(counts, vocabulary_size - len(specials))]
    tokenizer = Tokenizer(
        models.WordPiece(
            vocab={piece: number for number, piece in enumerate(dict.fromkeys(pieces))},
            unk_token=SPECIAL["unk_token"],
            max_input_chars_per_word=MAX_LETTERS,
            continuing_subword_prefix=CONTINUES,
        )
    )
    tokenizer.add_special_tokens(specials)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUES)
    start, end = (SPECIAL[key] for key in ("cls_token", "sep_token"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, tokenizer.token_to_id(start)), (end, tokenizer.token_to_id(end))],
    )
    return str(tokenizer.to_str())


def _count_words(
    captions: Iterable[str], normalizer: Normalizer, splitter: PreTokenizer
) -> Counter[str]:
    """How often each word of the normalized captions occurs."""
    # The same run of letters comes up again and again, so it is normalized once.
    runs: Counter[str] = Counter()
    for caption in captions:
        runs.update(caption.split(" "))
    counts: Counter[str] = Counter()
    for run, number in runs.items():
        for start in range(0, len(run), MAX_LETTERS_AT_ONCE):
            part = well_formed(run[start : start + MAX_LETTERS_AT_ONCE])
            for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(part)):
                counts[word] += number
    return counts


def _write(file: Path, content: str) -> None:
    """Whole or not at all: a run that is killed here must not find half a tokenizer when it
    resumes."""
    with whole_file(file) as partial:
        partial.write_text(content, encoding="utf-8")
