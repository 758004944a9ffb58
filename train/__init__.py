"""The model and its training: weights in, weights or adapters out.

Ray appears only in `launch` and `data.pipeline`.

model/      what is trained and served: the Mixture-of-Experts transformer, the embedded base model, plans to train
pretrain/   packed tokens in, a trained model out
data/       documents in, clean text and token batches out
adapt/      LoRA adapters: build, save, load
toml_file   configuration files: read, changed, their paths; files: what must survive a power cut
dtype       the precision that hardware is fast in; allocator: malloc for training on a CPU
continual/  learning items and replay, so that new knowledge does not push out the old
"""

import os

# transformers imports torchao where it is installed, and that tells of each compiled extension which is not for this machine.
# None of them is used: the float8 of pre-training is plain torch.
os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
