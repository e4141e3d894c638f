"""Elementary functions for Triton kernels in float32 and float64, each within 4 ulp of the exact value over its whole
range, exact at 0 and at infinity, NaN in gives NaN out, subnormals kept. csrc/flow/math.h is their counterpart.

Triton's own are approximate in float32: `tl.exp` is off by up to 64 ulp, `/` is div.full, `tl.log` flushes subnormals.
Its interpreter hides that, because numpy computes exactly. So in float32 these are made of additions, products, bit
operations and correctly rounded division alone: what the interpreter measures then holds on a GPU, and no kernel may
contain anything else. They are right with or without contraction of a * b + c to FMA. In float64 `exp` and `log` are
Triton's, those of libdevice and OCML, within 1 ulp. Triton 3.4 compiles correctly rounded division to div.rn.ftz;
there, and nowhere else, a subnormal quotient becomes 0.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def divide(x, y):
    """x / y, correctly rounded. Both are tensors of one dtype."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def reciprocal(x):
    """1 / x, correctly rounded."""
    return divide(tl.full(x.shape, 1, x.dtype), x)


@triton.jit
def sqrt(x):
    """The square root, correctly rounded."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def _copy_sign(magnitude, sign):
    """`magnitude`, which is not negative, with the sign of `sign`, that of a zero included."""
    if sign.dtype == tl.float64:
        bits = sign.to(tl.int64, bitcast=True) & -0x8000000000000000
        return (magnitude.to(tl.int64, bitcast=True) | bits).to(tl.float64, bitcast=True)
    else:
        bits = sign.to(tl.int32, bitcast=True) & -0x80000000
        return (magnitude.to(tl.int32, bitcast=True) | bits).to(tl.float32, bitcast=True)


@triton.jit
def _exp_parts(x):
    """(n, tail) with x = n ln 2 + r, |r| <= ln 2 / 2, and e^r = 1 + tail; n is an integer type.

    Adding 1.5 * 2^23 (2^52 in float64) rounds to an integer that then sits in the low mantissa bits. The first part of
    ln 2 is short enough for its product with n to be exact (Cody and Waite).
    """
    if x.dtype == tl.float64:
        shifted = x * 1.44269504088896341 + 6755399441055744.0
        n = shifted - 6755399441055744.0
        r = x - n * 6.93147180369123816490e-01
        r = r - n * 1.90821492927058770002e-10
        p = r * (1 / 6227020800) + 1 / 479001600  # Taylor: 1 / 13!, 1 / 12!, ...
        p = p * r + 1 / 39916800
        p = p * r + 1 / 3628800
        p = p * r + 1 / 362880
        p = p * r + 1 / 40320
        p = p * r + 1 / 5040
        p = p * r + 1 / 720
        p = p * r + 1 / 120
        p = p * r + 1 / 24
        p = p * r + 1 / 6
        p = p * r + 0.5
        return shifted.to(tl.int64, bitcast=True) - 0x4338000000000000, p * (r * r) + r
    else:
        shifted = x * 1.44269504088896341 + 12582912.0
        n = shifted - 12582912.0
        r = x - n * 0.693359375
        r = r - n * -2.12194440e-4
        p = r * 1.9875691500e-4 + 1.3981999507e-3
        p = p * r + 8.3334519073e-3
        p = p * r + 4.1665795894e-2
        p = p * r + 1.6666665459e-1
        p = p * r + 5.0000001201e-1
        return shifted.to(tl.int32, bitcast=True) - 0x4B400000, p * (r * r) + r


@triton.jit
def exp(x):
    """e^x."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        x = tl.minimum(x, 89.0, propagate_nan=tl.PropagateNan.ALL)
        x = tl.maximum(x, -104.0, propagate_nan=tl.PropagateNan.ALL)
        n, tail = _exp_parts(x)
        # 2^n is applied in two steps, so that overflow reaches infinity and subnormals round once.
        half = n >> 1
        scaled = ((1.0 + tail).to(tl.int32, bitcast=True) + (half << 23)).to(tl.float32, bitcast=True)
        return scaled * ((n - half + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def expm1_positive(y):
    """e^y - 1 for 0 <= y. It saturates at y = 88 (708 in float64), which is enough for every quotient it is used in."""
    if y.dtype == tl.float64:
        n, tail = _exp_parts(tl.minimum(y, 708.0, propagate_nan=tl.PropagateNan.ALL))
        scale = ((n + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        n, tail = _exp_parts(tl.minimum(y, 88.0, propagate_nan=tl.PropagateNan.ALL))
        scale = ((n + 127) << 23).to(tl.float32, bitcast=True)
    return tail * scale + (scale - 1.0)


@triton.jit
def tanh_sech2(x):
    """tanh x and its derivative, from one exponential and one division.

    1 - tanh^2 would be 0 beyond 9 in float32; with t = e^(2|x|) - 1 and r = 1 / (t + 2) the derivative is 4 r (1 - r).
    It is taken as 0 where it would be below the smallest normal number.
    """
    limit: tl.constexpr = 708.0 if x.dtype == tl.float64 else 87.0
    magnitude = 2.0 * tl.abs(x)
    t = expm1_positive(tl.minimum(magnitude, limit, propagate_nan=tl.PropagateNan.ALL))
    r = reciprocal(t + 2.0)
    sech2 = (4.0 * r) * (1.0 - r)
    return _copy_sign(t * r, x), tl.where(limit < magnitude, 0.0, sech2)


@triton.jit
def tanh(x):
    """The hyperbolic tangent."""
    value, _ = tanh_sech2(x)
    return value


@triton.jit
def sech2(x):
    """The derivative of tanh."""
    _, derivative = tanh_sech2(x)
    return derivative


@triton.jit
def log(x):
    """The natural logarithm: -infinity at 0, NaN below."""
    if x.dtype == tl.float64:
        return tl.log(x)
    else:
        tiny = x < 1.17549435e-38
        scaled = tl.where(tiny, x * 8388608.0, x)
        bits = scaled.to(tl.int32, bitcast=True) - 0x3F3504F3  # the mantissa ends up in [sqrt(1/2), sqrt(2))
        exponent = bits >> 23
        m = ((bits & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
        e = tl.where(tiny, exponent - 23, exponent).to(tl.float32)
        p = m * 7.0376836292e-2 - 1.1514610310e-1
        p = p * m + 1.1676998740e-1
        p = p * m - 1.2420140846e-1
        p = p * m + 1.4249322787e-1
        p = p * m - 1.6668057665e-1
        p = p * m + 2.0000714765e-1
        p = p * m - 2.4999993993e-1
        p = p * m + 3.3333331174e-1
        square = m * m
        y = m * square * p
        y = y + e * -2.12194440e-4
        y = y - 0.5 * square
        result = m + y + e * 0.693359375
        result = tl.where(x == 0.0, float("-inf"), result)
        result = tl.where(x < 0.0, float("nan"), result)
        return tl.where(x < float("inf"), result, x)  # +infinity and NaN pass through


@triton.jit
def scale_apart(x, exponent):
    """x 2^exponent with the first factor between sqrt(1/2) and sqrt(2), which so never leaves the range of numbers in a
    long product. What is not positive and normal stays: 0, infinity, NaN. `exponent` is int64 beside float64, else
    int32."""
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True)
        normal = (bits >= 0x0010000000000000) & (bits < 0x7FF0000000000000)
        shifted = bits - 0x3FE6A09E667F3BCD
        apart = ((shifted & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD).to(tl.float64, bitcast=True)
        added = shifted >> 52
    else:
        bits = x.to(tl.int32, bitcast=True)
        normal = (bits >= 0x00800000) & (bits < 0x7F800000)
        shifted = bits - 0x3F3504F3
        apart = ((shifted & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)
        added = shifted >> 23
    return tl.where(normal, apart, x), tl.where(normal, exponent + added, exponent)


@triton.jit
def log_scaled(x, exponent):
    """log(x 2^exponent)."""
    return log(x) + exponent.to(x.dtype) * 0.69314718055994530942


@triton.jit
def log1p_unit(u):
    """log(1 + u) for 0 <= u <= 1."""
    if u.dtype == tl.float64:
        # The rounding of 1 + u is undone by the ratio of u to what was added in fact.
        w = 1.0 + u
        added = w - 1.0
        zero = added == 0.0
        return tl.where(zero, u, tl.log(w) * (u / tl.where(zero, 1.0, added)))
    else:
        s = tl.div_rn(u, 2.0 + u)  # 2 atanh(u / (2 + u))
        q = s * s
        p = q * 2.0801367541e-01 + 1.7460892886e-01
        p = p * q + 2.2265080335e-01
        p = p * q + 2.8570291140e-01
        p = p * q + 4.0000010971e-01
        p = p * q + 6.6666666650e-01
        return 2.0 * s + s * (q * p)


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), from e^-|x| so that neither side overflows or cancels."""
    e = exp(-tl.abs(x))
    return divide(tl.where(x < 0.0, e, 1.0), 1.0 + e)


@triton.jit
def log_sigmoid(x):
    """log(sigmoid(x))."""
    return tl.where(x < 0.0, x, 0.0) - log1p_unit(exp(-tl.abs(x)))


@triton.jit
def softplus(x):
    """log(1 + e^x)."""
    return tl.where(x > 0.0, x, 0.0) + log1p_unit(exp(-tl.abs(x)))


@triton.jit
def atan(x):
    """The arc tangent."""
    a = tl.abs(x)
    if x.dtype == tl.float64:
        large = a > 2.41421356237309504880
        middle = a > 0.66
    else:
        large = a > 2.41421356
        middle = a > 0.414213562
    numerator = tl.where(large, -1.0, tl.where(middle, a - 1.0, a))
    denominator = tl.where(large, a, tl.where(middle, a + 1.0, 1.0))
    quarters = tl.where(large, 2.0, tl.where(middle, 1.0, 0.0)).to(x.dtype)
    s = divide(numerator, denominator)
    q = s * s
    if x.dtype == tl.float64:
        p = q * -8.750608600031904122785e-1 - 1.615753718733365076637e1
        p = p * q - 7.500855792314704667340e1
        p = p * q - 1.228866684490136173410e2
        p = p * q - 6.485021904942025371773e1
        d = q + 2.485846490142306297962e1
        d = d * q + 1.650270098316988542046e2
        d = d * q + 4.328810604912902668951e2
        d = d * q + 4.853903996359136964868e2
        d = d * q + 1.945506571482613964425e2
        rest = s * (q * (p / d)) + quarters * 3.061616997868382943065e-17  # the second part of pi / 4
        offset = quarters * 0.78539816339744830962
    else:
        p = q * -6.4593762778e-02 + 1.0746298434e-01
        p = p * q - 1.4264232553e-01
        p = p * q + 1.9999550076e-01
        p = p * q - 3.3333331813e-01
        rest = s * (q * p)
        offset = quarters * 0.785398163397
    return _copy_sign(offset + (s + rest), x)
