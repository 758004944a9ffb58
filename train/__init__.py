"""The model and its training: weights in, weights or adapters out.

Ray appears only in `launch` and `data.pipeline`.

model/      what is trained and served: the Mixture-of-Experts transformer, the embedded base model, plans to train
pretrain/   packed tokens in, a trained model out
data/       documents in, clean text and token batches out
adapt/      LoRA adapters: build, save, load
dtype       the precision that hardware is fast in; allocator: malloc for training on a CPU
continual/  learning items and replay, so that new knowledge does not push out the old
"""
