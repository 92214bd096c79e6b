"""A byte-level BPE of 2048 pieces, learnt on the training documents."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END, PAD = "<|endoftext|>", "<|pad|>"
VOCAB_TOKENS = 2048


def train_tokenizer(texts: Iterable[str], vocab_tokens: int = VOCAB_TOKENS) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016, algorithm 1, over the 256 bytes as in GPT-2); every digit stands alone.

    ids 0 and 1 are <|endoftext|> and <|pad|>; no normaliser, so that decoding gives the bytes back.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_tokens,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context_tokens: int) -> None:
    """tokenizer.json and tokenizer_config.json as `AutoTokenizer.from_pretrained(folder)` reads them."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=context_tokens,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
