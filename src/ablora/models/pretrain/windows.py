"""Documents as tokens, and the packed windows of every step."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32
from tokenizers import Tokenizer

from ablora.models.pretrain.corpus import Document
from ablora.models.pretrain.recipe import REPEATS, Recipe

END_ID = 0


def encode(tokenizer: Tokenizer, documents: Sequence[Document]) -> list[Int32[np.ndarray, " tokens"]]:
    """Token ids of each document, without special tokens."""
    encodings = tokenizer.encode_batch([d.text for d in documents], add_special_tokens=False)
    return [np.array(e.ids, dtype=np.int32) for e in encodings]


class Windows:
    """Step -> windows of a mix that is shuffled anew each epoch; a pure function of (documents, recipe, step)."""

    def __init__(self, ids: Sequence[np.ndarray], kinds: Sequence[str], recipe: Recipe) -> None:
        self.ids, self.recipe = ids, recipe
        self.members = np.repeat(np.arange(len(ids)), [REPEATS[kind] for kind in kinds])
        tokens = sum(len(ids[i]) + 1 for i in self.members.tolist())
        # the random offset costs up to one window
        self.epoch_windows = (tokens - recipe.window_tokens) // recipe.window_tokens
        if self.epoch_windows < 1:
            raise ValueError(f"documents: {tokens} tokens do not fill one window of {recipe.window_tokens}")
        self._epoch, self._packed = -1, np.zeros((0, 0), dtype=np.int32)

    def _pack(self, epoch: int) -> Int32[np.ndarray, "windows window_tokens"]:
        """One epoch: every document behind its <|endoftext|>, cut into windows without padding, both orders random."""
        random = np.random.default_rng([self.recipe.seed, epoch])
        end = np.array([END_ID], dtype=np.int32)
        order = random.permutation(self.members).tolist()
        stream = np.concatenate([part for i in order for part in (end, self.ids[i])])
        offset = int(random.integers(self.recipe.window_tokens))
        size = self.epoch_windows * self.recipe.window_tokens
        packed = stream[offset : offset + size].reshape(self.epoch_windows, self.recipe.window_tokens)
        return packed[random.permutation(self.epoch_windows)]

    def batch(self, step: int) -> Int32[np.ndarray, "batch window_tokens"]:
        """The windows of one step; a step may straddle two epochs."""
        rows = []
        for place in range(step * self.recipe.batch_windows, (step + 1) * self.recipe.batch_windows):
            epoch, row = divmod(place, self.epoch_windows)
            if epoch != self._epoch:
                self._epoch, self._packed = epoch, self._pack(epoch)
            rows.append(self._packed[row])
        return np.stack(rows)


def held_out_windows(ids: Sequence[np.ndarray], window_tokens: int, windows: int) -> Int32[np.ndarray, "w t"]:
    """Evenly spaced windows of the packed held-out text, for the training log's curve."""
    end = np.array([END_ID], dtype=np.int32)
    stream = np.concatenate([part for each in ids for part in (end, each)])
    cut = stream[: len(stream) // window_tokens * window_tokens].reshape(-1, window_tokens)
    return cut[np.unique(np.linspace(0, len(cut) - 1, windows).astype(int))]
