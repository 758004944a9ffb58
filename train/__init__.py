"""The model and its training: weights in, weights or adapters out.

Ray appears only in `launch` and `data.pipeline`.

model/      what is trained and served: the embedded base model, checked model folders
data/       documents in, clean text and token batches out
adapt/      LoRA adapters: build, save, load
continual/  learning items and replay, so that new knowledge does not push out the old
"""
