"""The two texts that an item is put into."""

_INDENT = " " * 16


def question_prompt(question: str, extra: str = "") -> str:
    """The short neutral frame: "Question: {question}\\nAnswer:"; the answer follows after a blank.

    `extra` (a row's `input`, usually "") stands on a line below the question.
    """
    asked = "\n".join(part.strip() for part in (question, extra) if part)
    return f"Question: {asked}\nAnswer:"


def llm_adapters_prompt(instruction: str, extra: str) -> str:
    """The training frame of LLM-Adapters (finetune.py, `generate_prompt`), the answer following at once.

    The two blanks after "request." and the indent of 16 in front of every line, empty ones too, are in the published
    string.
    """
    given = ", paired with an input that provides further context" if extra else ""
    head = f"Below is an instruction that describes a task{given}. "
    head += "Write a response that appropriately completes the request.  \n"
    middle = ["### Input:", extra, ""] if extra else []
    lines = ["### Instruction:", instruction, "", *middle, "### Response:", ""]
    return head + "".join(f"\n{_INDENT}{line}" for line in lines)
