"""Numbers rounded to bfloat16, and pairs of them as the kernels take them."""
import ml_dtypes
import numpy as np

SMALLEST = np.float32(2.0**-126)  # that is normal


def rounded(x):
    """The nearest bfloat16 as float32, subnormal ones zero."""
    near = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    return np.where(np.abs(near) < SMALLEST, np.copysign(np.float32(0), near), near)


def paired(x):
    """Rows [n, depth] as pairs [n, depth / 2, 2], the first of two behind the second."""
    bits = rounded(x).view(np.uint32) >> 16
    return np.ascontiguousarray(bits.astype(np.uint16).reshape(len(x), -1, 2)[:, :, ::-1])
