"""The layout of GPTQ checkpoints."""

import torch
from torch import Tensor


def dequantize(qweight: Tensor, qzeros: Tensor, scales: Tensor, index: Tensor) -> Tensor:
    """Return the f32 weight [out, in] of GPTQ's layout (v2: zero points as they are).

    ``qweight`` int32 [in/8, out] has eight inputs a word, ``qzeros`` int32 [groups, out/8] eight
    outputs, both from the lowest bits up; ``scales`` [groups, out]; ``index`` [in] is the group of
    each input.
    """
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    codes = (qweight.unsqueeze(1) >> shifts.view(1, 8, 1)) & 15
    zeros = (qzeros.unsqueeze(2) >> shifts.view(1, 1, 8)) & 15
    codes, zeros = codes.reshape(-1, scales.shape[1]), zeros.reshape(scales.shape)
    groups = index.long()
    values = (codes - zeros[groups]).to(torch.float32) * scales.to(torch.float32)[groups]
    return values.t().contiguous()
