"""The formula that all starts from singular triplets share; which triplets is what distinguishes them."""

from jaxtyping import Float
from torch import Tensor

from ablora.method.init._base import Start, Triplets


def balanced(triplets: Triplets, scale: float | Float[Tensor, " rank"]) -> Start:
    """Split each singular value evenly over both factors, so that s B A is the chosen part of W, whatever s.

    A_i = sqrt(sigma_i / s) v_i,   B_i = sqrt(sigma_i / s) u_i,   hence s sum_i B_i A_i^T = sum_i sigma_i u_i v_i^T.
    """
    root = (triplets.sigma / scale).sqrt()[:, None]
    return Start(A=root * triplets.v, B=root * triplets.u)
