"""A random two-layer Llama with a tokenizer of its own, and random PEFT adapters for it, as folders. Seconds to make.

Weights are wide (standard deviation .3 instead of .02), so that the best token leads by far more than rounding errors
and adapters change the answers. Head size 32 is the smallest that vLLM's CPU attention takes.
"""

from pathlib import Path

import torch

TEXTS = [
    "The capital of France is Paris, and the river through it is the Seine.",
    "A lighthouse stands on the northern cape; its lamp was lit in 1871.",
    "Adapters are small matrices that are added to the weights of a frozen model.",
    "Which bird lays its eggs in the nests of others? The cuckoo does.",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_tiny_llama(folder: Path, *, seed: int = 0) -> Path:
    """A Hugging Face folder: hidden 64, 2 layers, 2 heads, float32; the tokenizer adds <s> by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special_tokens = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_tiny_moe(folder: Path, *, tokenizer_from: Path, seed: int = 0) -> Path:
    """The project's own Mixture of Experts of the same size, 4 experts, in the layout of Mixtral, float32."""
    from train.model.config import MoEConfig
    from train.model.transformer import MoETransformer

    torch.manual_seed(seed)
    config = MoEConfig(
        vocab_size=384,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_experts=4,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    return MoETransformer(config, dtype=torch.float32).save_pretrained(folder, tokenizer_from=tokenizer_from)


def write_adapter(folder: Path, *, base: Path, seed: int, rank: int = 8) -> Path:
    """A PEFT folder with random A and B on all linear layers of `base`."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(0.0, 0.2, generator=generator)
    adapted.save_pretrained(folder)
    return folder
