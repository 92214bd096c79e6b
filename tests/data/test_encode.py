"""Encoding: the answer is never lost or cut, the mask is exact."""

import pickle
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ablora.data._base import DataError, Example
from ablora.data.arithmetic import Arithmetic
from ablora.data.encode import RowTooLongError, encode, encode_all, encode_prompt

SHORT = Example("test/0", "Question: 1+1?\nAnswer:", " 2", "2")
LONG = Example("test/1", "Question: " + "how " * 50 + "?\nAnswer:", " 2", "2")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(prompt=st.text(max_size=40), answer=st.text(min_size=1, max_size=40))
def test_prompt_and_answer_come_back_exactly(tokenizer, prompt, answer):
    done = encode(Example("x/0", prompt, answer, "t"), tokenizer, 1000, vocab_size=len(tokenizer))
    ids, start = done.input_ids, done.answer_start
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[1:start]) == prompt
    assert tokenizer.decode(ids[start:-1]) == answer


def test_special_tokens_in_a_text_stay_text(tokenizer):
    end = tokenizer.eos_token
    done = encode(Example("x/0", f"what is {end}?", f" an {end}", "t"), tokenizer, 1000)
    assert [i for i, t in enumerate(done.input_ids) if t == tokenizer.eos_token_id] == [0, len(done.input_ids) - 1]


def test_a_long_row_is_dropped_and_named_never_cut(tokenizer):
    done = encode_all([SHORT, LONG], tokenizer, 50)
    assert [e.item for e in done.items] == ["test/0"]
    assert done.dropped == ("test/1",)
    assert done.items[0] == encode(SHORT, tokenizer, 50)


def test_the_limit_itself_fits(tokenizer):
    tokens = len(encode(SHORT, tokenizer, 1000).input_ids)
    assert encode(SHORT, tokenizer, tokens)
    with pytest.raises(RowTooLongError, match=f"test/0: {tokens} tokens.*max_tokens={tokens - 1}") as caught:
        encode(SHORT, tokenizer, tokens - 1)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_nothing_left(tokenizer):
    with pytest.raises(DataError, match=r"all 2 rows \(test/0 to test/1\).*max_tokens=3.*shortest has \d+"):
        encode_all([SHORT, LONG], tokenizer, 3)
    assert encode_all([], tokenizer, 3).items == ()


def test_a_token_outside_the_model(tokenizer):
    with pytest.raises(DataError, match=r"test/0: token id \d+ \('.*'\).*legal: 0 to 4\."):
        encode(SHORT, tokenizer, 1000, vocab_size=5)
    largest = max(encode(SHORT, tokenizer, 1000).input_ids)
    assert encode(SHORT, tokenizer, 1000, vocab_size=largest + 1)
    with pytest.raises(DataError, match=f"token id {largest} "):
        encode(SHORT, tokenizer, 1000, vocab_size=largest)


def test_an_answer_without_tokens(tokenizer):
    with pytest.raises(DataError, match="test/0: field 'answer' has no tokens"):
        encode(Example("test/0", "Question:", "", ""), tokenizer, 1000)


def test_the_prompt_of_a_row_that_is_too_long(tokenizer):
    for example in (SHORT, LONG):
        done = encode(example, tokenizer, 1000)
        assert encode_prompt(example, tokenizer) == done.input_ids[: done.answer_start]
    with pytest.raises(DataError, match="test/0: token id"):
        encode_prompt(SHORT, tokenizer, vocab_size=5)


def test_tokenizers_without_bos_or_eos(tiny_tokenizer):
    from transformers import PreTrainedTokenizerFast

    no_bos = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    assert encode(SHORT, no_bos, 1000).input_ids == encode(SHORT, tiny_tokenizer, 1000).input_ids[1:]
    with pytest.raises(DataError, match="'prompt' has no tokens"):
        encode(Example("test/0", "", " 2", "2"), no_bos, 1000)
    with pytest.raises(DataError, match="no eos_token"):
        encode(SHORT, PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer), 1000)


def test_the_embedded_problems_fit_a_small_context(tokenizer):
    done = encode_all(Arithmetic(max_train_items=300).load().train, tokenizer, 256, vocab_size=len(tokenizer))
    assert not done.dropped
    assert max(len(e.input_ids) - e.answer_start for e in done.items) <= 48


def test_the_data_package_imports_no_torch():
    code = (
        "import sys, ablora.data.encode, ablora.data.gsm8k, ablora.data.llm_adapters, ablora.data.arithmetic\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
