"""A Llama of three layers with a tokenizer whose tokens are words: what the examples' tests load from a folder."""

from __future__ import annotations

from collections import Counter

import tokenizers
import torch
import transformers


def save_tiny_llama(folder, rows, words=None, spread=0.3):
    """With the `words` most common words of the rows' texts (None: all), and weights of standard deviation `spread`."""
    counted = Counter(word for row in rows for word in (row["prompt"] + " " + row["response"]).split())
    vocabulary = {"<unk>": 0, "</s>": 1} | {word: 2 + i for i, (word, _) in enumerate(counted.most_common(words))}
    inside = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inside.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inside, unk_token="<unk>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=1, pad_token_id=1, initializer_range=spread,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
