"""TensorPiece: how an engine tells the checkpoint which box of which logical tensor it holds."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class TensorPiece:
    """A box of one logical tensor that this process holds: saved from, and loaded into, `tensor`."""

    kind: str
    """weight, exp_avg, exp_avg_sq, momentum_buffer, buffer."""
    name: str
    """Logical parameter name, that of MoETransformer.state_dict() of the undivided model."""
    shape: tuple[int, ...]
    """Of the whole logical tensor (experts: all of them, on axis 0)."""
    offsets: tuple[int, ...]
    """Where this piece begins in it; the piece's extent is tensor.shape."""
    tensor: Tensor
    """A view of the training state, any strides; may be empty."""
    is_owner: bool
    """Whether this process saves it: replicas are saved once."""
