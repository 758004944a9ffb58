"""The model: a Mixture-of-Experts transformer, its folders in Hugging Face's layout, and plans to train it.

config        MoEConfig: the shape, checked before anything is allocated; presets has named ones
transformer   MoETransformer: forward, loss, recomputation; generate continues prompts, cache keeps their keys
attention     FlashAttentionLayer and SparseAttention; attention_kernels computes them, segments says who sees whom
layers        TokenEmbedding, RMSNorm and RoPEEmbedding
ranks         ModelRanks: how a model is divided among processes; collectives are the exchanges between them
inputs        what a forward pass is given, checked
moe           ExpertRouter and MoELayer; experts computes, dispatch sends rows between ranks, balance keeps the load even
loss          the head, and the loss without all logits
checkpoint_hf model folders in and out; hf_layout knows their words, hf_families the families
upcycle       a dense model into experts, more experts into a model
embedded      the base model that comes with the installation, and the check of any model folder
planner       ranked parallel plans; costs, plan and estimate are its parts, published its check
"""
