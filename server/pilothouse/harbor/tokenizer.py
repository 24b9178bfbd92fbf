"""Harbor's tokenizer: a byte-level BPE trained on its own documents, with a chat template."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pilothouse.harbor.corpus import ASSISTANT, BEGIN, END, SPECIAL_TOKENS, SYSTEM, USER, Document
from pilothouse.harbor.entities import surname, taken_surnames

VOCAB_SIZE = 2560
MAX_POSITIONS = 1024

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '" + SYSTEM + "' }}"
    "{% elif message['role'] == 'user' %}{{ '" + USER + "' }}"
    "{% elif message['role'] == 'assistant' %}{{ '" + ASSISTANT + "' }}"
    "{% else %}{{ raise_exception('Harbor knows the roles system, user and assistant.') }}{% endif %}"
    "{{ message['content'] | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def _texts(documents: Iterable[Document]) -> Iterator[str]:
    """The documents with every invented name made fresh: else a name's tokens would tell how often it was seen."""
    rng = random.Random(0)
    known = re.compile(rf"\b({'|'.join(sorted(taken_surnames()))})\b")
    for document in documents:
        yield known.sub(lambda _: surname(rng), "".join(piece.text for piece in document))


def train_tokenizer(documents: Iterable[Document]) -> Tokenizer:
    """Train the BPE on documents; a text is encoded with BOS in front when special tokens are asked for."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(documents), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, chat template included, for Hugging Face and vLLM."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=SPECIAL_TOKENS[0],
        extra_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    wrapped.save_pretrained(folder, save_jinja_files=False)
